"""torchvision's weights by their names, and the pixels they expect."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import NamedTuple

import torchvision
from torchvision.models import WeightsEnum

from stvid.errors import InputError


def find_weights(name: str, weights: str | None, *, key: str = "weights") -> WeightsEnum | None:
    """What torchvision knows as `weights` (`DEFAULT`, or a name) of its network `name`; None for None.

    `key` is the config key below `model` that an error names.

    Raises:
        InputError: the network has no weights of that name; those it has are told.
    """
    if weights is None:
        return None
    choices = torchvision.models.get_model_weights(name)
    names = ["DEFAULT", *choices.__members__]
    if weights not in names:
        raise InputError(f"model.{key} (={weights}) is not among the weights of {name}: {', '.join(names)}")
    return choices[weights]


class Normalization(NamedTuple):
    """Mean and deviation per channel, of pixels in [0, 1], that weights were trained with."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def pixels_of(name: str, weights: str | None) -> Normalization | None:
    """What `weights` of torchvision's network `name` expect; None for None, and for a file, which does not tell."""
    if weights != "DEFAULT" and weights not in torchvision.models.get_model_weights(name).__members__:
        return None
    recipe = find_weights(name, weights).transforms()
    return Normalization(tuple(recipe.mean), tuple(recipe.std))


def nearest_name(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: those that are like it, or some that there are."""
    close = " or ".join(difflib.get_close_matches(name, known, n=3))
    return f"; did you mean {close}?" if close else f"; there are {len(known)}, such as {', '.join(known[:3])}"
