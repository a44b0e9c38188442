"""The cost of a model as data (CostReport) and as text: units, tables and sentences."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from stvid.terminal import aligned, table_width

BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
DECIMAL = ("", "k", "M", "G", "T", "P", "E")


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """The cost of one layer for one clip. Sums over all layers are the report's totals.

    Attributes:
        name: dotted name in the model; empty for the model itself.
        type: its class.
        output_shape: without the batch. A layer that sees the frames of a clip as images has their number in front:
            a 2D convolution of an encoder gives `T x C x H x W`.
        parameters: its own, without those of its children. A 3D convolution: `C_out * (C_in / groups * kT*kH*kW + 1)`.
        activation_bytes: memory that it fills in the forward pass of a training step and that is in use when the pass
            ends, for the backward pass or as the model's output. The output of an in-place layer (ReLU) belongs to
            the layer before it. 0 for a frozen layer, and for memory that checkpointing frees or a layer discards.
        macs: multiply-adds of a forward pass, see `CostReport.macs`.
    """

    name: str
    type: str
    output_shape: tuple[int, ...]
    parameters: int
    activation_bytes: int
    macs: int


@dataclass(frozen=True, kw_only=True, repr=False)
class CostReport:
    """Parameters, memory and compute of a model. `print(report)` shows them in four paragraphs.

    Compute and activations are for one clip; peaks are for the batch or clip that their name says. Bytes are memory of
    the device.

    Attributes:
        input_shape: of one clip, `C x T x H x W`, as the model gets it.
        batch_size: clips in the simulated step.
        precision: in Lightning's notation, such as `bf16-mixed`.
        device: `cpu` or `cuda`.
        parameters: all; shared ones count once.
        trainable_parameters: those with `requires_grad`.
        model_bytes: parameters and buffers.
        train_state_bytes: memory in use between two training steps: model, gradients, optimizer, and the moving average
            of the model if there is one. In float32: `model_bytes + n * 4 * trainable_parameters (+ model_bytes)`, with
            n = 3 for AdamW (gradient, two moments) and 2 for SGD with momentum. Step counters are not included.
        input_bytes: memory of one clip at the end of the forward pass: the uint8 clip from the data loader, and its
            float copy if the first layer needs it for its gradient.
        activation_bytes: for one clip, the sum over `layers`; a batch needs `batch_size` times as much. Copies of
            weights in low precision are not included, as they do not grow with the batch.
        peak_train_bytes: maximum memory of a training step on the batch: `train_state_bytes` with the gradients of the
            step before (Lightning frees them after the forward pass), batch, activations, their gradients, temporary
            memory.
        peak_inference_bytes: maximum memory of inference on one clip: weights, clip, temporary memory.
        peak_inference_batch_bytes: the same for the batch.
        macs: multiply-adds of convolutions and matrix products for one clip, forward. Biases, norms, activation
            functions and pooling are not counted. A convolution: `C_out * T'*H'*W' * C_in / groups * kT*kH*kW`; a
            linear layer: `in * out`; an LSTM: `T * 4 * H * (I + H)` per layer and direction with I inputs and H
            hidden states; a GRU: `T * 3 * H * (I + H)`; attention: `2 * L * S * D` per head.
        flops_forward: `2 * macs`.
        flops_train_step: forward and backward for one clip, counted as they run. A layer's backward pass has twice the
            FLOPs of its forward pass (gradients of input and weights); the first layer needs no gradient of its input,
            a frozen part no gradient at all, and recomputed layers count again.
        stream_macs: multiply-adds for a frame of a stream, on average over the strides in time, of a model that takes
            single frames; None for other models, which read a stream in clips.
        layers: in the order they compute.
    """

    input_shape: tuple[int, ...]
    batch_size: int
    precision: str
    device: str
    parameters: int
    trainable_parameters: int
    model_bytes: int
    train_state_bytes: int
    input_bytes: int
    activation_bytes: int
    peak_train_bytes: int
    peak_inference_bytes: int
    peak_inference_batch_bytes: int
    macs: int
    flops_forward: int
    flops_train_step: int
    stream_macs: int | None
    layers: tuple[LayerCost, ...]

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.input_shape))
        head = f"CostReport: input {shape}, batches of {self.batch_size}, {self.precision} on {self.device}"
        return f"{head}\n{totals_text(self)}"

    def to_dict(self) -> dict:
        """Plain data for JSON."""
        return asdict(self)


def bytes_text(number: float) -> str:
    """Three digits and a binary unit: `35.3 MiB`; powers of 1024."""
    return _text(number, BINARY, 1024)


def count_text(number: float) -> str:
    """Three digits and a decimal unit: `33.4 M`; powers of 1000."""
    return _text(number, DECIMAL, 1000)


def _text(number: float, units: Sequence[str], base: int) -> str:
    power = 0
    while number >= 999.5 and power < len(units) - 1:
        number, power = number / base, power + 1
    digits = 0 if power == 0 else max(0, 2 - len(str(int(number))) + 1)
    return f"{number:.{digits}f} {units[power]}".rstrip()


def layer_table(report: CostReport) -> str:
    """A line for each layer, as wide as the terminal allows; long names are cut at the start."""
    header = ("layer", "type", "output", "parameters", "activations", "multiply-adds")
    rows = [
        (
            *(layer.name or "(model)", layer.type, " x ".join(map(str, layer.output_shape))),
            *(count_text(layer.parameters), bytes_text(layer.activation_bytes), count_text(layer.macs)),
        )
        for layer in report.layers
    ]
    total = count_text(report.parameters), bytes_text(report.activation_bytes), count_text(report.macs)
    return aligned([header, *rows, ("total, one clip", "", "", *total)], left=3)


def totals_text(report: CostReport) -> str:
    """Parameters, model, memory and compute, a paragraph each."""
    clips = f"{report.batch_size} clip{'s' if report.batch_size > 1 else ''}"
    trained = "" if report.trainable_parameters == report.parameters else f", {report.trainable_parameters:,} trainable"
    activations = report.activation_bytes
    stream = "" if report.stream_macs is None else f"; a frame of a stream: {count_text(2 * report.stream_macs)} FLOPs"
    paragraphs = {
        "parameters": f"{report.parameters:,}{trained}",
        "model": f"{bytes_text(report.model_bytes)}; in training, with gradients and optimizer, "
        f"{bytes_text(report.train_state_bytes)}",
        "memory": f"activations kept for the backward pass: {bytes_text(activations)} for one clip, "
        f"{bytes_text(activations * report.batch_size)} for {clips}. Peak of a training step on {clips}: "
        f"{bytes_text(report.peak_train_bytes)}. Peak inference memory: {bytes_text(report.peak_inference_bytes)} for "
        f"one clip, {bytes_text(report.peak_inference_batch_bytes)} for {clips}",
        "compute": f"{count_text(report.macs)} multiply-adds = {count_text(report.flops_forward)} FLOPs for one clip; "
        f"a training step: {count_text(report.flops_train_step)} FLOPs for one clip, "
        f"{count_text(report.flops_train_step * report.batch_size)} for {clips}{stream}",
    }
    return "\n".join(paragraph(name, text) for name, text in paragraphs.items())


def paragraph(name: str, text: str) -> str:
    """A named paragraph, indented, as wide as the terminal, at most 120 columns."""
    return textwrap.fill(text, table_width(), initial_indent=f"{name:<12}", subsequent_indent=" " * 12)


def summary_line(report: CostReport) -> str:
    """The totals in one line, for the start of a run."""
    return (
        f"{count_text(report.parameters)} parameters, {count_text(report.flops_forward)} FLOPs per clip; a training "
        f"step on {report.batch_size} clips takes {bytes_text(report.peak_train_bytes)} and "
        f"{count_text(report.flops_train_step * report.batch_size)} FLOPs"
    )
