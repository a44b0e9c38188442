"""The contract of `VideoModel`, for every model in configs/model; its defaults; the check of a model's input."""

import copy

import pytest
import torch
from conftest import ROOT
from omegaconf import OmegaConf
from torch import nn

from stvid.clip import ClipSpec, conv_output_size
from stvid.errors import InputError
from stvid.models import c3d
from stvid.models.base import VideoModel, check_input, check_probability, forward_by_length
from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.continual import ContinualModel
from stvid.models.conv3d import Conv3D
from stvid.models.eco import ECO
from stvid.models.framewise import FramewiseModel
from stvid.models.layers import Residual
from stvid.preprocess import Preprocess, encode_clips, run_model
from stvid.run.model import build_model

CONFIGS = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in (ROOT / "configs/model").glob("*.yaml")}
NUM_CLASSES = 5


@pytest.fixture(autouse=True, scope="module")
def small_c3d():
    """46 million parameters instead of 78."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(c3d, "GRID", (1, 1, 1))
        yield


@pytest.fixture(params=sorted(CONFIGS), scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def built(name, small_c3d):
    """A model, built once for all tests of it; they must not change it."""
    torch.manual_seed(0)
    return build_model(CONFIGS[name], num_classes=NUM_CLASSES, pretrained=False).eval()


@pytest.fixture
def model(built):
    """A copy in training mode, which a test may change."""
    return copy.deepcopy(built).train()


def padded_batch():
    """Three clips of 8, 5 and 2 valid frames, with noise after them."""
    torch.manual_seed(1)
    return torch.randn(3, 3, 8, 32, 32), torch.tensor([8, 5, 2])


@torch.no_grad()
def assert_padding_is_not_read(model):
    model.eval()
    clips, lengths = padded_batch()
    together = model(clips, lengths)
    alone = torch.cat([model(clips[i : i + 1, :, :n]) for i, n in enumerate(lengths)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(clips[[2, 0]], lengths[[2, 0]]), together[[2, 0]], atol=1e-5, rtol=1e-5)


def test_the_attributes_of_the_contract_have_their_types(built):
    assert isinstance(built, VideoModel)
    assert built.in_channels == 3
    assert built.normalization is None  # random weights
    assert isinstance(built.head, nn.Linear)
    assert built.frozen == ()
    assert built.max_chunk is None
    assert built.supports_streaming is True
    assert built.supports_feature_cache is isinstance(built, FramewiseModel)


@torch.no_grad()
def test_logits_are_the_head_of_the_features(built):
    clips = torch.randn(2, 3, 8, 48, 48)
    features, logits = built.forward_features(clips), built(clips)
    assert features.shape == (2, built.num_features)
    assert logits.shape == (2, NUM_CLASSES)
    assert torch.equal(logits, built.forward_head(features))


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 3, 1, 32, 32), (2, 3, 7, 48, 80)])
def test_a_clip_may_have_any_number_of_frames_and_any_size(built, shape):
    assert built(torch.randn(shape)).shape == (shape[0], NUM_CLASSES)


def test_another_number_of_channels_is_an_input_error(built):
    with pytest.raises(InputError, match=r"clips must be B x 3 x T x H x W, got \(1, 4, 2, 8, 8\)"):
        built(torch.zeros(1, 4, 2, 8, 8))


def test_a_dropout_that_is_no_probability_is_an_input_error(name):
    with pytest.raises(InputError, match=r"model\.dropout \(=1\.5\) must lie in \[0, 1\)"):
        build_model({**CONFIGS[name], "dropout": 1.5}, num_classes=NUM_CLASSES, pretrained=False)


def test_padding_and_batch_composition_change_no_logit(model):
    assert_padding_is_not_read(model)


@torch.no_grad()
def test_full_lengths_are_the_same_as_none(built):
    clips = torch.randn(2, 3, 8, 48, 48)
    torch.testing.assert_close(built(clips, torch.tensor([8, 8])), built(clips), atol=1e-5, rtol=1e-5)


def test_every_parameter_learns(model):
    for module in model.modules():
        if isinstance(module, Residual):
            nn.init.ones_(module[1].weight)  # at first it is 0, and only it learns
    model(torch.randn(2, 3, 8, 48, 48)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@torch.no_grad()
def test_a_state_dict_rebuilds_the_model(built, name):
    clips = torch.randn(1, 3, 8, 32, 32)
    rebuilt = build_model(CONFIGS[name], num_classes=NUM_CLASSES, pretrained=False).eval()
    rebuilt.load_state_dict(built.state_dict())
    assert torch.equal(rebuilt(clips), built(clips))


@torch.no_grad()
def test_a_new_classifier_has_the_old_features(model):
    clips = torch.randn(1, 3, 8, 32, 32)
    features = model.eval().forward_features(clips)
    model.reset_classifier(7)
    assert model(clips).shape == (1, 7)
    assert torch.equal(model.forward_features(clips), features)


def test_stages_have_every_parameter_of_the_backbone_exactly_once(built):
    groups = built.stage_parameters()
    assert len(groups) == len(built.stages) >= 4
    assert all(groups)
    listed = [id(p) for group in groups for p in group]
    assert len(set(listed)) == len(listed)
    assert set(listed) == {id(p) for p in built.backbone.parameters()}
    assert set(listed) == {id(p) for stage in built.stages.values() for p in stage.parameters()}
    others = {name.partition(".")[0] for name, p in built.named_parameters() if id(p) not in listed}
    assert others == {"head"} | {CNNLSTM: {"recurrent"}, ECO: {"volume"}}.get(type(built), set())
    assert next(built.parameters()) is groups[0][0]


@pytest.mark.parametrize("last", [0, 2, "all"])
def test_freezing_excludes_the_first_stages_from_training(name, last):
    model = build_model({**CONFIGS[name], "freeze": last}, num_classes=NUM_CLASSES, pretrained=False)
    stages = list(model.stages.values())
    count = len(stages) if last == "all" else last
    assert model.frozen == tuple(model.stages)[:count]
    is_trained = [any(p.requires_grad for p in stage.parameters()) for stage in stages]
    assert is_trained == [False] * count + [True] * (len(stages) - count)
    assert all(p.requires_grad for p in model.head.parameters())
    assert model.backbone_is_frozen == (last == "all")
    for _ in range(2):  # as built, and after a return from evaluation
        layers = [[layer for layer in stage.modules() if not list(layer.children())] for stage in stages]
        assert [{layer.training for layer in stage} for stage in layers] == [{i >= count} for i in range(len(stages))]
        assert model.training
        model.eval().train()


def test_a_stage_that_does_not_exist_is_an_input_error(name):
    with pytest.raises(
        InputError, match=r"model\.freeze \(=nothing\) must be all, a number from 0 to \d+, or the last"
    ):
        build_model({**CONFIGS[name], "freeze": "nothing"}, num_classes=NUM_CLASSES, pretrained=False)


@torch.no_grad()
def test_reversed_frames_have_other_logits(model):
    clips = torch.randn(1, 3, 8, 48, 48)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm3d):
            layer.momentum = 1.0  # statistics of these clips, as after training
    model(torch.randn(2, 3, 8, 48, 48))
    model.eval()
    assert (model(clips) - model(clips.flip(2))).abs().max() > 1e-5


@torch.no_grad()
def test_bf16_autocast_gives_nearly_the_same_logits(built):
    clips = torch.randn(2, 3, 8, 48, 48)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = built(clips)
    torch.testing.assert_close(logits.float(), built(clips), atol=0.05, rtol=0.05)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:The tensor attributes self.recurrent.layers._flat_weights")  # torch's own LSTM
def test_a_model_can_be_exported(built):
    """`torch.export` fails for control flow that depends on data."""
    clips = torch.randn(2, 3, 4, 32, 32)
    program = torch.export.export(built, (clips,))
    other = torch.randn(2, 3, 4, 32, 32)
    torch.testing.assert_close(program.module()(other), built(other), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_stream_has_the_logits_of_the_frames_so_far_and_changes_no_state(built):
    clips, state = torch.randn(2, 3, 4, 32, 32), built.start_stream(16)
    for t in range(4):
        first, _ = built.stream_step(clips[:, :, t], state)
        logits, state = built.stream_step(clips[:, :, t], state)
        if isinstance(built, ContinualModel):  # its logits: tests/test_continual.py
            assert first is logits is None  # too few frames
            continue
        torch.testing.assert_close(logits, built(clips[:, :, : t + 1]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits, first, atol=0, rtol=0)


@torch.no_grad()
def test_cached_features_of_frames_have_the_logits_of_the_clips(built):
    clips, lengths = torch.randn(2, 3, 6, 32, 32), torch.tensor([6, 4])
    if not built.supports_feature_cache:
        with pytest.raises(NotImplementedError, match="does not encode frames"):
            built.encode(clips)
        with pytest.raises(NotImplementedError, match="does not aggregate features"):
            built.aggregate(clips)
        return
    features = built.encode(clips, lengths)
    assert features.shape[:2] == (2, 6)
    assert features.dtype == torch.float32
    assert not features[1, 4:].any()
    features[1, 4:] = torch.nan
    logits = built.forward_head(built.aggregate(features, lengths))
    torch.testing.assert_close(logits, built(clips, lengths), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_model_with_a_chunk_size_preprocesses_chunk_by_chunk(model):
    if not model.supports_feature_cache:
        pytest.skip("a model without chunks")
    preprocess = Preprocess(clip=ClipSpec(size=32))
    clips, lengths = torch.randint(0, 256, (2, 6, 3, 32, 32), dtype=torch.uint8), torch.tensor([6, 4])
    model.eval()
    logits, features = run_model(model, preprocess, clips, lengths), encode_clips(model, preprocess, clips, lengths)
    calls = []
    preprocess.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    model.max_chunk = 4
    torch.testing.assert_close(run_model(model, preprocess, clips, lengths), logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encode_clips(model, preprocess, clips, lengths), features, atol=1e-5, rtol=1e-5)
    assert calls == [4, 4, 2] * 2


class Smallest(VideoModel):
    """What a user has to write."""

    def __init__(self, *, num_classes):
        super().__init__()
        self.first, self.second = nn.Conv3d(3, 4, 1), nn.Sequential(nn.Conv3d(4, 6, 1), nn.BatchNorm3d(6))
        self.num_features, self.head = 6, nn.Linear(6, num_classes)

    def forward_features(self, clips_BCTHW, lengths_B=None):
        return self.second(self.first(clips_BCTHW)).mean(dim=(2, 3, 4))


def test_a_model_of_a_user_gets_stages_freezing_and_a_new_classifier_by_default():
    model = Smallest(num_classes=3)
    assert list(model.stages) == ["first", "second"]
    assert model(torch.randn(2, 3, 4, 8, 8)).shape == (2, 3)
    model.freeze_stages("second")
    assert model.backbone_is_frozen
    assert [p.requires_grad for p in model.parameters()] == [False] * 6 + [True] * 2
    assert not model.train().second[1].training
    model.reset_classifier(5)
    assert model.head.out_features == 5
    with pytest.raises(NotImplementedError, match="VideoModel defines no forward_features"):
        VideoModel()(torch.zeros(1, 3, 1, 2, 2))
    assert not model.supports_streaming
    assert model.start_stream(16) is None
    with pytest.raises(NotImplementedError, match="Smallest does not support streaming"):
        model.stream_step(torch.zeros(1, 3, 2, 2), None)


def test_clips_of_one_length_are_computed_together_and_without_their_padding():
    shapes = []

    def network(clips):
        shapes.append(tuple(clips.shape))
        return clips.mean(dim=(2, 3, 4))

    clips, lengths = torch.randn(4, 3, 9, 2, 2), torch.tensor([9, 4, 9, 2])
    for i, n in enumerate(lengths):
        clips[i, :, n:] = float("nan")
    out = forward_by_length(network, clips, lengths)
    assert sorted(shapes) == [(1, 3, 2, 2, 2), (1, 3, 4, 2, 2), (2, 3, 9, 2, 2)]
    torch.testing.assert_close(out, torch.stack([clips[i, :, :n].mean(dim=(1, 2, 3)) for i, n in enumerate(lengths)]))


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, float("nan")])
def test_a_probability_lies_below_1(value):
    with pytest.raises(InputError, match=r"model\.dropout \(=.*\) must lie in \[0, 1\)"):
        check_probability("dropout", value)


class Picky(VideoModel):
    """Takes clips of at least 8 frames of 24 x 24 pixels."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, clips):
        self.calls += 1
        return nn.functional.avg_pool3d(clips, (8, 24, 24)).mean(dim=(2, 3, 4))


@pytest.mark.parametrize(("num_frames", "tried"), [(4, 4), (None, 16)])
def test_the_input_check_keeps_an_error_of_the_model_and_logs_the_shape_of_the_clip(num_frames, tried, caplog):
    model = Picky().train()
    with pytest.raises(RuntimeError) as error:
        check_input(model, ClipSpec(num_frames=num_frames, size=(10, 64)))
    assert "forward" in [entry.name for entry in error.traceback]
    assert caplog.messages == [f"Picky failed on one clip, B x C x T x H x W = 1 x 3 x {tried} x 10 x 64"]
    assert model.calls == 1
    assert model.training


@pytest.mark.parametrize(
    ("options", "clip", "message"),
    [
        (
            {"encoder": "vgg11"},
            {"size": (24, 64)},
            r"model.encoder \(=vgg11\) takes images of at least 32 x 32 pixels, not 24 x 64: set clip.size=32",
        ),
        (
            {"encoder": "vit_b_32"},
            {"size": 64, "num_frames": 1},
            r"\(=vit_b_32\) takes images of 224 x 224 pixels only, not 64 x 64: set clip.size=224, or .*image_size",
        ),
        ({}, {"input": "rgb_diff"}, r"clips must be B x 3 x T x H x W, got \(1, 6, 16, 64, 64\)"),
    ],
)
def test_the_input_check_raises_input_errors_for_clips_that_a_model_does_not_take(options, clip, message):
    model = CNNLSTM(num_classes=2, hidden_size=4, **options).train()
    with pytest.raises(InputError, match=message):
        check_input(model, ClipSpec(**clip))
    assert model.training


def test_the_input_check_does_not_change_the_model():
    model = Conv3D(num_classes=3, in_channels=6, widths=[4, 8], strides=[[1, 2, 2], [2, 2, 2]]).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_input(model, ClipSpec(num_frames=None, input="rgb_diff"))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_convolution_formula_is_what_the_layers_compute():
    """3x100x224x224 through 3x3x3 kernels without padding gives 98x222x222."""
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
