"""Facts about video files.

    info = probe("clip.avi")                                                   # VideoInfo, or raises VideoError
    infos = probe_all(paths, num_workers=8, cache=Path("probe.json"))          # a list of both

Headers are not believed: the frame count is what a decoder delivers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

from stvid.errors import VideoError
from stvid.progress import Bar
from stvid.video import types as facts
from stvid.video.decoding import Scan, open_video
from stvid.video.images import image_size, list_images
from stvid.video.types import VideoInfo
from stvid.video.workers import each_file

# Where one packet is one frame, whatever the encoder did: these containers hold whole access units, and these codecs
# have no packet that shows nothing (MPEG-4 in AVI has: packed B-frames; VP8 has: alternate references).
_COUNTED_CONTAINERS = ("mov", "matroska")
_COUNTED_CODECS = ("h264", "hevc", "vp9", "av1", "mjpeg")
_SAVE_EVERY = 60.0  # seconds; a run killed while it probes goes on from there


def probe(path: str | os.PathLike[str], *, decode_all: bool = True) -> VideoInfo:
    """Find the facts of one file, in this process and without a time limit.

    Args:
        path: a video file, or a folder of images.
        decode_all: decode every frame, so that a file which breaks half way is found out. False: where every packet is
            known to become one frame, count packets instead; such a break is then met when the frame is read, and a
            file with B-frames has no random access.

    Raises:
        VideoError: missing, unreadable, no video stream, empty, truncated.
    """
    if os.path.isdir(path):
        return _probe_images(path, decode_all=decode_all)
    with open_video(path) as (container, stream):
        counted = (
            container.format.name.startswith(_COUNTED_CONTAINERS)
            and stream.codec_context.codec.canonical_name in _COUNTED_CODECS
        )
        decoded = decode_all or not counted
        scan = Scan.of(path, container, stream, decode_all=decoded)
    counted = counted and scan.packets_are_frames
    if not counted and not decoded:
        decoded = True
        with open_video(path) as (container, stream):
            scan = Scan.of(path, container, stream, decode_all=True)

    stamps = scan.frames_pts if decoded else sorted(scan.pts)
    # a damaged file may give fewer frames than it has packets, and then no packet's number is its frame's
    trusted = (
        counted
        and scan.gops_are_closed
        and scan.num_video_streams == 1  # every decoder has its own opinion which one is meant
        # where frames are shown before one that they are made from, damage to that one is known by decoding alone
        and (stamps == sorted(scan.pts) if decoded else not scan.reorders)
    )
    fps, timestamps = _clock(stamps, tick=scan.tick, header_rate=scan.header_rate)
    rotation = round(scan.first.rotation / 90) * 90 % 360
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
        keyframes=scan.keyframes if trusted else (),
        first_pts=stamps[0] if trusted else None,
        timestamps=timestamps,
        num_damaged=scan.num_damaged,
        decoded=decoded,
    )


def _probe_images(folder: str | os.PathLike[str], *, decode_all: bool) -> VideoInfo:
    images = list_images(folder)
    height, width = image_size(folder, images, decode_all=decode_all)
    return VideoInfo(
        num_frames=len(images),
        fps=25.0,
        duration=len(images) / 25,
        height=height,
        width=width,
        codec="images",
        decoded=decode_all,
    )


def _clock(stamps: Sequence[int | None], *, tick: float, header_rate: float) -> tuple[float, tuple[float, ...] | None]:
    """Average rate (frames/s) and, where frames are not evenly spaced, the time of each (s from the first)."""
    rising = None not in stamps and all(a < b for a, b in pairwise(stamps))
    if len(stamps) == 1 or not rising:  # not rising: AVI with B-frames, whose stamps mean nothing
        return header_rate or 25.0, None
    seconds = [(stamp - stamps[0]) * tick for stamp in stamps]
    average = (len(seconds) - 1) / seconds[-1]
    # The header's rate comes first: it is exact (30000/1001) where stamps are rounded (Matroska's to 1 ms).
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
) -> list[VideoInfo | VideoError]:
    """Find the facts of many files, or what is wrong with each; the result is in the order of `paths`.

    A file that crashes its decoder becomes `VideoError(unreadable)`, one that takes too long `VideoError(timeout)`;
    the others are not touched by it.

    Args:
        paths: files; naming one twice costs nothing.
        num_workers: processes; 0 probes in this one, where neither a crash nor a hang can be survived.
        cache: JSON file with what is known from earlier calls; facts hold while path, size and mtime are the same.
            Files in trouble are not cached: they may be mended by a mount, a permission or a less busy machine.
        decode_all: as for `probe`; facts that were found by counting do not count as known here.
        progress: show a bar if there is anything to do.
        timeout: seconds that one file may take, and one more for each megabyte it has.
    """
    names = [os.fspath(path) for path in paths]
    known = facts.load_probe_cache(cache)
    results: dict[str, VideoInfo | VideoError] = {}
    identities: dict[str, list[int]] = {}
    for name in dict.fromkeys(names):
        with suppress(OSError):  # a missing file: for probe() to say
            identities[name] = facts.identity(name)
            key, info = known.get(os.path.abspath(name), (None, None))
            if key == identities[name] and (info.decoded or not decode_all):
                results[name] = info

    todo = [name for name in dict.fromkeys(names) if name not in results]
    fresh: facts.Known = {}
    saved = time.monotonic()
    bar = Bar("probing videos", total=len(todo), unit="videos", shown=progress)
    found = each_file(partial(probe, decode_all=decode_all), todo, num_workers=num_workers, timeout=timeout)
    try:
        bar.start()
        for name, result in found:
            bar.advance()
            results[name] = result
            if isinstance(result, VideoInfo) and name in identities:
                fresh[os.path.abspath(name)] = (identities[name], result)
            if time.monotonic() - saved > _SAVE_EVERY:
                facts.save_probe_cache(cache, fresh)
                saved = time.monotonic()
    finally:  # an interrupted hour of probing is not lost
        bar.close()
        found.close()
        facts.save_probe_cache(cache, fresh)
    return [results[name] for name in names]
