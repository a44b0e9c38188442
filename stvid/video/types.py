"""What is known about a video file (VideoInfo), and the JSON cache that keeps it between runs."""

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
# A VideoInfo depends on this code and on FFmpeg: another version of either starts a new cache.
AV_VERSION = av.__version__
_HEAD = {"stvid_probe": 4, "av": AV_VERSION}


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """Properties of one video, as `probe` measures them.

    Attributes:
        num_frames: frames that a decoder delivers if it starts at the first one; at least 1.
        fps: average frames per second; 25 where the file says nothing.
        duration: seconds, `num_frames / fps`.
        height: pixels, as displayed (after rotation).
        width: pixels, as displayed (after rotation).
        codec: FFmpeg's name, such as `h264`, `mpeg4`, `vp9`; `images` for a folder of images.
        pixel_format: FFmpeg's name, such as `yuv420p`; empty for images.
        rotation: degrees counterclockwise (0, 90, 180, 270) by which decoded frames are rotated for display.
        keyframes: frame numbers at which decoding can start; empty if random access cannot be trusted.
        first_pts: time stamp of the first frame, in ticks of the stream.
        timestamps: seconds from the first frame to each; None if the frames are evenly spaced.
        num_damaged: frames in which the decoder concealed damage; known only if all were decoded.
        decoded: whether every frame was decoded; otherwise packets were counted.
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
        """Whether seeking reliably reaches the requested frame."""
        return bool(self.keyframes)

    def index_at(self, seconds: float) -> int:
        """Number of the frame nearest to a time, in seconds from the first frame."""
        if self.timestamps is None:
            return round(seconds * self.fps)
        after = bisect_right(self.timestamps, seconds)
        return min(
            (i for i in (after - 1, after) if 0 <= i < self.num_frames),
            key=lambda i: abs(self.timestamps[i] - seconds),
        )

    def seconds_at(self, index: int) -> float:
        """Time of a frame, in seconds from the first frame."""
        return index / self.fps if self.timestamps is None else self.timestamps[index]


ProbeCache = dict[str, tuple[list, VideoInfo]]  # absolute path -> (`file_identity`, info)


def file_identity(path: str | os.PathLike[str]) -> list:
    """[size in bytes, modification time in ns] of a file; [total size, hash over all files] of a folder.

    A cached result is valid as long as the identity is unchanged.

    Raises:
        OSError: the file cannot be accessed.
    """
    if not os.path.isdir(path):
        status = os.stat(path)
        return [status.st_size, status.st_mtime_ns]
    files = sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in os.scandir(path))
    return [sum(size for _, size, _ in files), hashlib.sha256(repr(files).encode()).hexdigest()]


def load_probe_cache(cache: Path | None) -> ProbeCache:
    """The content of a cache file; empty if there is no usable one."""
    if cache is None:
        return {}
    try:
        content = json.loads(Path(cache).read_bytes())
        if content["head"] != _HEAD:
            return {}
        return {name: (identity, _to_info(fields)) for name, (identity, fields) in content["files"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("probe cache %s cannot be used and is replaced: %s", cache, error)
        return {}


def _to_info(fields: dict) -> VideoInfo:
    return VideoInfo(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


def save_probe_cache(cache: Path | None, new: ProbeCache) -> None:
    """Adds entries to a cache file, atomically: concurrent readers and writers never see a partial file."""
    if cache is None or not new:
        return
    cache = Path(cache)
    entries = {**load_probe_cache(cache), **new}
    files = {name: (identity, asdict(info)) for name, (identity, info) in entries.items()}
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cache) as partial:
            partial.write_text(json.dumps({"head": _HEAD, "files": files}), encoding="utf-8")
    except OSError as error:
        logger.warning("probe cache %s cannot be written, the next run probes again: %s", cache, error)
