"""Per-frame encoders: image networks cut before their decision layer.

N images   C channels   H, W height and width   F features of an image (`num_features`)
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn

from stvid.models.pretrained import find_weights

HEADS = ("fc", "classifier", "heads", "head")  # what torchvision's networks call the part that ends in the decision


class SmallEncoder(nn.Module):
    """Strided 3x3 convolutions with batch norm and ReLU, then one linear layer over the whole remaining grid.

    Flattening the grid instead of pooling it keeps where things are, which is what moves from frame to frame.

    Args:
        widths: output channels of each convolution; each halves height and width.
        num_features: F.
        grid: height and width that the last volume is averaged down (or up) to before it is flattened, so that any
            input size will do; 4 is what four convolutions leave of 64 x 64.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (16, 32, 64, 96),
        num_features: int = 96,
        grid: int = 4,
    ):
        super().__init__()
        layers, channels = [], 3
        for width in widths:
            conv = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(grid)
        self.project = nn.Sequential(nn.Flatten(), nn.Linear(channels * grid**2, num_features))
        self.num_features = num_features

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """`N x C x H x W` -> `N x F`."""
        return self.project(self.pool(self.layers(images_NCHW)))


class TorchvisionEncoder(nn.Module):
    """Any torchvision classification network by name, cut before its decision layer; F is found, not typed.

    Args:
        name: as `torchvision.models.list_models(module=torchvision.models)` gives it, for example `resnet18`.
        weights: None, `DEFAULT`, or the name of one of the network's torchvision weights (downloaded on first use).

    Raises:
        ValueError: unknown network or weights.
    """

    def __init__(self, *, name: str, weights: str | None = None):
        super().__init__()
        known = torchvision.models.list_models(module=torchvision.models)
        if name not in known:
            close = " or ".join(difflib.get_close_matches(name, known, n=3))
            raise ValueError(
                f"model.encoder (={name}) is no torchvision classification network"
                + (f"; did you mean {close}?" if close else ", see torchvision.models.list_models()")
            )
        self.network = torchvision.models.get_model(name, weights=find_weights(name, weights))
        if hasattr(self.network, "transform_input"):
            # GoogLeNet's and Inception's weights want pixels scaled another way than ImageNet's constants do; set for
            # random weights too, so that a network does not depend on how it was once initialised
            self.network.transform_input = True
        self.num_features = _cut(self.network)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """`N x C x H x W` -> `N x F`."""
        features = self.network(images_NCHW)
        return features.flatten(1)


def _cut(network: nn.Module) -> int:
    """Replaces the network's decision layer by the identity and returns how many features reach it.

    Auxiliary classifiers (GoogLeNet, Inception v3) go too: they would make the network return a tuple.
    """
    for name in ("aux1", "aux2", "AuxLogits"):
        if hasattr(network, name):
            setattr(network, name, None)
    if hasattr(network, "aux_logits"):
        network.aux_logits = False
    head = next(name for name in HEADS if hasattr(network, name))
    decisions = [
        (name, layer)
        for name, layer in getattr(network, head).named_modules(prefix=head)
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    assert decisions, f"{type(network).__name__}.{head} holds no linear or convolutional layer"
    name, layer = decisions[-1]
    if isinstance(layer, nn.Conv2d):  # SqueezeNet decides by a 1 x 1 convolution, then a pooling
        setattr(network, head, nn.AdaptiveAvgPool2d(1))
        return layer.in_channels
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, nn.Identity())
    return layer.in_features


def encode_frames(encoder: nn.Module, clips_BCTHW: Tensor, lengths_B: Tensor | None) -> Tensor:
    """`B x C x T x H x W` -> features `B x T x F`; frames past a clip's length are not encoded and come out as 0.

    Leaving them out, rather than masking them afterwards, keeps them out of batch norm's statistics too.
    """
    batch, _, num_frames = clips_BCTHW.shape[:3]
    images = clips_BCTHW.transpose(1, 2).flatten(0, 1)
    if lengths_B is None:
        return encoder(images).unflatten(0, (batch, num_frames))
    valid = (torch.arange(num_frames, device=images.device)[None] < lengths_B[:, None]).flatten()
    encoded = encoder(images[valid])
    features = encoded.new_zeros(batch * num_frames, encoded.shape[1])
    features[valid] = encoded
    return features.unflatten(0, (batch, num_frames))
