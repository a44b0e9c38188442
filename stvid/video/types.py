"""Facts about a video file (VideoInfo), and the JSON file that keeps them between runs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from bisect import bisect_right
from dataclasses import asdict, dataclass
from pathlib import Path

import av

from stvid.files import replacing

logger = logging.getLogger(__name__)
# Facts depend on this code and on FFmpeg: another version of either begins a new cache.
AV_VERSION = av.__version__
_HEAD = {"stvid_probe": 3, "av": AV_VERSION}


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """Facts about one video, as `probe` finds them.

    Attributes:
        num_frames: frames that a decoder run from the first frame delivers; at least 1.
        fps: average frames per second; 25 where the file says nothing.
        duration: seconds, `num_frames / fps`.
        height: pixels, as displayed (after rotation).
        width: pixels, as displayed (after rotation).
        codec: FFmpeg's name, such as `h264`, `mpeg4`, `vp9`; `images` for a folder of images.
        pixel_format: FFmpeg's name, such as `yuv420p`; empty for images.
        rotation: degrees counterclockwise (0, 90, 180, 270) by which decoded pictures are turned for display.
        keyframes: frame numbers at which decoding can start; none where random access cannot be trusted.
        first_pts: time stamp of the first frame, in ticks of the stream.
        timestamps: seconds from the first frame to each, where they are not evenly spaced; else None.
        num_damaged: frames that the decoder had to make up in part; known only where all were decoded.
        decoded: whether every frame was decoded to find this out; else packets were counted.
    """

    num_frames: int
    fps: float
    duration: float
    height: int
    width: int
    codec: str
    pixel_format: str = ""
    rotation: int = 0
    keyframes: tuple[int, ...] = ()
    first_pts: int | None = None
    timestamps: tuple[float, ...] | None = None
    num_damaged: int = 0
    decoded: bool = True

    @property
    def random_access(self) -> bool:
        """Whether a frame reached by seeking is known to be the one that was asked for."""
        return bool(self.keyframes)

    def index_at(self, seconds: float) -> int:
        """Number of the frame whose time, counted from the first frame's, is nearest."""
        if self.timestamps is None:
            return round(seconds * self.fps)
        after = bisect_right(self.timestamps, seconds)
        return min(
            (i for i in (after - 1, after) if 0 <= i < self.num_frames),
            key=lambda i: abs(self.timestamps[i] - seconds),
        )

    def seconds_at(self, index: int) -> float:
        """Time of a frame, in seconds from the first frame's."""
        return index / self.fps if self.timestamps is None else self.timestamps[index]


Known = dict[str, tuple[list, VideoInfo]]  # absolute path -> ([size, mtime_ns], facts)


def identity(path: str | os.PathLike[str]) -> list:
    """Size (bytes) and time of change (ns), of a folder what tells of all its files: facts hold while it is the same.

    Raises:
        OSError: it cannot be looked at.
    """
    if not os.path.isdir(path):
        status = os.stat(path)
        return [status.st_size, status.st_mtime_ns]
    files = sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in os.scandir(path))
    return [sum(size for _, size, _ in files), hashlib.sha256(repr(files).encode()).hexdigest()]


def load_probe_cache(cache: Path | None) -> Known:
    """What is known; nothing where there is no usable cache."""
    if cache is None:
        return {}
    try:
        content = json.loads(Path(cache).read_bytes())
        if content["head"] != _HEAD:
            return {}
        return {name: (key, _info(facts)) for name, (key, facts) in content["files"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("probe cache %s cannot be used and is begun anew: %s", cache, error)
        return {}


def _info(facts: dict) -> VideoInfo:
    return VideoInfo(**{key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()})


def save_probe_cache(cache: Path | None, fresh: Known) -> None:
    """Add to the cache, atomically: whoever reads it meanwhile, or writes it as well, never sees half of it."""
    if cache is None or not fresh:
        return
    cache = Path(cache)
    files = {name: (key, asdict(info)) for name, (key, info) in {**load_probe_cache(cache), **fresh}.items()}
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cache) as partial:
            partial.write_text(json.dumps({"head": _HEAD, "files": files}), encoding="utf-8")
    except OSError as error:
        logger.warning("probe cache %s cannot be written, the next start probes again: %s", cache, error)
