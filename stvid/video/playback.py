"""One pass over a video from its first frame: as many frames as wanted in constant memory, whatever its length."""

from __future__ import annotations

import heapq
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from operator import itemgetter
from typing import NamedTuple

import av
import numpy as np
import torch
from torch import Tensor

from stvid.errors import TRUNCATED, VideoError
from stvid.video.container import open_video
from stvid.video.decoding import decode, demux
from stvid.video.images import iter_images
from stvid.video.orientation import turn_upright
from stvid.video.reader import FrameConverter, scaled_size
from stvid.video.types import VideoInfo, check_pixels, check_unchanged, frame_limit


class Request(NamedTuple):
    """Frames that one user of a pass wants: ascending, distinct numbers, and `short_side` as in `read_frames`."""

    indices: Iterable[int]
    short_side: int | None = None


def iter_frames(
    path: str | os.PathLike[str],
    *,
    info: VideoInfo,
    indices: Iterable[int] | None = None,
    short_side: int | None = None,
    num_threads: int = 1,
    max_pixels: int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yields the frames that `read_frames` returns, one after the other: (index, uint8 3 x H x W, RGB, upright).

    Args:
        path: a video file, or a folder of images.
        info: the result of `probe`.
        indices: frame numbers, ascending and distinct; they may be computed while the video is read. None: all.
        short_side, num_threads, max_pixels: see `read_frames`.

    Raises:
        VideoError: the file cannot be read, breaks or ends on the way, or is not the one that was probed.
    """
    request = Request(range(info.num_frames) if indices is None else indices, short_side)
    for _, index, frame in iter_requests(path, [request], info=info, num_threads=num_threads, max_pixels=max_pixels):
        yield index, frame


def iter_requests(
    path: str | os.PathLike[str],
    requests: Sequence[Request],
    *,
    info: VideoInfo,
    num_threads: int = 1,
    max_pixels: int | None = None,
) -> Iterator[tuple[int, int, Tensor]]:
    """`iter_frames` for several requests in one pass: yields (number of the request, frame number, frame).

    A frame of two requests comes twice, for the first request first. The video is read no further than necessary.
    """
    limit = frame_limit(info, max_pixels)
    check_pixels(path, info.height, info.width, max_pixels=limit)
    read = _read_images if info.codec == "images" else _decode
    with closing(read(path, requests, info=info, num_threads=num_threads, max_pixels=limit)) as frames:
        yield from frames


def _decode(
    path: str | os.PathLike[str], requests: Sequence[Request], *, info: VideoInfo, num_threads: int, max_pixels: int
) -> Generator[tuple[int, int, Tensor]]:
    check_unchanged(path, info)
    converters = [
        FrameConverter(info, scaled_size(info, request.short_side), num_threads=num_threads) for request in requests
    ]
    wanted = [iter(request.indices) for request in requests]
    following = [next(indices, None) for indices in wanted]
    if all(index is None for index in following):
        return
    number = -1
    with open_video(path, num_threads=num_threads, max_pixels=max_pixels) as (container, stream):
        for number, frame in enumerate(decode(path, demux(container, stream))):
            for i, index in enumerate(following):
                if index == number:
                    pixels_1HWC = torch.from_numpy(converters[i](frame).copy())[None]
                    upright_1HWC = turn_upright(pixels_1HWC, info.rotation, info.mirrored)
                    yield i, number, upright_1HWC[0].permute(2, 0, 1)
                    following[i] = next(wanted[i], None)
            if all(index is None for index in following):
                return
    missing = min(index for index in following if index is not None)
    raise VideoError(path, TRUNCATED, f"frame {missing} of {info.num_frames} was requested, it ends after {number + 1}")


def _read_images(
    path: str | os.PathLike[str], requests: Sequence[Request], *, info: VideoInfo, num_threads: int, max_pixels: int
) -> Generator[tuple[int, int, Tensor]]:
    def pictures(i: int) -> Iterator[tuple[int, int, np.ndarray]]:
        size = scaled_size(info, requests[i].short_side)
        shrunk = size != (info.height, info.width)
        images = iter_images(path, requests[i].indices, info=info, size=size, shrunk=shrunk, max_pixels=max_pixels)
        for number, picture in images:
            yield number, i, picture

    for number, i, picture in heapq.merge(*map(pictures, range(len(requests))), key=itemgetter(0, 1)):
        yield i, number, torch.from_numpy(picture).permute(2, 0, 1)


def clock_start(path: str | os.PathLike[str], *, max_pixels: int) -> float:
    """The time stamp at which players start the file, in seconds: that of its first frame or sound.

    Players show the time since then, and subtitles are written in that time. 0 for a folder of images.

    Raises:
        VideoError: the file cannot be opened.
    """
    if os.path.isdir(path):
        return 0.0
    with open_video(path, max_pixels=max_pixels) as (container, _):
        return (container.start_time or 0) / av.time_base
