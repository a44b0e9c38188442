"""I3D: an image network whose 2D kernels are inflated to 3D (Carreira & Zisserman 2017, arXiv:1705.07750).

B batch   C channels   T frames   H, W height and width   K classes   F features (`num_features`)
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from stvid.errors import InputError
from stvid.models.base import check_clips, check_probability, find_stages, forward_by_length
from stvid.models.continual import ContinualModel
from stvid.models.image_networks import torchvision_family, torchvision_size
from stvid.models.layers import Conv3d, GridPool3d, with_in_channels
from stvid.models.weights import load_weights, nearest_name, normalization_of, read_weights

# torchvision's families that consist only of convolutions, batch norms, poolings and activations; the others have
# layers, or operations between layers, that work on images only
FAMILIES = (
    "alexnet", "densenet", "efficientnet", "googlenet", "mobilenetv2", "mobilenetv3", "regnet", "resnet", "squeezenet",
    "vgg",
)  # fmt: skip
CLASSIFIERS = ("fc", "classifier", "aux1", "aux2")  # names in torchvision's networks


class I3D(ContinualModel):
    """An image network up to its global pooling, inflated to 3D; the mean over time and space; a linear head.

    A k x k convolution becomes `kernel_depth` x k x k, a 1 x 1 convolution 1 x 1 x 1; all other layers work on single
    frames. At both ends of a clip the first and last frame are repeated. So with the weights of the image network, a
    clip of one repeated image has the features of the image.

    There is no stride in time: every layer has T times the activations of the image network, and `kernel_depth` * T
    times its compute if k > 1. Clips of few frames with a large stride suit it.

    Args:
        num_classes: K.
        in_channels: C, 3 or 6; with 6, the kernels of the first convolution are repeated and halved.
        network: a torchvision classification network of one of the `FAMILIES`, for example `resnet18`.
        weights: None (random, along time too); 2D weights of the network: `DEFAULT` or a name of torchvision's ImageNet
            weights (downloaded on first use) or a file, repeated over time and divided by `kernel_depth`; or a file of
            this class, whose head is used if K is equal.
        kernel_depth: frames that a kernel spans, odd; 1: single frames, whose features are averaged.
        dropout: probability before the head, in [0, 1).
        freeze: stages that are not trained, batch norm statistics included: their number from the input on, the name
            of the last one (of resnet18: `conv1`, `bn1`, `layer1`, ...; of others `features.0`, ...), or `all` (all
            but the head).

    Raises:
        InputError: unknown network, weights or stage; a network that cannot be inflated; an even depth; weights of
            another network; 6 channels for googlenet, whose input scaling is for three.
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
        image_network = with_in_channels(_image_network(network), in_channels)
        self.network = _inflate(image_network, kernel_depth)
        self.in_channels, self.size = in_channels, torchvision_size(network, key="model.network")
        self.num_features = _num_features(self.network, in_channels)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.num_features, num_classes)
        self.normalization = normalization_of(network, weights)
        if weights is not None:
            state = read_weights(weights, network=network)
            if not any(name.startswith("network.") for name in state):
                state = {f"network.{name}": value for name, value in state.items()}
            head = ("head.", *(f"network.{name}." for name in CLASSIFIERS))
            load_weights(self, state, source=f"{weights} for {network}", head=head)
        self.freeze_stages(freeze)

    @property
    def stages(self) -> dict[str, nn.Module]:
        """Those of the network; see `VideoModel`."""
        return find_stages(self.network)

    def forward_features(self, clips_BCTHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """`B x C x T x H x W` -> `B x F`: the mean of the last volume, of the valid frames of each clip.

        Raises:
            InputError: frames smaller than the network takes.
        """
        check_clips(clips_BCTHW, self.in_channels)
        self.size.check(*clips_BCTHW.shape[-2:])
        return forward_by_length(self.network, clips_BCTHW, lengths_B)

    def pooled_network(self) -> nn.Module:
        """See `ContinualModel`."""
        return self.network


class RepeatingConv3d(Conv3d):
    """A 3D convolution that pads in time by repeating the first and last frame; T stays the same."""

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """`B x C x T x H x W` -> `B x C' x T x H' x W'`."""
        padding = self.kernel_size[0] // 2
        if padding:
            x_BCTHW = F.pad(x_BCTHW, (0, 0, 0, 0, padding, padding), mode="replicate")
        return super().forward(x_BCTHW)


def _image_network(name: str) -> nn.Module:
    """torchvision's network `name` up to its global pooling, which is already replaced by one that pools time too."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise InputError(f"model.network (={name}) is no torchvision classification network{nearest_name(name, known)}")
    family = torchvision_family(name)
    if family not in FAMILIES:
        raise InputError(
            f"model.network (={name}) cannot be inflated: {family} has layers, or operations between layers, that work "
            f"on images only; networks of these families can: {', '.join(FAMILIES)}"
        )
    options = {"init_weights": False, "aux_logits": False, "transform_input": True} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, **options)
    pool = nn.AdaptiveAvgPool3d(1)
    if family == "densenet":  # part of its forward, between features and pooling
        network.features.add_module("relu", nn.ReLU(inplace=True))
    if "features" in dict(network.named_children()):
        return nn.Sequential(OrderedDict(features=network.features, avgpool=pool, flatten=nn.Flatten()))
    network.avgpool, network.dropout, network.fc = pool, nn.Identity(), nn.Identity()
    return network


def _inflate(module: nn.Module, depth: int) -> nn.Module:
    """Replaces all 2D layers inside a module by 3D ones; returns the module."""
    for name, child in module.named_children():
        setattr(module, name, _inflate_layer(child, depth) or _inflate(child, depth))
    return module


def _inflate_layer(layer: nn.Module, depth: int) -> nn.Module | None:
    """The 3D layer for a 2D layer; None for other layers."""
    if isinstance(layer, nn.Conv2d):
        return _inflate_convolution(layer, depth if max(layer.kernel_size) > 1 else 1)
    if isinstance(layer, nn.BatchNorm2d):
        norm = nn.BatchNorm3d(layer.num_features, eps=layer.eps, momentum=layer.momentum)
        norm.weight, norm.bias = layer.weight, layer.bias
        return norm
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return GridPool3d((None, *_pair(layer.output_size)))
    if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
        kernel, stride, padding = _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding)
        pool = nn.MaxPool3d if isinstance(layer, nn.MaxPool2d) else nn.AvgPool3d
        return pool((1, *kernel), stride=(1, *stride), padding=(0, *padding), ceil_mode=layer.ceil_mode)
    return None


def _inflate_convolution(conv2d: nn.Conv2d, depth: int) -> RepeatingConv3d:
    """Random weights that differ along time; with equal ones, a clip and its reverse would have the same features."""
    conv3d = RepeatingConv3d(
        conv2d.in_channels,
        conv2d.out_channels,
        (depth, *_pair(conv2d.kernel_size)),
        stride=(1, *_pair(conv2d.stride)),
        padding=(0, *_pair(conv2d.padding)),
        dilation=(1, *_pair(conv2d.dilation)),
        groups=conv2d.groups,
        bias=conv2d.bias is not None,
    )
    conv3d.bias = conv2d.bias
    with torch.no_grad():
        if depth == 1:
            conv3d.weight.copy_(conv2d.weight[:, :, None])
        else:  # keeps the standard deviation of the output: it is a sum over `depth` frames
            conv3d.weight.copy_(torch.randn_like(conv3d.weight) * conv2d.weight.std() / depth**0.5)
    return conv3d


@torch.no_grad()
def _num_features(network: nn.Module, in_channels: int) -> int:
    """F, by a forward pass on the meta device; 64 x 64 pixels are enough for every family."""
    clip = torch.empty(1, in_channels, 1, 64, 64, device="meta")
    state = {name: value.to("meta") for name, value in network.state_dict().items()}
    features = torch.func.functional_call(network.eval(), state, (clip,))
    network.train()
    return features.shape[1]


def _pair(size: Any) -> tuple[int, int]:
    """Height and width, of an option of a 2D layer: one number, or both."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
