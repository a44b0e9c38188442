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
from stvid.data.sampling import clip_span
from stvid.deploy.segmentation import SegmentOptions, VideoSegments, segment_video
from stvid.deploy.stream import Stream
from stvid.device import num_cores
from stvid.errors import InputError
from stvid.inference import batch_size_of, check_finite
from stvid.metrics import average_views
from stvid.recognizer import Recognizer
from stvid.run.checkpoint import MAX_CLIP_PIXELS
from stvid.serve.batching import Batcher, ServiceStopping
from stvid.serve.clips import MAX_WINDOWS, probe_and_measure, probe_and_measure_windows, read_views
from stvid.serve.metrics import Metrics
from stvid.serve.options import ServeOptions
from stvid.serve.threads import Cancelled, ThreadPools, in_thread
from stvid.serve.upload_folder import UploadFolder
from stvid.video.playback import clock_start
from stvid.video.types import VideoInfo

MAX_DECODERS = 16
MAX_FAILURES = 3  # of the model in a row; then the service calls itself ill
JOIN_SECONDS = 5.0  # in which a forward pass ends when the service stops
NOT_STARTED = "the service was not started: a parent application must run its lifespan, see create_app"
MAX_PIXELS_IN_WORK = 2 * MAX_CLIP_PIXELS  # of all requests; 1.5 GiB


class QueueFull(Exception):
    """Too much is in work already; try again later."""


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
            max_delay=options.max_delay / 1000,
            num_clients=lambda: self.num_active + len(self.open_sockets),
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
    def problem(self) -> str | None:
        """Why the service takes no work, or None."""
        if self.is_stopping:
            return "the service is stopping"
        if not self.batcher.is_running:
            return "the thread of the model does not run"
        if self.batcher.num_failures >= MAX_FAILURES:
            return f"the model failed {self.batcher.num_failures} times in a row; the log has the tracebacks"
        return None

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
        """Starts the threads, and makes the folder of uploads; again after `close`."""
        # on the CPU, the other half of the cores computes, see `set_up_cpu`
        cores = num_cores() // 2 if self.recognizer.runner.device.type == "cpu" else num_cores()
        self._pools = ThreadPools(self.options.num_decoders or min(max(cores, 1), MAX_DECODERS))
        self.is_stopping = False
        self._folder = UploadFolder()
        self.batcher.start()

    def close(self) -> None:
        """Stops the threads and deletes the folder; a second call does nothing.

        A forward pass that takes longer than `JOIN_SECONDS`, and a decoder that hangs, go on.
        """
        self.is_stopping = True
        self.batcher.stop(timeout=JOIN_SECONDS)
        if self._pools is not None:
            self._pools.shutdown()
        if self._folder is not None:
            self._folder.delete()
            self._folder = None

    def warm_up(self) -> None:
        """Runs one clip and one frame of a stream; otherwise the first client waits for what a GPU prepares."""
        trained, fps = self.recognizer.trained, 25.0
        num_frames = 1 if trained.clip.num_frames is None else clip_span(trained.clip, fps)
        frames_THWC = np.zeros((num_frames, *trained.clip.size, 3), np.uint8)
        self.recognizer.predict(frames_THWC, fps=fps, num_clips=1, num_crops=1)
        with contextlib.suppress(InputError):  # it cannot read streams
            stream = Stream(trained, fps=fps, runner=self.recognizer.runner, start=self.stream_start)
            stream.push(frames_THWC[0])

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Around the work for a request; raises QueueFull if there is too much already, or ServiceStopping."""
        if self.is_stopping:
            raise ServiceStopping
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
            QueueFull: see `reserved`.
            BatchFailed, ServiceStopping: see `Batcher.submit`.
        """
        trained = self.recognizer.trained
        clips = trained.protocol["num_clips"] if num_clips is None else num_clips
        crops = trained.protocol["num_crops"] if num_crops is None else num_crops
        check_views(clips, crops, trained.clip)
        info, num_pixels = await in_thread(
            self.pools.decoders,
            lambda: probe_and_measure(trained, path, num_clips=clips, num_crops=crops),
            max_seconds=self.options.read_seconds,
        )
        with self.reserved(num_pixels):
            clips_VTCHW = await in_thread(
                self.pools.decoders,
                lambda: read_views(trained, path, info, num_clips=num_clips, num_crops=num_crops),
                max_seconds=self.options.read_seconds,
            )
            parts = clips_VTCHW.split(self.max_batch)  # one after the other: the clips of others come in between
            logits_VK = torch.cat([await asyncio.wrap_future(self.submit_clips(part)) for part in parts])
        probabilities_NK, _ = average_views(logits_VK, torch.zeros(len(logits_VK), dtype=torch.int64))
        return info, probabilities_NK[0].numpy()

    async def segments(self, path: Path, options: SegmentOptions, *, max_windows: int = MAX_WINDOWS) -> SegmentedVideo:
        """What `Recognizer.segments` says of a file. Its windows go through the model together with those of others.

        Raises:
            VideoError, InputError: see `segment_video`; more pixels or windows than the service takes.
            QueueFull: see `reserved`.
            BatchFailed, ServiceStopping: see `Batcher.submit`.
        """
        trained, runner = self.recognizer.trained, _SharedRunner(self)

        def work() -> SegmentedVideo:
            video = segment_video(
                trained, path, info=info, runner=runner, options=options, batch_size=memory.batch_size
            )
            return SegmentedVideo(info=info, video=video, clock_start=clock_start(path, max_pixels=trained.max_pixels))

        info, memory = await in_thread(
            self.pools.decoders,
            lambda: probe_and_measure_windows(
                trained, path, options, batch_size=self.max_batch, max_windows=max_windows
            ),
            max_seconds=self.options.read_seconds,
        )
        with self.reserved(memory.num_pixels):
            return await in_thread(self.pools.segmenters, work, on_cancel=runner.cancel)

    def submit_clips(self, clips_VTCHW: Tensor) -> Future[Tensor]:
        """Logits `V x K` of uint8 clips `V x T x C x H x W`, computed together with those of others.

        Args:
            clips_VTCHW: at most `max_batch`, since nothing comes in between.

        Raises:
            BatchFailed, ServiceStopping: see `Batcher.submit`.
        """
        return self.batcher.submit(self._classify, clips_VTCHW, key=tuple(clips_VTCHW.shape[1:]), size=len(clips_VTCHW))

    def _classify(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Logits `V x K` for the clips `V x T x C x H x W` of each request; all have the same shape but for V."""
        clips_VTCHW = clips[0] if len(clips) == 1 else torch.cat(list(clips))
        logits_VK = self.recognizer.runner(clips_VTCHW).cpu()
        check_finite(logits_VK, self.recognizer.trained)
        return list(logits_VK.split([len(part) for part in clips]))


class _SharedRunner:
    """Classifies the clips of a thread through the batcher, together with those of others."""

    def __init__(self, service: Service):
        self.service, self.device = service, service.recognizer.runner.device
        self._is_cancelled = threading.Event()
        self._waiting: Future[Tensor] | None = None

    def __call__(self, clips_VTCHW: Tensor, lengths_V: Tensor | None = None) -> Tensor:
        assert lengths_V is None  # windows of one video are equally long
        return torch.cat([self._classify(part) for part in clips_VTCHW.split(self.service.max_batch)])

    def _classify(self, clips_VTCHW: Tensor) -> Tensor:
        self._waiting = self.service.submit_clips(clips_VTCHW)
        if self._is_cancelled.is_set():
            self._waiting.cancel()
        try:
            return self._waiting.result()
        except CancelledError as error:
            raise Cancelled from error

    def cancel(self) -> None:
        """Ends the work of the thread at its next call, or the one that waits."""
        self._is_cancelled.set()
        if self._waiting is not None:
            self._waiting.cancel()
