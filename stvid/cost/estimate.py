"""Cost of a module: parameters, memory and compute of a training step and of inference (CostReport)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from stvid.cost.memory_tracker import INPUT
from stvid.cost.simulation import NEEDS_VALUES, LayerOutput, Simulation, Step
from stvid.errors import InputError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One layer, for one clip. Sums over all layers are the report's totals.

    Attributes:
        name: dotted place in the model; empty for the model itself.
        type: its class.
        output_shape: without the batch. A layer that sees every frame as an image of its own has the number of images
            in front: a 2D convolution of an encoder gives `T x C x H x W`.
        parameters: its own, not its children's. A 3D convolution: `C_out * (C_in / groups * kT * kH * kW + 1)`.
        activation_bytes: memory that it filled in the forward pass of a training step and that is still held when this
            pass ends, for the backward pass (or as the model's result). What an in-place layer (ReLU) writes belongs
            to the layer that made it; what another layer recomputes or throws away is 0, and so is a frozen part.
        macs: multiply-adds of a forward pass, see `CostReport.macs`.
    """

    name: str
    type: str
    output_shape: tuple[int, ...]
    parameters: int
    activation_bytes: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class CostReport:
    """What a model needs in the four senses: parameters, bytes of the model, operational space, operational compute.

    Compute and kept activations are for one clip; peaks say what they are for. All bytes are of the device's memory.

    Attributes:
        input_shape: of one clip, `C x T x H x W`, as the model gets it.
        batch_size: clips in the step that was simulated.
        precision: as Lightning calls it.
        device: whose ways with memory were simulated, `cpu` or `cuda`.
        parameters: all of them, a shared one once.
        trainable_parameters: those of them that have a gradient.
        model_bytes: parameters and buffers.
        train_state_bytes: what a training holds between two steps: model, gradients, optimizer, and moving averages of
            the model where there are any. `model_bytes + n * 4 * trainable_parameters (+ model_bytes)` in float32, with
            n = 3 for AdamW (gradient, two moments) and 2 for SGD with momentum. Step counters are not counted.
        input_bytes: what a training step holds of one clip itself when its forward pass ends: the clip as it was
            delivered (uint8), and as float where the first layer needs it for its gradient.
        activation_bytes: for one clip, the sum over `layers`; those of a batch are `batch_size` times as much.
            Copies of weights in low precision are not among them, as they do not grow with the batch.
        peak_train_bytes: the most that is held at once in a training step on the whole batch, once the optimizer has
            its state: `train_state_bytes` with the last step's gradients (Lightning frees them after the forward
            pass), batch, activations, gradients of activations and other temporary memory.
        peak_inference_bytes: likewise for one clip that is just answered: weights, clip, temporary memory.
        peak_inference_batch_bytes: for a batch that is just answered.
        macs: multiply-adds of convolutions and matrix products for one clip, forward. Nothing else is counted: no bias,
            no norm, no activation, no pooling. A convolution: `C_out * T' * H' * W' * C_in / groups * kT * kH * kW`; a
            linear layer: `in * out`; an LSTM: `T * 4 * H * (I + H)` per layer and direction with I inputs and H
            states, a GRU `T * 3 * H * (I + H)`; attention: `2 * L * S * D` per head.
        flops_forward: `2 * macs`.
        flops_train_step: forward and backward for one clip, counted as they happen. A layer's backward is twice its
            forward (gradients of input and of weights); the first layer needs none for its input, a frozen part none
            at all, and what is recomputed counts again.
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
    layers: tuple[LayerCost, ...]

    def to_dict(self) -> dict:
        """As plain data, for JSON."""
        return asdict(self)


def adamw(model: nn.Module) -> Optimizer:
    """AdamW for what is to be trained."""
    return torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)


def estimate(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    batch_size: int = 1,
    precision: str = "32-true",
    device: str = "cpu",
    optimizer: Callable[[nn.Module], Optimizer] = adamw,
    preprocess: nn.Module | None = None,
    ema: bool = False,
) -> CostReport:
    """Prices a model by running a training step and an answer of it without any memory or arithmetic.

    What is simulated is what a training of stvid's does: convolutions in channels-last memory, Lightning's order of
    a step, cross entropy for a result `B x K` (the sum of any other one), gradients, the optimizer's own operators.
    Nothing is allocated, the model is left as it is, and it may be on the meta device.

    Known to be left out: cuDNN's temporary memory and what CUDA itself takes (several hundred MB, of which
    `torch.cuda.mem_get_info` tells); memory that torch's CUDA allocator cannot use for being fragmented.

    Args:
        model: any module that takes one tensor.
        input_shape: of one clip, without the batch, as the model gets it: `(C, T, H, W)`, or what else it takes.
        batch_size: clips in a step, at least 1.
        precision: `32-true`, `bf16-mixed`, `16-mixed` or `bf16-true`.
        device: `cpu` or `cuda`, whose ways with memory are meant; it need not be there.
        optimizer: makes the optimizer for the model that it is given, a copy without memory.
        preprocess: what turns the delivered uint8 batch `B x T x C x H x W` into the model's input on the device, as
            `stvid.preprocess.Preprocess` does; it is part of the step then. None: float input is delivered.
        ema: a moving average of the model is kept in training.

    Raises:
        InputError: a value out of its range; input that a model of ours does not take; a computation that depends on
            the values in a tensor, which there are none of here. Any other error of the model is raised as it is.
    """
    input_shape = tuple(input_shape)
    _check(input_shape, batch_size, precision, device)
    if precision == "bf16-true" and preprocess is not None:
        raise InputError("precision=bf16-true cannot be priced with a preprocess, which gives float32")
    simulation = Simulation(model=model, preprocess=preprocess, precision=precision, device=device)
    one = (1, *input_shape) if preprocess is None else (1, input_shape[1], input_shape[0], *input_shape[2:])
    batch = (batch_size, *one[1:])
    try:
        step = simulation.train(batch, optimizer)
        answers = simulation.answer(one), simulation.answer(batch)
    except NEEDS_VALUES as error:
        raise InputError(
            f"{type(model).__name__} cannot be priced: {error} needs the values in a tensor, and a simulation has none"
        ) from error
    return _report(simulation, input_shape, batch_size, step, answers, ema)


def _report(
    simulation: Simulation,
    input_shape: tuple[int, ...],
    batch_size: int,
    step: Step,
    answers: tuple[int, int],
    ema: bool,
) -> CostReport:
    priced = simulation.model
    model_bytes = sum(tensor.nbytes for tensor in (*priced.parameters(), *priced.buffers()))
    layers = tuple(_layers(priced, step, batch_size))
    macs = sum(layer.macs for layer in layers)
    averages = model_bytes if ema else 0
    return CostReport(
        input_shape=input_shape,
        batch_size=batch_size,
        precision=simulation.precision,
        device=simulation.device,
        parameters=sum(parameter.numel() for parameter in priced.parameters()),
        trainable_parameters=sum(p.numel() for p in priced.parameters() if p.requires_grad),
        model_bytes=model_bytes,
        train_state_bytes=model_bytes + step.gradient_bytes + step.optimizer_bytes + averages,
        input_bytes=step.held_by.get(INPUT, 0) // batch_size,
        activation_bytes=sum(layer.activation_bytes for layer in layers),
        peak_train_bytes=step.peak + averages,
        peak_inference_bytes=answers[0],
        peak_inference_batch_bytes=answers[1],
        macs=macs,
        flops_forward=2 * macs,
        flops_train_step=2 * step.macs // batch_size,
        layers=layers,
    )


def _check(input_shape: tuple[int, ...], batch_size: int, precision: str, device: str) -> None:
    if not input_shape or min(input_shape) < 1:
        raise InputError(f"input_shape (={input_shape}) must be numbers of at least 1")
    if batch_size < 1:
        raise InputError(f"batch_size (={batch_size}) must be at least 1")
    if precision not in PRECISIONS:
        raise InputError(f"precision (={precision}) must be one of {', '.join(PRECISIONS)}")
    if device not in DEVICES:
        raise InputError(f"device (={device}) must be one of {', '.join(DEVICES)}")


def _layers(model: nn.Module, step: Step, batch_size: int) -> Iterator[LayerCost]:
    """Modules that compute, hold or own something themselves, in the order they are done, others behind."""
    modules = dict(model.named_modules())
    known: set[int] = set()
    places = {name: i for i, name in enumerate(step.passed)}
    for name in sorted(modules, key=lambda name: places.get(name, len(modules))):
        module = modules[name]
        own = [p for p in module.parameters(recurse=False) if id(p) not in known]
        known |= {id(parameter) for parameter in own}
        held, macs = step.held_by.get(name, 0), step.forward_macs.get(name, 0)
        is_leaf = next(module.children(), None) is None
        if own or held or macs or (is_leaf and name in step.passed):
            yield LayerCost(
                name=name,
                type=type(module).__name__,
                output_shape=_shape(step.passed.get(name, LayerOutput()), batch_size),
                parameters=sum(parameter.numel() for parameter in own),
                activation_bytes=held // batch_size,
                macs=macs // batch_size,
            )


def _shape(passed: LayerOutput, batch_size: int) -> tuple[int, ...]:
    """Without the batch; images of one clip are counted in front, where a clip is several."""
    images = passed.seen // batch_size
    return (images, *passed.shape) if images > 1 else passed.shape
