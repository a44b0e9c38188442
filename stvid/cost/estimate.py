"""Estimates the cost of a module: parameters, memory and compute of a training step and of inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from stvid.cost.memory_tracker import INPUT
from stvid.cost.report import CostReport, LayerCost
from stvid.cost.simulation import NEEDS_VALUES, LayerOutput, Simulation, TrainingStep
from stvid.errors import InputError
from stvid.preprocess import Preprocess

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true")
DEVICES = ("cpu", "cuda")


def adamw(model: nn.Module) -> Optimizer:
    """AdamW for the trainable parameters."""
    return torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)


def estimate(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    batch_size: int = 1,
    precision: str = "32-true",
    device: str = "cpu",
    optimizer: Callable[[nn.Module], Optimizer] = adamw,
    preprocess: Preprocess | None = None,
    ema: bool = False,
) -> CostReport:
    """Estimates parameters, memory and compute of a model, without allocating memory or computing anything.

        >>> stvid.estimate(torch.nn.Conv3d(3, 16, 3), (3, 100, 224, 224)).parameters   # 16 * (3 * 27 + 1)
        1312

    Simulates one training step and two inference steps as stvid runs them: channels-last memory format, Lightning's
    order of a step, cross entropy for an output `B x K` (the sum of any other output), and the optimizer's own
    operators. The model is not changed, and may be on the meta device. `CostReport` has the formulas.

    Not included: cuDNN's workspace; CUDA's own memory (several hundred MB, included in `torch.cuda.mem_get_info`);
    fragmentation of torch's CUDA allocator.

    Args:
        model: any module that takes one tensor.
        input_shape: of one sample, without the batch, as the model gets it: `(C, T, H, W)` for a clip. All at least 1.
        batch_size: samples in a training step, at least 1.
        precision: `32-true`, `bf16-mixed`, `16-mixed` or `bf16-true`.
        device: `cpu` or `cuda`; this machine need not have it.
        optimizer: model -> optimizer. It gets a copy of the model without memory.
        preprocess: turns the uint8 batch `B x T x C x H x W` of the data loader into the model's input on the device,
            as `stvid.preprocess.Preprocess` does; it becomes part of the step. None: the batch is float32.
        ema: training keeps a moving average of the model.

    Returns:
        Bytes, FLOPs and numbers of parameters, in all and for each layer.

    Raises:
        InputError: a value out of its range; an input that one of stvid's models does not take; a computation that
            depends on the values in a tensor, since a simulation has none. Other errors of the model pass unchanged.
    """
    input_shape = tuple(input_shape)
    _check(input_shape, batch_size, precision, device)
    if precision == "bf16-true" and preprocess is not None:
        raise InputError("precision=bf16-true cannot be combined with a preprocess, which returns float32")
    simulation = Simulation(model=model, preprocess=preprocess, precision=precision, device=device)
    sample_shape = input_shape
    if preprocess is not None:  # from C x T x H x W to T x C x H x W
        sample_shape = (input_shape[1], input_shape[0], *input_shape[2:])
    try:
        step = simulation.training_step((batch_size, *sample_shape), optimizer)
        stream_macs = simulation.stream_macs(input_shape, step, batch_size)
        sample_peak, batch_peak = (simulation.inference_peak((size, *sample_shape)) for size in (1, batch_size))
    except NEEDS_VALUES as error:
        raise InputError(
            f"the cost of {type(model).__name__} cannot be estimated: {error} needs the values in a tensor, "
            "and a simulation has none"
        ) from error
    return _report(simulation, input_shape, batch_size, step, (sample_peak, batch_peak), stream_macs, ema)


def _report(
    simulation: Simulation,
    input_shape: tuple[int, ...],
    batch_size: int,
    step: TrainingStep,
    inference_peaks: tuple[int, int],
    stream_macs: int | None,
    ema: bool,
) -> CostReport:
    simulated = simulation.model
    model_bytes = sum(tensor.nbytes for tensor in (*simulated.parameters(), *simulated.buffers()))
    ema_bytes = model_bytes if ema else 0
    layers = tuple(_layers(simulated, step, batch_size))
    macs = sum(layer.macs for layer in layers)
    return CostReport(
        input_shape=input_shape,
        batch_size=batch_size,
        precision=simulation.precision,
        device=simulation.device,
        parameters=sum(parameter.numel() for parameter in simulated.parameters()),
        trainable_parameters=sum(p.numel() for p in simulated.parameters() if p.requires_grad),
        model_bytes=model_bytes,
        train_state_bytes=model_bytes + step.gradient_bytes + step.optimizer_bytes + ema_bytes,
        input_bytes=step.activation_bytes.get(INPUT, 0) // batch_size,
        activation_bytes=sum(layer.activation_bytes for layer in layers),
        peak_train_bytes=step.peak + ema_bytes,
        peak_inference_bytes=inference_peaks[0],
        peak_inference_batch_bytes=inference_peaks[1],
        macs=macs,
        flops_forward=2 * macs,
        flops_train_step=2 * step.macs // batch_size,
        stream_macs=stream_macs,
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


def _layers(model: nn.Module, step: TrainingStep, batch_size: int) -> Iterator[LayerCost]:
    """Modules with computation, memory or parameters of their own, in the order they finish; unused ones last."""
    modules = dict(model.named_modules())
    counted: set[int] = set()
    positions = {name: i for i, name in enumerate(step.outputs)}
    for name in sorted(modules, key=lambda name: positions.get(name, len(modules))):
        module = modules[name]
        own = [p for p in module.parameters(recurse=False) if id(p) not in counted]
        counted |= {id(parameter) for parameter in own}
        activation_bytes, macs = step.activation_bytes.get(name, 0), step.forward_macs.get(name, 0)
        is_leaf = next(module.children(), None) is None
        if own or activation_bytes or macs or (is_leaf and name in step.outputs):
            yield LayerCost(
                name=name,
                type=type(module).__name__,
                output_shape=_output_shape(step.outputs.get(name, LayerOutput()), batch_size),
                parameters=sum(parameter.numel() for parameter in own),
                activation_bytes=activation_bytes // batch_size,
                macs=macs // batch_size,
            )


def _output_shape(output: LayerOutput, batch_size: int) -> tuple[int, ...]:
    """Without the batch; a layer that sees the frames of a clip as images has their number in front."""
    images = output.samples // batch_size
    return (images, *output.shape) if images > 1 else output.shape
