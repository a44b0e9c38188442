"""How a clip is cropped, mirrored and coloured: once per clip, the same for all its frames.

T frames   C channels   H, W height and width; frames are uint8 in and uint8 out
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from stvid.errors import InputError
from stvid.preprocess import crop_box

NUM_MAGNITUDES = 31
MEAN_COLOUR = (124, 116, 104)  # ImageNet's; the place where something was erased should stand out little


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes to a training clip; every clip draws its own, all frames of a clip share them.

    Attributes:
        scale: least and greatest area of the part that is kept, in (0, 1]; 1 is the largest box of the clip's shape.
        ratio: least and greatest width/height of the kept part, relative to the clip's own shape.
        flip: probability of a mirror image.
        flip_pairs: pairs of class names that a mirror image swaps, such as [[swipe_left, swipe_right]]; a mirrored
            clip of one then carries the label of the other.
        brightness: the picture times 1 +- this.
        contrast: likewise, about the mean grey.
        saturation: likewise, about the grey picture.
        hue: shift of the hue, +- this share of the circle, at most 0.5.
        rand_augment: how many operations of RandAugment follow, see `rand_augmented`; 0: none.
        rand_magnitude: their strength, 0 to 30.
        erase: probability of a box in a plain colour, see `erased`.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    flip_pairs: tuple[tuple[str, str], ...] = ()
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    rand_augment: int = 0
    rand_magnitude: int = 9
    erase: float = 0.0

    def __post_init__(self):
        for name in ("scale", "ratio"):
            low, high = pair = tuple(getattr(self, name))
            object.__setattr__(self, name, pair)
            if not 0 < low <= high or (name == "scale" and high > 1):
                raise InputError(f"augment.{name} (={list(pair)}) must be [least, greatest], above 0, scale up to 1")
        for name in ("flip", "brightness", "contrast", "saturation", "hue", "erase"):
            most = 0.5 if name == "hue" else 1
            if not 0 <= getattr(self, name) <= most:
                raise InputError(f"augment.{name} (={getattr(self, name)}) must lie in [0, {most}]")
        if self.rand_augment < 0:
            raise InputError(f"augment.rand_augment (={self.rand_augment}) must be 0 (off) or a number of operations")
        if not 0 <= self.rand_magnitude < NUM_MAGNITUDES:
            raise InputError(f"augment.rand_magnitude (={self.rand_magnitude}) must lie in 0 to {NUM_MAGNITUDES - 1}")
        pairs = tuple(tuple(pair) for pair in self.flip_pairs)
        if any(len(pair) != 2 for pair in pairs):
            raise InputError(f"augment.flip_pairs (={list(pairs)}) must be pairs of class names")
        object.__setattr__(self, "flip_pairs", pairs)

    def check_classes(self, class_names: Sequence[str]) -> None:
        """Raises InputError where `flip_pairs` names a class that is not there."""
        for name in (name for pair in self.flip_pairs for name in pair):
            if name not in class_names:
                raise InputError(f"augment.flip_pairs names the class {name!r}; there is {', '.join(class_names)}")

    def __call__(self, frames_TCHW: Tensor, label: str, *, rng: np.random.Generator) -> tuple[Tensor, str]:
        """The clip, cut out already, as another one: uint8 of the same shape, and the label that it then has."""
        frames = frames_TCHW
        if rng.random() < self.flip:
            frames = F.horizontal_flip(frames)
            label = self._mirrored(label)
        frames = self._recolour(frames, rng)
        if self.rand_augment:
            frames = rand_augmented(frames, num_ops=self.rand_augment, magnitude=self.rand_magnitude, rng=rng)
        return erased(frames, probability=self.erase, rng=rng) if self.erase else frames, label

    def random_box(self, height: int, width: int, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, ...]:
        """A part of a frame, as (top, left, height, width), that is to be brought to `size`."""
        _, _, box_height, box_width = crop_box(height, width, size)
        scale, stretch = rng.uniform(*self.scale), math.exp(rng.uniform(*np.log(self.ratio)))
        box_height *= math.sqrt(scale / stretch)
        box_width *= math.sqrt(scale * stretch)
        shrink = min(height / box_height, width / box_width, 1.0)  # where stretching left the frame: keep the shape
        box_height, box_width = max(int(box_height * shrink), 1), max(int(box_width * shrink), 1)
        top, left = rng.integers(0, height - box_height + 1), rng.integers(0, width - box_width + 1)
        return int(top), int(left), box_height, box_width

    def _mirrored(self, label: str) -> str:
        for one, other in self.flip_pairs:
            if label in (one, other):
                return other if label == one else one
        return label

    def _recolour(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        for strength, adjust in (
            (self.brightness, F.adjust_brightness),
            (self.contrast, _adjust_contrast),
            (self.saturation, F.adjust_saturation),
        ):
            if strength:
                frames = adjust(frames, 1 + rng.uniform(-strength, strength))
        return F.adjust_hue(frames, rng.uniform(-self.hue, self.hue)) if self.hue else frames


def _adjust_contrast(frames: Tensor, factor: float) -> Tensor:
    """Stretches about the mean grey of the whole clip; torchvision's takes each frame's own, which would flicker."""
    mean = frames.float().mean()
    return ((frames.float() - mean) * factor + mean).round().clamp(0, 255).to(frames.dtype)


class _Clip(tv_tensors.Video):
    """Frames T x C x H x W whose grey levels are stretched by the clip's range and histogram, not each frame's own.

    torchvision takes a video for so many pictures, and what depends on a picture as a whole would flicker.
    """


def rand_augmented(frames_TCHW: Tensor, *, num_ops: int, magnitude: int, rng: np.random.Generator) -> Tensor:
    """`num_ops` of 14 operations in colour and space (Cubuk et al. 2020, arXiv:1909.13719), for all frames alike.

    None of them mirrors a picture. What an operation moves into the picture from beyond its edges is black.

    Args:
        frames_TCHW: uint8, C = 3.
        num_ops: how many, one after the other; each is drawn from all 14.
        magnitude: strength of all, 0 to 30.
        rng: all chance comes from here; torch's own state stays as it is.
    """
    operations = v2.RandAugment(num_ops, magnitude, NUM_MAGNITUDES, interpolation=InterpolationMode.BILINEAR)
    with _torch_draws_from(rng):
        return operations(_Clip(frames_TCHW)).as_subclass(Tensor)


def erased(frames_TCHW: Tensor, *, probability: float, rng: np.random.Generator) -> Tensor:
    """2 to 33 % of the picture in a plain colour, one box for all frames (Zhong et al. 2020, arXiv:1708.04896).

    Args:
        frames_TCHW: uint8, C = 3; stays as it is.
        probability: of a clip to lose a box, in [0, 1].
        rng: as of `rand_augmented`.
    """
    with _torch_draws_from(rng):
        return v2.RandomErasing(probability, value=MEAN_COLOUR)(frames_TCHW)


@contextlib.contextmanager
def _torch_draws_from(rng: np.random.Generator) -> Iterator[None]:
    """Within, torch's CPU generator is seeded by `rng`; behind, it is what it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))  # torch.manual_seed would seed every GPU, too
        yield


def _as_one_picture(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The operation on a clip whose frames are laid out below each other."""

    def on_clip(clip: Tensor, *arguments: float, **options: float) -> Tensor:
        pictures_CTHW = clip.as_subclass(Tensor).transpose(0, 1)
        changed = operation(pictures_CTHW.flatten(1, 2), *arguments, **options)
        return tv_tensors.wrap(changed.unflatten(1, pictures_CTHW.shape[1:3]).transpose(0, 1), like=clip)

    return on_clip


for _operation in (F.adjust_contrast, F.autocontrast, F.equalize):
    F.register_kernel(_operation, _Clip)(_as_one_picture(_operation))
