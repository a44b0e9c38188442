"""Windows of a long video: overlapping parts, each classified as the evaluation would classify it on its own.

A video is decoded once, in a thread beside the model. Only the small frames of the coming windows are kept, so the
memory does not depend on the length of the video.

V views   K classes   T frames   C channels   H, W height and width
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from stvid.clip import ClipSpec
from stvid.data import sampling
from stvid.deploy.window_plan import WindowPlan, plan_windows
from stvid.device import num_cores
from stvid.errors import VideoError
from stvid.inference import ModelRunner, Runner, batch_size_of, check_finite
from stvid.metrics import average_views
from stvid.preprocess import as_input, crop_and_resize, crop_box, reading_size
from stvid.run.checkpoint import TrainedModel
from stvid.video.playback import Request, iter_requests
from stvid.video.probe import probe
from stvid.video.types import VideoInfo

READ_AHEAD = 64  # small frames that the reading thread may be ahead of the model
MAX_THREADS = 8  # of the decoder, beside a model on an accelerator
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Window:
    """Class probabilities of one part of a video.

    Attributes:
        start: seconds on the file's own clock: the time of the window's first frame.
        end: seconds on the file's own clock: the time at which its last frame ends.
        probabilities_K: float32, in [0, 1], sum 1: the mean over the views of the window.
    """

    start: float
    end: float
    probabilities_K: np.ndarray


class VideoViews:
    """The views that the evaluation takes of a whole video, collected while its windows are read.

    Args:
        trained: the model; it must have a fixed number of frames, since these views are kept in memory.
        info: of the file.
    """

    def __init__(self, trained: TrainedModel, info: VideoInfo):
        self.trained = trained
        frames, fps = sampling.timeline(range(info.num_frames), trained.clip, info)
        self.clips = sampling.view_frames(frames, fps, trained.clip, info, trained.protocol["num_clips"])
        boxes = _boxes(trained, info)
        needed = sorted({frame for clip in self.clips for frame in clip})
        self.request = Request(needed, reading_size(info.height, info.width, boxes[0], trained.clip.size))
        self.crops: dict[int, list[Tensor]] = {}  # frame number -> its crops

    def classify(self, runner: Runner) -> np.ndarray:
        """Probabilities `K` of the video, as `inference.classify` computes them; the video has been read."""
        views = make_views(self.clips, self.crops, self.trained.clip)
        clips_VTCHW = torch.stack(views)
        logits_VK = torch.cat([runner(clips).cpu() for clips in clips_VTCHW.split(batch_size_of(self.trained))])
        check_finite(logits_VK, self.trained)
        return average_views(logits_VK, torch.zeros(len(views), dtype=torch.int64))[0][0].numpy()


def classify_windows(
    trained: TrainedModel,
    path: str | os.PathLike[str],
    *,
    info: VideoInfo | None = None,
    runner: Runner | None = None,
    window: float | None = None,
    hop: float | None = None,
    views: VideoViews | None = None,
    batch_size: int | None = None,
) -> Iterator[Window]:
    """The windows of a video, see `plan_windows`, each with what `Recognizer.predict` says of its frames alone.

    The crops are those of the run's validation. `window` and `hop` are checked at the call, before the first window.

    Args:
        trained: the model.
        path: a video file, or a folder of images.
        info: the result of `probe`; None: it is probed.
        runner: the model on its device; None: a new one.
        window, hop: see `plan_windows`.
        views: filled in the same pass.
        batch_size: views per forward pass, to the next whole window; None: as in training.

    Raises:
        VideoError: the file cannot be read. If it breaks on the way, the windows before come first.
        InputError: see `plan_windows`; outputs of the model that are not finite.
    """
    info = info or probe(path, decode_all=False, max_pixels=trained.max_pixels)
    plan = plan_windows(trained, info, path=path, window=window, hop=hop)
    runner = runner or ModelRunner(trained)
    return _read_windows(trained, path, plan, runner, views, batch_size or batch_size_of(trained))


def _read_windows(
    trained: TrainedModel,
    path: str | os.PathLike[str],
    plan: WindowPlan,
    runner: Runner,
    views: VideoViews | None,
    batch_size: int,
) -> Iterator[Window]:
    read = partial(_small_frames, trained, path, plan, views, device=runner.device)
    with closing(read_ahead(read, size=READ_AHEAD)) as frames:
        yield from _in_batches(_assemble(plan, _route(frames, views)), plan, trained, runner, batch_size)


def _small_frames(
    trained: TrainedModel,
    path: str | os.PathLike[str],
    plan: WindowPlan,
    views: VideoViews | None,
    *,
    device: torch.device,
) -> Iterator[tuple[int, int, list[Tensor]]]:
    """Yields (0 for the windows, 1 for the views; frame number; its crops, uint8 3 x H x W of the clip's size)."""
    requests = [Request(plan.needed_frames()), *([views.request] if views else [])]
    boxes, size, native = _boxes(trained, plan.info), plan.clip.size, (plan.info.height, plan.info.width)
    num_threads = 1 if device.type == "cpu" else min(num_cores(), MAX_THREADS)  # on the CPU the model needs the rest
    frames = iter_requests(path, requests, info=plan.info, num_threads=num_threads, max_pixels=trained.max_pixels)
    for request, number, frame_CHW in frames:
        yield request, number, [crop_and_resize(frame_CHW[None], box, size, native=native)[0] for box in boxes]


def _route(
    frames: Iterable[tuple[int, int, list[Tensor]]], views: VideoViews | None
) -> Iterator[tuple[int, list[Tensor]]]:
    """Yields number and crops of the windows' frames; those of the views go there."""
    for request, number, crops in frames:
        if request and views:
            views.crops[number] = crops
        else:
            yield number, crops


def _assemble(plan: WindowPlan, frames: Iterator[tuple[int, list[Tensor]]]) -> Iterator[tuple[int, list[Tensor]]]:
    """Yields the first position of each window and its views, as soon as its frames have been read."""
    ring: dict[int, list[Tensor]] = {}  # frame number -> its crops
    for start in plan.starts:
        clips = plan.clips(start)
        ring = {number: crops for number, crops in ring.items() if number >= plan.frames[start]}
        last = max(map(max, clips))
        while last not in ring:  # the frames come in order, so those before it are there
            number, crops = next(frames)
            ring[number] = crops
        yield start, make_views(clips, ring, plan.clip)
    for _ in frames:  # the last ones of `VideoViews`
        pass


def make_views(clips: Sequence[Sequence[int]], crops: Mapping[int, Sequence[Tensor]], clip: ClipSpec) -> list[Tensor]:
    """The views, uint8 T x C x H x W, clip by clip and crop by crop, from the crops of each frame."""
    num_crops = len(crops[clips[0][0]])
    return [
        as_input(torch.stack([crops[frame][crop] for frame in frames]), clip)
        for frames in clips
        for crop in range(num_crops)
    ]


def _in_batches(
    windows: Iterable[tuple[int, list[Tensor]]],
    plan: WindowPlan,
    trained: TrainedModel,
    runner: Runner,
    batch_size: int,
) -> Iterator[Window]:
    """Classifies windows in batches; after an error of the video those before it, too."""
    batch: list[tuple[int, list[Tensor]]] = []
    try:
        for start, views in windows:
            batch.append((start, views))
            if len(batch) * len(views) >= batch_size:
                yield from _classify(batch, plan, trained, runner)
                batch = []
    except VideoError:
        yield from _classify(batch, plan, trained, runner)
        raise
    yield from _classify(batch, plan, trained, runner)


def _classify(
    batch: Sequence[tuple[int, list[Tensor]]], plan: WindowPlan, trained: TrainedModel, runner: Runner
) -> Iterator[Window]:
    if not batch:
        return
    logits_VK = runner(torch.stack([view for _, views in batch for view in views])).cpu()
    check_finite(logits_VK, trained)
    windows_V = torch.arange(len(batch)).repeat_interleave(len(batch[0][1]))
    probabilities_NK, _ = average_views(logits_VK, windows_V)
    for (start, _), probabilities_K in zip(batch, probabilities_NK.numpy(), strict=True):
        end = plan.seconds(start + plan.length)
        yield Window(start=plan.seconds(start), end=end, probabilities_K=probabilities_K)


def _boxes(trained: TrainedModel, info: VideoInfo) -> list[tuple[int, ...]]:
    num_crops = trained.protocol["num_crops"]
    return [
        crop_box(info.height, info.width, trained.clip.size, crop=crop, num_crops=num_crops)
        for crop in range(num_crops)
    ]


def read_ahead(start: Callable[[], Iterator[T]], *, size: int) -> Generator[T]:
    """Yields what an iterator yields, which runs in a thread and is at most `size` items ahead.

    Args:
        start: makes the iterator, in the thread.
        size: of the queue between the threads.
    """
    results: queue.Queue = queue.Queue(maxsize=size)
    stopped = threading.Event()

    def run() -> None:
        try:
            for item in start():
                results.put((item, None))
                if stopped.is_set():
                    return
            results.put((None, StopIteration()))
        except BaseException as error:  # it is raised in the other thread
            results.put((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            item, error = results.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stopped.set()
        while thread.is_alive():  # it may wait for space in the queue
            with suppress(queue.Empty):
                results.get(timeout=0.05)
        thread.join()
