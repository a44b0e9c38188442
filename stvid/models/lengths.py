"""Clips of different lengths in one batch, for networks that know nothing of lengths.

B batch   C channels   T frames   H, W height and width   F features
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def forward_by_length(network: Callable[[Tensor], Tensor], clips_BCTHW: Tensor, lengths_B: Tensor | None) -> Tensor:
    """`network` on the clips without their padding: those of one length together, so that no padding can be read.

    Args:
        network: `B x C x T x H x W` -> `B x F`.
        clips_BCTHW: what follows a clip's own frames is never looked at.
        lengths_B: how many frames each clip has, 1 to T; None: all.

    Returns:
        `B x F`, in the order of the clips.
    """
    if lengths_B is None or bool((lengths_B == clips_BCTHW.shape[2]).all()):
        return network(clips_BCTHW)
    places, found = [], []
    for length in lengths_B.unique().tolist():
        place = (lengths_B == length).nonzero()[:, 0]
        places.append(place)
        found.append(network(clips_BCTHW[place, :, :length]))
    return torch.cat(found)[torch.cat(places).argsort()]
