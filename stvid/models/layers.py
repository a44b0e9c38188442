"""3D convolutions with correct gradients on a CPU, other numbers of input channels, activation checkpointing."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stvid.clip import conv_output_size
from stvid.errors import InputError
from stvid.models.base import StagedLayers, VideoModel
from stvid.models.weights import reshape_kernel


class Conv3d(nn.Conv3d):
    """`nn.Conv3d`, which on a CPU pads short volumes itself before the convolution. The result is the same.

    If a kernel reaches into the padding on both sides of an axis, torch 2.15 returns wrong weight gradients on a CPU
    (up to 1e37, or not finite). In bf16 this happens for two frames and 3 x 3 x 3 kernels, as in the last stage of a
    ResNet for 16 frames; with strides in float32 too, as for five to seven frames in s3d's first temporal convolution.
    """

    padding: tuple[int, ...]

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """`B x C x T x H x W` -> `B x C' x T' x H' x W'`."""
        if torch.compiler.is_exporting():  # only gradients are wrong, and the sizes are not known yet
            return super().forward(x_BCTHW)
        axes = zip(x_BCTHW.shape[2:], self.kernel_size, self.padding, strict=True)
        if x_BCTHW.device.type != "cpu" or not any(size <= kernel and padding for size, kernel, padding in axes):
            return super().forward(x_BCTHW)
        padded = F.pad(x_BCTHW, [padding for padding in reversed(self.padding) for _ in range(2)])
        return F.conv3d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class GridPool3d(nn.AdaptiveAvgPool3d):
    """`nn.AdaptiveAvgPool3d` to a grid of T' x H' x W' with T' = 1, or None for as many frames as there are.

    While it is exported it pools time and frames one after the other: ONNX has no operator that pools to such a grid.
    """

    output_size: tuple[int | None, int, int]

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """`B x C x T x H x W` -> `B x C x T' x H' x W'`."""
        if not torch.compiler.is_exporting():
            return super().forward(x_BCTHW)
        num_steps, *_ = self.output_size
        if num_steps == 1:
            x_BCTHW = x_BCTHW.mean(dim=2, keepdim=True)
        images = x_BCTHW.flatten(1, 2)
        return F.adaptive_avg_pool2d(images, self.output_size[1:]).unflatten(1, x_BCTHW.shape[1:3])


class ConvLayer(nn.Sequential):
    """A 3D convolution without bias, batch norm, ReLU.

    With the lengths of the clips, steps after a length are zeros for the convolution, as its padding is, and do not
    enter the statistics of batch norm: so the valid steps are those of a batch of clips of these lengths.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel: odd size along each axis; half of it is the padding.
        stride: as (time, height, width).
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel: int = 3, stride: tuple[int, int, int] = (1, 1, 1)
    ):
        super().__init__(
            Conv3d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False),
            nn.BatchNorm3d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x_BCTHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """`B x C x T x H x W` -> `B x C' x T' x H' x W'`; the values of steps after a length mean nothing."""
        convolution, norm, relu = _layers(self)
        x_BCTHW = convolution(_masked(x_BCTHW, lengths_B))
        return relu(norm_frames(norm, x_BCTHW, self.out_lengths(lengths_B)))

    def out_lengths(self, lengths_B: Tensor | None) -> Tensor | None:
        """The lengths of the output."""
        if lengths_B is None:
            return None
        convolution, *_ = _layers(self)
        size, stride = convolution.kernel_size[0], convolution.stride[0]
        return conv_output_size(lengths_B, kernel=size, stride=stride, padding=size // 2)


class Residual(nn.Sequential):
    """A 3 x 3 x 3 convolution with batch norm, added to its input, which is 0 or more; then ReLU (He et al. 2016).

    The weight of the batch norm is 0 at first, so that the output is the input. For lengths see `ConvLayer`.

    Args:
        channels: C.
    """

    def __init__(self, channels: int):
        norm = nn.BatchNorm3d(channels)
        nn.init.zeros_(norm.weight)
        super().__init__(Conv3d(channels, channels, 3, padding=1, bias=False), norm)

    def forward(self, x_BCTHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """`B x C x T x H x W` -> the same shape."""
        convolution, norm = _layers(self)
        return F.relu(x_BCTHW + norm_frames(norm, convolution(_masked(x_BCTHW, lengths_B)), lengths_B))

    def out_lengths(self, lengths_B: Tensor | None) -> Tensor | None:
        """The lengths of the output, those of the input."""
        return lengths_B


def _layers(sequence: nn.Sequential) -> tuple[Any, ...]:
    return tuple(sequence)


def norm_frames(norm: nn.BatchNorm3d, x_BCTHW: Tensor, lengths_B: Tensor | None) -> Tensor:
    """Batch norm whose statistics in training are those of the valid steps; the values of the others mean nothing."""
    if lengths_B is None or not norm.training:
        return norm(x_BCTHW)
    valid_BT, x_BTCHW = _valid(x_BCTHW, lengths_B), x_BCTHW.transpose(1, 2)
    normed_NCHW = norm(x_BTCHW[valid_BT][:, :, None])[:, :, 0]
    out_BTCHW = normed_NCHW.new_zeros(x_BTCHW.shape)  # of its type: a norm over processes may return another
    out_BTCHW[valid_BT] = normed_NCHW
    return out_BTCHW.transpose(1, 2)


def mean_of_frames(x_BCTHW: Tensor, lengths_B: Tensor | None) -> Tensor:
    """The mean over the valid steps, height and width, `B x C`."""
    if lengths_B is None:
        return x_BCTHW.mean(dim=(2, 3, 4))
    return _masked(x_BCTHW, lengths_B).mean(dim=(3, 4)).sum(dim=2) / lengths_B[:, None]


def _masked(x_BCTHW: Tensor, lengths_B: Tensor | None) -> Tensor:
    if lengths_B is None:
        return x_BCTHW
    return x_BCTHW.masked_fill(~_valid(x_BCTHW, lengths_B)[:, None, :, None, None], 0)  # also where it is not finite


def _valid(x_BCTHW: Tensor, lengths_B: Tensor) -> Tensor:
    return torch.arange(x_BCTHW.shape[2], device=x_BCTHW.device)[None] < lengths_B[:, None]


def with_safe_convolutions(network: nn.Module) -> nn.Module:
    """Replaces every `nn.Conv3d` of a network by `Conv3d` with the same parameters; returns the network."""
    for name, child in network.named_children():
        if not isinstance(child, nn.Conv3d):
            with_safe_convolutions(child)
            continue
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        options: dict[str, Any] = {option: getattr(child, option) for option in names}
        safe = Conv3d(**options, bias=child.bias is not None)
        safe.weight, safe.bias = child.weight, child.bias
        setattr(network, name, safe)
    return network


def with_in_channels(network: nn.Module, in_channels: int) -> nn.Module:
    """Changes the first convolution of a network from 3 input channels to 3 or 6; returns the network.

    With 6 channels its kernels are repeated and halved, so that two equal images give the output of one.

    Raises:
        InputError: another number of channels.
    """
    if in_channels not in (3, 6):
        raise InputError(f"model.in_channels (={in_channels}) must be 3, or 6 (frame and difference image)")
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Conv3d))
    shape = (first.out_channels, in_channels, *first.kernel_size)
    weight = reshape_kernel(first.weight.detach(), shape)
    assert weight is not None  # the kernels are for 3 channels
    first.weight = nn.Parameter(weight)
    first.in_channels = in_channels
    return network


def checkpointed(function: Callable, module: nn.Module, *arguments: Any) -> Any:
    """`function(*arguments)`, whose activations are recomputed in the backward pass instead of being stored.

    The batch norms of `module` update their running statistics once, not again when the activations are recomputed.
    """

    def contexts() -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
        return contextlib.nullcontext(), _without_statistics(module)

    return checkpoint(function, *arguments, use_reentrant=False, context_fn=contexts)


def checkpoint_stages(model: VideoModel) -> None:
    """Turns on activation checkpointing: in training, only the input of each block (or stage) is stored.

    The results are the same; training needs less memory and about a third more computation.

    Raises:
        InputError: a stage that is trained is never called, see `VideoModel.blocks`.
    """
    for name, stage in model.stages.items():
        if type(stage) is nn.Module and any(parameter.requires_grad for parameter in stage.parameters()):
            raise InputError(
                f"gradient_checkpointing=true: the activations of {name} in {type(model).__name__} cannot be computed "
                "again; leave it out. model.encoder_chunk limits the memory"
            )
    for block in model.blocks():
        if any(parameter.requires_grad for parameter in block.parameters()):
            block.forward = functools.partial(_forward_block, block, block.forward)
    for layers in model.modules():
        if isinstance(layers, StagedLayers):
            layers.forward = functools.partial(_forward_stages, layers)  # type: ignore[method-assign]


def _forward_block(block: nn.Module, forward: Callable, *arguments: Any) -> Any:
    return checkpointed(forward, block, *arguments) if block.training else forward(*arguments)


def _forward_stages(layers: StagedLayers, x: Tensor) -> Tensor:
    for stage in layers.stages:
        is_trained = layers.training and any(parameter.requires_grad for parameter in stage.parameters())
        x = checkpointed(stage, stage, x) if is_trained else stage(x)
    return x


@contextlib.contextmanager
def _without_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms in training mode do not update their running statistics; their output is the same."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    previous = [
        (norm, norm.momentum, count, count.clone())
        for norm in norms
        if norm.track_running_stats and (count := norm.num_batches_tracked) is not None
    ]
    for norm, *_ in previous:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count, num_batches in previous:
            norm.momentum = momentum
            count.copy_(num_batches)
