"""What is true of one video file."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass


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
