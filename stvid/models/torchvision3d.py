"""torchvision's 3D networks for any number of classes.

B batch   C channels   T frames   H, W height and width   K classes   F features (`num_features`)
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.video import S3D, VideoResNet

from stvid.errors import InputError
from stvid.models.base import check_clips, check_probability, find_stages, forward_by_length
from stvid.models.continual import ContinualModel
from stvid.models.layers import with_in_channels, with_safe_convolutions
from stvid.models.weights import load_weights, normalization_of, read_weights

NAMES = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d")
INFLATABLE = ("r3d_18", "mc3_18")  # their kernels have the spatial shapes of resnet18
LATE_POOL = 13  # index in s3d's features of the only pooling without padding
CLASSIFIER = re.compile(r"(?:fc|classifier\.1)\.(weight|bias)")  # names in torchvision's files
RESNET_NAMES = (
    (r"^conv1\.", "stem.0."),
    (r"^bn1\.", "stem.1."),
    (r"\.conv(\d)\.", r".conv\1.0."),
    (r"\.bn(\d)\.", r".conv\1.1."),
)


class TorchvisionVideoModel(ContinualModel):
    """r3d_18, mc3_18, r2plus1d_18 (Tran et al. 2018, arXiv:1711.11248) or s3d (Xie et al. 2018, arXiv:1712.04851).

    `network` is torchvision's without its classifier, with the same parameter names; the features are the mean of its
    last volume over time and space, and the head is linear. The logits are those of torchvision's network. s3d also
    takes clips that are too small for torchvision's (see `ShortMaxPool3d`), from one frame and one pixel on.

    Args:
        num_classes: K.
        in_channels: C, 3 or 6; with 6, the kernels of the first convolution are repeated and halved.
        name: one of `NAMES`.
        weights: None (random); `DEFAULT` or another name of torchvision's weights of Kinetics-400 (downloaded on first
            use); or a file of torchvision or of this class. Their head is used if K is equal.
        inflate: instead of `weights`: ImageNet weights of resnet18 (`DEFAULT`, a name, or a file), whose kernels are
            repeated over time. Only for r3d_18 and mc3_18.
        dropout: probability before the head, in [0, 1).
        freeze: stages that are not trained, batch norm statistics included: their number from the input on, the name
            of the last one (`stem`, `layer1`, ...; of s3d `features.0`, ...), or `all` (all but the head).

    Raises:
        InputError: unknown network, weights or stage; a value out of range; weights of another architecture;
            `inflate` for another network.
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
        self.num_features = _remove_classifier_s3d(network) if name == "s3d" else _remove_classifier_resnet(network)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.num_features, num_classes)
        if weights is not None and inflate is not None:
            raise InputError(f"model.weights (={weights}) and model.inflate (={inflate}): give one of them")
        self.normalization = normalization_of(name, weights) or normalization_of("resnet18", inflate)
        if weights is not None:
            state = read_weights(weights, network=name)
            load_weights(self, _rename_torchvision(state), source=f"{weights} for {name}")
        if inflate is not None:
            if name not in INFLATABLE:
                raise InputError(
                    f"model.inflate (={inflate}): the kernels of {name} do not have the shapes of an image network; "
                    f"use model.name={' or '.join(INFLATABLE)}, or model=i3d"
                )
            state = read_weights(inflate, network="resnet18", key="inflate")
            load_weights(self, _rename_resnet(state), source=f"{inflate} for {name}", head=("head.", "network.fc."))
        self.freeze_stages(freeze)

    @property
    def stages(self) -> dict[str, nn.Module]:
        """Those of the network; see `VideoModel`."""
        return find_stages(self.network)

    def forward_features(self, clips_BCTHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """`B x C x T x H x W` -> `B x F`: the mean of the last volume, of the valid frames of each clip."""
        check_clips(clips_BCTHW, self.in_channels)
        return forward_by_length(self.network, clips_BCTHW, lengths_B)

    def pooled_network(self) -> nn.Module:
        """See `ContinualModel`."""
        return self.network


class ShortMaxPool3d(nn.MaxPool3d):
    """Max pooling without padding; along an axis shorter than the kernel, the kernel covers the whole axis."""

    kernel_size: tuple[int, int, int]

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """`B x C x T x H x W` -> `B x C x T' x H' x W'`, each axis at least 1."""
        return F.max_pool3d(x_BCTHW, _clip_kernel(self.kernel_size, x_BCTHW), self.stride)


class ShortAvgPool3d(nn.AvgPool3d):
    """Average pooling without padding; along an axis shorter than the kernel, the kernel covers the whole axis."""

    kernel_size: tuple[int, int, int]

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """`B x C x T x H x W` -> `B x C x T' x H' x W'`, each axis at least 1."""
        return F.avg_pool3d(x_BCTHW, _clip_kernel(self.kernel_size, x_BCTHW), self.stride)


def _remove_classifier_resnet(network: VideoResNet) -> int:
    """Replaces the classifier by the identity; returns the number of its input features."""
    num_features, network.fc = network.fc.in_features, nn.Identity()
    return num_features


def _remove_classifier_s3d(network: S3D) -> int:
    """The same for s3d, whose poolings are replaced by those for short clips."""
    num_features, network.classifier = network.classifier[1].in_channels, nn.Identity()
    late, end = network.features[LATE_POOL], network.avgpool
    network.features[LATE_POOL] = ShortMaxPool3d(late.kernel_size, late.stride)
    network.avgpool = ShortAvgPool3d(end.kernel_size, end.stride)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = 0.1  # torch's default; with 0.001, a few hundred steps hardly change the statistics
    return num_features


def _rename_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's names -> those of `TorchvisionVideoModel`, whose own state dicts are returned unchanged."""
    if any(name.startswith("network.") for name in state):
        return dict(state)
    head = {name: value for name, value in state.items() if CLASSIFIER.fullmatch(name)}
    backbone = {f"network.{name}": value for name, value in state.items() if name not in head}
    # the classifier of s3d is a 1 x 1 x 1 convolution, which is a linear layer
    return backbone | {CLASSIFIER.sub(r"head.\1", name): v.flatten(1) if v.ndim > 1 else v for name, v in head.items()}


def _rename_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """resnet18's names -> those of `TorchvisionVideoModel`, with convolution and batch norm in a sequence."""
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in RESNET_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[f"network.{name}"] = value
    return renamed


def _clip_kernel(kernel_size: tuple[int, int, int], x_BCTHW: Tensor) -> tuple[int, ...]:
    return tuple(min(n, k) for n, k in zip(x_BCTHW.shape[2:], kernel_size, strict=True))
