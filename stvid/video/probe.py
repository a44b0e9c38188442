"""Facts about video files.

    info = probe("clip.avi")                                                   # VideoInfo, or raises VideoError
    infos = probe_all(paths, num_workers=8, cache=Path("probe.json"))          # a list of both

Headers are not believed. The frame count is what a decoder delivers: where every packet is known to become one frame
the packets are counted (no decoding), elsewhere the file is decoded once.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import secrets
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from pathlib import Path

import av
from tqdm import tqdm

from stvid.video.decoding import Scan, open_video
from stvid.video.errors import TIMEOUT, UNREADABLE, VideoError

logger = logging.getLogger(__name__)

# Where one packet is one frame, whatever the encoder did: these containers hold whole access units, and these codecs
# have no packet that shows nothing (MPEG-4 in AVI has: packed B-frames; VP8 has: alternate references).
_COUNTED_CONTAINERS = ("mov", "matroska")
_COUNTED_CODECS = ("h264", "hevc", "vp9", "av1", "mjpeg")
# HEVC is counted but not trusted: decord fails in the middle of some files with B-frames.
_TRUSTED_CODECS = ("h264", "vp9", "av1", "mjpeg")
_SAVE_EVERY = 60.0  # seconds; a run killed while it probes goes on from there


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What is true of one video file.

    Attributes:
        num_frames: frames that a decoder run from the first frame delivers; at least 1.
        fps: average frames per second; 25 where the file says nothing.
        duration: seconds, `num_frames / fps`.
        height: pixels, as displayed (after rotation).
        width: pixels, as displayed (after rotation).
        codec: FFmpeg's name, such as `h264`, `mpeg4`, `vp9`.
        rotation: degrees counterclockwise (0, 90, 180, 270) by which decoded pictures are turned for display.
        random_access: whether decord, asked for any frame, is trusted to return that one.
        keyframe_interval: most frames from one keyframe to the next; 0 where random access is not trusted.
        timestamps: seconds from the first frame to each, where they are not evenly spaced; else None.
    """

    num_frames: int
    fps: float
    duration: float
    height: int
    width: int
    codec: str
    rotation: int
    random_access: bool
    keyframe_interval: int
    timestamps: tuple[float, ...] | None = None


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Find the facts of one file, in this process and without a time limit.

    Reads all packets; decodes all of them only where they cannot be counted.

    Raises:
        VideoError: missing, unreadable, no video stream, empty, truncated.
    """
    with open_video(path) as (container, stream):
        counted = (
            container.format.name.startswith(_COUNTED_CONTAINERS)
            and stream.codec_context.codec.canonical_name in _COUNTED_CODECS
        )
        scan = Scan.of(path, container, stream, decode_all=not counted)
    if counted and not scan.packets_are_frames:
        counted = False
        with open_video(path) as (container, stream):
            scan = Scan.of(path, container, stream, decode_all=True)

    first = scan.first
    rotation = round(first.rotation / 90) * 90 % 360
    trusted = (
        counted
        and scan.codec in _TRUSTED_CODECS
        and scan.gops_are_closed
        and scan.num_video_streams == 1  # decord has its own opinion which one is meant
        and rotation == 0  # decord returns a fourth channel for some sizes
        and first.format.components[0].bits == 8  # decord rounds deeper pictures in another way
    )
    stamps = sorted(scan.pts) if counted else scan.frames_pts
    fps, timestamps = _clock(stamps, tick=scan.tick, header_rate=scan.header_rate)
    size = (first.height, first.width)
    height, width = size if rotation in (0, 180) else size[::-1]
    return VideoInfo(
        num_frames=len(stamps),
        fps=fps,
        duration=len(stamps) / fps,
        height=height,
        width=width,
        codec=scan.codec,
        rotation=rotation,
        random_access=trusted,
        keyframe_interval=scan.keyframe_interval if trusted else 0,
        timestamps=timestamps,
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
        progress: show a bar if there is anything to do.
        timeout: seconds that one file may take.
    """
    names = [os.fspath(path) for path in paths]
    known = _load(cache)
    results: dict[str, VideoInfo | VideoError] = {}
    identities: dict[str, list] = {}
    for name in dict.fromkeys(names):
        with suppress(OSError):  # a missing file: for probe() to say
            status = os.stat(name)
            identities[name] = [status.st_size, status.st_mtime_ns]
            size_and_mtime, info = known.get(os.path.abspath(name), (None, None))
            if size_and_mtime == identities[name]:
                results[name] = info

    todo = [name for name in dict.fromkeys(names) if name not in results]
    fresh: dict[str, tuple[list, VideoInfo]] = {}
    saved = time.monotonic()
    found = _probe_each(todo, timeout=timeout, num_workers=min(num_workers, len(todo)))
    try:
        for name, result in tqdm(found, total=len(todo), desc="probing videos", disable=not (progress and todo)):
            results[name] = result
            if isinstance(result, VideoInfo) and name in identities:
                fresh[os.path.abspath(name)] = (identities[name], result)
            if time.monotonic() - saved > _SAVE_EVERY:
                _save(cache, fresh)
                saved = time.monotonic()
    finally:  # an interrupted hour of probing is not lost
        found.close()
        if fresh:
            _save(cache, fresh)
    return [results[name] for name in names]


def _probe_each(
    names: Sequence[str], *, num_workers: int, timeout: float
) -> Iterator[tuple[str, VideoInfo | VideoError]]:
    """Results in the order in which they are found."""
    if num_workers == 0:
        yield from ((name, _probed(name)) for name in names)
        return
    waiting = list(reversed(names))
    workers = [_Worker() for _ in range(num_workers)]
    try:
        busy = [worker for worker in workers if waiting and worker.begin(waiting.pop(), timeout=timeout)]
        while busy:
            soonest = min(worker.deadline for worker in busy)
            wait([worker.pipe for worker in busy], timeout=max(0.0, soonest - time.monotonic()))
            for worker in list(busy):
                # Asked anew, since the caller may have kept us waiting: an answer that lies there is not late.
                answered = worker.pipe.poll()
                if answered or time.monotonic() >= worker.deadline:
                    yield worker.name, worker.end(answered=answered, timeout=timeout)
                    busy.remove(worker)
                    if waiting and worker.begin(waiting.pop(), timeout=timeout):
                        busy.append(worker)
    finally:
        for worker in workers:
            worker.kill()


class _Worker:
    """A process that probes one file after the other, and can be killed over one of them.

    `concurrent.futures` can do neither: there one crash fails every file still to come, and nothing ends a hang.
    """

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process is the end of the pipe

    def begin(self, name: str, *, timeout: float) -> bool:
        self.name, self.deadline = name, time.monotonic() + timeout
        with suppress(ConnectionError):  # died while idle: end() will find out
            self.pipe.send(name)
        return True

    def end(self, *, answered: bool, timeout: float) -> VideoInfo | VideoError:
        if answered:
            try:
                return self.pipe.recv()
            except (EOFError, ConnectionError):
                self._process.join()
                code = self._process.exitcode
                error = VideoError(self.name, UNREADABLE, f"its decoder crashed: exit code {code}")
        else:
            error = VideoError(self.name, TIMEOUT, f"not decoded within {timeout:g} s")
        self.kill()
        self._start()
        return error

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which kills us
    with suppress(EOFError):
        while True:
            pipe.send(_probed(pipe.recv()))


def _probed(name: str) -> VideoInfo | VideoError:
    try:
        return probe(name)
    except VideoError as error:
        return error


# Facts depend on this code and on FFmpeg: another version of either begins a new cache.
_CACHE_HEAD = {"stvid_probe": 1, "av": av.__version__}


def _load(cache: Path | None) -> dict[str, tuple[list, VideoInfo]]:
    """Absolute path -> ([size, mtime_ns], facts); nothing where there is no usable cache."""
    if cache is None:
        return {}
    try:
        content = json.loads(Path(cache).read_bytes())
        if content["head"] != _CACHE_HEAD:
            return {}
        known = {}
        for name, (identity, facts) in content["files"].items():
            stamps = facts.pop("timestamps")
            known[name] = (identity, VideoInfo(**facts, timestamps=stamps and tuple(stamps)))
        return known
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("probe cache %s cannot be used and is begun anew: %s", cache, error)
        return {}


def _save(cache: Path | None, fresh: dict[str, tuple[list, VideoInfo]]) -> None:
    """Add to the cache, atomically: whoever reads it meanwhile, or writes it as well, never sees half of it."""
    if cache is None:
        return
    cache = Path(cache)
    files = {name: (identity, asdict(info)) for name, (identity, info) in {**_load(cache), **fresh}.items()}
    written = cache.with_name(f"{cache.name}.{secrets.token_hex(4)}.tmp")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(json.dumps({"head": _CACHE_HEAD, "files": files}), encoding="utf-8")
        os.replace(written, cache)
    except OSError as error:
        logger.warning("probe cache %s cannot be written, the next start probes again: %s", cache, error)
    finally:
        with suppress(OSError):
            written.unlink(missing_ok=True)
