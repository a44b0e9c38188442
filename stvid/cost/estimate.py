"""The price of any module: what it needs to train and to answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from stvid.cost.ledger import INPUT
from stvid.cost.report import CostReport, LayerCost
from stvid.cost.simulation import NEEDS_VALUES, LayerOutput, Simulation, Step
from stvid.errors import InputError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true")
DEVICES = ("cpu", "cuda")


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
            `stvid.clip.Preprocess` does; it is part of the step then. None: float input is delivered.
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
