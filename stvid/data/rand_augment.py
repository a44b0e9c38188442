"""Random changes that torchvision knows for pictures, made for clips, and drawn from a numpy generator.

T frames   C channels   H, W height and width; frames are uint8 in and uint8 out
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

NUM_MAGNITUDES = 31
MEAN_COLOUR = (124, 116, 104)  # ImageNet's; the place where something was erased should stand out little


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
