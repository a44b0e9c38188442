"""Whether a model can take clips of a size, and what it can take instead."""

from __future__ import annotations

import logging

import torch
from torch import nn

from stvid.clip import ClipSpec
from stvid.errors import InputError

log = logging.getLogger(__name__)

CANNOT = (RuntimeError, AssertionError, ValueError)  # what networks raise for clips of a wrong size
LARGEST = 384  # pixels, the longest side that is tried where a model cannot take a clip
LONGEST = 64  # frames, likewise


@torch.no_grad()
def check_fit(model: nn.Module, clip: ClipSpec) -> None:
    """Runs one grey clip through the model, which stays as it is. Whole videos are tried with 16 frames.

    Warns where the clip's pixels are not those that the model's weights were trained with.

    Raises:
        InputError: the model cannot take clips of this size: in its own words, with the smallest that it can.
    """
    _check_pixels(getattr(model, "pixels", None), clip)
    num_frames = clip.num_frames or 16
    training = model.training
    try:
        model.eval()(torch.zeros(1, clip.channels, num_frames, *clip.size))
    except CANNOT as error:
        smallest = _smallest(model, clip)
        hint = "" if smallest is None else f". The smallest that it takes: {smallest}"
        raise InputError(
            f"{type(model).__name__} cannot take clips of {num_frames} frames of {clip.size[0]} x {clip.size[1]} "
            f"pixels and {clip.channels} channels ({str(error).splitlines()[0]}){hint}. Change clip.size or "
            "clip.num_frames; a vision transformer takes one size only, model.image_size"
        ) from error
    finally:
        model.train(training)


def _check_pixels(pixels: tuple | None, clip: ClipSpec) -> None:
    if pixels is None:
        return
    mean, std = ([round(value, 4) for value in values] for values in pixels)
    same = [abs(a - b) < 0.01 for a, b in zip((*clip.mean, *clip.std), (*mean, *std), strict=True)]
    if clip.normalize != "fixed" or not all(same):
        log.warning(
            "the weights were trained on pixels normalised by mean %s and std %s; here clip.normalize is %s, or by "
            "others. clip=imagenet, clip=kinetics and clip=lite0 are what weights of these names know",
            *(mean, std, clip.normalize),
        )


def _smallest(model: nn.Module, clip: ClipSpec) -> str | None:
    """The smallest square, and the fewest frames of it, that a model in evaluation mode takes; None: none was found.

    Found by trying, from the smallest on: what is too small fails early, so that takes seconds at most.
    """

    def works(num_frames: int, height: int, width: int) -> bool:
        try:
            model(torch.zeros(1, clip.channels, num_frames, height, width))
        except CANNOT:
            return False
        return True

    def square(num_frames: int) -> int | None:
        return next((size for size in range(1, LARGEST + 1) if works(num_frames, size, size)), None)

    num_frames, size = 1, square(1)
    if size is None:  # not the pixels are too few, then
        num_frames = next((n for n in range(2, LONGEST + 1) if works(n, *clip.size)), None)
        size = None if num_frames is None else square(num_frames)
    return None if size is None else f"{num_frames} frame{'s' * (num_frames > 1)} of {size} x {size} pixels"
