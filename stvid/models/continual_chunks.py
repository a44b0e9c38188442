"""Continual 3D networks that take several frames at once, with tensors as state, so that they can leave Python.

`ContinualNetwork` does something else at each frame: some layers have a step, others wait. An exported graph cannot.
Here every call takes `period` frames (the product of the strides in time). Each layer then has the same number of steps
in every call, and the last volume has one.

What a layer needs of earlier calls is a tensor of the last steps of its input, zeros before the first frame. Steps
that are computed from these zeros are not real. A count of the calls says from when on they no longer matter.

B batch   C channels   T frames   H, W height and width   F features (`num_features`)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from stvid.models.continual import ContinualModel, ContinualNetwork
from stvid.models.continual_layers import fused_weights, triple, without_time_padding


class Delay(NamedTuple):
    """Which steps an operator takes of its input: of those kept from earlier calls, followed by those of this call."""

    name: str  # of the state
    kept: int  # steps of earlier calls
    first: int  # index of the first step that it takes
    length: int  # steps that it takes


class ContinualChunks(nn.Module):
    """A continual network for `period` frames at a time: the answers of `ContinualModel.stream_step`.

    An answer covers the frames up to frame `first + n * period` of the stream (n = 0, 1, ...; see `ContinualNetwork`),
    the last one of these in the chunk. The first chunk with an answer has the index `(first - 1) // period`.

    Args:
        model: in evaluation mode; its weights are copied.
        num_frames: T of the clips of training; None: whole videos. See `ContinualModel.start_stream`.
        size: height and width of the frames.

    Attributes:
        period: frames of a chunk.
        first: frames until the first answer.
        states: name -> shape without the batch, of float32 tensors; all are 0 before the first chunk. Besides them
            there is the number of chunks so far.
    """

    def __init__(self, model: ContinualModel, *, num_frames: int | None, size: tuple[int, int]):
        super().__init__()
        self.network = model.start_stream(num_frames).network
        self.period, self.first = self.network.period, self.network.first
        self.num_steps = self.network.num_steps
        self.delays = _delays(self.network)
        self.layers = nn.ModuleDict()
        self.functions: dict[fx.Node, Callable] = {}
        for node in self.network.nodes[1:]:
            function = _chunk_layer(self.network, node)
            self.functions[node] = function
            if isinstance(function, nn.Module):
                self.layers[node.name] = function
        chunk_BCTHW = torch.zeros(1, model.in_channels, self.period, *size)
        with torch.no_grad():
            _, _, states = self(chunk_BCTHW, torch.zeros(1, 1, dtype=torch.int64), {})
        self.states = {name: tuple(state.shape[1:]) for name, state in states.items()}

    def forward(
        self, chunk_BCTHW: Tensor, count_B1: Tensor, states: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The next frames of B streams, which need not have begun at the same time.

        Args:
            chunk_BCTHW: T = `period` frames.
            count_B1: int64, chunks before this one.
            states: what the call for the chunk before returned; for the first one zeros, or an empty dict.

        Returns:
            Features `B x F`; bool `B x 1`, whether they are an answer; and the new states.
        """
        values = {self.network.nodes[0]: chunk_BCTHW}
        new: dict[str, Tensor] = {}
        for node in self.network.nodes[1 : self.network.num_before_pooling]:
            inputs = dict(values)
            for position, source in enumerate(self.network.sources[node]):
                delay = self.delays.get((node, position))
                if delay is not None:
                    inputs[source] = self._with_earlier(values[source], delay, states, new)
            values[node] = self._run(node, inputs)
        step = self._run(self.network.pooling, values)
        num_answers_B1 = (count_B1 + 1 - (self.first - 1) // self.period).clamp(min=0)
        values[self.network.pooling] = self._average(step, num_answers_B1, states, new)
        for node in self.network.nodes[self.network.num_before_pooling + 1 :]:
            values[node] = self._run(node, values)
        return values[self.network.nodes[-1]], num_answers_B1 > 0, new

    def _run(self, node: fx.Node, values: Mapping[fx.Node, Tensor]) -> Tensor:
        args = fx.map_arg(node.args, values.__getitem__)
        kwargs = fx.map_arg(node.kwargs, values.__getitem__)
        return self.functions[node](*args, **kwargs)

    def _with_earlier(self, x_BCTHW: Tensor, delay: Delay, states: dict[str, Tensor], new: dict[str, Tensor]) -> Tensor:
        """The steps that an operator takes, and what to keep for the next call."""
        if delay.kept:
            shape = (x_BCTHW.shape[0], x_BCTHW.shape[1], delay.kept, *x_BCTHW.shape[3:])
            earlier = states[delay.name] if delay.name in states else x_BCTHW.new_zeros(shape)
            x_BCTHW = torch.cat([earlier, x_BCTHW], dim=2)
            new[delay.name] = x_BCTHW[:, :, x_BCTHW.shape[2] - delay.kept :]
        return x_BCTHW[:, :, delay.first : delay.first + delay.length]

    def _average(
        self, step: Tensor, num_answers_B1: Tensor, states: dict[str, Tensor], new: dict[str, Tensor]
    ) -> Tensor:
        """The mean over the last real steps; steps that are not real count as 0."""
        count = num_answers_B1.to(step.dtype).view(-1, *[1] * (step.ndim - 1))
        step = torch.where(count > 0, step, 0.0)
        if self.num_steps is None:
            mean = states["mean"] if "mean" in states else torch.zeros_like(step)
            new["mean"] = mean + (step - mean) / count.clamp(min=1)
            return new["mean"]
        if self.num_steps == 1:
            return step
        shape = (step.shape[0], self.num_steps - 1, *step.shape[1:])
        recent = torch.cat([states["recent"] if "recent" in states else step.new_zeros(shape), step[:, None]], dim=1)
        new["recent"] = recent[:, 1:]
        return recent.sum(dim=1) / count.clamp(min=1, max=self.num_steps)


class ConvolutionChunk(nn.Module):
    """A 3D convolution without padding in time.

    Args:
        layer: the convolution.
        norm: the batch norm after it, which becomes part of it; None: none.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv3d, norm: nn.BatchNorm3d | None):
        super().__init__()
        weight, bias = fused_weights(layer, norm)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.padding = (0, *triple(layer.padding)[1:])
        self.stride, self.dilation, self.groups = layer.stride, layer.dilation, layer.groups

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """`B x C x T x H x W` -> `B x C' x T' x H' x W'`."""
        return F.conv3d(x_BCTHW, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def _chunk_layer(network: ContinualNetwork, node: fx.Node) -> Callable:
    """The operator for several steps at once."""
    if node not in network.kernels:
        return network.functions[node]
    layer: Any = network.functions[node]
    if isinstance(layer, nn.Conv3d):
        return ConvolutionChunk(layer, network.norms[node])
    return without_time_padding(layer)


def _delays(network: ContinualNetwork) -> dict[tuple[fx.Node, int], Delay]:
    """For each operator and position of an input, which of its steps the operator takes; none: those of the call.

    A step that comes at frame f of the stream comes at frame f modulo `period` of a chunk. So an operator's first step
    in a chunk is at `first % stride`, and the last input of it is the one of the same frame.
    """
    delays: dict[tuple[fx.Node, int], Delay] = {}
    for node in network.nodes[1 : network.num_before_pooling]:
        own = network.timings[node]
        steps = network.period // own.stride
        for position, source in enumerate(network.sources[node]):
            name, timing = f"steps_{len(delays)}", network.timings[source]
            if node in network.kernels:
                kernel = network.kernels[node]
                last = (own.first % own.stride - timing.first % timing.stride) // timing.stride
                kept = max(kernel.reach - last, 0)
                length = kernel.reach + 1 + (steps - 1) * kernel.stride
                delays[node, position] = Delay(name, kept, max(last - kernel.reach, 0), length)
            elif node in network.junctions:
                # a step waits until those of the other branches that are centred at the same frame have come
                waits = own.first - timing.first - (own.centre - timing.centre)
                kept = (timing.first % own.stride + waits - own.first % own.stride) // own.stride
                delays[node, position] = Delay(name, kept, 0, steps)
    return delays
