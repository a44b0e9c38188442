"""A 3D convolution whose gradients are right on the CPU in bf16, too."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Conv3d(nn.Conv3d):
    """`nn.Conv3d`, but two frames on a CPU are padded in time before they are convolved.

    The result is the same. In bf16, torch 2.15's own way returns weight gradients of up to 1e37 for an input of two
    frames, 3 x 3 x 3 kernels, padding 1 and stride 1, which is what a ResNet has in its last stage for 16 frames.
    """

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """`B x C x T x H x W` -> `B x C' x T' x H' x W'`."""
        time, *space = self.padding
        if x_BCTHW.shape[2] != 2 or time == 0 or x_BCTHW.device.type != "cpu":
            return super().forward(x_BCTHW)
        padded = F.pad(x_BCTHW, (0, 0, 0, 0, time, time))
        return F.conv3d(padded, self.weight, self.bias, self.stride, (0, *space), self.dilation, self.groups)


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
