"""What the endpoints share: the model in its thread, the threads that decode, and the folder of uploads.

V views   K classes   T frames   C channels   H, W height and width
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stvid.data.loading import check_views
from stvid.deploy.segmentation import SegmentOptions, VideoSegments, segment_video
from stvid.device import num_cores
from stvid.inference import batch_size_of, check_finite
from stvid.metrics import average_views
from stvid.recognizer import Recognizer
from stvid.run.checkpoint import MAX_CLIP_PIXELS
from stvid.serve.batching import Batcher, QueueFull
from stvid.serve.clips import probe_and_measure, read_views
from stvid.serve.metrics import Metrics
from stvid.serve.options import ServeOptions
from stvid.serve.threads import ThreadPools, in_thread
from stvid.serve.upload_folder import UploadFolder
from stvid.video.playback import clock_start
from stvid.video.types import VideoInfo

MAX_DECODERS = 16
NOT_STARTED = "the service was not started: a parent application must run its lifespan, see create_app"
MAX_PIXELS_IN_WORK = 2 * MAX_CLIP_PIXELS  # of all requests; 1.5 GiB


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
        self.stream_start = functools.cache(recognizer.runner.start_stream)  # so that streams share steps
        self.metrics = Metrics()
        self.batcher = Batcher(
            max_batch=self.max_batch,
            max_delay=options.max_delay,
            max_queue=options.max_queue,
            on_batch=self.metrics.add_batch,
        )
        self.metrics.queue.set_function(lambda: len(self.batcher))
        self.is_stopping = False
        self.num_active = 0
        self.num_pixels = 0  # of the clips in memory
        self.open_sockets: set[object] = set()  # that may send frames
        self._pools: ThreadPools | None = None
        self._folder: UploadFolder | None = None

    @property
    def pools(self) -> ThreadPools:
        """The threads that decode and write; they exist from `start` to `close`."""
        if self._pools is None:
            raise RuntimeError(NOT_STARTED)
        return self._pools

    @property
    def folder(self) -> Path:
        """The private folder of uploads."""
        if self._folder is None:
            raise RuntimeError(NOT_STARTED)
        return self._folder.path

    def start(self) -> None:
        """Starts the threads, and makes the folder of uploads."""
        # on the CPU, the other half of the cores computes, see `limit_cpu_threads`
        cores = num_cores() // 2 if self.recognizer.runner.device.type == "cpu" else num_cores()
        self._pools = ThreadPools(self.options.num_decoders or min(max(cores, 1), MAX_DECODERS))
        self.is_stopping = False
        self._folder = UploadFolder()
        self.batcher.start()

    def close(self) -> None:
        """Stops the threads and deletes the folder; a second call does nothing."""
        self.is_stopping = True
        self.batcher.stop()
        if self._pools is not None:
            self._pools.shutdown()
        if self._folder is not None:
            self._folder.delete()
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
            self.pools.decoders, lambda: probe_and_measure(trained, path, num_clips=clips, num_crops=crops)
        )
        with self.reserved(num_pixels):
            clips_VTCHW = await in_thread(
                self.pools.decoders, lambda: read_views(trained, path, info, num_clips=num_clips, num_crops=num_crops)
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
            self.pools.decoders,
            lambda: probe_and_measure(trained, path, num_clips=clips, num_crops=crops, seconds=options.window),
        )
        with self.reserved(num_pixels):
            return await in_thread(self.pools.segmenters, work, on_cancel=runner.cancel)

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
