"""One contract for every model in configs/model, and what each promises of its own."""

import pytest
import torch
from conftest import ROOT
from omegaconf import OmegaConf

from stvid.clip import conv_output_size
from stvid.errors import InputError
from stvid.models.conv3d import Conv3D
from stvid.run.checkpoint import build_model

CONFIGS = sorted((ROOT / "configs" / "model").glob("*.yaml"))
NUM_CLASSES = 5


def config_of(path):
    return OmegaConf.to_container(OmegaConf.load(path))


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def config(request):
    return config_of(request.param)


@pytest.fixture
def model(config):
    torch.manual_seed(0)
    return build_model(config, num_classes=NUM_CLASSES, pretrained=False)


def padded_batch():
    """Three clips of 16, 9 and 5 valid frames, with noise where the padding is."""
    torch.manual_seed(1)
    return torch.randn(3, 3, 16, 64, 64), torch.tensor([16, 9, 5])


def assert_padding_is_not_read(model):
    model.eval()
    clips, lengths = padded_batch()
    with torch.no_grad():
        together = model(clips, lengths)
        alone = torch.cat([model(clips[i : i + 1, :, :n]) for i, n in enumerate(lengths)])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(clips[[2, 0]], lengths[[2, 0]]), together[[2, 0]], atol=1e-5, rtol=1e-5)


def test_logits_and_features_have_their_shapes(model):
    clips = torch.randn(2, 3, 16, 64, 64)
    assert model(clips).shape == (2, NUM_CLASSES)
    assert model.forward_features(clips).shape == (2, model.num_features)


@pytest.mark.parametrize("shape", [(1, 3, 1, 32, 32), (2, 3, 7, 48, 80)])
def test_any_number_of_frames_and_any_size_will_do(model, shape):
    assert model.eval()(torch.randn(shape)).shape == (shape[0], NUM_CLASSES)


def test_another_number_of_channels_is_told(model):
    with pytest.raises(InputError, match=r"clips must be B x 3 x T x H x W, got \(1, 4, 2, 8, 8\)"):
        model(torch.zeros(1, 4, 2, 8, 8))


def test_a_dropout_that_is_no_probability_is_told(config):
    if "dropout" not in config:
        pytest.skip("a model without dropout")
    with pytest.raises(InputError, match=r"model\.dropout \(=1\.5\) must lie in \[0, 1\)"):
        build_model({**config, "dropout": 1.5}, num_classes=NUM_CLASSES, pretrained=False)


def test_padding_and_batch_composition_change_no_logit(model):
    assert_padding_is_not_read(model)


def test_full_lengths_are_the_same_as_none(model):
    clips, _ = padded_batch()
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(clips, torch.tensor([16] * 3)), model(clips), atol=1e-5, rtol=1e-5)


def test_every_parameter_learns(model):
    model(torch.randn(2, 3, 16, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_a_state_dict_rebuilds_the_model(model, config):
    clips = torch.randn(1, 3, 8, 64, 64)
    twin = build_model(config, num_classes=NUM_CLASSES, pretrained=False)
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin.eval()(clips), model.eval()(clips))


def test_the_backbone_is_told_in_stages_from_the_input_on(model):
    """What `backbone_lr` and `layer_decay` go by: every parameter but the deciding ones, once, in several stages."""
    stages = model.backbone_stages()
    assert len(stages) >= 4
    assert all(stages)
    told = [id(p) for stage in stages for p in stage]
    assert len(set(told)) == len(told)
    rest = {name.partition(".")[0] for name, p in model.named_parameters() if id(p) not in told}
    assert "head" in rest
    assert rest <= {"head", "recurrent", "pooling"}
    first = next(p for p in model.parameters())
    assert any(p is first for p in stages[0])
    assert [id(p) for p in model.backbone_parameters()] == told


def test_a_stage_that_is_frozen_is_the_stage_that_is_told(config):
    model = build_model({**config, "freeze": 2}, num_classes=NUM_CLASSES, pretrained=False)
    learning = [any(p.requires_grad for p in stage) for stage in model.backbone_stages()]
    assert learning == [i >= 2 for i in range(len(learning))]


def test_frames_out_of_order_are_another_clip(model):
    clips = torch.randn(1, 3, 16, 64, 64)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm3d):
            layer.momentum = 1.0  # statistics of these clips, as after training
    with torch.no_grad():
        model.train()(torch.randn(2, 3, 16, 64, 64))
        model.eval()
        assert (model(clips) - model(clips.flip(2))).abs().max() > 1e-5


def test_bf16_autocast_gives_nearly_the_same_logits(model):
    clips = torch.randn(2, 3, 16, 64, 64)
    model.eval()
    with torch.no_grad():
        plain = model(clips)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(model(clips).float(), plain, atol=0.05, rtol=0.05)


def test_the_convolution_formula_is_what_the_layers_do():
    """The formula of the design: 3x100x224x224 through 3x3x3 kernels without padding gives 98x222x222."""
    assert [conv_output_size(n, kernel=3) for n in (100, 224, 224)] == [98, 222, 222]
    for size in range(1, 20):
        for stride in (1, 2, 3):
            out = torch.nn.functional.conv1d(torch.zeros(1, 1, size), torch.zeros(1, 1, 3), stride=stride, padding=1)
            assert conv_output_size(size, kernel=3, stride=stride, padding=1) == out.shape[-1]


def test_conv3d_takes_widths_depths_and_strides():
    model = Conv3D(num_classes=2, in_channels=1, widths=[4, 6], depths=[2, 1], strides=[[1, 2, 2], [2, 1, 1]])
    shapes = [tuple(layer[0].weight.shape[:2]) for layer in model.layers]
    assert shapes == [(4, 1), (4, 4), (6, 4)]
    assert [layer[0].stride for layer in model.layers] == [(1, 2, 2), (1, 1, 1), (2, 1, 1)]


def test_conv3d_refuses_stages_that_do_not_match_and_clips_of_another_shape():
    with pytest.raises(ValueError, match=r"model.widths \(3\), model.depths \(3\) and model.strides \(4\)"):
        Conv3D(num_classes=2, widths=[4, 4, 4])
    with pytest.raises(ValueError, match=r"B x 3 x T x H x W, got \(1, 1, 4, 8, 8\)"):
        Conv3D(num_classes=2)(torch.zeros(1, 1, 4, 8, 8))
