"""What is known about a video file (VideoInfo), and whether a file is still the one that was probed."""

from __future__ import annotations

import hashlib
import os
import stat
from bisect import bisect_right
from dataclasses import dataclass, field

import av

from stvid.errors import CHANGED, UNREADABLE, VideoError

AV_VERSION = av.__version__
IMAGE_EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"))
MAX_PIXELS = 8192 * 8192  # of a frame: twice as many as 8K video has, 192 MiB as RGB, less than Pillow warns of
MAX_IMAGES = 2**24  # in a folder, or frames of a file of unknown size


@dataclass(frozen=True, kw_only=True, slots=True)
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
        mirrored: whether left and right of a frame are exchanged after its rotation.
        keyframes: frame numbers at which decoding can start; empty if random access cannot be trusted.
        first_pts: time stamp of the first frame, in ticks of the stream.
        timestamps: seconds from the first frame to each; None if the frames are evenly spaced.
        start: time stamp of the first frame in seconds, on the file's own clock; 0 where it has none.
        num_damaged: frames in which the decoder concealed damage; known only if all were decoded.
        decoded: whether every frame was decoded; otherwise packets were counted.
        b_frames_in_order: whether the packets of a file in MPEG-4 without random access, counted from the first one,
            say which frames are B-frames, so that a reader may skip those that nobody wants.
        identity: of the file that was probed, see `identity_text`; of a folder of images, a checksum for each image.
            Frames are read only from this file; empty: from any.
    """

    num_frames: int
    fps: float
    duration: float
    height: int
    width: int
    codec: str
    pixel_format: str = ""
    rotation: int = 0
    mirrored: bool = False
    keyframes: tuple[int, ...] = ()
    first_pts: int | None = None
    timestamps: tuple[float, ...] | None = None
    start: float = 0.0
    num_damaged: int = 0
    decoded: bool = True
    b_frames_in_order: bool = False
    identity: str = field(default="", compare=False)

    @property
    def random_access(self) -> bool:
        """Whether seeking reliably reaches the requested frame."""
        return bool(self.keyframes)

    @property
    def num_bytes(self) -> int | None:
        """Size of the file when it was probed; None if unknown, and for a folder of images."""
        size = self.identity.partition(" ")[0]
        return int(size) if size.isdecimal() and len(size) < 20 and self.codec != "images" else None

    def index_at(self, seconds: float) -> int:
        """Number of the frame nearest to a time, in seconds from the first frame."""
        timestamps = self.timestamps
        if timestamps is None:
            return round(seconds * self.fps)
        after = bisect_right(timestamps, seconds)
        return min(
            (i for i in (after - 1, after) if 0 <= i < self.num_frames), key=lambda i: abs(timestamps[i] - seconds)
        )

    def seconds_at(self, index: int) -> float:
        """Time of a frame, in seconds from the first frame."""
        return index / self.fps if self.timestamps is None else self.timestamps[index]

    @property
    def end(self) -> float:
        """Time at which the last frame ends, in seconds on the file's own clock."""
        if self.timestamps is None:
            return self.start + self.num_frames / self.fps
        return self.start + self.timestamps[-1] + 1 / self.fps


def file_identity(path: str | os.PathLike[str]) -> list:
    """[size in bytes, modification time in ns] of a file; [total size, hash over all files] of a folder.

    A cached result is valid as long as the identity is unchanged.

    Raises:
        OSError: the file cannot be accessed.
    """
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        return [status.st_size, status.st_mtime_ns]
    files = sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in os.scandir(path))
    return [sum(size for _, size, _ in files), hashlib.sha256(repr(files).encode()).hexdigest()]


def source_identity(path: str | os.PathLike[str]) -> list | None:
    """See `file_identity`, and `member_identity` for a video of a tar; None if the source cannot be accessed."""
    from stvid.video.shard_index import member_identity  # it needs VideoInfo

    try:
        return file_identity(path)
    except OSError:
        return member_identity(path)


def file_size(path: str | os.PathLike[str]) -> int:
    """Bytes of a file, or of all files in a folder, as in `file_identity`.

    Raises:
        OSError: the file cannot be accessed.
    """
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        return status.st_size
    with os.scandir(path) as entries:
        return sum(entry.stat().st_size for entry in entries)


def identity_text(path: str | os.PathLike[str]) -> str:
    """Size and modification time of a file; empty if it cannot be accessed (opening it says why)."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def check_unchanged(path: str | os.PathLike[str], info: VideoInfo) -> None:
    """Raises VideoError (changed) if the file is not the one that was probed."""
    actual = identity_text(path) if info.identity else ""
    if actual and actual != info.identity:
        raise VideoError(path, CHANGED, "another size or modification time than when it was probed")


def frame_limit(info: VideoInfo, max_pixels: int | None) -> int:
    """Pixels of the largest frame that is read of a video; None: as large as the first, which `probe` accepted."""
    return max(MAX_PIXELS, info.height * info.width) if max_pixels is None else max_pixels


def check_pixels(path: str | os.PathLike[str], height: int, width: int, *, max_pixels: int, name: str = "") -> None:
    """Raises VideoError (unreadable) if a frame has more than `max_pixels`; `name`: of an image in the folder."""
    if height * width > max_pixels:
        limit = f"{width} x {height} = {width * height} pixels, more than data.max_pixels={max_pixels} allows"
        raise VideoError(path, UNREADABLE, f"{name}: {limit}" if name else limit)
