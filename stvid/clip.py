"""What a clip is, told once: its geometry (ClipSpec), and how its pixels become a model's input (Preprocess).

B batch   T frames of a clip   C channels   H, W height and width in pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from stvid.errors import InputError

NORMALIZE = ("fixed", "clip", "frame")
SHORT = ("repeat_last", "wrap", "pad", "error")
INPUT = {"rgb": 3, "diff": 3, "rgb_diff": 6}  # channels of each
NO_CHANGE = 127  # grey level of a difference image where nothing moves


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """The T frames a model sees at once. Plain data; it travels in every checkpoint.

    Attributes:
        num_frames: T, at least 1. None: all frames of a video that the stride (or `fps`) leaves, however many.
        frame_stride: every how many frames of the video one is taken, at least 1. None where `fps` is given.
        fps: frames taken per second of video instead of a stride, above 0; counted with each video's average rate.
        size: height and width in pixels; one number means a square.
        normalize: `fixed`: (x/255 - mean) / std, with the constants below, as pretrained networks want.
            `frame`: every frame by its own mean and deviation per channel. `clip`: every clip by its own; a live
            stream cannot do that, because it would have to know the frames to come.
        mean: per channel, of pixels in [0, 1]; the default is ImageNet's.
        std: likewise, above 0.
        input: what a model sees of each frame. `rgb`: the picture. `diff`: what moved, as a `difference_image` of the
            picture and the one `diff_seconds` before. `rgb_diff`: both, in 6 channels.
        diff_seconds: above 0; at least one frame of the video.
        diff_gain: how many grey levels of the difference image a grey level of change makes, above 0.
        short: what a video with fewer frames than a clip's span gives. `repeat_last`: its last frame stands still.
            `wrap`: the frames that the stride takes from it are repeated in order: 0 2 4 0 2 4. `pad`: a shorter clip,
            padded in the batch, with its length told to the model. `error`: the run stops.
    """

    num_frames: int | None = 16
    frame_stride: int | None = 2
    fps: float | None = None
    size: tuple[int, int] | int = (64, 64)
    normalize: str = "frame"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    input: str = "rgb"
    diff_seconds: float = 0.1
    diff_gain: float = 4.0
    short: str = "repeat_last"

    def __post_init__(self):
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
        """C of a model's input."""
        return INPUT[self.input]

    def to_dict(self) -> dict:
        """As plain data (lists, not tuples), such that `ClipSpec(**spec.to_dict()) == spec`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def difference_image(earlier_TCHW: Tensor, later_TCHW: Tensor, *, gain: float) -> Tensor:
    """What moved: `clip(127 + gain * (later - earlier), 0, 255)`, uint8 as both; 127 where nothing did."""
    change = later_TCHW.float() - earlier_TCHW.float()
    return (NO_CHANGE + gain * change).round().clamp(0, 255).to(torch.uint8)


def as_input(pictures_TCHW: Tensor, clip: ClipSpec) -> Tensor:
    """Pictures as `clip.input` asks for them.

    Args:
        pictures_TCHW: uint8 `T x 3 x H x W`; unless the input is `rgb`, `2T`: the earlier ones, then the frames.
        clip: the clip's geometry.

    Returns:
        uint8 `T x clip.channels x H x W`.
    """
    if clip.input == "rgb":
        return pictures_TCHW
    earlier_TCHW, frames_TCHW = pictures_TCHW.chunk(2)
    moved_TCHW = difference_image(earlier_TCHW, frames_TCHW, gain=clip.diff_gain)
    return moved_TCHW if clip.input == "diff" else torch.cat([frames_TCHW, moved_TCHW], dim=1)


class Preprocess(nn.Module):
    """uint8 `B x T x C x H x W` as it leaves the decoder -> float `B x C x T x H x W` as a model wants it.

    The one place where the axes turn, and where pixels are scaled: on the device, after the transfer. The result is
    in channels-last memory, which is the decoder's own order, so that turning the axes copies nothing.

    Difference images keep their scale where pictures are normalised by their own statistics, `(x - 127) / 32`: what
    little moves in a still scene must not be blown up. With fixed constants they are treated like pictures.
    """

    def __init__(self, *, clip: ClipSpec):
        super().__init__()
        self.normalize, self.input = clip.normalize, clip.input
        copies = clip.channels // 3
        self.register_buffer("mean", torch.tensor(clip.mean * copies).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(clip.std * copies).view(-1, 1, 1), persistent=False)

    def forward(self, clips_BTCHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Normalises and turns the axes.

        Args:
            clips_BTCHW: uint8, 0 to 255.
            lengths_B: how many frames of each clip are real; the others come out as 0. None: all.

        Returns:
            float32, `B x C x T x H x W`.
        """
        channels = len(self.mean)
        if clips_BTCHW.dtype != torch.uint8 or clips_BTCHW.ndim != 5 or clips_BTCHW.shape[2] != channels:
            found = f"{clips_BTCHW.dtype} {tuple(clips_BTCHW.shape)}"
            raise ValueError(f"clips must be uint8 B x T x {channels} x H x W, got {found}")
        x = clips_BTCHW.float()  # a copy; all that follows changes it in place, since whole videos are large
        valid_BT = None
        if lengths_B is not None:
            valid_BT = torch.arange(x.shape[1], device=x.device)[None] < lengths_B[:, None]
        if self.normalize == "fixed":
            x.div_(255).sub_(self.mean).div_(self.std)
        else:
            pictures = x[:, :, :3] if self.input != "diff" else x[:, :, :0]
            x[:, :, pictures.shape[2] :].sub_(NO_CHANGE).div_(32)
            if self.normalize == "frame":
                _standardise(pictures, dims=(-1, -2))
            else:
                for clip, n in zip(pictures, [None] * len(x) if valid_BT is None else lengths_B.tolist(), strict=True):
                    _standardise(clip[:n], dims=(0, -1, -2))
        if valid_BT is not None:
            x.mul_(valid_BT[..., None, None, None])
        return x.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d)


def run_model(model: nn.Module, preprocess: Preprocess, clips_BTCHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
    """What a model says of uint8 `B x T x C x H x W`: its logits `B x K`.

    A model that works in chunks of frames (`encoder_chunk`) gets pixels and prepares them chunk by chunk, so that a
    long video never is in float32 as a whole. Where clips are normalised as wholes, that cannot be.
    """
    if getattr(model, "encoder_chunk", None) is not None and preprocess.normalize != "clip":
        return model(clips_BTCHW, lengths_B, prepare=preprocess)
    return model(preprocess(clips_BTCHW, lengths_B), lengths_B)


def channels_last(model: nn.Module) -> nn.Module:
    """Puts the weights of 2D and 3D convolutions into the memory order of `Preprocess`'s result; returns the model.

    Values and shapes stay. On CPUs and tensor cores convolutions are several times faster when both agree.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in model.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])
    return model


def _standardise(x: Tensor, *, dims: tuple[int, ...]) -> None:
    """To mean 0 and deviation 1 over `dims`, in place; a deviation below 1 grey level counts as 1."""
    if x.numel():
        std, mean = torch.std_mean(x, dim=dims, keepdim=True, unbiased=False)
        x.sub_(mean).div_(std.clamp_min(1.0))
