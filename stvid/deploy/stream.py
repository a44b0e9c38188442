"""A stream: frames one by one, and the class probabilities after each; several streams share forward passes.

B streams   K classes   T frames   C channels   H, W height and width
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, cast

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
        start: returns the state before the first frame, see `ModelRunner.start_stream`; not called for windows. Streams
            share forward passes only if it returns the same object. None: a state of its own, with the present weights.

    Attributes:
        mode: `carried state`, `continual convolution` or `windows`.
        first: frames of the stream until the first answer; with windows, what a window spans.
        hop: frames of the stream from one window to the next; None without windows.
        max_kept: frames of the clip's size that it keeps at most.
        max_steps: forward passes for one frame at most.
        num_frames: frames so far.

    Raises:
        InputError: a number out of range; windows of a model that reads whole videos (`clip.num_frames=null`).
    """

    def __init__(
        self,
        trained: TrainedModel,
        *,
        fps: float,
        runner: ModelRunner | None = None,
        hop: int | None = None,
        start: Callable[[], Any] | None = None,
    ):
        if not 0 < fps < float("inf"):
            raise InputError(f"fps (={fps}) must be above 0")
        if hop is not None and hop < 1:
            raise InputError(f"hop (={hop}) must be at least 1 frame")
        self.trained, self.clip, self.fps = trained, trained.clip, fps
        runner = runner or ModelRunner(trained)
        self.hop: int | None = None
        self.predictor: _FrameByFrame | _Windows
        if hop is None and trained.model.supports_streaming and self.clip.normalize != "clip":
            self.mode = CONTINUAL if isinstance(trained.model, ContinualModel) else CARRIED_STATE
            self.predictor = _FrameByFrame(trained, fps, runner, start or runner.start_stream)
            self.max_steps = math.ceil(1 / self.predictor.stride)
        else:
            self.mode = WINDOWS
            self.predictor = _Windows(trained, fps, runner, hop)
            self.hop, self.max_steps = self.predictor.hop, 1
        self.first, self.max_kept = self.predictor.first, self.predictor.recent.maxlen or 0
        self.num_frames = 0
        self.probabilities_K: Tensor | None = None

    @property
    def key(self) -> Hashable:
        """Streams of one runner with equal keys share their next forward pass, see `step_together`."""
        key = self.predictor.key
        if key is None:  # it shares none
            return self
        return self.predictor.runner, key

    def restart(self) -> None:
        """Forgets all frames: the next one is the first."""
        self.predictor.restart()
        self.num_frames, self.probabilities_K = 0, None

    def add(self, frame_1CHW: Tensor) -> list[Tensor]:
        """Takes a prepared frame; returns what the model gets next: frames `C x H x W`, or a clip `T x C x H x W`."""
        self.num_frames += 1
        return self.predictor.add(frame_1CHW)

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
        return step_together([(self, self.add(self.prepare(frame)))])[0]

    def prepare(self, frame: Tensor | np.ndarray) -> Tensor:
        """Crops and resizes a frame, see `push`, to the uint8 `1 x 3 x H x W` that `add` takes.

        It does not change the stream, so other threads may prepare frames.
        """
        frame_CHW = _frame_of(frame)
        box = crop_box(frame_CHW.shape[1], frame_CHW.shape[2], self.clip.size)
        return crop_and_resize(frame_CHW[None], box, self.clip.size)


@torch.inference_mode()
def step_together(steps: Sequence[tuple[Stream, Sequence[Tensor]]]) -> list[Tensor | None]:
    """Runs the model on what `Stream.add` returned for several streams of one `ModelRunner`.

    Streams share a forward pass if their next steps are alike (`VideoModel.stream_key`) and their `start` was the same
    object; windows always do.

    Args:
        steps: each stream once, and what its `add` returned.

    Returns:
        For each stream what `Stream.push` returns.

    Raises:
        InputError: a model whose outputs are not finite.
    """
    waiting = [(stream, deque(inputs)) for stream, inputs in steps]
    while any(inputs for _, inputs in waiting):
        groups: dict[Hashable, list[tuple[Stream, Tensor]]] = {}
        for stream, inputs in waiting:
            if inputs:
                groups.setdefault(stream.key, []).append((stream, inputs.popleft()))
        for group in groups.values():
            _answer([stream for stream, _ in group], torch.stack([model_input for _, model_input in group]))
    return [stream.probabilities_K for stream, _ in steps]


def _answer(streams: Sequence[Stream], inputs: Tensor) -> None:
    """One forward pass for streams with the same key; their probabilities are then the new ones, if there are any."""
    windows = streams[0].predictor  # or frame by frame: all are of one class
    logits_BK = windows.runner(inputs) if isinstance(windows, _Windows) else _step(streams, inputs)
    if logits_BK is None:
        return
    check_finite(logits_BK, streams[0].trained)
    for stream, probabilities_K in zip(streams, logits_BK.softmax(dim=1).cpu(), strict=True):
        stream.probabilities_K = probabilities_K


def _step(streams: Sequence[Stream], frames_BCHW: Tensor) -> Tensor | None:
    """The next step of streams whose keys are equal: logits `B x K`, or None."""
    predictors = [cast(_FrameByFrame, stream.predictor) for stream in streams]
    runner, states = predictors[0].runner, [predictor.state for predictor in predictors]
    clips_BCTHW = runner.preprocess(frames_BCHW[:, None].to(runner.device))
    state = states[0] if len(states) == 1 else runner.model.stack_states(states)
    with runner.autocast:
        logits_BK, state = runner.model.stream_step(clips_BCTHW[:, :, 0], state)
    states = [state] if len(states) == 1 else runner.model.split_states(state, len(states))
    for predictor, state in zip(predictors, states, strict=True):
        predictor.state = state
    return None if logits_BK is None else logits_BK.float() / runner.temperature


class _FrameByFrame:
    """Gives a model with `supports_streaming` the frames that its clips would take, one at a time."""

    def __init__(self, trained: TrainedModel, fps: float, runner: ModelRunner, start: Callable[[], Any]):
        self.runner = runner
        self.clip, self.stride = trained.clip, stride_of(trained.clip, fps)
        self.recent: deque[Tensor] = deque(maxlen=diff_frames(self.clip, fps) + 1)
        self.start = start()
        steps = self.start.network.first if isinstance(self.start, ContinualState) else 1
        self.first = math.floor((steps - 1) * self.stride + 1e-9) + 1
        self.restart()

    def restart(self) -> None:
        self.recent.clear()
        self.num_frames, self.num_steps = 0, 0
        self.state = self.start

    def add(self, frame_1CHW: Tensor) -> list[Tensor]:
        """uint8 `1 x 3 x H x W` of the clip's size -> `C x H x W` for the next steps: none, one, or more."""
        self.recent.append(frame_1CHW)
        self.num_frames += 1
        before = self.num_steps
        while int(self.num_steps * self.stride + 1e-9) < self.num_frames:  # a slow stream's frames are used twice
            self.num_steps += 1
        pictures = [self.recent[0], self.recent[-1]] if self.clip.input != "rgb" else [self.recent[-1]]
        return [as_input(torch.cat(pictures), self.clip)[0]] * (self.num_steps - before)

    @property
    def key(self) -> Hashable | None:
        return self.runner.model.stream_key(self.state)


class _Windows:
    """Keeps the last frames and gives a model one clip of them every `hop` frames."""

    key = WINDOWS

    def __init__(self, trained: TrainedModel, fps: float, runner: ModelRunner, hop: int | None):
        clip, (height, width) = trained.clip, trained.clip.size
        if clip.num_frames is None:
            raise InputError(
                f"this {type(trained.model).__name__} reads whole videos (clip.num_frames=null) and a stream has no "
                "end, so it needs a model that takes one frame after the other (cnn_lstm with "
                "model.bidirectional=false, or a 3D network; clip.normalize=frame or fixed), or one trained on clips "
                "of a fixed length, such as clip.num_frames=16"
            )
        self.runner, self.clip = runner, clip
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

    def add(self, frame_1CHW: Tensor) -> list[Tensor]:
        """uint8 `1 x 3 x H x W` of the clip's size -> a clip `T x C x H x W`, if one is due."""
        self.recent.append(frame_1CHW)
        self.frames_to_next -= 1
        if self.frames_to_next:
            return []
        self.frames_to_next = self.hop
        return [as_input(torch.cat([self.recent[position] for position in self.positions]), self.clip)]


def default_hop(clip: ClipSpec, fps: float) -> int:
    """Frames of a stream from one window to the next: windows overlap by three quarters."""
    return max(clip_span(clip, fps) // HOPS_PER_SPAN, 1)


def _frame_of(frame: Tensor | np.ndarray) -> Tensor:
    """A frame as a uint8 tensor `3 x H x W`."""
    is_array = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
    frame_CHW = torch.from_numpy(frame).permute(2, 0, 1) if is_array else frame
    if not isinstance(frame_CHW, Tensor) or frame_CHW.dtype != torch.uint8 or frame_CHW.shape[:-2] != (3,):
        got = f"{type(frame).__name__} {getattr(frame, 'dtype', '')} {tuple(getattr(frame, 'shape', ()))}"
        raise InputError(f"a frame must be a uint8 array H x W x 3 or a uint8 tensor 3 x H x W, RGB; got {got}")
    return frame_CHW
