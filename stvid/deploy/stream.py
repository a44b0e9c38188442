"""A stream: frames one by one, and the class probabilities after each.

K classes   T frames   C channels   H, W height and width
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import torch
from torch import Tensor

from stvid.clip import ClipSpec
from stvid.data.sampling import clip_span, diff_frames, stride_of, view_frames
from stvid.errors import InputError
from stvid.inference import ModelRunner, check_finite
from stvid.models.continual import ContinualModel, ContinualState
from stvid.preprocess import as_input, crop_and_resize, crop_box
from stvid.run.checkpoint import TrainedModel
from stvid.video.types import VideoInfo

CARRIED_STATE, CONTINUAL, WINDOWS = "carried state", "continual convolution", "windows"
HOPS_PER_SPAN = 4


class Stream:
    """Takes frames one by one and returns the class probabilities after each. Its memory is constant.

    There are three ways, see `mode`:

    - `carried state`: a `cnn_lstm` that reads in one direction. Each answer is that of `forward` for all frames so far.
    - `continual convolution`: our 3D networks. Each layer keeps the last frames that its kernel needs
      (`stvid.models.continual`). An answer comes after the first frames that the kernels span, and then as often as the
      strides in time allow.
    - `windows`: all other models, and clips that are normalised as a whole (`clip.normalize=clip`). The last frames are
      kept. Every `hop` frames one clip of them goes through the model, with the answer of `Recognizer.predict` for
      these frames and `num_clips=1`.

    Args:
        trained: the model.
        fps: frames per second of the stream, above 0.
        runner: the model on its device; None: a new one.
        hop: frames of the stream from one window to the next, at least 1; it makes any model read windows. None:
            windows only where they are needed, four for each clip's span.

    Attributes:
        mode: `carried state`, `continual convolution` or `windows`.
        first: frames of the stream until the first answer; with windows, what a window spans.
        hop: frames of the stream from one window to the next; None without windows.
        num_frames: frames so far.

    Raises:
        InputError: a number out of range; windows of a model that reads whole videos (`clip.num_frames=null`).
    """

    def __init__(self, trained: TrainedModel, *, fps: float, runner: ModelRunner | None = None, hop: int | None = None):
        if not 0 < fps < float("inf"):
            raise InputError(f"fps (={fps}) must be above 0")
        if hop is not None and hop < 1:
            raise InputError(f"hop (={hop}) must be at least 1 frame")
        self.clip, self.fps = trained.clip, fps
        runner = runner or ModelRunner(trained)
        self.hop: int | None = None
        self._predictor: _FrameByFrame | _Windows
        if hop is None and trained.model.supports_streaming and self.clip.normalize != "clip":
            self.mode = CONTINUAL if isinstance(trained.model, ContinualModel) else CARRIED_STATE
            self._predictor = _FrameByFrame(trained, fps, runner)
        else:
            self.mode = WINDOWS
            self._predictor = _Windows(trained, fps, runner, hop)
            self.hop = self._predictor.hop
        self.first = self._predictor.first
        self.num_frames = 0
        self.probabilities_K: Tensor | None = None

    def restart(self) -> None:
        """Forgets all frames: the next one is the first. A new stream does the same, but prepares the network anew."""
        self._predictor.restart()
        self.num_frames, self.probabilities_K = 0, None

    @torch.inference_mode()
    def push(self, frame: Tensor | np.ndarray) -> Tensor | None:
        """Takes the next frame of the stream.

        Only the frames that the clip's stride (or `fps`) selects go through the model. After a frame that brings no new
        answer, the last answer is returned again.

        Args:
            frame: RGB, uint8, of any size: a tensor `3 x H x W` or an array `H x W x 3`. The centre is cropped, as in
                the evaluation.

        Returns:
            float32 `K` on the CPU, in [0, 1], sum 1: the latest class probabilities; None: too few frames so far.

        Raises:
            InputError: a frame of another type or shape; a model whose outputs are not finite.
        """
        frame_CHW = _frame_of(frame)
        self.num_frames += 1
        box = crop_box(frame_CHW.shape[1], frame_CHW.shape[2], self.clip.size)
        probabilities_K = self._predictor.push(crop_and_resize(frame_CHW[None], box, self.clip.size))
        if probabilities_K is not None:
            self.probabilities_K = probabilities_K
        return self.probabilities_K


class _FrameByFrame:
    """Gives a model with `supports_streaming` the frames that its clips would take, one at a time."""

    def __init__(self, trained: TrainedModel, fps: float, runner: ModelRunner):
        self.trained, self.runner = trained, runner
        self.clip, self.stride = trained.clip, stride_of(trained.clip, fps)
        self.recent: deque[Tensor] = deque(maxlen=diff_frames(self.clip, fps) + 1)
        with torch.inference_mode():
            self.start = runner.model.start_stream(self.clip.num_frames)
        steps = self.start.network.first if isinstance(self.start, ContinualState) else 1
        self.first = math.floor((steps - 1) * self.stride + 1e-9) + 1
        self.restart()

    def restart(self) -> None:
        self.recent.clear()
        self.num_frames, self.num_steps = 0, 0
        self.state = self.start

    def push(self, frame_1CHW: Tensor) -> Tensor | None:
        """uint8 `1 x 3 x H x W` of the clip's size -> new probabilities, if there are any."""
        self.recent.append(frame_1CHW)
        self.num_frames += 1
        probabilities_K = None
        while int(self.num_steps * self.stride + 1e-9) < self.num_frames:  # a slow stream's frames are used twice
            self.num_steps += 1
            logits_BK = self._step()
            if logits_BK is not None:
                probabilities_K = _probabilities(logits_BK / self.runner.temperature, self.trained)
        return probabilities_K

    def _step(self) -> Tensor | None:
        pictures = [self.recent[0], self.recent[-1]] if self.clip.input != "rgb" else [self.recent[-1]]
        frame_1CHW = as_input(torch.cat(pictures), self.clip)
        runner = self.runner
        clips_BCTHW = runner.preprocess(frame_1CHW[None].to(runner.device))
        with runner.autocast:
            logits_BK, self.state = runner.model.stream_step(clips_BCTHW[:, :, 0], self.state)
        return None if logits_BK is None else logits_BK.float()


class _Windows:
    """Keeps the last frames and gives a model one clip of them every `hop` frames."""

    def __init__(self, trained: TrainedModel, fps: float, runner: ModelRunner, hop: int | None):
        clip, (height, width) = trained.clip, trained.clip.size
        if clip.num_frames is None:
            raise InputError(
                f"this {type(trained.model).__name__} reads whole videos (clip.num_frames=null) and a stream has no "
                "end, so it needs a model that takes one frame after the other (cnn_lstm with "
                "model.bidirectional=false, or a 3D network; clip.normalize=frame or fixed), or one trained on clips "
                "of a fixed length, such as clip.num_frames=16"
            )
        self.trained, self.runner, self.clip = trained, runner, clip
        self.first = clip_span(clip, fps)
        self.hop = default_hop(clip, fps) if hop is None else hop
        info = VideoInfo(
            num_frames=self.first, fps=fps, duration=self.first / fps, height=height, width=width, codec="frames"
        )
        self.positions = view_frames(range(self.first), fps, clip, info, 1)[0]
        self.recent: deque[Tensor] = deque(maxlen=self.first)
        self.restart()

    def restart(self) -> None:
        self.recent.clear()
        self.frames_to_next = self.first

    def push(self, frame_1CHW: Tensor) -> Tensor | None:
        """uint8 `1 x 3 x H x W` of the clip's size -> new probabilities, if there are any."""
        self.recent.append(frame_1CHW)
        self.frames_to_next -= 1
        if self.frames_to_next:
            return None
        self.frames_to_next = self.hop
        clip_TCHW = as_input(torch.cat([self.recent[position] for position in self.positions]), self.clip)
        return _probabilities(self.runner(clip_TCHW[None]), self.trained)


def default_hop(clip: ClipSpec, fps: float) -> int:
    """Frames of a stream from one window to the next: windows overlap by three quarters."""
    return max(clip_span(clip, fps) // HOPS_PER_SPAN, 1)


def _probabilities(logits_BK: Tensor, trained: TrainedModel) -> Tensor:
    """The probabilities of the only clip, on the CPU."""
    check_finite(logits_BK, trained)
    return logits_BK[0].softmax(0).cpu()


def _frame_of(frame: Tensor | np.ndarray) -> Tensor:
    """A frame as a uint8 tensor `3 x H x W`."""
    is_array = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
    frame_CHW = torch.from_numpy(frame).permute(2, 0, 1) if is_array else frame
    if not isinstance(frame_CHW, Tensor) or frame_CHW.dtype != torch.uint8 or frame_CHW.shape[:-2] != (3,):
        got = f"{type(frame).__name__} {getattr(frame, 'dtype', '')} {tuple(getattr(frame, 'shape', ()))}"
        raise InputError(f"a frame must be a uint8 array H x W x 3 or a uint8 tensor 3 x H x W, RGB; got {got}")
    return frame_CHW
