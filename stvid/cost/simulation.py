"""Runs a model's very training step, with tensors that have a shape, a type and a device but no memory.

The only file that knows torch's fake tensors, which are semi-private. On top of them autograd, autocast, recomputation
and the choice of kernels work as ever, so what is held when need not be guessed.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.optim import Optimizer

from stvid.cost.memory_tracker import INPUT, STATE, MemoryTracker
from stvid.preprocess import run_model

MEMORY_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}  # as `stvid.preprocess.channels_last` has it
# what operators raise that need values: `item`, `nonzero`, those of other libraries that know no fake tensors
NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass
class LayerOutput:
    """What a layer gave in a forward pass: how many images (or clips), and the shape of one."""

    seen: int = 0
    shape: tuple[int, ...] = ()
    caller: int = -1  # the call of the module around it; calls from the same one see the same images


@dataclass
class Step:
    """A simulated training step: bytes, multiply-adds, and what each layer (by name) gave, holds and multiplied."""

    peak: int = 0
    held_by: dict[str, int] = field(default_factory=dict)
    forward_macs: dict[str, int] = field(default_factory=dict)
    macs: int = 0
    gradient_bytes: int = 0
    optimizer_bytes: int = 0
    passed: dict[str, LayerOutput] = field(default_factory=dict)  # in the order in which layers are done


class Simulation:
    """A copy of a model that has no memory, and the steps it can be put through.

    Args:
        model: any; it stays as it is, and may itself be on the meta device.
        preprocess: turns uint8 batches `B x T x C x H x W` into the model's input, see `stvid.preprocess.Preprocess`.
            None: the model is fed with float32 as it is.
        precision: `32-true`, `bf16-mixed`, `16-mixed` or `bf16-true`.
        device: `cpu` or `cuda`, see `MemoryTracker`.
    """

    def __init__(self, *, model: nn.Module, preprocess: nn.Module | None, precision: str, device: str):
        self.mode = FakeTensorMode()
        self.precision, self.device = precision, device
        halved = torch.bfloat16 if precision == "bf16-true" else None
        self.model = _without_memory(model, self.mode, halved)
        self.preprocess = None if preprocess is None else _without_memory(preprocess, self.mode)
        self.batch_type = torch.float32 if preprocess is None else torch.uint8
        self.names = {module: name for name, module in self.model.named_modules()}

    def answer(self, batch_shape: tuple[int, ...]) -> int:
        """Peak bytes of a step that only computes the result, for a batch as it is delivered."""
        self.model.eval()
        with self.mode, self._books() as ledger, torch.no_grad(), self._autocast():
            ledger.reset_peak()
            self._forward(ledger, self._batch(batch_shape, ledger))
        return ledger.peak

    def train(self, batch_shape: tuple[int, ...], make_optimizer: Callable[[nn.Module], Optimizer]) -> Step:
        """One training step of Lightning's, not the first: gradients of the step before are there, moments too.

        Args:
            batch_shape: of the batch as it is delivered.
            make_optimizer: the optimizer for a model; not called where nothing is to be trained.
        """
        self.model.train()
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        step = Step()
        with self.mode, self._books() as ledger:
            if trainable:
                optimizer = make_optimizer(self.model)
                self._as_on_device(optimizer)
                for parameter in trainable:
                    parameter.grad = torch.zeros_like(parameter)
                optimizer.step()
                step.optimizer_bytes = _state_bytes(optimizer)
                for parameter in trainable:
                    ledger.note(parameter.grad, STATE)
            ledger.reset_peak()
            ledger.macs.clear()
            batch = self._batch(batch_shape, ledger)  # which the training loop holds until the step is over
            loss = self._loss(ledger, batch, step)
            if trainable:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            step.gradient_bytes = sum(p.grad.nbytes for p in trainable if p.grad is not None)
            step.peak, step.macs = ledger.peak, sum(ledger.macs.values())
            self.model.zero_grad()
        return step

    def _loss(self, ledger: MemoryTracker, batch: Tensor, step: Step) -> Tensor:
        """Forward pass and loss, as the task has them; fills in what is known of layers between the two."""
        with self._autocast():
            output = self._forward(ledger, batch, step.passed)
            step.held_by, step.forward_macs = ledger.by_owner(), dict(ledger.macs)
            ledger.owner = STATE
            if isinstance(output, Tensor) and output.ndim == 2:
                labels = torch.zeros(len(output), dtype=torch.long)
                return nn.functional.cross_entropy(output.float(), labels)
            tensors = [output] if isinstance(output, Tensor) else _tensors(output)
            return sum(tensor.float().sum() for tensor in tensors)

    def _batch(self, shape: tuple[int, ...], ledger: MemoryTracker) -> Tensor:
        ledger.owner = INPUT
        batch = torch.empty(shape, dtype=self.batch_type)
        if self.batch_type != torch.uint8 and batch.ndim in MEMORY_FORMATS:
            batch = batch.contiguous(memory_format=MEMORY_FORMATS[batch.ndim])
        return batch.to(torch.bfloat16) if self.precision == "bf16-true" and batch.is_floating_point() else batch

    def _forward(self, ledger: MemoryTracker, batch: Tensor, passed: dict[str, LayerOutput] | None = None) -> Tensor:
        passed = {} if passed is None else passed
        calls, around = itertools.count(), [(INPUT, -1)]  # modules that are being called, with the number of the call

        def enter(module: nn.Module, _) -> None:
            around.append((self.names[module], next(calls)))
            ledger.owner = around[-1][0]

        def leave(module: nn.Module, _, result: object) -> None:
            name, _ = around.pop()
            ledger.owner, caller = around[-1]
            for tensor in _tensors(result)[:1]:
                note = passed.setdefault(name, LayerOutput())
                if note.caller != caller or not note.shape:
                    note.seen += tensor.shape[0] if tensor.ndim else 1
                note.shape, note.caller = tuple(tensor.shape[1:]), caller

        hooks = [module.register_forward_pre_hook(enter) for module in self.names]
        hooks += [module.register_forward_hook(leave) for module in self.names]
        try:
            if self.preprocess is None:
                return self.model(batch)
            return run_model(self.model, self.preprocess, batch)
        finally:
            for hook in hooks:
                hook.remove()

    def _books(self) -> MemoryTracker:
        """A ledger in which the model itself is entered."""
        ledger = MemoryTracker(device=self.device)
        for module in (self.model, self.preprocess or nn.Identity()):
            for tensor in (*module.parameters(), *module.buffers()):
                ledger.note(tensor, STATE)
        return ledger

    def _autocast(self) -> torch.autocast:
        kind = AUTOCAST.get(self.precision)
        return torch.autocast("cpu", dtype=kind or torch.bfloat16, enabled=kind is not None)

    def _as_on_device(self, optimizer: Optimizer) -> None:
        """torch's optimizers update all parameters at once on CUDA, with temporary memory as large as all of them."""
        for group in optimizer.param_groups:
            if self.device == "cuda" and group.get("foreach", False) is None and not group.get("fused"):
                group["foreach"] = True


def _without_memory(model: nn.Module, mode: FakeTensorMode, kind: torch.dtype | None = None) -> nn.Module:
    """A copy whose tensors are fake ones, weights in the order of `channels_last`, floats of another kind if wanted."""
    tensors = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    copies: dict[int, object] = {}
    with mode:
        for tensor in (*model.parameters(), *model.buffers(), *tensors):
            dtype = kind if kind and tensor.is_floating_point() else tensor.dtype
            fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype)
            if isinstance(tensor, nn.Parameter):
                if fake.ndim in MEMORY_FORMATS:
                    fake = fake.contiguous(memory_format=MEMORY_FORMATS[fake.ndim])
                fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            copies[id(tensor)] = fake
        return copy.deepcopy(model, copies)


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _state_bytes(optimizer: Optimizer) -> int:
    """Of all but step counters."""
    tensors = [tensor for state in optimizer.state.values() for tensor in _tensors(state)]
    return sum(tensor.nbytes for tensor in tensors if tensor.ndim)
