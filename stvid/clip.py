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


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """The T frames a model sees at once. Plain data; it travels in every checkpoint.

    Attributes:
        num_frames: T, at least 1.
        frame_stride: every how many frames of the video one is taken, at least 1. None where `fps` is given.
        fps: frames taken per second of video instead of a stride, above 0; counted with each video's average rate.
        size: height and width in pixels; one number means a square.
        normalize: `fixed`: (x/255 - mean) / std, with the constants below, as pretrained networks want.
            `frame`: every frame by its own mean and deviation per channel. `clip`: every clip by its own; a live
            stream cannot do that, because it would have to know the frames to come.
        mean: per channel, of pixels in [0, 1]; the default is ImageNet's.
        std: likewise, above 0.
        short: what a video with fewer frames than a clip's span gives. `repeat_last`: its last frame stands still.
            `wrap`: it begins again. `pad`: a shorter clip, padded in the batch, with its length told to the model.
            `error`: the run stops.
    """

    num_frames: int = 16
    frame_stride: int | None = 2
    fps: float | None = None
    size: tuple[int, int] | int = (64, 64)
    normalize: str = "frame"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    short: str = "repeat_last"

    def __post_init__(self):
        size = self.size if isinstance(self.size, Sequence) else (self.size, self.size)
        object.__setattr__(self, "size", tuple(size))
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if self.num_frames < 1:
            raise InputError(f"clip.num_frames (={self.num_frames}) must be at least 1")
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
        if self.short not in SHORT:
            raise InputError(f"clip.short (={self.short}) must be one of {', '.join(SHORT)}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(f"clip.mean (={self.mean}) and clip.std (={self.std}) need 3 numbers each, std above 0")

    def to_dict(self) -> dict:
        """As plain data (lists, not tuples), such that `ClipSpec(**spec.to_dict()) == spec`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


class Preprocess(nn.Module):
    """uint8 `B x T x C x H x W` as it leaves the decoder -> float `B x C x T x H x W` as a model wants it.

    The one place where the axes turn, and where pixels are scaled: on the device, after the transfer. The result is
    in channels-last memory, which is the decoder's own order, so that turning the axes copies nothing.
    """

    def __init__(self, *, clip: ClipSpec):
        super().__init__()
        self.normalize = clip.normalize
        self.register_buffer("mean", torch.tensor(clip.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(clip.std).view(3, 1, 1), persistent=False)

    def forward(self, clips_BTCHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Normalises and turns the axes.

        Args:
            clips_BTCHW: uint8, 0 to 255.
            lengths_B: how many frames of each clip are real; the others come out as 0. None: all.

        Returns:
            float32, `B x C x T x H x W`.
        """
        if clips_BTCHW.dtype != torch.uint8 or clips_BTCHW.ndim != 5:
            found = f"{clips_BTCHW.dtype} {tuple(clips_BTCHW.shape)}"
            raise ValueError(f"clips must be uint8 B x T x C x H x W, got {found}")
        x = clips_BTCHW.float()
        valid_BT = None
        if lengths_B is not None:
            valid_BT = torch.arange(x.shape[1], device=x.device)[None] < lengths_B[:, None]
        if self.normalize == "fixed":
            x = (x / 255 - self.mean) / self.std
        elif self.normalize == "frame":
            x = _standardise(x.flatten(0, 1), dims=(-1, -2)).view_as(x)
        elif valid_BT is None:
            x = _standardise(x, dims=(1, -1, -2))
        else:
            clips = zip(x, lengths_B.tolist(), strict=True)
            x = torch.stack([_pad_like(_standardise(clip[:n], dims=(0, -1, -2)), clip) for clip, n in clips])
        if valid_BT is not None:
            x = x * valid_BT[..., None, None, None]
        return x.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d)


def channels_last(model: nn.Module) -> nn.Module:
    """Puts the weights of 2D and 3D convolutions into the memory order of `Preprocess`'s result; returns the model.

    Values and shapes stay. On CPUs and tensor cores convolutions are several times faster when both agree.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in model.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])
    return model


def _standardise(x: Tensor, *, dims: tuple[int, ...]) -> Tensor:
    """To mean 0 and deviation 1 over `dims`; deviations below 1 grey level count as 1, so flat pictures become 0."""
    mean = x.mean(dim=dims, keepdim=True)
    std = x.var(dim=dims, keepdim=True, unbiased=False).sqrt()
    return (x - mean) / std.clamp_min(1.0)


def _pad_like(x: Tensor, target: Tensor) -> Tensor:
    return nn.functional.pad(x, (0, 0) * (x.ndim - 1) + (0, len(target) - len(x)))
