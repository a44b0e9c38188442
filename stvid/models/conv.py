"""3D convolutions: one whose gradients are right on the CPU, too, and other input channels for a whole network."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from stvid.errors import InputError
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
