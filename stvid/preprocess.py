"""Pixels to model input: crop, resize, difference images, and `Preprocess`, which scales pixels and turns the axes.

B batch   T frames of a clip   C channels   H, W height and width in pixels   K classes
"""

from __future__ import annotations

import platform
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stvid.clip import ClipSpec

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_CHUNK = 256  # frames that are standardised together: their squares need as much memory again
NO_CHANGE = 127  # grey level of a difference image where nothing moves
CORNERS_SCALE = 7 / 8
# position of each crop: share of the free space above it, and to its left
CROPS = {
    1: [(0.5, 0.5)],
    3: [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)],  # there is free space along one side only
    5: [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5)],
}


def difference_image(earlier_TCHW: Tensor, later_TCHW: Tensor, *, gain: float) -> Tensor:
    """`clip(127 + gain * (later - earlier), 0, 255)`, uint8 like the inputs; 127 means no change."""
    change = later_TCHW.float() - earlier_TCHW.float()
    return (NO_CHANGE + gain * change).round().clamp(0, 255).to(torch.uint8)


def as_input(pictures_TCHW: Tensor, clip: ClipSpec) -> Tensor:
    """Pictures, difference images, or both, as `clip.input` says.

    Args:
        pictures_TCHW: uint8 `T x 3 x H x W` if the input is `rgb`; else `2T x 3 x H x W`: the earlier pictures, then
            the frames themselves.
        clip: the clip's geometry.

    Returns:
        uint8 `T x clip.channels x H x W`.
    """
    if clip.input == "rgb":
        return pictures_TCHW
    earlier_TCHW, frames_TCHW = pictures_TCHW.chunk(2)
    return with_differences(earlier_TCHW, frames_TCHW, clip)


def with_differences(earlier_TCHW: Tensor, frames_TCHW: Tensor, clip: ClipSpec) -> Tensor:
    """For `clip.input` `diff` difference images, for `rgb_diff` frames and difference images.

    Args:
        earlier_TCHW: uint8, the pictures `clip.diff_seconds` before the frames; any axes may stand before C.
        frames_TCHW: uint8 of the same shape.
        clip: the clip's geometry.
    """
    moved_TCHW = difference_image(earlier_TCHW, frames_TCHW, gain=clip.diff_gain)
    return moved_TCHW if clip.input == "diff" else torch.cat([frames_TCHW, moved_TCHW], dim=-3)


class Preprocess(nn.Module):
    """uint8 `B x T x C x H x W` from the decoder -> float `B x C x T x H x W` for the model.

    The place where the axes turn and pixels are scaled: on the device, after the transfer. Only encoders of single
    frames turn the axes back, because they take the frames as a batch. The result is in
    channels-last memory, which is the decoder's order, so turning the axes copies nothing.

    With `normalize=frame` or `clip`, difference images are scaled by constants, `(x - 127) / 32`, so that small changes
    in a still scene are not amplified. With `normalize=fixed` they are treated like pictures.
    """

    mean: Tensor
    std: Tensor

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
        x = _as_floats(clips_BTCHW)  # a copy, changed in place from here on, since whole videos are large
        valid_BT = None
        if lengths_B is not None:
            valid_BT = torch.arange(x.shape[1], device=x.device)[None] < lengths_B[:, None]
        if self.normalize == "fixed":
            x.div_(255).sub_(self.mean).div_(self.std)
        else:
            pictures = x[:, :, :3] if self.input != "diff" else x[:, :, :0]
            x[:, :, pictures.shape[2] :].sub_(NO_CHANGE).div_(32)
            if self.normalize == "frame":
                for frames in [pictures] if torch.compiler.is_exporting() else pictures.flatten(0, 1).split(_CHUNK):
                    _standardise(frames, dims=(-1, -2))
            elif torch.compiler.is_exporting():
                _standardise_clips(pictures, valid_BT)
            else:
                for clip, n in zip(pictures, [None] * len(x) if lengths_B is None else lengths_B.tolist(), strict=True):
                    _standardise(clip[:n], dims=(0, -1, -2))
        if valid_BT is not None:
            x.mul_(valid_BT[..., None, None, None])
        return x.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d)


def run_model(model: nn.Module, preprocess: Preprocess, clips_BTCHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
    """Logits `B x K` of uint8 clips `B x T x C x H x W`.

    A `VideoModel` with `max_chunk` receives the pixels and preprocesses them chunk by chunk, so that a long video is
    never in float32 as a whole. That is impossible with `normalize=clip`.
    """
    if _preprocesses_chunks(model, preprocess):
        return model(clips_BTCHW, lengths_B, preprocess=preprocess)
    return model(preprocess(clips_BTCHW, lengths_B), lengths_B)


def encode_clips(
    model: nn.Module, preprocess: Preprocess, clips_BTCHW: Tensor, lengths_B: Tensor | None = None
) -> Tensor:
    """The same for `model.encode`: features `B x T x F` of uint8 clips `B x T x C x H x W`."""
    if _preprocesses_chunks(model, preprocess):
        return model.encode(clips_BTCHW, lengths_B, preprocess=preprocess)  # type: ignore[operator] # a `VideoModel`
    return model.encode(preprocess(clips_BTCHW, lengths_B), lengths_B)  # type: ignore[operator]


def _preprocesses_chunks(model: nn.Module, preprocess: Preprocess) -> bool:
    return model.max_chunk is not None and preprocess.normalize != "clip"


def channels_last(model: ModuleT) -> ModuleT:
    """Puts the weights of 2D and 3D convolutions into channels-last memory, like the input; returns the model.

    Values and shapes do not change. Convolutions on CPUs and tensor cores are several times faster in this order.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in model.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])
    return model


def _as_floats(clips_BTCHW: Tensor) -> Tensor:
    """A copy in float32, with channels last in memory in any case: sums depend on the order in memory."""
    if torch.compiler.is_exporting():
        return clips_BTCHW.float()
    clips_BTHWC = clips_BTCHW.permute(0, 1, 3, 4, 2)
    return clips_BTHWC.to(torch.float32, memory_format=torch.contiguous_format).permute(0, 1, 4, 2, 3)


def _standardise(x: Tensor, *, dims: tuple[int, ...]) -> None:
    """To mean 0 and deviation 1 over `dims`, in place; a deviation below 1 grey level counts as 1.

    Within about 1e-4 of double precision. `torch.std_mean` is ten times as exact, but on a CPU takes six times as long;
    `torch.linalg.vector_norm` adds up the squares one after the other, and is off by up to a thousandth.
    """
    if x.numel():
        x.sub_(x.mean(dim=dims, keepdim=True))
        std = x.square().mean(dim=dims, keepdim=True).sqrt()
        x.div_(std.clamp_min(1.0))


def _standardise_clips(pictures_BTCHW: Tensor, valid_BT: Tensor | None) -> None:
    """The same for whole clips without a loop over the batch, for an exporter; it needs more memory."""
    dims = (1, 3, 4)
    if not pictures_BTCHW.shape[2]:  # difference images only
        return
    if valid_BT is None:
        _standardise(pictures_BTCHW, dims=dims)
        return
    valid_BT111 = valid_BT[..., None, None, None]
    num_pixels = valid_BT111.sum(dim=1, keepdim=True) * pictures_BTCHW.shape[3] * pictures_BTCHW.shape[4]
    mean = (pictures_BTCHW * valid_BT111).sum(dim=dims, keepdim=True) / num_pixels
    std = (((pictures_BTCHW - mean) * valid_BT111).square().sum(dim=dims, keepdim=True) / num_pixels).sqrt()
    pictures_BTCHW.sub_(mean).div_(std.clamp_min(1.0))


def crop_box(height: int, width: int, size: tuple[int, int], *, crop: int = 0, num_crops: int = 1) -> tuple[int, ...]:
    """A crop of a frame with the aspect ratio of `size`, as large as possible: (top, left, height, width).

    Args:
        height: of the frame, pixels.
        width: of the frame, pixels.
        size: height and width of the clip; only their ratio matters here.
        crop: index of the crop, from 0.
        num_crops: 1: the centre; 3: both ends of the frame's longer side and the centre; 5: the four corners and the
            centre, each 7/8 of the largest box (Krizhevsky et al. 2012: 224 of 256 pixels).
    """
    scale = min(height / size[0], width / size[1]) * (CORNERS_SCALE if num_crops == 5 else 1)
    box_height, box_width = min(height, round(size[0] * scale)), min(width, round(size[1] * scale))
    down, right = CROPS[num_crops][crop]
    return round((height - box_height) * down), round((width - box_width) * right), box_height, box_width


def reading_size(height: int, width: int, box: tuple[int, ...], size: tuple[int, int]) -> int | None:
    """The short side to which the reader should shrink frames before `box` is cut out and resized to `size`.

    The box is then about as large as `size`, so that cutting is nearly all that is left. None: do not shrink.
    """
    shrink = max(size[0] / box[2], size[1] / box[3])
    return max(round(min(height, width) * shrink), 1) if shrink < 1 else None


def crop_and_resize(
    frames_TCHW: Tensor, box: tuple[int, ...], size: tuple[int, int], *, native: tuple[int, int] | None = None
) -> Tensor:
    """Cuts `box` (top, left, height, width) out of every frame and resizes it to `size` (bilinear, antialiased).

    native: height and width of the frames that `box` refers to, if `frames_TCHW` have been shrunk since.
    """
    shrunk = (frames_TCHW.shape[-2], frames_TCHW.shape[-1])
    if native is not None and native != shrunk:
        box = _in_shrunk(box, size, native=native, shrunk=shrunk)
    top, left, height, width = box
    part = frames_TCHW[..., top : top + height, left : left + width]
    if (height, width) == tuple(size):
        return part
    return resize(part, size)


def resize(frames_TCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 `T x C x H x W` -> uint8 `T x C x size`, bilinear with antialiasing; the pixels of torchvision's `resize`.

    torchvision itself is not used because importing it takes longer than everything else before the first prediction.
    """
    if tuple(frames_TCHW.shape[-2:]) == tuple(size):
        return frames_TCHW
    to_size = partial(F.interpolate, size=list(size), mode="bilinear", align_corners=False, antialias=True)
    if frames_TCHW.device.type == "cpu" and _cpu_resizes_uint8():
        return to_size(frames_TCHW)
    return to_size(frames_TCHW.float()).round_().to(frames_TCHW.dtype)


def _cpu_resizes_uint8() -> bool:
    """Whether torch's uint8 kernel is faster than its float32 kernel (the results can differ by one grey level)."""
    vectorised = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return vectorised or platform.machine() in ("aarch64", "arm64")


def _in_shrunk(
    box: tuple[int, ...], size: tuple[int, int], *, native: tuple[int, int], shrunk: tuple[int, int]
) -> tuple[int, ...]:
    """The box in pixels of the shrunk frames; exactly `size` if it differs from it by rounding only."""
    starts, lengths = [], []
    for start, length, wanted, before, after in zip(box[:2], box[2:], size, native, shrunk, strict=True):
        scaled = length * after / before
        scaled = min(wanted if abs(scaled - wanted) <= 1 else round(scaled), after)
        middle = (start + length / 2) * after / before
        starts.append(min(max(round(middle - scaled / 2), 0), after - scaled))
        lengths.append(scaled)
    return *starts, *lengths
