"""Small moving pictures of videos as a model sees them, and of where it looked.

T frames   C channels   H, W height and width
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from stvid.data import sampling
from stvid.data.dataset import Failure, Views
from stvid.data.loading import check_short, probe_items, resolve_workers
from stvid.data.manifest import Item
from stvid.data.sampler import SampleKey
from stvid.evaluation.explain import explain
from stvid.run.checkpoint import TrainedModel

MAX_FRAMES = 24
MAX_WIDTH = 128  # pixels
WEBP_QUALITY = 45  # of WebP, 0 to 100
LUMA = (0.299, 0.587, 0.114)  # what red, green and blue add to brightness
# "inferno" of matplotlib (public domain) at equal distances: brightness grows evenly from black to pale yellow, so it
# is read alike by the colour-blind and in print
INFERNO = (
    (0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85), (227, 89, 51), (249, 140, 10),
    (249, 201, 50), (252, 255, 164),
)  # fmt: skip
GREY_BRIGHTNESS = 0.6  # brightness that the picture keeps where nothing was looked at
HEAT_OPACITY = 0.7  # how much of the picture the greatest heat covers
WHITE_QUANTILE = 0.99  # share of the pixels that stay below white


@dataclass(frozen=True, kw_only=True)
class Preview:
    """One clip of a video, as a page can play it.

    Attributes:
        sprite: WebP, the frames side by side, the first at the left.
        heat_sprite: the same in grey with the heat of `explain` drawn over it; None where nothing was explained.
        num_frames: in the sprite.
        width, height: of one frame, pixels.
        seconds: that the clip lasts in the video, from its first frame to its last; at least one frame's time.
        evidence: what each frame adds to the class's logit; None where nothing was explained, or the model does not
            read frame by frame.
    """

    sprite: bytes
    heat_sprite: bytes | None
    num_frames: int
    width: int
    height: int
    seconds: float
    evidence: list[float] | None


def make_previews(
    trained: TrainedModel,
    items: Sequence[Item],
    *,
    videos: Sequence[int],
    explained: Mapping[int, int],
    cache: Path | None,
) -> dict[int, Preview]:
    """Previews of some videos: each one's middle view, just as the model sees it. Every video is decoded once.

    Of `clip.input=rgb_diff` the pictures are shown, of `diff` the difference images, which are all that the model sees.
    Clips of more than 24 frames are thinned evenly, heat and evidence alike; pictures are at most 128 pixels wide.

    Args:
        trained: the model; to explain, it goes to the accelerator where there is one.
        items: the videos of a split.
        videos: which of them are wanted, as positions among the items.
        explained: which are explained: position -> the class whose logit is meant.
        cache: file that keeps what probing finds, see `loading.probe_cache`; None: none.

    Returns:
        Position -> preview, in the order of `videos`; those that cannot be read are left out.

    Raises:
        InputError: a video is shorter than a clip, and `clip.short=error`.
    """
    videos = list(dict.fromkeys(videos))
    chosen = [items[video] for video in videos]
    dataset = Views(
        items=chosen,
        infos=probe_items(chosen, num_workers=resolve_workers("auto"), cache=cache, decode_all=False),
        class_names=trained.class_names,
        clip=trained.clip,
    )
    check_short(dataset)
    if explained:
        trained.model.to(torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu"))
    previews = {}
    for index, video in enumerate(videos):
        sample = dataset[SampleKey(0, index)]
        if not isinstance(sample, Failure):
            seconds = _clip_seconds(dataset, index)
            previews[video] = _preview(trained, sample["clips"][0], explained.get(video), seconds)
    return previews


def _preview(trained: TrainedModel, clip_TCHW: Tensor, class_index: int | None, seconds: float) -> Preview:
    kept = thin_frames(len(clip_TCHW))
    frames_TCHW = _shrink(clip_TCHW[kept, :3].float() / 255)
    heat_sprite = evidence = None
    if class_index is not None:
        explanation = explain(trained, clip_TCHW, class_index)
        heat_sprite = _sprite(overlay_heat(frames_TCHW, _shrink(explanation.heat_THW[kept, None])[:, 0]))
        evidence = None if explanation.evidence_T is None else explanation.evidence_T[kept].tolist()
    height, width = frames_TCHW.shape[2:]
    return Preview(
        sprite=_sprite(frames_TCHW),
        heat_sprite=heat_sprite,
        num_frames=len(frames_TCHW),
        width=width,
        height=height,
        seconds=round(seconds, 3),
        evidence=evidence,
    )


def thin_frames(num_frames: int) -> list[int]:
    """The frames of a clip that are shown: all, or 24 from the first to the last at equal distances."""
    if num_frames <= MAX_FRAMES:
        return list(range(num_frames))
    return [round(i * (num_frames - 1) / (MAX_FRAMES - 1)) for i in range(MAX_FRAMES)]


def overlay_heat(frames_TCHW: Tensor, heat_THW: Tensor) -> Tensor:
    """Pictures in dimmed grey, and the brighter and yellower the hotter; all in [0, 1].

    Args:
        frames_TCHW: `T x 3 x H x W`.
        heat_THW: of the same size.
    """
    grey_T1HW = (frames_TCHW * torch.tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True)
    grey_T1HW = (grey_T1HW / grey_T1HW.quantile(WHITE_QUANTILE).clamp_min(0.2)).clamp_max(1)  # dark videos can be seen, too
    colours = torch.tensor(INFERNO) / 255
    place_THW = heat_THW.clamp(0, 1) * (len(colours) - 1)
    low = place_THW.long().clamp(max=len(colours) - 2)
    share_THW1 = (place_THW - low)[..., None]
    colour_THWC = colours[low] * (1 - share_THW1) + colours[low + 1] * share_THW1
    cover_T1HW = HEAT_OPACITY * heat_THW[:, None].clamp(0, 1)
    return GREY_BRIGHTNESS * grey_T1HW * (1 - cover_T1HW) + colour_THWC.movedim(-1, 1) * cover_T1HW


def _shrink(pictures_TCHW: Tensor) -> Tensor:
    """At most 128 pixels wide, aspect kept."""
    height, width = pictures_TCHW.shape[2:]
    if width <= MAX_WIDTH:
        return pictures_TCHW
    size = (max(round(height * MAX_WIDTH / width), 1), MAX_WIDTH)
    return F.interpolate(pictures_TCHW, size=size, mode="bilinear", antialias=True).clamp(0, 1)


def _sprite(pictures_TCHW: Tensor) -> bytes:
    """Pictures in [0, 1], side by side, as WebP."""
    row_HWC = torch.cat(list(pictures_TCHW), dim=2).permute(1, 2, 0)
    file = io.BytesIO()
    pixels = (row_HWC * 255).round().to(torch.uint8).contiguous().numpy()
    Image.fromarray(pixels).save(file, "WEBP", quality=WEBP_QUALITY, method=6)
    return file.getvalue()


def _clip_seconds(dataset: Views, index: int) -> float:
    """From the first frame of the middle clip to its last.

    Where a clip is longer than its video, the steps past the end count as long as those within.
    """
    info = dataset.infos[index]
    frames, fps = dataset.timeline(index)
    clip = sampling.resolve_num_frames(dataset.clip, len(frames), fps)
    (start,) = sampling.uniform_starts(len(frames), sampling.span(clip, fps), 1)
    times = [info.seconds_at(frames[i]) for i in sampling.clip_indices(len(frames), start, clip, fps)]
    step = sampling.stride_of(clip, fps) / fps
    return max(sum(b - a if b > a else step for a, b in pairwise(times)), 1 / info.fps)
