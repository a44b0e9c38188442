"""A trained model in use: `stvid.load(RUN)` gives a Recognizer that predicts files, frames and streams.

Sampling, preprocessing, forward pass and the mean over views are those of the evaluation, so the numbers are the same.

V views   N videos   K classes   T frames   C channels   H, W height and width
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stvid.clip import ClipSpec
from stvid.data.dataset import Failure
from stvid.data.manifest import Item
from stvid.deploy.segmentation import SegmentOptions, segment_video
from stvid.deploy.segments import Segment
from stvid.deploy.stream import Stream
from stvid.deploy.windows import Window, classify_windows
from stvid.errors import InputError, VideoError
from stvid.inference import ModelRunner, batch_size_of, make_views
from stvid.metrics import average_views
from stvid.run.checkpoint import TrainedModel, load_checkpoint
from stvid.video.probe import probe
from stvid.video.types import VideoInfo


def load(
    run: str | os.PathLike[str], *, device: torch.device | str | None = None, trust: str | Sequence[str] = ()
) -> Recognizer:
    """Loads the model of a run, ready to predict.

    Args:
        run: a run folder (its best checkpoint) or a checkpoint file.
        device: where to compute, such as `cuda:0`; None: an accelerator if there is one, else the CPU.
        trust: packages or modules with models of your own, such as `["my_package"]`. A checkpoint can name any class;
            code outside of stvid is imported only from these modules.

    Raises:
        InputError: no such run, a file that is not a checkpoint of stvid, or a model in a module that is not trusted.
    """
    return Recognizer(load_checkpoint(os.fspath(run), trust=trust), device=device)


@dataclass(frozen=True, kw_only=True, repr=False)
class Prediction:
    """Class probabilities of one video: the mean over its views.

    Attributes:
        path: the file; None for frames from memory.
        class_names: names of the K classes.
        probabilities: float32 `K`, in [0, 1], sum 1, in the order of `class_names`.
    """

    path: str | None
    class_names: tuple[str, ...]
    probabilities: np.ndarray

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.class_names[int(self.probabilities.argmax())]

    @property
    def probability(self) -> float:
        """The probability of `label`, in [0, 1]."""
        return float(self.probabilities.max())

    def top(self, n: int = 5) -> list[tuple[str, float]]:
        """The `n` most probable classes with their probabilities, most probable first; all K if `n` is larger."""
        order = np.argsort(-self.probabilities, kind="stable")[:n]
        return [(self.class_names[i], float(self.probabilities[i])) for i in order]

    def __repr__(self) -> str:
        classes = ", ".join(f"{name} {probability:.3f}" for name, probability in self.top(3))
        more = ", ..." if len(self.class_names) > 3 else ""
        return f"Prediction({classes}{more})" if self.path is None else f"Prediction({self.path!r}: {classes}{more})"


class Recognizer:
    """A trained model that predicts video files, frames in memory, and streams.

    Args:
        trained: the model as `load_checkpoint` returns it.
        device: where to compute; None: an accelerator if there is one, else the CPU.
    """

    def __init__(self, trained: TrainedModel, *, device: torch.device | str | None = None):
        self.trained = trained
        self.runner = ModelRunner(trained, device=None if device is None else torch.device(device))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the K classes, in the order of the model's outputs."""
        return self.trained.class_names

    @property
    def clip(self) -> ClipSpec:
        """The geometry of the clips that the model was trained on."""
        return self.trained.clip

    def __repr__(self) -> str:
        model, classes = type(self.trained.model).__name__, len(self.class_names)
        return f"Recognizer({str(self.trained.path)!r}: {model}, {classes} classes, on {self.runner.device})"

    def predict(
        self,
        source: str | os.PathLike[str] | np.ndarray | Tensor,
        *,
        fps: float | None = None,
        num_clips: int | None = None,
        num_crops: int | None = None,
    ) -> Prediction:
        """Classifies one video.

        Args:
            source: a video file or a folder of images; or frames, RGB, uint8: an array `T x H x W x 3` or a tensor
                `T x 3 x H x W` (what `stvid.read_frames` returns).
            fps: frames per second of frames from memory; needed only where the model's clips depend on time
                (`clip.fps`, or difference images).
            num_clips: clips spread over the video; None: as in the run's validation.
            num_crops: crops of each clip, 1, 3 or 5; None: as in the run's validation.

        Raises:
            VideoError: the file cannot be read.
            InputError: frames of another type or shape, `fps` missing, impossible numbers of clips or crops.
        """
        if isinstance(source, str | os.PathLike):
            path, frames_TCHW = os.path.abspath(source), None
            info = probe(path, decode_all=False, max_pixels=self.trained.max_pixels)
        else:
            path, frames_TCHW = None, _frames_of(source)
            info = _info_of(frames_TCHW, self.clip, fps)
        item = Item(path=path or "frames", label="", split="test")
        views = make_views(self.trained, [item], [info], num_clips=num_clips, num_crops=num_crops, frames=frames_TCHW)
        sample = views[0]
        if isinstance(sample, Failure):
            raise VideoError(item.path, sample.reason, sample.detail)
        size = batch_size_of(self.trained)
        logits_VK = torch.cat([self.runner(clips).cpu() for clips in sample["clips"].split(size)])
        probabilities_NK, _ = average_views(logits_VK, torch.zeros(len(logits_VK), dtype=torch.int64))
        return Prediction(path=path, class_names=self.class_names, probabilities=probabilities_NK[0].numpy())

    def windows(
        self, path: str | os.PathLike[str], *, window: float | None = None, hop: float | None = None
    ) -> Iterator[Window]:
        """Classifies overlapping parts of a video of any length, which is read once in constant memory.

        The options are checked at the call; the file is decoded as the windows are taken.

            for window in recognizer.windows("match.mp4", hop=0.5):
                best = window.probabilities_K.argmax()
                print(window.start, window.end, recognizer.class_names[best])

        Args:
            path: a video file, or a folder of images.
            window: seconds of a window; None: one clip.
            hop: seconds from one window to the next; None: a quarter of a window.

        Yields:
            Windows in order, as soon as they are classified. Each has the probabilities that `predict` gives for its
            frames alone.

        Raises:
            VideoError: the file cannot be read. If it breaks on the way, the windows before come first.
            InputError: see `stvid.deploy.window_plan.plan_windows`.
        """
        return classify_windows(self.trained, path, runner=self.runner, window=window, hop=hop)

    def segments(
        self,
        path: str | os.PathLike[str],
        *,
        threshold: float | None = None,
        window: float | None = None,
        hop: float | None = None,
        min_duration: float | None = None,
    ) -> list[Segment]:
        """Finds out what happens when in a video of any length.

        Memory is constant but for the probabilities of the windows, at most 8 bytes per class and window.

            import stvid

            recognizer = stvid.load("RUN")
            for segment in recognizer.segments("match.mp4", min_duration=1.0):
                if segment.label != "unknown":
                    print(f"{segment.start:.1f} to {segment.end:.1f} s: {segment.label} {segment.probability:.0%}")

        Args:
            path: a video file, or a folder of images.
            threshold: least probability at which a class begins, in (0, 1]; None: that of `stvid evaluate --calibrate`,
                or 0.5. It ends where its probability falls clearly below (see `stvid.deploy.segments.Hysteresis`), or
                another class begins.
            window, hop: see `windows`.
            min_duration: seconds; shorter segments are merged with their neighbours. None: half a window.

        Returns:
            Segments from the first frame to the end of the last, without gaps. Times are seconds on the file's own
            clock; the label is a class, or `unknown` where no class is sure enough.

        Raises:
            VideoError: the file cannot be read to its end.
            InputError: see `windows`; a threshold or duration out of its range.
        """
        options = SegmentOptions(threshold=threshold, window=window, hop=hop, min_duration=min_duration)
        info = probe(path, decode_all=False, max_pixels=self.trained.max_pixels)
        result = segment_video(self.trained, path, info=info, runner=self.runner, options=options)
        if result.error is not None:
            raise result.error
        return result.segments

    def stream(self, fps: float, *, hop: int | None = None) -> Stream:
        """Starts a stream, which takes one frame at a time and returns the class probabilities after each.

        Args:
            fps: frames per second of the stream, above 0.
            hop: see `Stream`: read windows, one every `hop` frames.

        Raises:
            InputError: see `Stream`.
        """
        return Stream(self.trained, fps=fps, runner=self.runner, hop=hop)


def _frames_of(source: np.ndarray | Tensor) -> Tensor:
    """Frames from memory as a uint8 tensor `T x 3 x H x W`."""
    frames = torch.from_numpy(source).permute(0, 3, 1, 2) if _is_array_THWC(source) else source
    if not isinstance(frames, Tensor) or frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
        got = f"{type(source).__name__} {getattr(source, 'dtype', '')} {tuple(getattr(source, 'shape', ()))}"
        raise InputError(f"frames must be a uint8 array T x H x W x 3 or a uint8 tensor T x 3 x H x W, RGB; got {got}")
    if not frames.numel():
        raise InputError(f"there are no pixels in frames of shape {tuple(source.shape)}")
    return frames


def _is_array_THWC(source: object) -> bool:
    return isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.ndim == 4 and source.shape[3] == 3


def _info_of(frames_TCHW: Tensor, clip: ClipSpec, fps: float | None) -> VideoInfo:
    if fps is None and (clip.fps is not None or clip.input != "rgb"):
        raise InputError("the model's clips depend on time (clip.fps or clip.input); pass the frames' rate: fps=25")
    if fps is not None and fps <= 0:
        raise InputError(f"fps (={fps}) must be above 0")
    num_frames, _, height, width = frames_TCHW.shape
    fps = 25.0 if fps is None else fps
    return VideoInfo(
        height=height, width=width, num_frames=num_frames, fps=fps, duration=num_frames / fps, codec="frames"
    )
