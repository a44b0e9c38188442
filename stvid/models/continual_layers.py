"""Convolutions and poolings of a continual network: when their steps in time come, and how one step is computed.

B batch   C channels   T frames   H, W height and width
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

PoolingT = TypeVar("PoolingT", bound=nn.MaxPool3d | nn.AvgPool3d)
LAYERS = (nn.Conv3d, nn.MaxPool3d, nn.AvgPool3d)  # may span time


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


class ConvolutionStep:
    """One step in time of a 3D convolution: a 2D convolution over the channels of all frames that the kernel spans.

    That is the same sum, and on a CPU several times faster than a 3D convolution of a few frames.

    Args:
        layer: the convolution.
        norm: the batch norm after it, which becomes part of it; None: none.
    """

    def __init__(self, layer: nn.Conv3d, norm: nn.BatchNorm3d | None):
        weight, bias = fused_weights(layer, norm)
        weight = (weight.transpose(1, 2) if layer.groups == 1 else weight).flatten(1, 2)
        self.weight, self.bias = weight.contiguous(memory_format=torch.channels_last), bias
        self.stride, self.padding = layer.stride[1:], triple(layer.padding)[1:]
        self.dilation, self.groups = layer.dilation[1:], layer.groups

    def __call__(self, frames: Sequence[Tensor]) -> Tensor:
        """Volumes `B x C x 1 x H x W`, one for each frame of the kernel -> `B x C' x 1 x H' x W'`."""
        if self.groups == 1:  # the channels of the first frame, of the second, ...
            x_BCHW = torch.cat([frame[:, :, 0] for frame in frames], dim=1)
        else:  # the first channel of all frames, the second, ...: a group's channels stay together
            x_BCHW = torch.cat(list(frames), dim=2).flatten(1, 2)
        options = (self.stride, self.padding, self.dilation, self.groups)
        return F.conv2d(x_BCHW, self.weight, self.bias, *options)[:, :, None]


class PoolingStep:
    """One step in time of a pooling layer, without padding in time."""

    def __init__(self, layer: nn.MaxPool3d | nn.AvgPool3d):
        self.layer = without_time_padding(layer)
        if isinstance(self.layer, nn.MaxPool3d):
            self.layer.dilation = (1, *triple(self.layer.dilation)[1:])

    def __call__(self, frames: Sequence[Tensor]) -> Tensor:
        """As of `ConvolutionStep`."""
        return self.layer(torch.cat(list(frames), dim=2))


def fused_weights(layer: nn.Conv3d, norm: nn.BatchNorm3d | None) -> tuple[Tensor, Tensor | None]:
    """Weight `C' x C x T x H x W` and bias of a convolution, with the batch norm after it, if any, as part of it."""
    weight, bias = layer.weight, layer.bias
    if norm is not None:
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None
        assert var is not None
        weight, bias = fuse_conv_bn_weights(weight, bias, mean, var, norm.eps, norm.weight, norm.bias)
    return weight.detach(), None if bias is None else bias.detach()


def without_time_padding(layer: PoolingT) -> PoolingT:
    """A copy of a pooling layer that pads height and width only."""
    layer = copy.copy(layer)
    layer.padding = (0, *triple(layer.padding)[1:])
    return layer


def one_step(layer: Any, norm: Any) -> ConvolutionStep | PoolingStep:
    """Of one of `LAYERS`; `norm`: the batch norm after a convolution, or None."""
    return ConvolutionStep(layer, norm) if isinstance(layer, nn.Conv3d) else PoolingStep(layer)


def time_kernel(layer: Any) -> TimeKernel:
    """Of one of `LAYERS`."""
    return TimeKernel(
        size=triple(layer.kernel_size)[0],
        stride=triple(layer.stride)[0],
        dilation=triple(getattr(layer, "dilation", 1))[0],  # an average pooling has none
        ceil_mode=getattr(layer, "ceil_mode", False),
    )


def triple(size: Any) -> tuple[int, int, int]:
    """Time, height and width, of an option of a layer: one number, or all three."""
    return (size, size, size) if isinstance(size, int) else size
