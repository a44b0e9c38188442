"""Augments training clips: crop, flip, colour, RandAugment, erasing; the same for all frames of a clip.

The crop is drawn here and cut by the reader. The changes after it run on any device, but all their random numbers are
drawn on the CPU, so that a GPU makes the same clips, up to rounding.

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

from stvid.data.manifest import check_flip_pairs
from stvid.errors import InputError
from stvid.preprocess import crop_box

DEVICES = ("auto", "cpu", "gpu")
NUM_MAGNITUDES = 31
MEAN_COLOUR = (124, 116, 104)  # ImageNet's mean, inconspicuous in an erased box


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes to a training clip, different for each clip and equal for all frames of a clip.

    Attributes:
        scale: minimum and maximum area of the crop, in (0, 1]; 1 is the largest box of the clip's shape.
        ratio: minimum and maximum width/height of the crop, relative to the clip's shape.
        speed: minimum and maximum speed of the video, above 0. At speed 2 the frames of a clip are twice as far apart,
            and so are the two frames of a difference image. With `clip.short=error` at most the speed at which the clip
            fits.
        flip: probability of a horizontal flip.
        flip_pairs: pairs of class names that a flip exchanges, such as [[swipe_left, swipe_right]]; a flipped clip of
            one gets the label of the other.
        brightness: multiply the pixels by a factor in 1 +- this.
        contrast: the same for the distance from the clip's mean grey.
        saturation: the same for the distance from the grey image.
        hue: shift of the hue, +- this fraction of the circle, at most 0.5.
        rand_augment: number of RandAugment operations, see `apply_rand_augment`; 0: off.
        rand_magnitude: their strength, 0 to 30.
        erase: probability of an erased box, see `erase_box`.
        device: where the changes after the crop are computed: `cpu`: by the processes that read the videos; `gpu`: on
            the training's GPU, for a whole batch; `auto`: on the GPU if the training runs on CUDA, else as `cpu`.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (1.0, 1.0)
    speed: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    flip_pairs: tuple[tuple[str, str], ...] = ()
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    rand_augment: int = 0
    rand_magnitude: int = 9
    erase: float = 0.0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("scale", "ratio", "speed"):
            low, high = pair = tuple(getattr(self, name))
            object.__setattr__(self, name, pair)
            if not 0 < low <= high or (name == "scale" and high > 1):
                raise InputError(f"augment.{name} (={list(pair)}) must be [minimum, maximum], above 0, scale up to 1")
        for name in ("flip", "brightness", "contrast", "saturation", "hue", "erase"):
            maximum = 0.5 if name == "hue" else 1
            if not 0 <= getattr(self, name) <= maximum:
                raise InputError(f"augment.{name} (={getattr(self, name)}) must be in [0, {maximum}]")
        if self.rand_augment < 0:
            raise InputError(f"augment.rand_augment (={self.rand_augment}) must be 0 (off) or a number of operations")
        if not 0 <= self.rand_magnitude < NUM_MAGNITUDES:
            raise InputError(f"augment.rand_magnitude (={self.rand_magnitude}) must be in 0 to {NUM_MAGNITUDES - 1}")
        if self.device not in DEVICES:
            raise InputError(f"augment.device (={self.device}) must be one of {', '.join(DEVICES)}")
        check_flip_pairs(self.flip_pairs)
        object.__setattr__(self, "flip_pairs", tuple(tuple(pair) for pair in self.flip_pairs))

    def check_classes(self, class_names: Sequence[str]) -> None:
        """Raises InputError if `flip_pairs` names an unknown class."""
        check_flip_pairs(self.flip_pairs, class_names)

    def __call__(self, frames_TCHW: Tensor, label: str, *, rng: np.random.Generator) -> tuple[Tensor, str]:
        """Augments a clip that is already cropped; returns uint8 of the same shape, and the label of the result.

        What stays as it is may be a view of the frames. On any device; of the pixels, nothing is copied to the CPU.
        """
        frames = frames_TCHW
        if rng.random() < self.flip:
            frames = F.horizontal_flip(frames)
            label = self.flipped_label(label)
        if self._changes_colours:  # one memory order, wherever the frames come from: a sum of floats depends on it
            frames = frames.contiguous(memory_format=torch.channels_last)
        frames = self._jitter_colours(frames, rng)
        if self.rand_augment:
            frames = apply_rand_augment(frames, num_ops=self.rand_augment, magnitude=self.rand_magnitude, rng=rng)
        return erase_box(frames, probability=self.erase, rng=rng) if self.erase else frames, label

    @property
    def _changes_colours(self) -> bool:
        return any((self.brightness, self.contrast, self.saturation, self.hue, self.rand_augment))

    def random_box(self, height: int, width: int, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, ...]:
        """A random crop (top, left, height, width) of a frame, to be resized to `size` (height, width)."""
        _, _, *box = crop_box(height, width, size)
        scale, stretch = rng.uniform(*self.scale), math.exp(rng.uniform(*np.log(self.ratio)))
        high, wide = box[0] * math.sqrt(scale / stretch), box[1] * math.sqrt(scale * stretch)
        shrink = min(height / high, width / wide, 1.0)  # to fit into the frame, with the same shape
        box_height, box_width = max(int(high * shrink), 1), max(int(wide * shrink), 1)
        top, left = rng.integers(0, height - box_height + 1), rng.integers(0, width - box_width + 1)
        return int(top), int(left), box_height, box_width

    def random_speed(self, rng: np.random.Generator) -> float:
        """Speed of the video; x is as likely as 1 / x. A fixed one is not drawn."""
        low, high = self.speed
        return low if low == high else math.exp(rng.uniform(*np.log(self.speed)))

    def flipped_label(self, label: str) -> str:
        """The class of a flipped clip of a class."""
        for left, right in self.flip_pairs:
            if label in (left, right):
                return right if label == left else left
        return label

    def _jitter_colours(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        for strength, adjust in (
            (self.brightness, F.adjust_brightness),
            (self.contrast, _adjust_contrast),
            (self.saturation, F.adjust_saturation),
        ):
            if strength:
                frames = adjust(frames, 1 + rng.uniform(-strength, strength))
        return F.adjust_hue(frames, rng.uniform(-self.hue, self.hue)) if self.hue else frames


def _adjust_contrast(frames: Tensor, factor: float) -> Tensor:
    """Changes contrast around the mean grey of the whole clip; torchvision's per-frame mean would flicker."""
    levels = frames.to(torch.float32, copy=True)
    mean = levels.mean()
    return levels.sub_(mean).mul_(factor).add_(mean).round_().clamp_(0, 255).to(frames.dtype)


class _Clip(tv_tensors.Video):
    """Frames T x C x H x W whose contrast operations use the range and histogram of the whole clip.

    torchvision handles a video as separate images, so operations with image statistics would flicker.
    """


def apply_rand_augment(frames_TCHW: Tensor, *, num_ops: int, magnitude: int, rng: np.random.Generator) -> Tensor:
    """RandAugment (Cubuk et al. 2020, arXiv:1909.13719): random operations, the same for all frames.

    None of the 14 operations flips the image. Areas from outside of the image become black.

    Args:
        frames_TCHW: uint8, C = 3.
        num_ops: number of operations, each drawn from all 14.
        magnitude: strength of each, 0 to 30.
        rng: source of all randomness; torch's global generator is not changed.
    """
    operations = v2.RandAugment(num_ops, magnitude, NUM_MAGNITUDES, interpolation=InterpolationMode.BILINEAR)
    with _seed_torch_from(rng):
        return operations(_Clip(frames_TCHW)).as_subclass(Tensor)


def erase_box(frames_TCHW: Tensor, *, probability: float, rng: np.random.Generator) -> Tensor:
    """Random erasing (Zhong et al. 2020, arXiv:1708.04896): a plain box over 2 to 33 % of the area, in all frames.

    Args:
        frames_TCHW: uint8, C = 3; not modified.
        probability: of erasing, in [0, 1].
        rng: see `apply_rand_augment`.
    """
    with _seed_torch_from(rng):
        if torch.rand(1) >= probability:
            return frames_TCHW
        box = v2.RandomErasing(value=MEAN_COLOUR).make_params([frames_TCHW])
    top, left, erased = box["i"], box["j"], frames_TCHW.clone()
    if box["v"] is not None:  # None: the clip is too small for a box
        for channel, level in enumerate(MEAN_COLOUR):  # numbers; a GPU would wait for a tensor of the CPU
            erased[:, channel, top : top + box["h"], left : left + box["w"]] = level
    return erased


@contextlib.contextmanager
def _seed_torch_from(rng: np.random.Generator) -> Iterator[None]:
    """Seeds torch's CPU generator from `rng` inside the block, and restores it afterwards.

    torchvision draws on the CPU whatever the device of the clip.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))  # torch.manual_seed would also seed the GPUs
        yield


def _as_one_image(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Applies an image operation to the clip's frames stacked below each other as one image."""

    def on_clip(clip: Tensor, *arguments: float, **options: float) -> Tensor:
        frames_CTHW = clip.as_subclass(Tensor).transpose(0, 1)
        stacked = operation(frames_CTHW.flatten(1, 2), *arguments, **options)
        return tv_tensors.wrap(stacked.unflatten(1, frames_CTHW.shape[1:3]).transpose(0, 1), like=clip)

    return on_clip


for _operation in (F.adjust_contrast, F.autocontrast, F.equalize):
    F.register_kernel(_operation, _Clip)(_as_one_image(_operation))
