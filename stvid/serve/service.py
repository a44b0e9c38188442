"""What the endpoints share: the model in its thread, the threads that decode, and the folder of uploads.

V views   K classes   T frames   C channels   H, W height and width
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from stvid.data.dataset import Failure
from stvid.data.loading import check_views
from stvid.data.manifest import Item
from stvid.data.sampling import resolve_num_frames, timeline
from stvid.deploy.segmentation import SegmentOptions, VideoSegments, segment_video
from stvid.device import num_cores
from stvid.errors import InputError, VideoError
from stvid.inference import batch_size_of, check_finite, make_views
from stvid.metrics import average_views
from stvid.preprocess import crop_box, reading_size
from stvid.recognizer import Recognizer
from stvid.run.checkpoint import MAX_CLIP_PIXELS, TrainedModel
from stvid.serve.batching import Batcher, QueueFull
from stvid.serve.metrics import Metrics
from stvid.serve.options import ServeOptions
from stvid.video.playback import clock_start
from stvid.video.probe import probe
from stvid.video.reader import scaled_size
from stvid.video.types import VideoInfo

THREAD_NAMES = ("decoder", "segmenter")
MAX_DECODERS = 16
MAX_PIXELS_IN_WORK = 2 * MAX_CLIP_PIXELS  # of all requests; 1.5 GiB
MAX_TICKS = 10**6  # of the timeline of a video, with `clip.fps`
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SegmentedVideo:
    """A video file and its segments.

    Attributes:
        info: the file's properties.
        video: its segments and windows.
        clock_start: see `playback.clock_start`.
    """

    info: VideoInfo
    video: VideoSegments
    clock_start: float


class Service:
    """One model, and everything that many clients share to use it.

    Args:
        recognizer: the model.
        options: the limits.

    Attributes:
        batcher: runs the model; whatever else needs it goes through `batcher.submit`, too.
        folder: of uploads; it exists from `start` to `close`.
        is_stopping: no new work is taken.
    """

    def __init__(self, recognizer: Recognizer, options: ServeOptions):
        self.recognizer, self.options = recognizer, options
        self.max_batch = options.max_batch or batch_size_of(recognizer.trained)
        self.metrics = Metrics()
        self.batcher = Batcher(
            max_batch=self.max_batch,
            max_delay=options.max_delay,
            max_queue=options.max_queue,
            on_batch=self.metrics.add_batch,
        )
        self.metrics.queue.set_function(lambda: len(self.batcher))
        # on the CPU, the other half of the cores computes, see `limit_cpu_threads`
        cores = num_cores() // 2 if recognizer.runner.device.type == "cpu" else num_cores()
        num_decoders = min(max(cores, 1), MAX_DECODERS)
        self.decoders = ThreadPoolExecutor(num_decoders, thread_name_prefix=THREAD_NAMES[0])
        self.segmenters = ThreadPoolExecutor(num_decoders, thread_name_prefix=THREAD_NAMES[1])  # busy for minutes
        self.is_stopping = False
        self.num_active = 0
        self.num_pixels = 0  # of the clips in memory
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def folder(self) -> Path:
        """The private folder of uploads."""
        assert self._folder is not None, "the service was not started"
        return Path(self._folder.name)

    def start(self) -> None:
        """Starts the model's thread, and makes the folder of uploads."""
        self._folder = tempfile.TemporaryDirectory(prefix="stvid-serve-", ignore_cleanup_errors=True)
        self.batcher.start()

    def close(self) -> None:
        """Stops the threads and deletes the folder; a second call does nothing."""
        self.is_stopping = True
        self.batcher.stop()
        for pool in (self.decoders, self.segmenters):
            pool.shutdown(wait=False, cancel_futures=True)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Around the work for a request; raises QueueFull if there is too much already."""
        if self.num_active >= self.options.max_queue:
            raise QueueFull(f"{self.num_active} requests are in work")
        self.num_active += 1
        self.metrics.active.inc()
        try:
            yield
        finally:
            self.num_active -= 1
            self.metrics.active.dec()

    @contextlib.contextmanager
    def reserved(self, num_pixels: int) -> Iterator[None]:
        """Around work with so many pixels in memory; raises QueueFull if there are too many already."""
        if self.num_pixels and self.num_pixels + num_pixels > MAX_PIXELS_IN_WORK:
            raise QueueFull(f"the videos of {self.num_active} requests are in memory")
        self.num_pixels += num_pixels
        try:
            yield
        finally:
            self.num_pixels -= num_pixels

    async def predict(
        self, path: Path, *, num_clips: int | None, num_crops: int | None
    ) -> tuple[VideoInfo, np.ndarray]:
        """What `Recognizer.predict` says of a file: its properties, and its probabilities `K`.

        Raises:
            VideoError: the file cannot be read.
            InputError: see `Recognizer.predict`; more pixels than the service takes.
            QueueFull, BatchFailed: see `Batcher.submit`.
        """
        trained = self.recognizer.trained
        clips = trained.protocol["num_clips"] if num_clips is None else num_clips
        crops = trained.protocol["num_crops"] if num_crops is None else num_crops
        check_views(clips, crops, trained.clip)
        info, num_pixels = await in_thread(
            self.decoders, lambda: probe_cost(trained, path, num_clips=clips, num_crops=crops)
        )
        with self.reserved(num_pixels):
            clips_VTCHW = await in_thread(
                self.decoders, lambda: read_views(trained, path, info, num_clips=num_clips, num_crops=num_crops)
            )
            logits_VK = await asyncio.wrap_future(self.submit_clips(clips_VTCHW))
        probabilities_NK, _ = average_views(logits_VK, torch.zeros(len(logits_VK), dtype=torch.int64))
        return info, probabilities_NK[0].numpy()

    async def segments(self, path: Path, options: SegmentOptions) -> SegmentedVideo:
        """What `Recognizer.segments` says of a file. Its windows go through the model together with those of others.

        Raises:
            VideoError, InputError: see `segment_video`.
            QueueFull, BatchFailed: see `Batcher.submit`.
        """
        trained, runner = self.recognizer.trained, _SharedRunner(self)

        def work() -> SegmentedVideo:
            return SegmentedVideo(
                info=info,
                video=segment_video(trained, path, info=info, runner=runner, options=options),
                clock_start=clock_start(path, max_pixels=trained.max_pixels),
            )

        clips, crops = trained.protocol["num_clips"], trained.protocol["num_crops"]
        info, num_pixels = await in_thread(
            self.decoders,
            lambda: probe_cost(trained, path, num_clips=clips, num_crops=crops, seconds=options.window),
        )
        with self.reserved(num_pixels):
            return await in_thread(self.segmenters, work, on_cancel=runner.cancel)

    def submit_clips(self, clips_VTCHW: Tensor) -> Future[Tensor]:
        """Logits `V x K` of uint8 clips `V x T x C x H x W`, computed together with those of others.

        Raises:
            QueueFull, BatchFailed: see `Batcher.submit`.
        """
        return self.batcher.submit(self._classify, clips_VTCHW, key=tuple(clips_VTCHW.shape[1:]), size=len(clips_VTCHW))

    def _classify(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Logits `V x K` for the clips `V x T x C x H x W` of each request; all have the same shape but for V."""
        parts = torch.cat(list(clips)).split(self.max_batch)
        logits_VK = torch.cat([self.recognizer.runner(part).cpu() for part in parts])
        check_finite(logits_VK, self.recognizer.trained)
        return list(logits_VK.split([len(part) for part in clips]))


class _Cancelled(Exception):
    """Nobody waits for the result any more."""


class _SharedRunner:
    """Classifies the clips of a thread through the batcher, together with those of others."""

    def __init__(self, service: Service):
        self.service, self.device = service, service.recognizer.runner.device
        self._is_cancelled = threading.Event()
        self._waiting: Future[Tensor] | None = None

    def __call__(self, clips_VTCHW: Tensor, lengths_V: Tensor | None = None) -> Tensor:
        assert lengths_V is None  # windows of one video are equally long
        self._waiting = self.service.submit_clips(clips_VTCHW)
        if self._is_cancelled.is_set():
            self._waiting.cancel()
        try:
            return self._waiting.result()
        except CancelledError as error:
            raise _Cancelled from error

    def cancel(self) -> None:
        """Ends the work of the thread at its next call, or the one that waits."""
        self._is_cancelled.set()
        if self._waiting is not None:
            self._waiting.cancel()


async def in_thread(
    pool: ThreadPoolExecutor, function: Callable[[], T], *, on_cancel: Callable[[], object] = lambda: None
) -> T:
    """Calls a function in a pool. A caller that is cancelled waits for its end: it may read the caller's files.

    Args:
        pool: of threads.
        function: what to call.
        on_cancel: called when the caller is cancelled; it may end the function early.
    """
    future = pool.submit(function)
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        on_cancel()
        if not future.done():
            ended = asyncio.wrap_future(future)
            await asyncio.wait([ended])
            _ = ended.cancelled() or ended.exception()  # otherwise asyncio complains that nobody looked at it
        raise


def read_views(
    trained: TrainedModel, path: Path, info: VideoInfo, *, num_clips: int | None, num_crops: int | None
) -> Tensor:
    """The views of a file as `Recognizer.predict` takes them: uint8 `V x T x C x H x W`.

    Raises:
        VideoError: the file cannot be read.
        InputError: see `Recognizer.predict`.
    """
    item = Item(path=str(path), label="", split="test")
    sample = make_views(trained, [item], [info], num_clips=num_clips, num_crops=num_crops)[0]
    if isinstance(sample, Failure):
        raise VideoError(path, sample.reason, sample.detail)
    return sample["clips"]


def probe_cost(
    trained: TrainedModel, path: Path, *, num_clips: int, num_crops: int, seconds: float | None = None
) -> tuple[VideoInfo, int]:
    """Properties of a file, and the pixels in memory while its views are read: a file can lie about anything.

    Args:
        trained: the model.
        path: the file.
        num_clips, num_crops: the views that are in memory at once.
        seconds: of the file, that a view of a model of whole videos shows; None: all.

    Raises:
        VideoError: the file cannot be read.
        InputError: more pixels than a client may ask for.
    """
    info = probe(path, decode_all=False, max_pixels=trained.max_pixels)
    clip, (height, width) = trained.clip, trained.clip.size
    if clip.fps is not None and (ticks := (info.end - info.start) * clip.fps) > MAX_TICKS:
        raise InputError(f"the video lasts {ticks / clip.fps:g} s, and at {clip.fps:g} frames/s that is too long")
    frames, fps = timeline(range(info.num_frames), clip, info)
    num_frames = len(frames) if seconds is None else round(min(seconds * fps, len(frames)))
    num_pictures = (resolve_num_frames(clip, num_frames, fps).num_frames or 1) * (1 if clip.input == "rgb" else 2)
    box = crop_box(info.height, info.width, clip.size, num_crops=num_crops)
    read_height, read_width = scaled_size(info, reading_size(info.height, info.width, box, clip.size))
    num_read = min(num_clips * num_pictures, info.num_frames)
    pixels = num_clips * num_crops * num_pictures * height * width + num_read * read_height * read_width
    if pixels > MAX_CLIP_PIXELS:
        raise InputError(
            f"{num_clips} clips with {num_crops} crops of {num_pictures} frames are {pixels:,} pixels, and this "
            f"service takes {MAX_CLIP_PIXELS:,} at once; ask for fewer clips, or send a shorter video or a narrower one"
        )
    return info, pixels


def fingerprint_of(path: Path) -> str:
    """SHA-256 of a checkpoint, as in an exported file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
