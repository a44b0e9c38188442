"""I3D: an image network whose kernels are given a time axis (Carreira & Zisserman 2017, arXiv:1705.07750).

B batch   C channels   T frames   H, W height and width   K classes   F features (`num_features`)
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from stvid.errors import InputError
from stvid.models.base import BackboneModel, check_probability, freeze_stages
from stvid.models.image_networks import torchvision_family, torchvision_size
from stvid.models.layers import Conv3d, with_in_channels
from stvid.models.weights import load_weights, nearest_name, pixels_of, read_weights

# torchvision's families that are made of convolutions, batch norms, poolings and activations alone, and do all they do
# through them; the others have layers, or steps between the layers, that are meant for pictures only
FAMILIES = (
    "alexnet", "densenet", "efficientnet", "googlenet", "mobilenetv2", "mobilenetv3", "regnet", "resnet", "squeezenet",
    "vgg",
)  # fmt: skip
DECISIONS = ("fc", "classifier", "aux1", "aux2")


class InflatedNetwork(BackboneModel):
    """An image network up to its global pooling, made 3D; the mean over time and space; a linear head.

    A convolution of k x k becomes one of `kernel_depth` x k x k, of 1 x 1 one of 1 x 1 x 1, and everything else looks
    at one frame at a time. Beyond the ends of a clip, its first and last frame are repeated. So with the weights of the
    image network, a clip that stands still has the features of its picture.

    Time is never strided: every layer holds T times the activations of the image network, and computes `kernel_depth` *
    T times as much where k > 1. Clips of a few frames far apart suit it.

    Args:
        num_classes: K.
        in_channels: C, 3 or 6; with 6, the first kernels are repeated and halved.
        network: a classification network of torchvision's, of one of `FAMILIES`, for example `resnet18`.
        weights: None (every kernel is random on its own, also along time); 2D weights of the network: `DEFAULT` or a
            name of torchvision's (downloaded on first use, of ImageNet) or a file, repeated over time and divided by
            `kernel_depth`; or a file of this class, whose head is kept where K is the same.
        kernel_depth: frames that a kernel spans, odd; 1 looks at single frames and takes their mean.
        dropout: probability before the head, in [0, 1).
        freeze: stages that stay as they are, statistics of batch norm included: how many from the input on, the last
            one's name (of resnet18: `conv1`, `bn1`, `layer1`, ...; of others `features.0`, ...), or `all` but the head.

    Raises:
        InputError: no such network, or one that cannot be inflated; an even depth; unknown weights or stages; weights
            of another network; 6 channels for googlenet, which scales three.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        network: str = "resnet18",
        weights: str | None = None,
        kernel_depth: int = 3,
        dropout: float = 0.5,
        freeze: int | str = 0,
    ):
        super().__init__()
        if kernel_depth < 1 or kernel_depth % 2 == 0:
            raise InputError(f"model.kernel_depth (={kernel_depth}) must be odd and at least 1")
        check_probability("dropout", dropout)
        if in_channels != 3 and network == "googlenet":
            raise InputError(f"model.network (=googlenet) scales its 3 input channels and cannot take {in_channels}")
        flat = with_in_channels(_image_network(network), in_channels)
        self.network = _inflated(flat, kernel_depth)
        self.in_channels, self.size = in_channels, torchvision_size(network, key="model.network")
        self.num_features = _num_features(self.network, in_channels)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.num_features, num_classes)
        self.pixels = pixels_of(network, weights)
        if weights is not None:
            state = read_weights(weights, network=network)
            if not any(name.startswith("network.") for name in state):
                state = {f"network.{name}": value for name, value in state.items()}
            head = ("head.", *(f"network.{name}." for name in DECISIONS))
            load_weights(self, state, source=f"{weights} for {network}", head=head)
        self.frozen = freeze_stages(*self.backbone(), freeze)

    def forward_features(self, clips_BCTHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """`B x C x T x H x W` -> `B x F`: the mean over the last volume of each clip's valid frames.

        Raises:
            InputError: fewer pixels than the network takes.
        """
        self.size.check(*clips_BCTHW.shape[-2:])
        return super().forward_features(clips_BCTHW, lengths_B)


class RepeatingConv3d(Conv3d):
    """A 3D convolution over the same number of frames: the first and the last are repeated beyond the ends."""

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """`B x C x T x H x W` -> `B x C' x T x H' x W'`."""
        time = self.kernel_size[0] // 2
        if time:
            x_BCTHW = F.pad(x_BCTHW, (0, 0, 0, 0, time, time), mode="replicate")
        return super().forward(x_BCTHW)


def _image_network(name: str) -> nn.Module:
    """torchvision's network `name` up to its global pooling, which pools time too already."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise InputError(f"model.network (={name}) is no torchvision classification network{nearest_name(name, known)}")
    family = torchvision_family(name)
    if family not in FAMILIES:
        raise InputError(
            f"model.network (={name}) cannot be inflated: {family} has layers, or steps between them, that are meant "
            f"for pictures only; networks of these families can: {', '.join(FAMILIES)}"
        )
    options = {"init_weights": False, "aux_logits": False, "transform_input": True} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, **options)
    pool = nn.AdaptiveAvgPool3d(1)
    if family == "densenet":  # what its forward does between features and pooling
        network.features.add_module("relu", nn.ReLU(inplace=True))
    if hasattr(network, "features"):
        return nn.Sequential(OrderedDict(features=network.features, avgpool=pool, flatten=nn.Flatten()))
    network.avgpool, network.dropout, network.fc = pool, nn.Identity(), nn.Identity()
    return network


def _inflated(module: nn.Module, depth: int) -> nn.Module:
    """Puts layers with a time axis in the place of those for pictures, all the way down; returns the module."""
    for name, child in module.named_children():
        setattr(module, name, _with_time(child, depth) or _inflated(child, depth))
    return module


def _with_time(layer: nn.Module, depth: int) -> nn.Module | None:
    """The same layer for clips; None where it is none for pictures."""
    if isinstance(layer, nn.Conv2d):
        return _convolution(layer, depth if max(layer.kernel_size) > 1 else 1)
    if isinstance(layer, nn.BatchNorm2d):
        norm = nn.BatchNorm3d(layer.num_features, eps=layer.eps, momentum=layer.momentum)
        norm.weight, norm.bias = layer.weight, layer.bias
        return norm
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return nn.AdaptiveAvgPool3d((None, *_pair(layer.output_size)))
    if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
        kernel, stride, padding = _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding)
        pool = nn.MaxPool3d if isinstance(layer, nn.MaxPool2d) else nn.AvgPool3d
        return pool((1, *kernel), stride=(1, *stride), padding=(0, *padding), ceil_mode=layer.ceil_mode)
    return None


def _convolution(flat: nn.Conv2d, depth: int) -> RepeatingConv3d:
    """Random as the network was; every frame has its own kernel, or a clip would be the same as its reverse."""
    conv = RepeatingConv3d(
        flat.in_channels,
        flat.out_channels,
        (depth, *flat.kernel_size),
        stride=(1, *flat.stride),
        padding=(0, *flat.padding),
        dilation=(1, *flat.dilation),
        groups=flat.groups,
        bias=flat.bias is not None,
    )
    conv.bias = flat.bias
    with torch.no_grad():
        if depth == 1:
            conv.weight.copy_(flat.weight[:, :, None])
        else:  # the deviation of a sum of `depth` frames is that of the picture
            conv.weight.copy_(torch.randn_like(conv.weight) * flat.weight.std() / depth**0.5)
    return conv


@torch.no_grad()
def _num_features(network: nn.Module, in_channels: int) -> int:
    """F, found by a clip without numbers; 64 x 64 pixels are enough for every family."""
    clip = torch.empty(1, in_channels, 1, 64, 64, device="meta")
    state = {name: value.to("meta") for name, value in network.state_dict().items()}
    found = torch.func.functional_call(network.eval(), state, (clip,))
    network.train()
    return found.shape[1]


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
