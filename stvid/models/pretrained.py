"""Names of torchvision's weights, looked up."""

from __future__ import annotations

import torchvision
from torchvision.models import WeightsEnum


def find_weights(name: str, weights: str | None) -> WeightsEnum | None:
    """What torchvision knows as `weights` (`DEFAULT`, or a name) of its network `name`; None for None.

    Raises:
        ValueError: the network has no weights of that name; those it has are told.
    """
    if weights is None:
        return None
    choices = torchvision.models.get_model_weights(name)
    names = ["DEFAULT", *choices.__members__]
    if weights not in names:
        raise ValueError(f"model.weights (={weights}) is not among the weights of {name}: {', '.join(names)}")
    return choices[weights]
