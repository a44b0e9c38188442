"""Whether a model can take the clips of a run."""

from __future__ import annotations

import logging

import torch
from torch import nn

from stvid.clip import ClipSpec

log = logging.getLogger(__name__)
WHOLE_VIDEO = 16  # frames that are tried where a model sees whole videos


@torch.no_grad()
def check_fit(model: nn.Module, clip: ClipSpec) -> None:
    """Runs one grey clip through the model, which stays as it is, so that an error comes before any video is read.

    Warns where the clip's pixels are not those that the model's weights were trained with.

    Raises:
        InputError: what the model itself says of clips that it does not take.
        Exception: any other error of the model, as it is, with a note that tells the shape of the clip.
    """
    _check_pixels(getattr(model, "pixels", None), clip)
    shape = (1, clip.channels, clip.num_frames or WHOLE_VIDEO, *clip.size)
    training = model.training
    try:
        model.eval()(torch.zeros(shape))
    except Exception as error:
        error.add_note(f"{type(model).__name__} was given one clip, B x C x T x H x W = {' x '.join(map(str, shape))}")
        raise
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
