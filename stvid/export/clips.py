"""Clips to compare an exported model with its original: of the run's videos, or synthetic where these have gone.

N clips   T frames   C channels   H, W height and width
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from stvid.data.dataset import Views
from stvid.data.manifest import Item, Manifest
from stvid.errors import VideoError
from stvid.export.form import Form
from stvid.run.checkpoint import TrainedModel
from stvid.run.folder import RunFolder
from stvid.video.probe import probe

SYNTHETIC_GRID = 8  # random colours along each side of a synthetic picture


def read_clips(trained: TrainedModel, split: str, *, number: int, num_frames: int) -> Tensor | None:
    """The middle clip of some videos of a split, as the evaluation reads it.

    Args:
        trained: the model; its run folder lists the videos.
        split: `train`, `val` or `test`.
        number: of clips, at least 1, from as many videos spread over the split. Videos that cannot be read are left
            out; if there are too few, they are repeated.
        num_frames: T. A video that is too short stands still at its end, whatever `clip.short` says.

    Returns:
        uint8 `N x T x 3 x H x W`; for difference images `N x 2T x 3 x H x W` with the earlier pictures first. None if
        the run lists no videos, or none of them can be read.
    """
    manifest = RunFolder(trained.folder).manifest_csv
    if not manifest.is_file():
        return None
    items = Manifest.read_csv(manifest, class_names=trained.class_names).with_paths(trained.moved).select(split)
    clip = dataclasses.replace(trained.clip, num_frames=num_frames, short="repeat_last")
    clips: list[Tensor] = []
    for item in _spread(items, number):
        try:
            info = probe(item.path, decode_all=False, max_pixels=trained.max_pixels)
            views = Views(items=[item], infos=[info], class_names=trained.class_names, clip=clip)
            clips.extend(views.pictures(0))
        except VideoError:
            continue
        if len(clips) == number:
            break
    if not clips:
        return None
    return torch.stack([clips[i % len(clips)] for i in range(number)])


def _spread(items: Sequence[Item], number: int) -> list[Item]:
    """Some items spread evenly, and after them the others, for those that cannot be read."""
    step = max(len(items) // number, 1)
    return [item for start in range(step) for item in items[start::step]]


def synthetic_clips(trained: TrainedModel, *, number: int, num_frames: int) -> Tensor:
    """Clips as `read_clips` returns them, of random smooth pictures that move to the right, one pixel per frame."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.rand(number, 3, SYNTHETIC_GRID, SYNTHETIC_GRID, generator=generator) * 255
    picture_NCHW = F.interpolate(grid, size=trained.clip.size, mode="bilinear").to(torch.uint8)
    frames_NTCHW = torch.stack([picture_NCHW.roll(t, dims=-1) for t in range(num_frames)], dim=1)
    if trained.clip.input == "rgb":
        return frames_NTCHW
    return torch.cat([frames_NTCHW.roll(-1, dims=-1), frames_NTCHW], dim=1)


def clip_inputs(form: Form, pictures_NTCHW: Tensor, lengths_N: Tensor | None = None) -> tuple[Tensor, ...]:
    """The inputs of a clip form, see `clip_form`, for clips as `read_clips` returns them.

    Args:
        form: the form.
        pictures_NTCHW: the clips.
        lengths_N: number of valid frames of each clip; None: all. Used only by a form that takes lengths.
    """
    names = [spec.name for spec in form.inputs]
    pictures_NTHWC = pictures_NTCHW.permute(0, 1, 3, 4, 2).contiguous()
    earlier, frames = pictures_NTHWC.chunk(2, dim=1) if "earlier" in names else (None, pictures_NTHWC)
    all_frames = torch.full((len(frames),), frames.shape[1])
    given = {"frames": frames, "earlier": earlier, "lengths": all_frames if lengths_N is None else lengths_N}
    return tuple(given[name] for name in names)  # type: ignore[misc] # None only where it is not asked for
