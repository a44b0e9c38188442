"""Estimates against numbers worked out by hand."""

import json
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from stvid.clip import ClipSpec
from stvid.cost.estimate import estimate
from stvid.cost.report import bytes_text, count_text, layer_table, totals_text
from stvid.errors import InputError
from stvid.models.c3d import C3D
from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.conv3d import Conv3D
from stvid.models.eco import ECO
from stvid.models.layers import checkpoint_stages
from stvid.models.torchvision3d import TorchvisionVideoModel
from stvid.preprocess import Preprocess


def resnet18_macs(size: int) -> int:
    """Of ResNet-18 without its head (He et al. 2016), for a square image whose side is a multiple of 32."""
    total = 64 * 3 * 7 * 7 * (size // 2) ** 2
    channels, side = 64, size // 4
    for width in (64, 128, 256, 512):
        first = channels
        if width != channels:
            side //= 2
            total += width * channels * side**2  # 1 x 1 on the shortcut
        total += width * first * 9 * side**2 + 3 * width * width * 9 * side**2
        channels = width
    return total


def test_a_single_3d_convolution_costs_what_the_formula_says():
    report = estimate(nn.Conv3d(3, 16, 3), (3, 100, 224, 224))
    (layer,) = report.layers
    assert layer.output_shape == (16, 98, 222, 222)
    assert layer.parameters == report.parameters == 16 * (3 * 27 + 1) == 1_312
    assert layer.macs == report.macs == 16 * 3 * 27 * 98 * 222 * 222 == 6_259_462_272
    assert layer.activation_bytes == report.activation_bytes == 4 * 16 * 98 * 222 * 222
    assert report.input_bytes == 4 * 3 * 100 * 224 * 224  # for the gradient of the weights
    assert report.flops_forward == 2 * report.macs
    assert report.flops_train_step == 2 * report.flops_forward  # no gradient of the input
    assert report.peak_train_bytes >= report.train_state_bytes + report.activation_bytes + report.input_bytes


def test_r3d_18_has_the_published_parameters_and_multiply_adds():
    with torch.device("meta"):
        model = TorchvisionVideoModel(num_classes=400, name="r3d_18")
    report = estimate(model, (3, 16, 112, 112))
    assert report.parameters == 33_371_472
    assert report.macs / 1e9 == pytest.approx(40.7, abs=0.05)


def test_resnet18_and_lstm_have_the_multiply_adds_of_the_formula():
    frames, hidden, classes = 5, 96, 400
    with torch.device("meta"):
        model = CNNLSTM(num_classes=classes, encoder="resnet18", hidden_size=hidden)
    report = estimate(model, (3, frames, 224, 224), batch_size=2)
    assert resnet18_macs(224) == 1_813_561_344  # 1.8 G, Table 1 of the paper, less the head
    by_hand = frames * resnet18_macs(224) + frames * 4 * hidden * (512 + hidden) + hidden * classes
    assert report.flops_forward == 2 * by_hand


def test_a_frame_of_a_stream_costs_what_the_formula_says():
    report = estimate(Conv3D(num_classes=8), (3, 16, 64, 64), batch_size=2)
    steps = [16 * 3 * 27 * 32 * 32, 32 * 16 * 27 * 16 * 16, 64 * 32 * 27 * 8 * 8, 128 * 64 * 27 * 4 * 4]
    by_hand = steps[0] + steps[1] / 2 + steps[2] / 4 + (steps[3] + 128 * 8) / 8  # strides of 1, 2, 2 and 2 in time
    assert report.stream_macs == round(by_hand)
    assert report.macs / report.stream_macs > 15.9  # against a clip of 16 frames for each
    lstm = estimate(CNNLSTM(num_classes=400, encoder="resnet18", hidden_size=96), (3, 5, 64, 64), batch_size=2)
    assert lstm.stream_macs == resnet18_macs(64) + 4 * 96 * (512 + 96) + 96 * 400
    assert estimate(CNNLSTM(num_classes=4, bidirectional=True), (3, 5, 32, 32)).stream_macs is None
    assert estimate(nn.Conv3d(3, 16, 3), (3, 10, 8, 8)).stream_macs is None


class ReadsBrightFrames(CNNLSTM):
    """A model of a user whose steps depend on values."""

    def stream_step(self, frame_BCHW, state=None):
        return super().stream_step(frame_BCHW, state) if frame_BCHW.mean().item() > 0 else (None, state)


def test_a_stream_that_depends_on_values_leaves_the_rest_of_the_estimate():
    report = estimate(ReadsBrightFrames(num_classes=4), (3, 5, 32, 32))
    assert report.stream_macs is None
    assert report.macs == estimate(CNNLSTM(num_classes=4), (3, 5, 32, 32)).macs


@pytest.mark.parametrize("name", ["conv3d", "c3d", "mc3_18", "eco"])
def test_a_frame_of_a_stream_costs_what_is_counted(name):
    models = {"conv3d": Conv3D, "c3d": C3D, "eco": partial(ECO, stage="layer2", freeze="all")}
    model = models[name](num_classes=4) if name in models else TorchvisionVideoModel(num_classes=4, name=name)
    state, frame = model.eval().start_stream(16), torch.zeros(1, 3, 16, 16)
    with torch.no_grad():
        for _ in range(state.network.first):
            _, state = model.stream_step(frame, state)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for _ in range(state.network.period):
            _, state = model.stream_step(frame, state)
    checkpoint_stages(model)  # changes how the layers are called in training
    report = estimate(model, (3, 16, 16, 16))
    assert 2 * report.stream_macs == pytest.approx(counter.get_total_flops() / state.network.period, rel=1e-6)
    assert f"; a frame of a stream: {count_text(2 * report.stream_macs)} FLOPs" in " ".join(repr(report).split())


@pytest.mark.parametrize(("cell", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)])
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent_layers_use_every_weight_once_per_step(cell, gates, directions):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = cell(6, 5, num_layers=2, bidirectional=directions == 2, batch_first=True)

        def forward(self, x_BTI):
            return self.layers(x_BTI)[0]

    report = estimate(Recurrent(), (7, 6), batch_size=3)
    per_step = gates * 5 * directions * ((6 + 5) + (5 * directions + 5))
    assert report.macs == 7 * per_step
    assert report.layers[0].output_shape == (7, 5 * directions)


def test_a_training_step_of_a_grouped_convolution_costs_three_forward_passes():
    """A training step multiplies forward, for the input's gradient (not the first layer's), for the weights'."""
    model = nn.Sequential(nn.Conv2d(3, 32, 1, bias=False), nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False))
    report = estimate(model, (3, 8, 8))
    first, second = 3 * 32 * 64, 32 * 9 * 64
    assert report.macs == first + second
    assert report.flops_train_step == 2 * (2 * first + 3 * second)


def test_attention_counts_its_two_products():
    layer = nn.TransformerEncoderLayer(16, nhead=2, dim_feedforward=32, batch_first=True)
    assert estimate(layer, (10, 16)).macs == 10 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 10 * 10 * 16


def test_training_holds_16_bytes_a_parameter_with_adamw_and_12_with_momentum():
    model = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20))
    weights, buffers = 4 * (10 * 20 + 20 + 2 * 20), 4 * 2 * 20 + 8  # batch norm counts its batches in 8 bytes
    report = estimate(model, (10,), batch_size=2)
    assert report.model_bytes == weights + buffers
    assert report.train_state_bytes == 4 * weights + buffers
    with_average = estimate(model, (10,), batch_size=2, ema=True)
    assert with_average.train_state_bytes == report.train_state_bytes + report.model_bytes
    assert with_average.peak_train_bytes == report.peak_train_bytes + report.model_bytes
    momentum = estimate(
        model, (10,), batch_size=2, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)
    )
    assert momentum.train_state_bytes == 3 * weights + buffers


def test_a_frozen_part_keeps_no_activations_and_has_no_gradients():
    def frozen_cost(num_frozen: int):
        model = nn.Sequential(nn.Linear(8, 100), nn.Tanh(), nn.Linear(100, 50), nn.Tanh(), nn.Linear(50, 4))
        model[:num_frozen].requires_grad_(False)
        return estimate(model, (8,))

    free, frozen = frozen_cost(0), frozen_cost(4)
    assert [layer.activation_bytes for layer in free.layers] == [0, 400, 0, 200, 16]
    assert [layer.activation_bytes for layer in frozen.layers] == [0, 0, 0, 200, 16]  # the head's input and output
    assert frozen.trainable_parameters == 50 * 4 + 4
    assert frozen.train_state_bytes == frozen.model_bytes + 12 * (50 * 4 + 4)
    assert free.flops_train_step == 2 * (2 * 800 + 3 * 5000 + 3 * 200)
    assert frozen.flops_train_step == 2 * (800 + 5000 + 2 * 200)


def test_checkpointed_activations_are_recomputed_and_not_kept():
    class Checkpointed(nn.Module):
        def __init__(self, use_checkpoint: bool):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(8, 1000), nn.Tanh(), nn.Linear(1000, 8))
            self.use_checkpoint = use_checkpoint

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False) if self.use_checkpoint else self.inner(x)

    stored, checkpointed_model = (estimate(Checkpointed(flag), (8,)) for flag in (False, True))
    assert stored.activation_bytes == 4 * (1000 + 1000 + 8) - 4000  # tanh does not need the output of the first layer
    assert checkpointed_model.activation_bytes == 4 * 8
    assert checkpointed_model.macs == stored.macs == 16_000
    assert (
        checkpointed_model.flops_train_step == stored.flops_train_step + 2 * 8_000
    )  # the last layer is not recomputed


def test_autocast_halves_the_activations_of_convolutions_and_keeps_weights_in_float32():
    model = nn.Sequential(nn.Conv3d(4, 8, 3, padding=1), nn.Conv3d(8, 8, 3, padding=1))
    full, mixed = (estimate(model, (4, 4, 8, 8), precision=p) for p in ("32-true", "bf16-mixed"))
    clip = 4 * 4 * 8 * 8 * 2  # its bf16 copy belongs to the first layer
    assert mixed.activation_bytes - clip == full.activation_bytes // 2
    assert mixed.train_state_bytes == full.train_state_bytes
    assert estimate(model, (4, 4, 8, 8), precision="bf16-true").train_state_bytes == full.train_state_bytes // 2


def test_activations_and_compute_are_for_one_clip_and_peaks_for_the_batch():
    item, four = (estimate(Conv3D(num_classes=8), (3, 4, 32, 32), batch_size=size) for size in (2, 4))
    assert item.activation_bytes == pytest.approx(four.activation_bytes, rel=0.01)
    assert (item.macs, item.flops_train_step) == (four.macs, four.flops_train_step)
    assert item.peak_inference_bytes == four.peak_inference_bytes < item.peak_inference_batch_bytes
    assert item.peak_inference_batch_bytes < four.peak_inference_batch_bytes
    assert item.peak_train_bytes < four.peak_train_bytes
    assert sum(layer.parameters for layer in four.layers) == four.parameters
    assert sum(layer.activation_bytes for layer in four.layers) == four.activation_bytes
    assert sum(layer.macs for layer in four.layers) == four.macs


def test_a_model_larger_than_memory_can_be_estimated_and_no_model_is_changed():
    with torch.device("meta"):
        huge = nn.Linear(10**6, 10**6)
    assert estimate(huge, (10**6,)).model_bytes == 4 * (10**12 + 10**6)
    model = Conv3D(num_classes=2).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    estimate(model, (3, 4, 32, 32), batch_size=2)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_cuda_can_be_estimated_without_a_gpu(precision):
    model = nn.Sequential(nn.Conv3d(3, 5, 3), nn.Flatten(), nn.Linear(5 * 2 * 6 * 6, 3))
    cpu, cuda = (estimate(model, (3, 4, 8, 8), precision=precision, device=name) for name in ("cpu", "cuda"))
    assert cuda.macs == cpu.macs
    assert cuda.train_state_bytes == cpu.train_state_bytes
    assert cuda.peak_train_bytes % 512 == 0  # blocks of the allocator
    assert cuda.peak_train_bytes > cuda.train_state_bytes


def test_clips_count_as_uint8_before_preprocessing():
    clip = ClipSpec(num_frames=4, size=32)
    report = estimate(Conv3D(num_classes=2), (3, 4, 32, 32), batch_size=2, preprocess=Preprocess(clip=clip))
    assert report.input_bytes == (1 + 4) * 3 * 4 * 32 * 32


def test_the_report_is_plain_data():
    content = json.loads(json.dumps(estimate(nn.Linear(3, 2), (3,)).to_dict()))
    assert content["layers"][0] == {
        "name": "",
        "type": "Linear",
        "output_shape": [2],
        "parameters": 8,
        "activation_bytes": 8,
        "macs": 6,
    }
    assert {"input_shape", "model_bytes", "train_state_bytes", "peak_inference_bytes", "batch_size"} <= set(content)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 0, 8, 8), {}, "input_shape"),
        ((3, 8, 8, 8), {"batch_size": 0}, "batch_size (=0) must be at least 1"),
        ((3, 8, 8, 8), {"precision": "8-bit"}, "precision (=8-bit) must be one of"),
        ((3, 8, 8, 8), {"device": "tpu"}, "device (=tpu) must be one of"),
    ],
)
def test_wrong_arguments_are_one_message(shape, options, message):
    with pytest.raises(InputError) as error:
        estimate(nn.Conv3d(3, 16, 3), shape, **options)
    assert message in str(error.value)


def test_the_repr_of_a_report_names_the_input_and_the_totals():
    lines = repr(estimate(nn.Conv3d(3, 16, 3), (3, 100, 224, 224), batch_size=2)).splitlines()
    assert lines[0] == "CostReport: input 3 x 100 x 224 x 224, batches of 2, 32-true on cpu"
    names = [line.split()[0] for line in lines[1:] if not line.startswith(" ")]
    assert names == ["parameters", "model", "memory", "compute"]
    assert "1,312" in lines[1]


class Applied(nn.Module):
    """A user's own: a function, then a linear layer."""

    def __init__(self, function):
        super().__init__()
        self.function, self.linear = function, nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(self.function(x))


@pytest.mark.parametrize(
    "function", [lambda x: x * x.sum().item(), lambda x: x[x > 0].view(-1, 3), lambda x: x if x.sum() > 0 else -x]
)
def test_a_computation_that_depends_on_values_is_an_input_error(function):
    with pytest.raises(
        InputError, match=r"the cost of Applied cannot be estimated: aten\..* needs the values in a tensor"
    ):
        estimate(Applied(function), (3,))


@pytest.mark.parametrize("mistake", [RuntimeError, ValueError, TypeError, IndexError, AssertionError])
def test_an_error_of_the_model_passes_unchanged(mistake):
    def broken(x):
        raise mistake("inside")

    with pytest.raises(mistake, match="inside") as error:
        estimate(Applied(broken), (3,))
    assert error.type is mistake
    with pytest.raises(RuntimeError, match="Kernel size"):
        estimate(nn.Conv3d(3, 16, 3), (3, 2, 2, 2))


def test_a_clip_that_the_model_does_not_take_is_one_message():
    with pytest.raises(InputError, match="takes images of at least 32 x 32 pixels, not 24 x 24"):
        estimate(CNNLSTM(num_classes=2, encoder="vgg11", hidden_size=4), (3, 2, 24, 24))


def test_tables_fit_120_columns_and_use_units():
    report = estimate(TorchvisionVideoModel(num_classes=400), (3, 4, 32, 32), batch_size=2)
    text = layer_table(report) + "\n" + totals_text(report)
    assert max(map(len, text.splitlines())) <= 120
    assert "33,371,472" in text
    assert [bytes_text(n) for n in (0, 1023, 1536, 35.3 * 2**20)] == ["0 B", "1.00 KiB", "1.50 KiB", "35.3 MiB"]
    assert [count_text(n) for n in (12, 33_371_472, 40.7e9, 999_700)] == ["12", "33.4 M", "40.7 G", "1.00 M"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_with_encoder_chunks_eight_times_the_frames_need_at_most_a_quarter_more_memory(precision):
    with torch.device("meta"):
        model = CNNLSTM(num_classes=8, encoder="resnet18", encoder_chunk=64)
    peaks = [
        estimate(model, (3, T, 112, 112), precision=precision, preprocess=Preprocess(clip=ClipSpec(size=112)))
        for T in (128, 1024)
    ]
    assert peaks[1].peak_train_bytes <= 1.25 * peaks[0].peak_train_bytes
