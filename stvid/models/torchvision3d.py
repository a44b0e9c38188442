"""torchvision's 3D networks, with any number of classes.

B batch   C channels   T frames   H, W height and width   K classes   F features (`num_features`)
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from stvid.errors import InputError
from stvid.models.base import BackboneModel, check_probability, freeze_stages
from stvid.models.layers import with_in_channels, with_safe_convolutions
from stvid.models.weights import load_weights, pixels_of, read_weights

NAMES = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d")
INFLATABLE = ("r3d_18", "mc3_18")  # whose kernels have resnet18's shapes in space
LATE_POOL = 13  # of s3d's features, the only pooling without padding
DECISION = re.compile(r"(?:fc|classifier\.1)\.(weight|bias)")  # as torchvision's files name it
RESNET_NAMES = (
    (r"^conv1\.", "stem.0."),
    (r"^bn1\.", "stem.1."),
    (r"\.conv(\d)\.", r".conv\1.0."),
    (r"\.bn(\d)\.", r".conv\1.1."),
)


class VideoNetwork(BackboneModel):
    """r3d_18, mc3_18, r2plus1d_18 (Tran et al. 2018, arXiv:1711.11248) or s3d (Xie et al. 2018, arXiv:1712.04851).

    `network` is torchvision's, under its own names and without its decision; the features are the mean over time and
    space of its last volume, then comes a linear head. For every clip that torchvision's network takes, the answer is
    torchvision's; s3d takes smaller ones, too (see `ShortMaxPool3d`), so any clip of at least one frame and one pixel
    will do.

    Args:
        num_classes: K.
        in_channels: C, 3 or 6; with 6, the first kernels are repeated and halved.
        name: one of `NAMES`.
        weights: None, `DEFAULT` or another name of torchvision's weights (downloaded on first use; of Kinetics-400), or
            a file of torchvision's or of this class. Their head is kept where K is theirs, else a new one is learned.
        inflate: instead of `weights`: ImageNet weights of resnet18 (`DEFAULT`, a name, or a file), whose kernels are
            repeated over time. For r3d_18 and mc3_18; a start, for their stem is not resnet18's.
        dropout: probability before the head, in [0, 1).
        freeze: stages that stay as they are, statistics of batch norm included: how many from the input on, the last
            one's name (`stem`, `layer1`, ...; of s3d `features.0`, ...), or `all` but the head.

    Raises:
        InputError: unknown network, weights or stage; a value out of its range; weights of another architecture;
            `inflate` where it cannot be.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        name: str = "r3d_18",
        weights: str | None = None,
        inflate: str | None = None,
        dropout: float = 0.0,
        freeze: int | str = 0,
    ):
        super().__init__()
        if name not in NAMES:
            raise InputError(f"model.name (={name}) must be one of {', '.join(NAMES)}")
        check_probability("dropout", dropout)
        network = torchvision.models.get_model(name)
        self.network = with_in_channels(with_safe_convolutions(network), in_channels)
        self.in_channels = in_channels
        self.num_features = _cut_s3d(network) if name == "s3d" else _cut_resnet(network)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.num_features, num_classes)
        if weights is not None and inflate is not None:
            raise InputError(f"model.weights (={weights}) and model.inflate (={inflate}): give one of them")
        self.pixels = pixels_of(name, weights) or pixels_of("resnet18", inflate)
        if weights is not None:
            state = read_weights(weights, network=name)
            load_weights(self, _named_here(state), source=f"{weights} for {name}")
        if inflate is not None:
            if name not in INFLATABLE:
                raise InputError(
                    f"model.inflate (={inflate}): the kernels of {name} have not the shapes of any image network's; "
                    f"take model.name={' or '.join(INFLATABLE)}, or model=i3d"
                )
            state = read_weights(inflate, network="resnet18", key="inflate")
            load_weights(self, _from_resnet(state), source=f"{inflate} for {name}", head=("head.", "network.fc."))
        self.frozen = freeze_stages(*self.backbone(), freeze)


class ShortMaxPool3d(nn.MaxPool3d):
    """A max pooling without padding whose kernel ends where the volume ends, so that a short axis is pooled whole."""

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """`B x C x T x H x W` -> `B x C x T' x H' x W'`, each axis at least 1."""
        return F.max_pool3d(x_BCTHW, _at_most(x_BCTHW, self.kernel_size), self.stride)


class ShortAvgPool3d(nn.AvgPool3d):
    """An average pooling without padding, likewise."""

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """`B x C x T x H x W` -> `B x C x T' x H' x W'`, each axis at least 1."""
        return F.avg_pool3d(x_BCTHW, _at_most(x_BCTHW, self.kernel_size), self.stride)


def _cut_resnet(network: nn.Module) -> int:
    """Takes the decision away; returns how many features reach it."""
    num_features, network.fc = network.fc.in_features, nn.Identity()
    return num_features


def _cut_s3d(network: nn.Module) -> int:
    """Takes the decision away and lets short clips through; returns how many features reach the decision."""
    num_features, network.classifier = network.classifier[1].in_channels, nn.Identity()
    late, end = network.features[LATE_POOL], network.avgpool
    network.features[LATE_POOL] = ShortMaxPool3d(late.kernel_size, late.stride)
    network.avgpool = ShortAvgPool3d(end.kernel_size, end.stride)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = 0.1  # torch's own; at 0.001 a run of some hundred steps is judged with its start's
    return num_features


def _named_here(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's names -> those of `VideoNetwork`; a state dict of `VideoNetwork` stays as it is."""
    if any(name.startswith("network.") for name in state):
        return dict(state)
    decisions = {name: value for name, value in state.items() if DECISION.fullmatch(name)}
    trunk = {f"network.{name}": value for name, value in state.items() if name not in decisions}
    # s3d decides by a convolution of 1 x 1 x 1, which is a linear layer
    return trunk | {DECISION.sub(r"head.\1", name): v.flatten(1) if v.ndim > 1 else v for name, v in decisions.items()}


def _from_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """resnet18's names -> those of `VideoNetwork`, where a convolution and its batch norm lie in one sequence."""
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in RESNET_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[f"network.{name}"] = value
    return renamed


def _at_most(x_BCTHW: Tensor, kernel_size: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple(min(n, k) for n, k in zip(x_BCTHW.shape[2:], kernel_size, strict=True))
