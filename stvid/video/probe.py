"""Measures the properties of video files.

    info = probe("clip.avi")                                                   # VideoInfo, or raises VideoError
    infos = probe_all(paths, num_workers=8, cache=Path("probe.jsonl"))          # a list of VideoInfo and VideoError

Headers are not trusted: the frame count is the number of frames that a decoder delivers.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import av

from stvid.checks import collection_paused
from stvid.errors import TIMEOUT, VideoError
from stvid.progress import Bar
from stvid.video.container import open_video
from stvid.video.decoding import Scan
from stvid.video.images import image_size, images_identity, list_images
from stvid.video.orientation import orientation_of
from stvid.video.probe_cache import ProbeCache
from stvid.video.shard_index import known_info
from stvid.video.skipping import find_b_frames
from stvid.video.types import MAX_PIXELS, VideoInfo, file_identity, identity_text
from stvid.video.workers import map_files

# One packet is one frame for any encoder: these containers hold whole access units, and these codecs have no hidden
# packets. (MPEG-4 in AVI has packed B-frames, VP8 has alternate reference frames.)
_COUNTED_CONTAINERS = ("mov", "matroska")
_COUNTED_CODECS = ("h264", "hevc", "vp9", "av1", "mjpeg")
_SAVE_EVERY = 60.0  # seconds; a killed run loses at most this much probing


def probe(path: str | os.PathLike[str], *, decode_all: bool = True, max_pixels: int = MAX_PIXELS) -> VideoInfo:
    """Probes one file, in this process and without a time limit.

    Args:
        path: a video file, or a folder of images. What the index of a tar says about a video is not measured again.
        decode_all: decode every frame, which finds files that break half way. False: count packets where each is known
            to be one frame; then a break is found only when the frame is read, and a file with B-frames has no random
            access.
        max_pixels: of a frame or image, height times width; larger ones are refused before they are decoded.

    Raises:
        VideoError: missing, unreadable, no video stream, empty, truncated.
    """
    if os.path.isdir(path):
        return _probe_images(path, decode_all=decode_all, max_pixels=max_pixels)
    if (known := known_info(path)) is not None:
        if isinstance(known, VideoError):
            raise known
        return known
    identity = identity_text(path)
    with open_video(path, max_pixels=max_pixels) as (container, stream):
        counted = container.format.name.startswith(_COUNTED_CONTAINERS) and _is_counted(stream)
        decoded = decode_all or not counted
        scan = Scan.run(path, container, stream, decode_all=decoded)
    counted = counted and scan.packets_are_frames
    if not counted and not decoded:
        decoded = True
        with open_video(path, max_pixels=max_pixels) as (container, stream):
            scan = Scan.run(path, container, stream, decode_all=True)

    info = _video_info(scan, counted=counted, decoded=decoded, identity=identity)
    if scan.codec == "mpeg4" and any(scan.is_b) and decoded and not info.num_damaged and not scan.interlaced:
        # of interlaced files, FFmpeg keeps the time of the first B-frame that it sees, and uses it for the later ones
        with suppress(VideoError):
            in_order = scan.is_b == find_b_frames(path, max_pixels=max_pixels)
            info = dataclasses.replace(info, b_frames_in_order=in_order)
    return info


def _is_counted(stream: av.VideoStream) -> bool:
    context = stream.codec_context
    if context.codec.canonical_name == "rawvideo":  # the palette of other formats is in the first packet only
        return context.pix_fmt == "yuv420p"
    return context.codec.canonical_name in _COUNTED_CODECS


def _video_info(scan: Scan, *, counted: bool, decoded: bool, identity: str) -> VideoInfo:
    assert scan.first is not None  # Scan.run raises for a file without frames
    stamps: list[int | None] = scan.frames_pts if decoded else [*sorted(scan.known_pts)]
    # a damaged file may have more packets than frames; then packet numbers are not frame numbers
    trusted = (
        counted
        and scan.gops_are_closed
        and scan.num_video_streams == 1  # decoders differ in which of several streams they choose
        # a B-frame may depend on a damaged later frame; only decoding shows the damage
        and (stamps == sorted(scan.known_pts) if decoded else not scan.reorders)
    )
    fps, timestamps = _frame_times(stamps, tick=scan.tick, header_rate=scan.header_rate)
    rotation, mirrored = orientation_of(scan.first)
    size = (scan.first.height, scan.first.width)
    height, width = size if rotation in (0, 180) else size[::-1]
    return VideoInfo(
        num_frames=len(stamps),
        fps=fps,
        duration=len(stamps) / fps,
        height=height,
        width=width,
        codec=scan.codec,
        pixel_format=scan.first.format.name,
        rotation=rotation,
        mirrored=mirrored,
        keyframes=scan.keyframes if trusted else (),
        first_pts=stamps[0] if trusted else None,
        timestamps=timestamps,
        start=0.0 if stamps[0] is None else round(stamps[0] * scan.tick, 6),
        num_damaged=scan.num_damaged,
        decoded=decoded,
        identity=identity,
    )


def _probe_images(folder: str | os.PathLike[str], *, decode_all: bool, max_pixels: int) -> VideoInfo:
    images = list_images(folder)
    identity = images_identity(folder, images)
    height, width = image_size(folder, images, decode_all=decode_all, max_pixels=max_pixels)
    return VideoInfo(
        num_frames=len(images),
        fps=25.0,
        duration=len(images) / 25,
        height=height,
        width=width,
        codec="images",
        decoded=decode_all,
        identity=identity,
    )


def _frame_times(
    stamps: Sequence[int | None], *, tick: float, header_rate: float
) -> tuple[float, tuple[float, ...] | None]:
    """Average rate (frames/s) and, if the frames are not evenly spaced, the time of each (s from the first)."""
    known = [stamp for stamp in stamps if stamp is not None]
    rising = len(known) == len(stamps) and all(a < b for a, b in pairwise(known))
    if len(stamps) == 1 or not rising:  # not rising: AVI with B-frames, which has meaningless stamps
        return header_rate or 25.0, None
    seconds = [(stamp - known[0]) * tick for stamp in known]
    average = (len(seconds) - 1) / seconds[-1]
    # Prefer the header's rate: it is exact (30000/1001) where the stamps are rounded (Matroska: to 1 ms).
    for rate in (header_rate, average):
        if rate and all(abs(t * rate - i) < 0.5 for i, t in enumerate(seconds)):
            return rate, None
    return average, tuple(round(t, 6) for t in seconds)


def probe_all(
    paths: Sequence[str | os.PathLike[str]],
    *,
    num_workers: int,
    cache: Path | None = None,
    decode_all: bool = True,
    progress: bool = True,
    timeout: float = 60.0,
    max_pixels: int = MAX_PIXELS,
) -> list[VideoInfo | VideoError]:
    """Probes many files; returns VideoInfo or VideoError for each, in the order of `paths`.

    A file that crashes its decoder becomes `VideoError(unreadable)`, one that stands still `VideoError(timeout)`;
    this does not affect other files.

    Args:
        paths: files; duplicates are probed once.
        num_workers: processes; 0 probes in this process, where a crash or a hang cannot be survived.
        cache: file with the results of earlier calls, valid as long as path, size and mtime are unchanged.
            Errors are not cached: a mount, a permission or a less busy machine may remove them.
        decode_all: see `probe`; if True, cached results from counting packets are not used.
        progress: show a progress bar if there are files to probe.
        timeout: seconds without a new frame (or, if packets are counted, a new packet) after which a file is given up.
        max_pixels: see `probe`.
    """
    names = [os.fspath(path) for path in paths]
    results: dict[str, VideoInfo | VideoError] = {}
    identities: dict[str, list[int] | None] = {}  # of the files that are to be probed; None: it cannot be accessed
    with collection_paused():
        known = ProbeCache(cache)
        for name in names:
            if name in results or name in identities:
                continue
            if (of_member := known_info(name)) is not None:
                results[name] = of_member
                continue
            identity, info = None, None
            with suppress(OSError):  # probe() reports a missing file
                identity = file_identity(name)
                info = known.get(os.path.abspath(name), identity)
            if info is not None and (info.decoded or not decode_all) and info.height * info.width <= max_pixels:
                results[name] = info
            else:
                identities[name] = identity

    todo = list(identities)
    saved = time.monotonic()
    bar = Bar("probing videos", total=len(todo), unit="videos", shown=progress)
    probed = map_files(
        partial(probe, decode_all=decode_all, max_pixels=max_pixels), todo, num_workers=num_workers, timeout=timeout
    )
    try:
        bar.start()
        for name, result in probed:
            bar.advance()
            if isinstance(result, VideoError) and result.reason == TIMEOUT:
                result = VideoError(name, TIMEOUT, f"{result.detail}; data.probe_timeout sets this limit")
            results[name] = result
            identity = identities[name]
            if isinstance(result, VideoInfo) and identity is not None:
                known.add(os.path.abspath(name), identity, result)
            if time.monotonic() - saved > _SAVE_EVERY:
                known.save()
                saved = time.monotonic()
    finally:  # keep the results when interrupted
        bar.close()
        probed.close()
        known.save()
    return [results[name] for name in names]
