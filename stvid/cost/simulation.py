"""Runs a model's real training step with fake tensors, which have a shape, a dtype and a device but no memory.

The only file that depends on torch's fake tensors, which are semi-private. Autograd, autocast, activation checkpointing
and kernel selection work on them as usual, so the memory in use at each moment is observed, not modelled.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

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
from stvid.models.base import VideoModel
from stvid.models.continual import ContinualModel, ContinualNetwork, FrameByFrame
from stvid.preprocess import ModuleT, Preprocess, run_model

MEMORY_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}  # the same as in stvid.preprocess.channels_last
# raised by operators that need values (`item`, `nonzero`), and by those of other libraries without fake tensors
NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass
class LayerOutput:
    """The output of a layer in a forward pass.

    Attributes:
        samples: images or clips that the layer saw, over all its calls on different parts of the batch.
        shape: of one sample's output.
        caller: number of the enclosing module's call; calls from the same one see the same samples.
    """

    samples: int = 0
    shape: tuple[int, ...] = ()
    caller: int = -1


@dataclass
class TrainingStep:
    """A simulated training step.

    Attributes:
        peak: bytes in use at most.
        activation_bytes: layer name (or INPUT, STATE) -> bytes in use at the end of the forward pass.
        forward_macs: layer name -> multiply-adds of the forward pass.
        macs: multiply-adds of the whole step.
        gradient_bytes, optimizer_bytes: what gradients and optimizer keep between two steps.
        outputs: layer name -> its output, in the order in which layers finish.
    """

    peak: int = 0
    activation_bytes: dict[str, int] = field(default_factory=dict)
    forward_macs: dict[str, int] = field(default_factory=dict)
    macs: int = 0
    gradient_bytes: int = 0
    optimizer_bytes: int = 0
    outputs: dict[str, LayerOutput] = field(default_factory=dict)


class Simulation:
    """A copy of a model on fake tensors, and the steps to run on it.

    Args:
        model: any; it is not changed, and may itself be on the meta device.
        preprocess: turns uint8 batches `B x T x C x H x W` into the model's input, see `stvid.preprocess.Preprocess`.
            None: the model gets float32 batches directly.
        precision: `32-true`, `bf16-mixed`, `16-mixed` or `bf16-true`.
        device: `cpu` or `cuda`, see `MemoryTracker`.
    """

    def __init__(self, *, model: nn.Module, preprocess: Preprocess | None, precision: str, device: str) -> None:
        self.mode = FakeTensorMode()
        self.precision, self.device = precision, device
        self.model = _fake_copy(model, self.mode, torch.bfloat16 if precision == "bf16-true" else None)
        self.preprocess = None if preprocess is None else _fake_copy(preprocess, self.mode)
        self.batch_dtype = torch.float32 if preprocess is None else torch.uint8
        self.names = {module: name for name, module in self.model.named_modules()}

    def inference_peak(self, batch_shape: tuple[int, ...]) -> int:
        """Peak bytes of a forward pass without gradients, on a batch as the data loader delivers it."""
        self.model.eval()
        with self.mode, self._tracker() as tracker, torch.no_grad(), self._autocast():
            tracker.reset_peak()
            self._forward(tracker, self._batch(batch_shape, tracker))
        return tracker.peak

    def stream_macs(self, clip_shape: tuple[int, ...], step: TrainingStep, batch_size: int) -> int | None:
        """Multiply-adds for a frame of a stream, on average.

        None for a model that reads no streams, or whose `stream_step` depends on the values in a tensor.

        Args:
            clip_shape: `C x T x H x W`.
            step: of this model, with the multiply-adds of clips: a layer of a continual network has as many for each of
                its steps as in a clip.
            batch_size: of `step`.
        """
        model = self.model.eval()
        if not isinstance(model, VideoModel) or not model.supports_streaming:
            return None
        with self.mode, self._tracker() as tracker, torch.no_grad(), self._autocast():
            state = model.start_stream(None)
            if isinstance(model, ContinualModel):
                return _continual_macs(state.network, self.names, step, num_frames=clip_shape[1]) // batch_size
            frame = torch.empty(1, clip_shape[0], *clip_shape[2:])
            try:
                _, state = model.stream_step(frame, state)
                tracker.macs.clear()
                model.stream_step(frame, state)
            except NEEDS_VALUES:
                return None
        return sum(tracker.macs.values())

    def training_step(
        self, batch_shape: tuple[int, ...], make_optimizer: Callable[[nn.Module], Optimizer]
    ) -> TrainingStep:
        """A training step in Lightning's order, and not the first: gradients and optimizer state are there already.

        Args:
            batch_shape: of the batch as the data loader delivers it.
            make_optimizer: model -> optimizer; not called if no parameter is trainable.
        """
        self.model.train()
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        step = TrainingStep()
        with self.mode, self._tracker() as tracker:
            if trainable:
                optimizer = make_optimizer(self.model)
                self._set_foreach(optimizer)
                for parameter in trainable:
                    parameter.grad = torch.zeros_like(parameter)
                optimizer.step()
                step.optimizer_bytes = _state_bytes(optimizer)
                for parameter in trainable:
                    tracker.track(parameter.grad, STATE)
            tracker.reset_peak()
            tracker.macs.clear()
            batch = self._batch(batch_shape, tracker)  # the training loop keeps it until the step ends
            loss = self._loss(tracker, batch, step)
            if trainable:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            step.gradient_bytes = sum(p.grad.nbytes for p in trainable if p.grad is not None)
            step.peak, step.macs = tracker.peak, sum(tracker.macs.values())
            self.model.zero_grad()
        return step

    def _loss(self, tracker: MemoryTracker, batch: Tensor, step: TrainingStep) -> Tensor:
        """Forward pass and loss as in the training task; fills in what `step` holds about the forward pass."""
        with self._autocast():
            output = self._forward(tracker, batch, step.outputs)
            step.activation_bytes, step.forward_macs = tracker.bytes_by_owner(), dict(tracker.macs)
            tracker.owner = STATE
            if isinstance(output, Tensor) and output.ndim == 2:
                labels = torch.zeros(len(output), dtype=torch.long)
                return nn.functional.cross_entropy(output.float(), labels)
            return sum(tensor.float().sum() for tensor in _tensors(output))  # type: ignore[return-value] # not empty

    def _batch(self, shape: tuple[int, ...], tracker: MemoryTracker) -> Tensor:
        tracker.owner = INPUT
        batch = torch.empty(shape, dtype=self.batch_dtype)
        if self.batch_dtype != torch.uint8 and batch.ndim in MEMORY_FORMATS:
            batch = batch.contiguous(memory_format=MEMORY_FORMATS[batch.ndim])
        return batch.to(torch.bfloat16) if self.precision == "bf16-true" and batch.is_floating_point() else batch

    def _forward(self, tracker: MemoryTracker, batch: Tensor, outputs: dict[str, LayerOutput] | None = None) -> Tensor:
        """Runs the model; attributes memory to the innermost layer that runs, and records outputs."""
        outputs = {} if outputs is None else outputs
        call_numbers, stack = itertools.count(), [(INPUT, -1)]  # running modules: (name, number of the call)

        def enter(module: nn.Module, _: object) -> None:
            stack.append((self.names[module], next(call_numbers)))
            tracker.owner = stack[-1][0]

        def leave(module: nn.Module, _: object, result: object) -> None:
            name, _ = stack.pop()
            tracker.owner, caller = stack[-1]
            for tensor in _tensors(result)[:1]:
                output = outputs.setdefault(name, LayerOutput())
                if output.caller != caller or not output.shape:
                    output.samples += tensor.shape[0] if tensor.ndim else 1
                output.shape, output.caller = tuple(tensor.shape[1:]), caller

        hooks = [module.register_forward_pre_hook(enter) for module in self.names]
        hooks += [module.register_forward_hook(leave) for module in self.names]
        try:
            if self.preprocess is None:
                return self.model(batch)
            return run_model(self.model, self.preprocess, batch)
        finally:
            for hook in hooks:
                hook.remove()

    def _tracker(self) -> MemoryTracker:
        """A tracker that knows the memory of the model and the preprocessing."""
        tracker = MemoryTracker(device=self.device)
        for module in (self.model, self.preprocess or nn.Identity()):
            for tensor in (*module.parameters(), *module.buffers()):
                tracker.track(tensor, STATE)
        return tracker

    def _autocast(self) -> torch.autocast:
        dtype = AUTOCAST.get(self.precision)
        return torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def _set_foreach(self, optimizer: Optimizer) -> None:
        """On CUDA, torch's optimizers update all parameters in one call, with temporary memory of their total size."""
        for group in optimizer.param_groups:
            if self.device == "cuda" and group.get("foreach", False) is None and not group.get("fused"):
                group["foreach"] = True


def _continual_macs(
    network: ContinualNetwork, names: Mapping[nn.Module, str], step: TrainingStep, *, num_frames: int
) -> int:
    """Multiply-adds of a batch for a frame of a stream: those of a clip by the rate of steps of each layer."""
    frames_per_step = {names[layer]: stride for layer, stride in network.strides.items() if layer in names}
    parts = [part for layer in network.strides if isinstance(layer, FrameByFrame) for part in layer.modules()]
    of_frames = {names[part] for part in parts if part in names}  # of the clip's frames: an image network
    macs = Fraction(0)
    for name, macs_of_clip in step.forward_macs.items():
        if name in of_frames:
            macs += Fraction(macs_of_clip, num_frames)
        elif name in frames_per_step:  # its output is C x T x H x W
            macs += Fraction(macs_of_clip, step.outputs[name].shape[1] * frames_per_step[name])
        else:  # after the pooling over time
            macs += Fraction(macs_of_clip, network.period)
    return round(macs)


def _fake_copy(model: ModuleT, mode: FakeTensorMode, dtype: torch.dtype | None = None) -> ModuleT:
    """A copy on fake tensors.

    Args:
        model: is not changed.
        mode: of the fake tensors.
        dtype: of floating-point tensors in the copy; None: their own.
    """
    tensors = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    copies: dict[int, object] = {}
    with mode:
        for tensor in (*model.parameters(), *model.buffers(), *tensors):
            fake_dtype = dtype if dtype and tensor.is_floating_point() else tensor.dtype
            fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=fake_dtype)
            if isinstance(tensor, nn.Parameter):
                if fake.ndim in MEMORY_FORMATS:
                    fake = fake.contiguous(memory_format=MEMORY_FORMATS[fake.ndim])
                fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            copies[id(tensor)] = fake
        return copy.deepcopy(model, copies)


def _tensors(value: object) -> list[Tensor]:
    """All tensors in nested dicts, tuples and lists."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _state_bytes(optimizer: Optimizer) -> int:
    """Bytes of the optimizer's state without step counters."""
    tensors = [tensor for state in optimizer.state.values() for tensor in _tensors(state)]
    return sum(tensor.nbytes for tensor in tensors if tensor.ndim)
