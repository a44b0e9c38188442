"""Mixup and cutmix: clips of a batch are mixed with each other, and so are their labels.

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
    """Mixup (Zhang et al. 2018, arXiv:1710.09412), cutmix (Yun et al. 2019, arXiv:1905.04899), or either.

    If both are on, each batch uses either with probability 0.5. Every clip is mixed with another clip of the batch, its
    partner; `share` is the same for all clips of the batch. Mixup computes `share * clip + (1 - share) * partner` in
    every pixel. Cutmix copies the partner's pixels in a box with `1 - share` of the frame's area, the same box in all
    frames. The share is drawn from Beta(alpha, alpha) and applies to the labels too. If a box extends beyond the frame,
    the share is recomputed from the part inside.

    Attributes:
        mixup: alpha, 0 or more; 0: no mixup. A small alpha changes most clips only slightly; 1 gives a uniform share.
        cutmix: alpha, likewise.
        probability: probability that a batch is mixed, in [0, 1].
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        for key in ("mixup", "cutmix"):
            if getattr(self, key) < 0:
                raise InputError(f"mixing.{key} (={getattr(self, key)}) must be 0 (off) or more")
        if not 0 <= self.probability <= 1:
            raise InputError(f"mixing.probability (={self.probability}) must lie in [0, 1]")

    def __call__(
        self, inputs: Tensor, lengths_B: Tensor | None, targets_BK: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Mixes a batch; returns copies of the inputs, lengths and targets with unchanged shapes and memory order.

        Args:
            inputs: clips, uint8 `B x T x C x H x W`, or features of their frames, float `B x T x F`.
            lengths_B: number of valid frames of each clip, at least 1; None: all. A partner with another length is
                resampled to the length of the clip; lengths and padding do not change.
            targets_BK: share of each class in each clip.
            rng: source of all random numbers.

        Raises:
            InputError: cutmix is on and the inputs are features.
        """
        if self.cutmix and inputs.ndim == 3:
            raise InputError(
                f"mixing.cutmix (={self.cutmix}) needs pixels, and the model is trained on stored features: set "
                "data.features=off, or choose mixing=mixup"
            )
        if not (self.mixup or self.cutmix) or len(inputs) < 2 or rng.random() >= self.probability:
            return inputs, lengths_B, targets_BK
        use_cutmix = self.cutmix and (not self.mixup or rng.random() < 0.5)
        alpha = self.cutmix if use_cutmix else self.mixup
        share, shift = float(rng.beta(alpha, alpha)), int(rng.integers(1, len(inputs)))
        partners = [(i + shift) % len(inputs) for i in range(len(inputs))]
        box = None
        if use_cutmix:
            height, width = inputs.shape[-2:]
            top, left, bottom, right = box = _random_box(height, width, share, rng)
            share = 1 - (bottom - top) * (right - left) / (height * width)
        lengths = [inputs.shape[1]] * len(inputs) if lengths_B is None else lengths_B.tolist()
        mixed = inputs.clone()  # keeps the memory order that `Preprocess` expects
        for i, partner in enumerate(partners):
            other = _resample(inputs[partner], lengths[partner], lengths[i])
            _mix_in(mixed[i, : lengths[i]], other, share, box)
        return mixed, lengths_B, share * targets_BK + (1 - share) * targets_BK.roll(-shift, 0)


def _random_box(height: int, width: int, share: float, rng: np.random.Generator) -> Box:
    """A box with the frame's aspect ratio and `1 - share` of its area around a random point, clipped to the frame."""
    sides = math.sqrt(1 - share)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    half_height, half_width = int(height * sides / 2), int(width * sides / 2)
    top, left = max(y - half_height, 0), max(x - half_width, 0)
    return top, left, min(y + half_height, height), min(x + half_width, width)


def _resample(clip: Tensor, length: int, new_length: int) -> Tensor:
    """The first `length` frames of a clip, resampled to `new_length` frames by nearest neighbour in time."""
    if length == new_length:
        return clip[:new_length]
    return clip[[(2 * i + 1) * length // (2 * new_length) for i in range(new_length)]]


def _mix_in(clip: Tensor, other: Tensor, share: float, box: Box | None) -> None:
    """Mixes `other` into the clip, in place. One clip at a time, so that only one clip is in float32.

    Mixup rounds pixels to whole grey levels.
    """
    if box is not None:
        top, left, bottom, right = box
        clip[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        return
    blended = torch.lerp(other.float(), clip.float(), share)
    clip.copy_(blended if clip.is_floating_point() else blended.round_())
