"""Small animated previews of clips as the model sees them, with Grad-CAM heat maps.

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
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue
# samples of matplotlib's colour map "inferno" (public domain) at equal distances: brightness grows evenly from black to
# pale yellow, so it also works in print and for colour-blind readers
INFERNO = (
    (0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85), (227, 89, 51), (249, 140, 10),
    (249, 201, 50), (252, 255, 164),
)  # fmt: skip
GREY_BRIGHTNESS = 0.6  # brightness of the frame where the heat is 0
HEAT_OPACITY = 0.7  # opacity of the maximum heat
WHITE_QUANTILE = 0.99  # quantile of the brightness that becomes white


@dataclass(frozen=True, kw_only=True)
class Preview:
    """One clip of a video, as the report plays it.

    Attributes:
        sprite: WebP with the frames side by side, the first on the left.
        heat_sprite: the same in grey with the heat map of `explain` on top; None if the clip is not explained.
        num_frames: frames in the sprite.
        width, height: size of one frame, pixels.
        seconds: duration of the clip in the video, from its first frame to its last; at least that of one frame.
        evidence: contribution of each frame to the logit; None if the clip is not explained, or if the model does not
            process the clip frame by frame.
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
    """Previews of the middle view of some videos, exactly as the model sees it. Every video is decoded once.

    With `clip.input=rgb_diff` the previews show the frames; with `diff` the difference images, because the model sees
    nothing else. The preview of a clip with more than 24 frames has 24 equally spaced ones. Frames are at most 128
    pixels wide.

    Args:
        trained: the model; it is moved to an accelerator if there is one and a clip is explained.
        items: the videos of a split.
        videos: positions of the videos among the items.
        explained: position -> class index, for the videos to explain.
        cache: file that keeps the results of probing, see `loading.probe_cache`; None: no cache.

    Returns:
        Position -> preview, in the order of `videos`, without unreadable videos.

    Raises:
        InputError: a video is shorter than a clip and `clip.short=error`.
    """
    videos = list(dict.fromkeys(videos))
    selected = [items[video] for video in videos]
    infos = probe_items(
        selected,
        num_workers=resolve_workers("auto"),
        cache=cache,
        decode_all=False,
        max_pixels=trained.max_pixels,
    )
    dataset = Views(
        items=selected,
        infos=infos,
        class_names=trained.class_names,
        clip=trained.clip,
        max_pixels=trained.max_pixels,
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
    indices = thin_frames(len(clip_TCHW))
    frames_TCHW = _shrink(clip_TCHW[indices, :3].float() / 255)
    heat_sprite = evidence = None
    if class_index is not None:
        explanation = explain(trained, clip_TCHW, class_index)
        heat_sprite = _sprite(overlay_heat(frames_TCHW, _shrink(explanation.heat_THW[indices, None])[:, 0]))
        evidence = None if explanation.evidence_T is None else explanation.evidence_T[indices].tolist()
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
    """Indices of the frames in a preview: all, or 24 equally spaced ones from the first to the last."""
    if num_frames <= MAX_FRAMES:
        return list(range(num_frames))
    return [round(i * (num_frames - 1) / (MAX_FRAMES - 1)) for i in range(MAX_FRAMES)]


def overlay_heat(frames_TCHW: Tensor, heat_THW: Tensor) -> Tensor:
    """Frames in dimmed grey with a heat map on top: brighter and more yellow means hotter.

    Args:
        frames_TCHW: `T x 3 x H x W`, in [0, 1].
        heat_THW: heat of each pixel, in [0, 1].

    Returns:
        `T x 3 x H x W`, in [0, 1].
    """
    grey_T1HW = (frames_TCHW * torch.tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True)
    grey_T1HW = (grey_T1HW / grey_T1HW.quantile(WHITE_QUANTILE).clamp_min(0.2)).clamp_max(1)  # brightens dark videos
    colours = torch.tensor(INFERNO) / 255
    scaled_THW = heat_THW.clamp(0, 1) * (len(colours) - 1)
    low = scaled_THW.long().clamp(max=len(colours) - 2)
    share_THW1 = (scaled_THW - low)[..., None]
    colour_THWC = colours[low] * (1 - share_THW1) + colours[low + 1] * share_THW1
    opacity_T1HW = HEAT_OPACITY * heat_THW[:, None].clamp(0, 1)
    return GREY_BRIGHTNESS * grey_T1HW * (1 - opacity_T1HW) + colour_THWC.movedim(-1, 1) * opacity_T1HW


def _shrink(images_TCHW: Tensor) -> Tensor:
    """Resizes images to at most 128 pixels of width, keeping the aspect ratio."""
    height, width = images_TCHW.shape[2:]
    if width <= MAX_WIDTH:
        return images_TCHW
    size = (max(round(height * MAX_WIDTH / width), 1), MAX_WIDTH)
    return F.interpolate(images_TCHW, size=size, mode="bilinear", antialias=True).clamp(0, 1)


def _sprite(images_TCHW: Tensor) -> bytes:
    """Encodes images in [0, 1], side by side, as WebP."""
    row_HWC = torch.cat(list(images_TCHW), dim=2).permute(1, 2, 0)
    file = io.BytesIO()
    pixels = (row_HWC * 255).round().to(torch.uint8).contiguous().numpy()
    Image.fromarray(pixels).save(file, "WEBP", quality=WEBP_QUALITY, method=6)
    return file.getvalue()


def _clip_seconds(dataset: Views, index: int) -> float:
    """Duration of the middle clip, from its first frame to its last.

    If the clip is longer than the video, the steps after the end are as long as the others.
    """
    info = dataset.info(index)
    frames, fps = dataset.timeline(index)
    clip = sampling.resolve_num_frames(dataset.clip, len(frames), fps)
    (start,) = sampling.uniform_starts(len(frames), sampling.clip_span(clip, fps), 1)
    times = [info.seconds_at(frames[i]) for i in sampling.clip_indices(len(frames), start, clip, fps)]
    step = sampling.stride_of(clip, fps) / fps
    return max(sum(b - a if b > a else step for a, b in pairwise(times)), 1 / info.fps)
