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

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from stvid.models.base import VideoModel, check_clips

LAYERS = (nn.Conv3d, nn.MaxPool3d, nn.AvgPool3d)  # may span time
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
        """The state before the first frame, see `VideoModel`.

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


class Timing(NamedTuple):
    """When the steps of an operator come, in frames of the stream counted from 0."""

    stride: int = 1  # from one step to the next
    centre: int = 0  # the frame in the centre of what the first step depends on
    first: int = 0  # the last frame that the first step depends on: with it the step comes

    def comes_at(self, frame: int) -> bool:
        """Whether a step comes with this frame."""
        return frame >= self.first and (frame - self.first) % self.stride == 0


class TimeKernel(NamedTuple):
    """A layer along time: kernel size, stride, dilation, and whether it keeps incomplete windows at the end."""

    size: int
    stride: int
    dilation: int
    ceil_mode: bool

    @property
    def reach(self) -> int:
        """Inputs before the last one that an output depends on."""
        return (self.size - 1) * self.dilation

    @property
    def centre(self) -> int:
        """The input in the centre of the first output. It is also the padding of layers that keep T."""
        return (self.size - 1) // 2 * self.dilation

    def slide(self, timing: Timing, phase: int | None) -> Timing:
        """The layer's steps for those of its input. Their centres are `phase` modulo the new stride; None: any."""
        stride = timing.stride * self.stride
        centre = timing.centre + timing.stride * self.centre
        delay = 0 if phase is None else (phase - centre) % stride
        return Timing(stride, centre + delay, timing.first + timing.stride * self.reach + delay)

    def num_steps(self, num_steps: int) -> int:
        """T' of a clip with T steps before this layer, padded as in training."""
        room = num_steps + 2 * self.centre - self.reach - 1
        return max((-(-room // self.stride) if self.ceil_mode else room // self.stride) + 1, 1)


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
    """

    def __init__(self, network: nn.Module, num_frames: int | None):
        graph = _Tracer().trace(network)
        self.interpreter = fx.Interpreter(network, graph=graph)
        self.nodes = [node for node in graph.nodes if node.op != "output"]
        modules = {node: network.get_submodule(str(node.target)) for node in self.nodes if node.op == "call_module"}
        self.pooling = next(node for node in self.nodes if _averages_time(node, modules.get(node)))
        self.num_before_pooling = self.nodes.index(self.pooling)
        before, last = self.nodes[: self.num_before_pooling], self.pooling.all_input_nodes[0]
        kernels = {node: _time_kernel(modules[node]) for node in before if isinstance(modules.get(node), LAYERS)}
        phase = _timings(before, kernels, phase=None)[last].centre  # so no step of the longest path is left out
        self.timings = _timings(before, kernels, phase=phase)
        self.period, self.first = self.timings[last].stride, self.timings[last].first + 1
        self.strides = {modules[node]: self.timings[node].stride for node in before if node in modules}
        self.num_steps = None if num_frames is None else _num_steps(before, kernels, num_frames)[last]
        self.kernels, self.layers = kernels, {node: _one_step(modules[node]) for node in kernels}
        self.junctions = {n for n in before if len({self.timings[source] for source in n.all_input_nodes}) > 1}

    def step(self, frame_BCTHW: Tensor, state: ContinualState) -> tuple[Tensor | None, ContinualState]:
        """The next frame, T = 1: features `B x F` or None, and the new state."""
        frame, old, new = state.num_frames, state.memory, Memory()
        values = {self.nodes[0]: frame_BCTHW.clone(memory_format=torch.channels_last_3d)}  # nobody else changes it
        for node in self.nodes[1 : self.num_before_pooling]:
            timing, sources = self.timings[node], node.all_input_nodes
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
        if self.pooling.all_input_nodes[0] in values:
            values[self.pooling], new[self.pooling] = self._average(self._run(self.pooling, values), old)
            for node in self.nodes[self.num_before_pooling + 1 :]:
                values[node] = self._run(node, values)
            features_BF = values[self.nodes[-1]]
        elif self.pooling in old:
            new[self.pooling] = old[self.pooling]
        return features_BF, ContinualState(self, frame + 1, new)

    def _run(self, node: fx.Node, values: Mapping[fx.Node, Tensor]) -> Tensor:
        args = fx.map_arg(node.args, values.__getitem__)
        kwargs = fx.map_arg(node.kwargs, values.__getitem__)
        return getattr(self.interpreter, node.op)(node.target, args, kwargs)

    def _join(self, node: fx.Node, values: Mapping[fx.Node, Tensor], frame: int, queues: tuple) -> tuple:
        """The steps that wait for those of the other branches, with the ones of this frame; a queue per branch."""
        longer = []
        for source, queue in zip(node.all_input_nodes, queues, strict=True):
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


class _Tracer(fx.Tracer):
    """Records our own convolutions and poolings as operators, as it does torch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LAYERS) or super().is_leaf_module(m, module_qualified_name)


class ConvolutionStep:
    """One step in time of a 3D convolution: a 2D convolution over the channels of all frames that the kernel spans.

    That is the same sum, and on a CPU several times faster than a 3D convolution of a few frames.
    """

    def __init__(self, layer: nn.Conv3d):
        self.layer, weight = layer, layer.weight.detach()  # C' x C x T x H x W
        weight = (weight.transpose(1, 2) if layer.groups == 1 else weight).flatten(1, 2)
        self.weight = weight.contiguous(memory_format=torch.channels_last)

    def __call__(self, frames: Sequence[Tensor]) -> Tensor:
        """Volumes `B x C x 1 x H x W`, one for each frame of the kernel -> `B x C' x 1 x H' x W'`."""
        if self.layer.groups == 1:  # the channels of the first frame, of the second, ...
            x_BCHW = torch.cat([frame[:, :, 0] for frame in frames], dim=1)
        else:  # the first channel of all frames, the second, ...: a group's channels stay together
            x_BCHW = torch.cat(list(frames), dim=2).flatten(1, 2)
        layer = self.layer
        space = (layer.stride[1:], layer.padding[1:], layer.dilation[1:])
        return F.conv2d(x_BCHW, self.weight, layer.bias, *space, layer.groups)[:, :, None]


class PoolingStep:
    """One step in time of a pooling layer, without padding in time."""

    def __init__(self, layer: nn.MaxPool3d | nn.AvgPool3d):
        self.layer = copy.copy(layer)
        self.layer.padding = (0, *_triple(layer.padding)[1:])
        if isinstance(self.layer, nn.MaxPool3d):
            self.layer.dilation = (1, *_triple(self.layer.dilation)[1:])

    def __call__(self, frames: Sequence[Tensor]) -> Tensor:
        """As of `ConvolutionStep`."""
        return self.layer(torch.cat(list(frames), dim=2))


def _one_step(layer: nn.Module) -> ConvolutionStep | PoolingStep:
    return ConvolutionStep(layer) if isinstance(layer, nn.Conv3d) else PoolingStep(layer)


def _time_kernel(layer: nn.Module) -> TimeKernel:
    return TimeKernel(
        size=_triple(layer.kernel_size)[0],
        stride=_triple(layer.stride)[0],
        dilation=_triple(getattr(layer, "dilation", 1))[0],  # an average pooling has none
        ceil_mode=getattr(layer, "ceil_mode", False),
    )


def _averages_time(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether this is the global pooling: the first operator that averages over all steps."""
    if isinstance(module, nn.AdaptiveAvgPool3d):
        return _triple(module.output_size)[0] == 1
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


def _triple(size: Any) -> tuple[int, int, int]:
    """Time, height and width, of an option of a layer: one number, or all three."""
    return (size, size, size) if isinstance(size, int) else size
