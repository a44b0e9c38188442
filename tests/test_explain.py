"""Grad-CAM heat maps and the evidence of frames, against their formulas and captum."""

import copy
from pathlib import Path

import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam
from conftest import ROOT
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from stvid.clip import ClipSpec
from stvid.evaluation.explain import explain, frame_evidence
from stvid.models.base import VideoModel
from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.conv3d import Conv3D
from stvid.models.framewise import FramewiseModel
from stvid.preprocess import Preprocess, run_model
from stvid.run.checkpoint import TrainedModel
from stvid.run.model import build_model

CONFIGS = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in (ROOT / "configs/model").glob("*.yaml")}
ENCODERS = {
    "resnet18": {},
    "swin_t": {},  # channels last
    "vit_b_32": {"image_size": 64},  # only the class token influences the output of the last layer
    "efficientnet_lite0": {},
    "timm/resnet10t": {},
    "timm/deit_tiny_distilled_patch16_224": {"image_size": 64},  # two tokens before the image tokens
}
MODELS = CONFIGS | {name: {**CONFIGS["cnn_lstm"], "encoder": name, **more} for name, more in ENCODERS.items()}


def trained_with(model, clip):
    return TrainedModel(
        path=Path("best.ckpt"),
        folder=Path("run"),
        model=model.eval(),
        clip=clip,
        class_names=("a", "b", "c"),
        protocol={"num_clips": 1, "num_crops": 1},
        config={},
        epoch=1,
    )


def noise(clip, *, num_frames=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_frames, clip.channels, *clip.size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_has_a_heat_map(name):
    torch.manual_seed(0)
    clip = ClipSpec(num_frames=6, size=64, input="rgb_diff" if name in ("cnn_lstm", "c3d", "resnet18") else "rgb")
    model = build_model(MODELS[name], num_classes=3, in_channels=clip.channels, pretrained=False)
    trained, frames = trained_with(model, clip), noise(clip, num_frames=6)
    for index in range(3):  # with random weights, nothing may support one of them
        found = explain(trained, frames, index)
        assert found.heat_THW.shape == (6, 64, 64)
        assert found.heat_THW.dtype == torch.float32
        assert found.heat_THW.isfinite().all()
        assert found.heat_THW.min() >= 0
        assert (found.evidence_T is not None) == isinstance(model, FramewiseModel)
        if isinstance(model, FramewiseModel):
            assert found.evidence_T.shape == (6,)
            assert found.evidence_T.isfinite().all()
        if found.heat_THW.max() == 1:
            return
    raise AssertionError("no heat for any class")


def test_heat_of_a_3d_network_is_grad_cam_by_its_formula():
    torch.manual_seed(0)
    clip = ClipSpec(num_frames=8, size=32)
    model = Conv3D(num_classes=3, widths=[4, 6], strides=[[1, 2, 2], [2, 2, 2]]).eval()
    frames = noise(clip)
    x = Preprocess(clip=clip)(frames[None])
    for layer in model.layers:
        x = layer(x)
    x.retain_grad()
    model.head(x.mean(dim=(2, 3, 4)))[0, 2].backward()
    expected = F.relu((x.grad.mean(dim=(2, 3, 4), keepdim=True) * x).sum(dim=1, keepdim=True)).detach()
    expected = F.interpolate(expected, size=(8, 32, 32), mode="trilinear", align_corners=False)[0, 0]
    found = explain(trained_with(model, clip), frames, 2).heat_THW
    torch.testing.assert_close(found, expected / expected.max(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("input_", ["rgb", "rgb_diff"])
def test_heat_of_frames_is_grad_cam_by_its_formula(input_):
    torch.manual_seed(0)
    clip = ClipSpec(num_frames=5, size=64, input=input_)
    model = CNNLSTM(num_classes=3, in_channels=clip.channels).eval()
    frames, halves = noise(clip, num_frames=5), clip.channels // 3
    images = Preprocess(clip=clip)(frames[None]).transpose(1, 2)[0].reshape(5 * halves, 3, 64, 64)
    activations = model.encoder.layers(images)
    activations.retain_grad()
    features = model.encoder.project(model.encoder.pool(activations)).reshape(1, 5, -1)
    model.forward_head(model.aggregate(features))[0, 1].backward()
    each = (activations.grad.mean(dim=(2, 3), keepdim=True) * activations).sum(dim=1)
    expected = F.relu(each.reshape(5, halves, 4, 4).sum(dim=1)).detach()
    expected = F.interpolate(expected[:, None], size=(64, 64), mode="bilinear", align_corners=False)[:, 0]
    found = explain(trained_with(model, clip), frames, 1).heat_THW
    torch.testing.assert_close(found, expected / expected.max(), atol=1e-5, rtol=1e-4)


def test_chunks_do_not_change_the_explanation():
    torch.manual_seed(0)
    clip = ClipSpec(num_frames=20, size=32, normalize="clip")
    model = CNNLSTM(num_classes=3, pooling="mean")
    frames = noise(clip, num_frames=20)
    plain = explain(trained_with(model, clip), frames, 0)
    model.max_chunk = 3
    chunked = explain(trained_with(model, clip), frames, 0)
    torch.testing.assert_close(chunked.heat_THW, plain.heat_THW, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(chunked.evidence_T, plain.evidence_T, atol=1e-5, rtol=1e-4)


CAPTUM = {
    "conv3d": (Conv3D, {"widths": [4, 6], "strides": [[1, 2, 2], [2, 2, 2]]}, lambda model: model.layers[-1]),
    "cnn_lstm": (CNNLSTM, {}, lambda model: model.encoder.layers[-1]),
}


@pytest.mark.parametrize("name", CAPTUM)
def test_heat_equals_that_of_captum(name):
    torch.manual_seed(0)
    clip = ClipSpec(num_frames=6, size=(32, 48))
    model_class, options, layer_of = CAPTUM[name]
    model, frames = model_class(num_classes=3, **options).eval(), noise(clip, num_frames=6)
    heated = 0
    for index in range(3):
        found = explain(trained_with(model, clip), frames, index).heat_THW
        inputs = Preprocess(clip=clip)(frames[None])
        each = LayerGradCam(model, layer_of(model)).attribute(inputs, target=index, relu_attributions=True).detach()
        size, mode = ((6, 32, 48), "trilinear") if each.ndim == 5 else ((32, 48), "bilinear")
        expected = LayerAttribution.interpolate(each, size, mode).reshape(6, 32, 48)
        heated += int(expected.max() > 0)
        torch.testing.assert_close(found, expected / expected.max().clamp_min(1e-12), atol=1e-5, rtol=0)
    assert heated


class BrightVolume(VideoModel):
    """Class 1 is how bright a clip is; a 1 x 1 x 1 convolution and a mean, nothing else."""

    def __init__(self):
        super().__init__()
        self.look = nn.Conv3d(3, 2, 1, bias=False)
        with torch.no_grad():
            self.look.weight.copy_(torch.tensor([[-1.0] * 3, [1.0] * 3]).view(2, 3, 1, 1, 1))

    def forward(self, clips_BCTHW, lengths_B=None):
        return self.look(clips_BCTHW).mean(dim=(2, 3, 4))


def test_the_only_bright_region_has_the_maximum_heat():
    clip = ClipSpec(num_frames=6, size=(20, 30), normalize="fixed", mean=[0.5] * 3, std=[0.5] * 3)
    frames = torch.full((6, 3, 20, 30), 128, dtype=torch.uint8)
    frames[4, :, 12:15, 21:25] = 255
    heat = explain(trained_with(BrightVolume(), clip), frames, 1).heat_THW
    assert (heat[4, 12:15, 21:25] == 1).all()
    heat[4, 12:15, 21:25] = 0
    assert heat.max() < 0.02


class BrightFrames(VideoModel):
    """Reads frame by frame; the logit is the sum over time of the squared brightness."""

    supports_feature_cache = True

    def __init__(self):
        super().__init__()
        self.look = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.ones_(self.look.weight)

    def encode(self, clips_BCTHW, lengths_B=None):
        return (
            self.look(clips_BCTHW.transpose(1, 2).flatten(0, 1)).mean(dim=(2, 3)).unflatten(0, (len(clips_BCTHW), -1))
        )

    def aggregate(self, features_BTF, lengths_B=None):
        return features_BTF.square().sum(dim=1)

    def forward_head(self, features_BF):
        return features_BF


def test_the_only_different_frame_has_the_most_evidence():
    clip = ClipSpec(num_frames=7, size=16, normalize="fixed", mean=[0.0] * 3, std=[1.0] * 3)
    frames = torch.full((7, 3, 16, 16), 10, dtype=torch.uint8)
    frames[2, :, 8:, :] = 250
    found = explain(trained_with(BrightFrames(), clip), frames, 0)
    assert found.evidence_T.argmax() == 2
    assert found.evidence_T[2] > 5 * found.evidence_T.abs().sum() / 7
    assert found.heat_THW.flatten(1).sum(dim=1).argmax() == 2
    assert found.heat_THW[2, 12:].min() > 5 * found.heat_THW[2, :4].max()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"recurrent": "gru", "bidirectional": True},
        {"pooling": "attention"},
        {"recurrent": "none", "pooling": "max"},
    ],
    ids=str,
)
def test_the_evidence_sums_to_the_logit_minus_that_of_the_mean_frame(options):
    torch.manual_seed(0)
    model = CNNLSTM(num_classes=3, **options).eval()
    features = 3 * torch.randn(12, model.encoder.num_features)

    def classify(features_BTF):
        return model.forward_head(model.aggregate(features_BTF))

    with torch.no_grad():
        still = features.mean(dim=0).expand(12, -1)
        gained = (classify(features[None]) - classify(still[None]))[0]
    for index in range(3):
        found = frame_evidence(classify, features, index).sum()
        assert abs(found - gained[index]) <= 0.03 * abs(gained[index]) + 1e-4


def test_evidence_of_a_linear_model_is_exact():
    weights = torch.randn(5, 4)
    features = torch.randn(5, 4)
    found = frame_evidence(lambda x: (x * weights).sum(dim=(1, 2))[:, None], features, 0)
    torch.testing.assert_close(found, (weights * (features - features.mean(0))).sum(dim=1))


def test_a_still_clip_or_a_single_frame_has_no_evidence():
    clip = ClipSpec(num_frames=8, size=32)
    model = CNNLSTM(num_classes=3)
    still = noise(clip, num_frames=1)
    assert explain(trained_with(model, clip), still, 0).evidence_T.tolist() == [0.0]
    assert explain(trained_with(model, clip), still.repeat(8, 1, 1, 1), 0).evidence_T.abs().max() < 1e-5


@pytest.mark.parametrize("model", [Conv3D, CNNLSTM])
def test_a_short_clip_has_heat_for_each_of_its_frames(model):
    clip = ClipSpec(num_frames=16, size=32, short="pad")
    assert explain(trained_with(model(num_classes=3), clip), noise(clip, num_frames=5), 0).heat_THW.shape == (5, 32, 32)


@pytest.mark.parametrize("kind", ["conv3d", "cnn_lstm"])
def test_the_model_is_not_changed(kind):
    clip = ClipSpec(num_frames=6, size=32)
    model = build_model({**CONFIGS[kind], "freeze": 2}, num_classes=3, pretrained=False)
    trained = trained_with(model, clip)
    model.train()
    before, modes = copy.deepcopy(model.state_dict()), [part.training for part in model.modules()]
    learning = [p.requires_grad for p in model.parameters()]
    with torch.inference_mode():  # as in prediction
        first = explain(trained, noise(clip).clone(), 0)
    with torch.no_grad():
        second = explain(trained, noise(clip), 0)
    torch.testing.assert_close(first.heat_THW, second.heat_THW)
    assert [part.training for part in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == learning
    assert all(p.grad is None for p in model.parameters())
    assert all(not part._forward_hooks and not part._backward_hooks for part in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not first.heat_THW.requires_grad
    run_model(model, Preprocess(clip=clip), noise(clip)[None]).sum().backward()  # training still works


class FlatPixels(VideoModel):
    """A linear layer over all pixels."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 4 * 16, 2)

    def forward(self, clips_BCTHW, lengths_B=None):
        return self.layer(clips_BCTHW.flatten(1))


def test_a_network_without_spatial_positions_has_no_heat():
    clip = ClipSpec(num_frames=4, size=4)
    model = FlatPixels()
    assert not explain(trained_with(model, clip), noise(clip, num_frames=4), 0).heat_THW.any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="cuDNN's recurrent layers are on CUDA devices")
def test_a_gpu_gives_the_same_explanation():
    torch.manual_seed(0)
    clip = ClipSpec(num_frames=6, size=64)
    model = CNNLSTM(num_classes=3)
    here = explain(trained_with(model, clip), noise(clip), 1)
    there = explain(trained_with(model.cuda(), clip), noise(clip), 1)
    torch.testing.assert_close(there.evidence_T, here.evidence_T, atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(there.heat_THW, here.heat_THW, atol=2e-2, rtol=2e-2)
