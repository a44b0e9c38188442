"""Clips of a batch mixed with one another, and their labels in proportion.

B batch   T frames   C channels   H, W height and width   F features of a frame   K classes
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stvid.errors import InputError

Box = tuple[int, int, int, int]  # top, left, bottom, right


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Mixup (Zhang et al. 2018, arXiv:1710.09412), cutmix (Yun et al. 2019, arXiv:1905.04899), or a fair coin's choice.

    In a batch that is mixed, every clip gets another clip of the batch as its partner, and all of them the same share
    of it. Mixup: `share * clip + (1 - share) * partner` in every pixel. Cutmix: the partner's pixels in a box of
    `1 - share` of the picture, the same in all frames. The share is drawn from Beta(alpha, alpha), and is that of the
    labels, too; where a box is cut off at the edges of the picture, it is the share that comes of it.

    Attributes:
        mixup: alpha, 0 or more; 0: no mixup. Small ones leave most clips nearly alone, 1 draws every share alike.
        cutmix: likewise.
        probability: of a batch to be mixed, in [0, 1].
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0

    def __post_init__(self):
        for key in ("mixup", "cutmix"):
            if getattr(self, key) < 0:
                raise InputError(f"mixing.{key} (={getattr(self, key)}) must be 0 (off) or more")
        if not 0 <= self.probability <= 1:
            raise InputError(f"mixing.probability (={self.probability}) must lie in [0, 1]")

    def __call__(
        self, inputs: Tensor, lengths_B: Tensor | None, targets_BK: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """A batch -> one of the same shapes and memory order; what is given stays as it is.

        Args:
            inputs: clips, uint8 `B x T x C x H x W`, or features of their frames, float `B x T x F`.
            lengths_B: how many frames of each are real, at least 1; None: all. A partner of another length is shown
                faster or slower, so that it fills the clip's own; lengths and padding stay.
            targets_BK: share of each class in each clip.
            rng: all chance comes from here.

        Raises:
            InputError: features, and cutmix is on.
        """
        if self.cutmix and inputs.ndim == 3:
            raise InputError(
                f"mixing.cutmix (={self.cutmix}) cuts out pixels, and of stored features there are none: compute them "
                "anew (data.features=off), or choose mixing=mixup"
            )
        if not (self.mixup or self.cutmix) or len(inputs) < 2 or rng.random() >= self.probability:
            return inputs, lengths_B, targets_BK
        cut = self.cutmix and (not self.mixup or rng.random() < 0.5)
        alpha = self.cutmix if cut else self.mixup
        share, shift = float(rng.beta(alpha, alpha)), int(rng.integers(1, len(inputs)))
        partners = [(i + shift) % len(inputs) for i in range(len(inputs))]
        box = None
        if cut:
            height, width = inputs.shape[-2:]
            top, left, bottom, right = box = _box(height, width, share, rng)
            share = 1 - (bottom - top) * (right - left) / (height * width)
        lengths = [inputs.shape[1]] * len(inputs) if lengths_B is None else lengths_B.tolist()
        mixed = inputs.clone()  # in the same memory order, by which `Preprocess` is fast
        for i, partner in enumerate(partners):
            other = _stretched(inputs[partner], lengths[partner], lengths[i])
            _mix_in(mixed[i, : lengths[i]], other, share, box)
        return mixed, lengths_B, share * targets_BK + (1 - share) * targets_BK.roll(-shift, 0)


def _box(height: int, width: int, share: float, rng: np.random.Generator) -> Box:
    """Of the frame's shape and `1 - share` of its area around a point anywhere in it, cut off at the edges."""
    sides = math.sqrt(1 - share)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    half_height, half_width = int(height * sides / 2), int(width * sides / 2)
    top, left = max(y - half_height, 0), max(x - half_width, 0)
    return top, left, min(y + half_height, height), min(x + half_width, width)


def _stretched(clip: Tensor, length: int, wanted: int) -> Tensor:
    """The first `length` frames of a clip, shown as `wanted` ones: each time the frame nearest to that moment."""
    if length == wanted:
        return clip[:wanted]
    return clip[[(2 * i + 1) * length // (2 * wanted) for i in range(wanted)]]


def _mix_in(clip: Tensor, other: Tensor, share: float, box: Box | None) -> None:
    """Changes the clip in place; clip by clip, so that never a whole batch is in float32.

    Pixels are rounded, so they are off by up to half a grey level.
    """
    if box is not None:
        top, left, bottom, right = box
        clip[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        return
    found = torch.lerp(other.float(), clip.float(), share)
    clip.copy_(found if clip.is_floating_point() else found.round_())
