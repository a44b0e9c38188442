"""Continual 3D networks: a trained 3D CNN takes one frame at a time (Hedegaard & Iosifidis 2021, arXiv:2106.00050).

Each layer keeps the last frames that its kernel spans, so that a new frame costs one step of each layer and not a whole
clip. Weights do not change. There is no padding in time: a layer with kernel k and stride s gives output j as soon as
its inputs j * s to j * s + k - 1 are there. So the values are those of the same network on the whole video, with all
paddings in time set to 0.

Where branches meet (the shortcut of a ResNet, the branches of an Inception block), a branch with fewer kernels in time
is ahead of the others. Its steps wait there, and its first ones are left out, so that the steps that meet are centred
at the same frame, as they are in training.

B batch   C channels   T frames   H, W height and width   K classes   F features (`num_features`)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from stvid.models.base import VideoModel, check_clips
from stvid.models.continual_layers import LAYERS, TimeKernel, Timing, one_step, time_kernel, triple

Memory = dict[fx.Node, tuple]  # what each operator keeps; tensors in it are never changed


class ContinualState(NamedTuple):
    """A stream after some frames. Its size does not depend on their number; each step makes a new one."""

    network: ContinualNetwork  # the same for the whole stream
    num_frames: int
    memory: Memory


class ContinualModel(VideoModel):
    """A 3D CNN that can also read a stream frame by frame. A subclass defines `pooled_network`."""

    supports_streaming = True

    def pooled_network(self) -> nn.Module:
        """The network up to the features, `B x C x T x H x W` -> `B x F`, made of this model's layers."""
        raise NotImplementedError(f"{type(self).__name__} defines no pooled_network")

    def start_stream(self, num_frames: int | None) -> ContinualState:
        """The state before the first frame, see `VideoModel`. The weights are those of this moment.

        Args:
            num_frames: T of the clips of training. Features are averaged over as many steps of the last volume as such
                a clip has, at least one; None: over all steps so far.

        Raises:
            ValueError: the model is in training mode.
        """
        if self.training:
            raise ValueError("a stream needs a model in evaluation mode")
        return ContinualState(ContinualNetwork(self.pooled_network(), num_frames), 0, {})

    def stream_step(self, frame_BCHW: Tensor, state: ContinualState) -> tuple[Tensor | None, ContinualState]:
        """One frame of a stream, see `VideoModel`.

        The first logits come when the frames fill the kernels of all layers (`ContinualNetwork.first`), later ones
        every `ContinualNetwork.period` frames.
        """
        frame_BCTHW = frame_BCHW[:, :, None]
        check_clips(frame_BCTHW, self.in_channels)
        features_BF, state = state.network.step(frame_BCTHW, state)
        return None if features_BF is None else self.forward_head(features_BF), state

    def stream_key(self, state: ContinualState) -> tuple[ContinualNetwork, int]:
        """Streams with one `start_stream` share steps if they keep as many frames of each layer; see `VideoModel`."""
        return state.network, state.network.equivalent(state.num_frames)

    def stack_states(self, states: Sequence[ContinualState]) -> ContinualState:
        """One state for a batch of streams; see `VideoModel`."""
        network, num_frames = self.stream_key(states[0])
        memory = {node: _stack([state.memory[node] for state in states]) for node in states[0].memory}
        return ContinualState(network, num_frames, memory)

    def split_states(self, state: ContinualState, num_streams: int) -> list[ContinualState]:
        """The state of each stream of a batch; see `VideoModel`."""
        memories = [{node: _take(kept, i) for node, kept in state.memory.items()} for i in range(num_streams)]
        return [state._replace(memory=memory) for memory in memories]


class FrameByFrame(nn.Module):
    """A part of a network, `B x C x T x H x W` -> `B x C' x T x H' x W'`, that treats each frame by itself."""


class ContinualNetwork:
    """A network as a sequence of operators (traced by `torch.fx`), run for one frame at a time.

    Up to the global pooling, all operators but convolutions and poolings must treat each frame by itself.

    Args:
        network: `B x C x T x H x W` -> `B x F`.
        num_frames: T of the clips of training, see `ContinualModel.start_stream`.

    Attributes:
        period: frames from one output to the next, the product of the strides in time.
        strides: layer before the global pooling -> frames from one of its steps to the next.
        first: frames until the first output.
        num_steps: steps of the last volume that an output is the mean of; None: all so far.
        settled: frames until an output is the mean of `num_steps` steps. From then on, what is kept repeats its shape
            every `period` frames. None: never, as each output is a mean of more steps than the one before.
        timings: operator before the global pooling -> when its steps come.
        kernels: convolution or pooling -> its kernel along time.
        junctions: operators whose inputs come at different times.
    """

    def __init__(self, network: nn.Module, num_frames: int | None):
        graph = _Tracer().trace(network)
        self.nodes = [node for node in graph.nodes if node.op != "output"]
        modules = {node: network.get_submodule(str(node.target)) for node in self.nodes if node.op == "call_module"}
        self.pooling = next(node for node in self.nodes if _averages_time(node, modules.get(node)))
        self.num_before_pooling = self.nodes.index(self.pooling)
        before, last = self.nodes[: self.num_before_pooling], self.pooling.all_input_nodes[0]
        kernels = {node: time_kernel(modules[node]) for node in before if isinstance(modules.get(node), LAYERS)}
        phase = _timings(before, kernels, phase=None)[last].centre  # so no step of the longest path is left out
        self.timings = _timings(before, kernels, phase=phase)
        self.period, self.first = self.timings[last].stride, self.timings[last].first + 1
        self.strides = {modules[node]: self.timings[node].stride for node in before if node in modules}
        self.num_steps = None if num_frames is None else _num_steps(before, kernels, num_frames)[last]
        self.settled = None if self.num_steps is None else self.first + (self.num_steps - 1) * self.period
        self.kernels = kernels
        self.sources = {node: node.all_input_nodes for node in self.nodes}
        self.junctions = {n for n in before if len({self.timings[source] for source in self.sources[n]}) > 1}
        self.functions = {node: modules.get(node) or _function_of(node) for node in self.nodes[1:]}
        self.layers = {}
        self.norms: dict[fx.Node, Any] = {}  # convolution -> the batch norm after it, or None
        for node in kernels:
            norm = _norm_after(node, modules)
            self.norms[node] = None if norm is None else modules[norm]
            self.layers[node] = one_step(modules[node], self.norms[node])
            if norm is not None:
                self.functions[norm] = nn.Identity()

    def step(self, frame_BCTHW: Tensor, state: ContinualState) -> tuple[Tensor | None, ContinualState]:
        """The next frame, T = 1: features `B x F` or None, and the new state."""
        frame, old, new = state.num_frames, state.memory, Memory()
        values = {self.nodes[0]: frame_BCTHW.clone(memory_format=torch.channels_last_3d)}  # nobody else changes it
        for node in self.nodes[1 : self.num_before_pooling]:
            timing, sources = self.timings[node], self.sources[node]
            if node in self.layers:
                window = (*old.get(node, ()), *(values[source] for source in sources if source in values))
                if timing.comes_at(frame):
                    values[node] = self.layers[node](window[:: self.kernels[node].dilation])
                new[node] = window[max(len(window) - self.kernels[node].reach, 0) :]
            elif node in self.junctions:
                queues = self._join(node, values, frame, old.get(node, ((),) * len(sources)))
                if timing.comes_at(frame):
                    values[node] = self._run(node, {s: queue[0] for s, queue in zip(sources, queues, strict=True)})
                    queues = tuple(queue[1:] for queue in queues)
                new[node] = queues
            elif timing.comes_at(frame):
                values[node] = self._run(node, values)
        features_BF = None
        if self.sources[self.pooling][0] in values:
            values[self.pooling], new[self.pooling] = self._average(self._run(self.pooling, values), old)
            for node in self.nodes[self.num_before_pooling + 1 :]:
                values[node] = self._run(node, values)
            features_BF = values[self.nodes[-1]]
        elif self.pooling in old:
            new[self.pooling] = old[self.pooling]
        return features_BF, ContinualState(self, frame + 1, new)

    def equivalent(self, num_frames: int) -> int:
        """The least number of frames after which this network goes on in the same way as after these."""
        if self.settled is None or num_frames < self.settled:
            return num_frames
        return self.settled + (num_frames - self.settled) % self.period

    def _run(self, node: fx.Node, values: Mapping[fx.Node, Tensor]) -> Tensor:
        args = fx.map_arg(node.args, values.__getitem__)
        kwargs = fx.map_arg(node.kwargs, values.__getitem__)
        return self.functions[node](*args, **kwargs)

    def _join(self, node: fx.Node, values: Mapping[fx.Node, Tensor], frame: int, queues: tuple) -> tuple:
        """The steps that wait for those of the other branches, with the ones of this frame; a queue per branch."""
        longer = []
        for source, queue in zip(self.sources[node], queues, strict=True):
            timing = self.timings[source]
            left_out = self.timings[node].centre - timing.centre  # frames: steps whose counterparts do not exist
            is_counted = source in values and frame >= timing.first + left_out
            longer.append((*queue, values[source]) if is_counted else queue)
        return tuple(longer)

    def _average(self, step: Tensor, memory: Memory) -> tuple[Tensor, tuple]:
        """The mean over the last steps, and what to keep for the next one."""
        kept = memory.get(self.pooling, ())
        if self.num_steps is None:
            mean, count = kept or (torch.zeros_like(step, dtype=torch.float32), 0)
            mean = mean + (step - mean) / (count + 1)
            return mean.to(step.dtype), (mean, count + 1)
        recent = (*kept, step)[-self.num_steps :]
        return torch.stack(recent).mean(dim=0), recent


def _stack(kept: Sequence[Any]) -> Any:
    """What an operator keeps of several streams (tensors, tuples of them, a count that is equal) as of a batch."""
    if isinstance(kept[0], Tensor):
        return torch.cat(list(kept))
    return tuple(map(_stack, zip(*kept, strict=True))) if isinstance(kept[0], tuple) else kept[0]


def _take(kept: Any, index: int) -> Any:
    """What an operator keeps of one stream of a batch."""
    if isinstance(kept, Tensor):
        return kept[index : index + 1]
    return tuple(_take(part, index) for part in kept) if isinstance(kept, tuple) else kept


class _Tracer(fx.Tracer):
    """Records our own convolutions and poolings, and what works on single frames, as operators, as it does torch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*LAYERS, nn.AdaptiveAvgPool3d, FrameByFrame)) or super().is_leaf_module(
            m, module_qualified_name
        )


def _norm_after(node: fx.Node, modules: Mapping[fx.Node, nn.Module]) -> fx.Node | None:
    """The batch norm that is the only user of a convolution."""
    user = next(iter(node.users))
    is_fused = isinstance(modules[node], nn.Conv3d) and isinstance(modules.get(user), nn.BatchNorm3d)
    return user if is_fused and len(node.users) == 1 else None


def _function_of(node: fx.Node) -> Callable:
    """What an operator calls that is no module: a function, or a method of tensors."""
    return getattr(Tensor, node.target) if isinstance(node.target, str) else node.target


def _averages_time(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether this is the global pooling: the first operator that averages over all steps."""
    if isinstance(module, nn.AdaptiveAvgPool3d):
        return triple(module.output_size)[0] == 1
    dims = node.kwargs.get("dim")
    return node.target is torch.mean and isinstance(dims, tuple) and 2 in dims


def _timings(nodes: Sequence[fx.Node], kernels: Mapping[fx.Node, TimeKernel], *, phase: int | None) -> dict:
    """Node -> Timing."""
    timings: dict[fx.Node, Timing] = {}
    for node in nodes:
        inputs = [timings[source] for source in node.all_input_nodes] or [Timing()]
        centre = max(timing.centre for timing in inputs)
        first = max(timing.first + centre - timing.centre for timing in inputs)
        timings[node] = Timing(inputs[0].stride, centre, first)
        if node in kernels:
            timings[node] = kernels[node].slide(timings[node], phase)
    return timings


def _num_steps(nodes: Sequence[fx.Node], kernels: Mapping[fx.Node, TimeKernel], num_frames: int) -> dict[fx.Node, int]:
    """Node -> T of its volume for a clip of training."""
    steps: dict[fx.Node, int] = {}
    for node in nodes:
        steps[node] = max((steps[source] for source in node.all_input_nodes), default=num_frames)
        if node in kernels:
            steps[node] = kernels[node].num_steps(steps[node])
    return steps
