"""Clip geometry (ClipSpec): which frames of a video a model sees, at which size, in which form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeVar

from stvid.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    Size = tuple[int, int]  # of a ClipSpec that is built
else:
    Size = tuple[int, int] | int  # what the constructor takes; configs are checked against it

SizeT = TypeVar("SizeT", int, "Tensor")
NORMALIZE = ("fixed", "clip", "frame")
SHORT = ("repeat_last", "wrap", "pad", "error")
INPUT = {"rgb": 3, "diff": 3, "rgb_diff": 6}  # channels of each


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """The T frames that a model sees at once. Plain data, stored in every checkpoint.

    Attributes:
        num_frames: T, at least 1. None: the whole video, every frame that the stride (or `fps`) selects.
        frame_stride: take every n-th frame of the video, at least 1. None if `fps` is given.
        fps: take this many frames per second of video, above 0; computed from each video's average frame rate.
        size: height and width in pixels; one number means a square.
        normalize: `fixed`: (x/255 - mean) / std with the constants below, as pretrained networks expect.
            `frame`: each frame by its own mean and standard deviation per channel. `clip`: each clip by its own; not
            possible on a live stream, whose later frames are not known yet.
        mean: per channel, of pixels in [0, 1]; the default is ImageNet's.
        std: standard deviation per channel, above 0; the default is ImageNet's.
        input: `rgb`: the picture. `diff`: a `difference_image` of the picture and the one `diff_seconds` earlier.
            `rgb_diff`: both, 6 channels.
        diff_seconds: time between the two pictures of a difference image, above 0; at least one frame of the video.
        diff_gain: grey levels of the difference image per grey level of change, above 0.
        short: policy for a video with fewer frames than a clip spans. `repeat_last`: its last frame stands still.
            `wrap`: the frames that the stride takes are repeated in order: 0 2 4 0 2 4. `pad`: a shorter clip,
            padded in the batch, with its length passed to the model. `error`: the run stops.
    """

    num_frames: int | None = 16
    frame_stride: int | None = 2
    fps: float | None = None
    size: Size = (64, 64)
    normalize: str = "frame"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    input: str = "rgb"
    diff_seconds: float = 0.1
    diff_gain: float = 4.0
    short: str = "repeat_last"

    def __post_init__(self) -> None:
        size = self.size if isinstance(self.size, Sequence) else (self.size, self.size)
        object.__setattr__(self, "size", tuple(size))
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if self.num_frames is not None and self.num_frames < 1:
            raise InputError(f"clip.num_frames (={self.num_frames}) must be at least 1, or null for whole videos")
        if (self.frame_stride is None) == (self.fps is None):
            raise InputError(
                f"clip.frame_stride (={self.frame_stride}) and clip.fps (={self.fps}): give one of them, and null for "
                "the other"
            )
        if self.frame_stride is not None and self.frame_stride < 1:
            raise InputError(f"clip.frame_stride (={self.frame_stride}) must be at least 1")
        if self.fps is not None and self.fps <= 0:
            raise InputError(f"clip.fps (={self.fps}) must be above 0")
        if len(self.size) != 2 or min(self.size) < 1:
            raise InputError(f"clip.size (={list(self.size)}) must be one number or [height, width], at least 1")
        if self.normalize not in NORMALIZE:
            raise InputError(f"clip.normalize (={self.normalize}) must be one of {', '.join(NORMALIZE)}")
        if self.input not in INPUT:
            raise InputError(f"clip.input (={self.input}) must be one of {', '.join(INPUT)}")
        if min(self.diff_seconds, self.diff_gain) <= 0:
            raise InputError(
                f"clip.diff_seconds (={self.diff_seconds}) and clip.diff_gain (={self.diff_gain}) must be above 0"
            )
        if self.short not in SHORT:
            raise InputError(f"clip.short (={self.short}) must be one of {', '.join(SHORT)}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(f"clip.mean (={self.mean}) and clip.std (={self.std}) need 3 numbers each, std above 0")

    @property
    def channels(self) -> int:
        """C of the model's input: 3 or 6."""
        return INPUT[self.input]

    @property
    def pictures_per_frame(self) -> int:
        """Pictures that are read for each frame of the input: 2 for difference images, else 1."""
        return 1 if self.input == "rgb" else 2

    def to_dict(self) -> dict:
        """Plain data (lists instead of tuples); `ClipSpec(**spec.to_dict()) == spec`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def conv_output_size(size: SizeT, *, kernel: int, stride: int = 1, padding: int = 0) -> SizeT:
    """`floor((size + 2*padding - kernel) / stride) + 1`: outputs along one axis, below 1 where none fits.

    >>> conv_output_size(224, kernel=3)
    222
    """
    return (size + 2 * padding - kernel) // stride + 1
