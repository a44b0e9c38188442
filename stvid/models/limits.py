"""What a model can take: clips of so many channels, pictures of a size, probabilities.

B batch   C channels   T frames   H, W height and width
"""

from __future__ import annotations

from dataclasses import dataclass

import torchvision
from torch import Tensor

from stvid.errors import InputError

# families whose metadata in torchvision name the size of their training, with the least that they take
LEAST = {"swin_transformer": 4, "efficientnet": 1}
FIXED = ("maxvit",)  # families of torchvision's that take the size of their metadata only


@dataclass(frozen=True, kw_only=True)
class PictureSize:
    """The heights and widths that an image network takes.

    Attributes:
        network: as a message names it, such as `model.encoder (=vgg11)`.
        least: pixels, of the shorter side.
        only: height and width, of a network that takes one size; None: it takes any from `least` on.
        hint: what else can be done where the size is not the only one.
    """

    network: str
    least: int = 1
    only: tuple[int, int] | None = None
    hint: str = ""

    def check(self, height: int, width: int) -> None:
        """Raises InputError for a size that the network does not take."""
        if self.only is not None and (height, width) != self.only:
            size = self.only[0] if self.only[0] == self.only[1] else f"[{self.only[0]},{self.only[1]}]"
            raise InputError(
                f"{self.network} takes pictures of {self.only[0]} x {self.only[1]} pixels only, not {height} x "
                f"{width}: set clip.size={size}{self.hint}"
            )
        if min(height, width) < self.least:
            raise InputError(
                f"{self.network} takes pictures of at least {self.least} x {self.least} pixels, not {height} x "
                f"{width}: set clip.size={self.least} or more"
            )


def torchvision_family(name: str) -> str:
    """The file of torchvision's that defines a classification network, such as `resnet` for `wide_resnet50_2`."""
    return torchvision.models.get_model_builder(name).__module__.rpartition(".")[2]


def torchvision_size(name: str, *, key: str) -> PictureSize:
    """What a convolutional network of torchvision's takes, by the metadata of its weights.

    Args:
        name: of the network.
        key: the config key that names it.
    """
    family, network = torchvision_family(name), f"{key} (={name})"
    height, width = torchvision.models.get_model_weights(name).DEFAULT.meta["min_size"]
    if family in FIXED:
        return PictureSize(network=network, only=(height, width))
    return PictureSize(network=network, least=LEAST.get(family, min(height, width)))


def check_clips(clips_BCTHW: Tensor, in_channels: int) -> None:
    """Raises InputError for another number of channels than `in_channels`, ValueError for what are no clips."""
    message = f"clips must be B x {in_channels} x T x H x W, got {tuple(clips_BCTHW.shape)}"
    if clips_BCTHW.ndim != 5:
        raise ValueError(message)
    if clips_BCTHW.shape[1] != in_channels:
        raise InputError(message)


def check_probability(key: str, value: float) -> None:
    """Raises InputError for a value of `model.KEY` outside of [0, 1)."""
    if not 0 <= value < 1:
        raise InputError(f"model.{key} (={value}) must lie in [0, 1)")
