"""3D convolutions with correct gradients on the CPU, other input channels, and activation checkpointing."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stvid.errors import InputError
from stvid.models.base import StagedLayers, VideoModel
from stvid.models.weights import reshaped


class Conv3d(nn.Conv3d):
    """`nn.Conv3d`, but on a CPU, volumes no longer than the kernel are padded before they are convolved.

    The result is the same. In bf16, torch 2.15's own way returns weight gradients of up to 1e37, or not finite ones,
    where a kernel can reach into the padding on both sides of an axis: for example two frames under 3 x 3 x 3 kernels,
    which is what a ResNet has in its last stage for 16 frames. With strides it happens in float32, too: five to seven
    frames under s3d's first kernels over time.
    """

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """`B x C x T x H x W` -> `B x C' x T' x H' x W'`."""
        axes = zip(x_BCTHW.shape[2:], self.kernel_size, self.padding, strict=True)
        if x_BCTHW.device.type != "cpu" or not any(size <= kernel and padding for size, kernel, padding in axes):
            return super().forward(x_BCTHW)
        padded = F.pad(x_BCTHW, [padding for padding in reversed(self.padding) for _ in range(2)])
        return F.conv3d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def with_safe_convolutions(network: nn.Module) -> nn.Module:
    """Puts `Conv3d` in the place of every `nn.Conv3d` of a network, with its parameters; returns the network."""
    for name, child in network.named_children():
        if not isinstance(child, nn.Conv3d):
            with_safe_convolutions(child)
            continue
        where = {"stride": child.stride, "padding": child.padding, "dilation": child.dilation, "groups": child.groups}
        safe = Conv3d(child.in_channels, child.out_channels, child.kernel_size, bias=child.bias is not None, **where)
        safe.weight, safe.bias = child.weight, child.bias
        setattr(network, name, safe)
    return network


def with_in_channels(network: nn.Module, in_channels: int) -> nn.Module:
    """Lets the first convolution of a network for 3 channels read 3 or 6; returns the network.

    Its kernels are repeated over the groups of 3 and divided by their number: two equal groups get the same answer
    as one.

    Raises:
        InputError: another number of channels.
    """
    if in_channels not in (3, 6):
        raise InputError(f"model.in_channels (={in_channels}) must be 3, or 6 for two pictures a frame")
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Conv3d))
    shape = (first.out_channels, in_channels, *first.kernel_size)
    first.weight = nn.Parameter(reshaped(first.weight.detach(), shape))
    first.in_channels = in_channels
    return network


def checkpointed(function: Callable, module: nn.Module, *arguments):
    """`function(*arguments)` such that what it computes is not kept; `module`'s batch norms take note of it once."""

    def contexts():
        return contextlib.nullcontext(), _without_statistics(module)

    return checkpoint(function, *arguments, use_reentrant=False, context_fn=contexts)


def checkpoint_stages(model: VideoModel) -> None:
    """From now on, of what a model's blocks (or stages) compute in training only the input is kept.

    Results stay what they are, for about a third more computation.
    """
    for block in model.blocks():
        if any(parameter.requires_grad for parameter in block.parameters()):
            block.forward = functools.partial(_forward, block, block.forward)
    for row in model.modules():
        if isinstance(row, StagedLayers):
            row.forward = functools.partial(_stage_by_stage, row)


def _forward(part: nn.Module, forward: Callable, *arguments):
    return checkpointed(forward, part, *arguments) if part.training else forward(*arguments)


def _stage_by_stage(row: StagedLayers, x: Tensor) -> Tensor:
    for stage in row.stages:
        learns = row.training and any(parameter.requires_grad for parameter in stage.parameters())
        x = checkpointed(stage, stage, x) if learns else stage(x)
    return x


@contextlib.contextmanager
def _without_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms in training mode leave their running statistics alone; what they compute and keep is the same."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    norms = [norm for norm in norms if norm.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, num_batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(num_batches)
