"""How a clip is cropped, mirrored and coloured: once per clip, the same for all its frames.

T frames   C channels   H, W height and width; frames are uint8 in and uint8 out
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from stvid.data.rand_augment import NUM_MAGNITUDES, erased, rand_augmented
from stvid.errors import InputError

CORNERS_SCALE = 7 / 8
# where each crop lies: share of the room above it, and to its left
CROPS = {
    1: [(0.5, 0.5)],
    3: [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)],  # along one side there is no room
    5: [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5)],
}


def crop_box(height: int, width: int, size: tuple[int, int], *, crop: int = 0, num_crops: int = 1) -> tuple[int, ...]:
    """One of a frame's boxes of `size`'s shape, the largest that fit, as (top, left, height, width).

    Args:
        height: of the frame, pixels.
        width: of the frame, pixels.
        size: wanted height and width; only their ratio matters here.
        crop: which of the crops.
        num_crops: 1: the middle; 3: both ends of the frame's longer side and the middle; 5: the four corners and the
            middle, each 7/8 of the largest box (Krizhevsky et al. 2012: 224 of 256 pixels).
    """
    scale = min(height / size[0], width / size[1]) * (CORNERS_SCALE if num_crops == 5 else 1)
    box_height, box_width = min(height, round(size[0] * scale)), min(width, round(size[1] * scale))
    down, right = CROPS[num_crops][crop]
    return round((height - box_height) * down), round((width - box_width) * right), box_height, box_width


def reading_size(height: int, width: int, box: tuple[int, ...], size: tuple[int, int]) -> int | None:
    """The short side to which the reader should shrink frames of which `box` will be brought to `size`.

    The box is then as large as `size` (up to its shape), and is only cut out. None where it is not to be shrunk.
    """
    shrink = max(size[0] / box[2], size[1] / box[3])
    return max(round(min(height, width) * shrink), 1) if shrink < 1 else None


def crop_and_resize(
    frames_TCHW: Tensor, box: tuple[int, ...], size: tuple[int, int], *, native: tuple[int, int] | None = None
) -> Tensor:
    """Cuts (top, left, height, width) out of every frame and brings it to `size` (bilinear, antialiased).

    native: height and width of the frames in whose pixels `box` is told, where these have been shrunk since.
    """
    if native is not None and native != tuple(frames_TCHW.shape[-2:]):
        box = _in_shrunk(box, size, native=native, shrunk=tuple(frames_TCHW.shape[-2:]))
    top, left, height, width = box
    part = frames_TCHW[..., top : top + height, left : left + width]
    if (height, width) == tuple(size):
        return part
    return F.resize(part, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)


def _in_shrunk(
    box: tuple[int, ...], size: tuple[int, int], *, native: tuple[int, int], shrunk: tuple[int, int]
) -> tuple[int, ...]:
    """The box in pixels of the shrunk frames; exactly as large as `size` where only rounding keeps it from that."""
    starts, lengths = [], []
    for start, length, wanted, before, after in zip(box[:2], box[2:], size, native, shrunk, strict=True):
        scaled = length * after / before
        scaled = min(wanted if abs(scaled - wanted) <= 1 else round(scaled), after)
        middle = (start + length / 2) * after / before
        starts.append(min(max(round(middle - scaled / 2), 0), after - scaled))
        lengths.append(scaled)
    return *starts, *lengths


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
