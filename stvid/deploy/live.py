"""Live recognition: the label of a camera, a URL or another live source, frame after frame.

K classes   C channels   H, W height and width
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stvid.data.sampling import clip_span, stride_of
from stvid.deploy.pace import RESERVE, Pace
from stvid.deploy.segments import UNKNOWN, Hysteresis
from stvid.deploy.slot import Arrival, FrameSlot
from stvid.deploy.stream import HOPS_PER_SPAN, Stream
from stvid.inference import ModelRunner
from stvid.models.cnn_lstm import CNNLSTM
from stvid.run.checkpoint import TrainedModel
from stvid.video.live import LiveSource

DEFAULT_FPS = 25.0  # of a source that states no rate
MAX_WAITING = 32  # frames that wait while a model reads a window
WARM_UP = 256  # frames after which the model is warm, with or without an answer
HEARTBEAT = 0.5  # seconds: without frames, an event comes this often
RECENT = 5.0  # seconds over which `Meter.fps` and `Meter.latency_ms` are measured


@dataclass(frozen=True, kw_only=True)
class LiveEvent:
    """What `LiveRecognition` says after a frame, and now and then without one.

    Attributes:
        seconds: time on the source's clock.
        frame_CHW: the frame, uint8 `3 x H x W`; None: none came for a while.
        label: a class, or `segments.UNKNOWN`; None before the first answer.
        probability: of the label's class, in [0, 1]; of the most probable class if the label is unknown.
        changed: the label is another one than before.
        note: something that the user should know, such as a lost connection; empty: nothing.
    """

    seconds: float
    frame_CHW: Tensor | None = None
    label: str | None = None
    probability: float = 0.0
    changed: bool = False
    note: str = ""


class Meter:
    """Frames per second, and latency: from the arrival of a frame to the answer, in milliseconds."""

    def __init__(self) -> None:
        self.num_frames, self.total_ms = 0, 0.0
        self.recent: deque[tuple[float, float]] = deque()  # when the answer came, latency
        self.latest_ms: deque[float] = deque(maxlen=10_000)
        self.first = self.latest = time.monotonic()

    def add(self, arrived: float) -> None:
        """Counts a frame whose answer is there now."""
        now = time.monotonic()
        latency_ms = 1000 * (now - arrived)
        self.first, self.latest = now if not self.num_frames else self.first, now
        self.num_frames += 1
        self.total_ms += latency_ms
        self.recent.append((now, latency_ms))
        self.latest_ms.append(latency_ms)
        self._drop_old()  # also if nobody asks for the latest speed

    def _drop_old(self) -> None:
        while self.recent and self.recent[0][0] < time.monotonic() - RECENT:
            self.recent.popleft()

    @property
    def fps(self) -> float:
        """Frames per second over the last seconds."""
        self._drop_old()
        if len(self.recent) < 2:
            return 0.0
        return (len(self.recent) - 1) / (self.recent[-1][0] - self.recent[0][0] or 1e-3)

    @property
    def mean_fps(self) -> float:
        """Frames per second since the first frame."""
        return max(self.num_frames - 1, 0) / (self.latest - self.first or 1e-3)

    @property
    def latency_ms(self) -> float | None:
        """Mean over the last seconds; None without a frame."""
        self._drop_old()
        return sum(latency for _, latency in self.recent) / len(self.recent) if self.recent else None

    @property
    def mean_ms(self) -> float:
        """Mean over all frames."""
        return self.total_ms / max(self.num_frames, 1)

    @property
    def percentile_95_ms(self) -> float:
        """95 % of the last 10,000 frames have at most this latency."""
        return float(np.percentile(self.latest_ms, 95)) if self.latest_ms else 0.0


class SteadyLabel:
    """The label over time: `Hysteresis`, and a new label counts only after it has lasted.

    Args:
        class_names: names of the K classes.
        threshold: see `Hysteresis`.
        min_duration: seconds that a new label must last before it replaces the old one.
        background: classes that mean that nothing happens; they become `UNKNOWN`.
    """

    def __init__(
        self, class_names: Sequence[str], *, threshold: float, min_duration: float, background: Collection[str] = ()
    ):
        self.class_names, self.background, self.min_duration = class_names, background, min_duration
        self.threshold = threshold
        self.reset()

    def reset(self) -> None:
        """Forgets what was before."""
        self.hysteresis = Hysteresis(self.threshold)
        self.label: str | None = None
        self.candidate, self.since = "", 0.0

    def update(self, probabilities_K: Tensor, seconds: float) -> tuple[str, float]:
        """The label after the probabilities of this time, and the probability of its class (unknown: the highest)."""
        index = self.hysteresis.update(probabilities_K.numpy())
        label = UNKNOWN if index is None or self.class_names[index] in self.background else self.class_names[index]
        if label != self.candidate:
            self.candidate, self.since = label, seconds
        if self.label is None or seconds - self.since >= self.min_duration:
            self.label = label
        known = self.class_names.index(self.label) if self.label in self.class_names else None
        return self.label, float(probabilities_K.max() if known is None else probabilities_K[known])


def _never_forgets(trained: TrainedModel) -> bool:
    """Whether a carried state pools all frames since the start, so that answers hardly change after some minutes.

    Such a model reads windows instead, if its clips have a length.
    """
    model = trained.model
    return isinstance(model, CNNLSTM) and model.pooling.kind != "last" and trained.clip.num_frames is not None


class LiveRecognition:
    """Runs a model on a live source: `for event in live.events(): ...`.

    When the source is faster than the model, older frames are dropped, and the answer is always about the newest one.
    `Pace` chooses the frames that the model gets. A model that reads windows gets all frames, since keeping them takes
    no time, and reads a window less often if it is slow. A source that waits (`LiveSource.waits`) loses no frame, and
    the model gets every frame once.

    Args:
        trained: the model.
        source: where the frames come from.
        label: turns probabilities into a label.
        windows: the model reads windows as long as its clips, also if it could take one frame at a time.
        runner: the model on its device; None: a new one.

    Attributes:
        meter: frames per second and latency.
        slot: `slot.dropped` frames, `slot.connections` made again.
        restarts: how often the model was started anew after a gap or a lost connection.
    """

    def __init__(
        self,
        trained: TrainedModel,
        source: LiveSource,
        *,
        label: SteadyLabel,
        windows: bool = False,
        runner: ModelRunner | None = None,
    ):
        self.trained, self.source, self.label, self.windows = trained, source, label, windows
        self.runner = runner or ModelRunner(trained)
        self.slot, self.meter, self.restarts = FrameSlot(source), Meter(), 0
        self.stream: Stream | None = None
        self.connection, self.fps = 0, DEFAULT_FPS
        self.hop: int | None = None  # from window to window, see `Stream`; None: its own choice
        self.pace = Pace(self.fps)
        self.latest, self.latest_at = LiveEvent(seconds=0.0), time.monotonic()
        self.is_lost = False

    def events(self) -> Generator[LiveEvent, None, None]:
        """Reads the source until it ends, or until the caller stops.

        Raises:
            InputError: the source cannot be opened, or stops in the middle; the model cannot be used on a stream.
        """
        self._warm_up()
        self.slot.start()
        try:
            while (arrivals := self.slot.take(timeout=HEARTBEAT)) is not None:
                if not arrivals:
                    yield self._without_frame()
                for arrival in arrivals:
                    yield from self._with_frame(arrival)
        finally:
            self.slot.close()

    def _warm_up(self) -> None:
        """The first answers take many times as long as those after them; no frame should wait for that."""
        stream, frame_CHW = self._new_stream(), torch.zeros(3, *self.trained.clip.size, dtype=torch.uint8)
        for _ in range(WARM_UP):
            if stream.push(frame_CHW) is not None:
                break

    def _without_frame(self) -> LiveEvent:
        """The latest label at the present time. When the source is lost, the label becomes unknown."""
        has_clock = self.stream is not None and not self.source.waits  # that goes on without frames
        waited = time.monotonic() - self.latest_at if has_clock else 0.0
        event = dataclasses.replace(self.latest, seconds=self.latest.seconds + waited)
        lost = self.slot.lost  # once: it is the other thread's
        if not lost or self.is_lost:
            return event
        self.is_lost = True
        self.latest = self._forget(self.latest)
        changed = event.label != self.latest.label
        note = f"{lost}; connecting again"
        return dataclasses.replace(self.latest, seconds=event.seconds, changed=changed, note=note)

    def _forget(self, event: LiveEvent) -> LiveEvent:
        """The label is unknown until the next answer, if there was one."""
        self.label.reset()
        return event if event.label is None else dataclasses.replace(event, label=UNKNOWN, probability=0.0)

    def _with_frame(self, arrival: Arrival) -> Iterator[LiveEvent]:
        began = time.monotonic()
        if self.stream is None or arrival.connection != self.connection:
            yield self._start(arrival)
        assert self.stream is not None
        event = dataclasses.replace(self.latest, seconds=arrival.seconds)
        times = 1 if self.source.waits else self.pace.count(arrival.seconds)
        if times is None:  # after a gap
            self.stream, times, event = self._new_stream(), 1, self._forget(event)
            self.restarts += 1
        for _ in range(times):
            if (probabilities_K := self.stream.push(arrival.frame_CHW)) is not None:
                label, probability = self.label.update(probabilities_K, arrival.seconds)
                event = dataclasses.replace(event, label=label, probability=probability)
        changed = event.label != self.latest.label
        self.latest, self.latest_at = event, time.monotonic()
        if times:
            self.meter.add(arrival.arrived)
        yield dataclasses.replace(event, frame_CHW=arrival.frame_CHW, changed=changed)
        if not self.source.waits and self.pace.measure(time.monotonic() - began, times):
            yield dataclasses.replace(event, note=self._change_speed())

    def _start(self, arrival: Arrival) -> LiveEvent:
        """Starts the model, at the first frame and after a lost connection."""
        note = f"{self.source.name}: connected again; the model starts anew"
        self.fps = self.source.fps or DEFAULT_FPS
        is_first, self.stream = self.stream is None, self._new_stream()
        if is_first:
            height, width = arrival.frame_CHW.shape[1:]
            rate = f"{self.fps:.4g} frames/s" + ("" if self.source.fps else " (it states no rate)")
            first = f"first answer after {self.stream.first / self.fps:.1f} s"
            note = f"{self.source.name}: {width} x {height} pixels, {rate}; model: {self.stream.mode}, {first}"
        self.restarts += not is_first
        self.connection, self.is_lost, self.pace = arrival.connection, False, self._new_pace()
        return dataclasses.replace(self.latest, seconds=arrival.seconds, note=note)

    def _new_stream(self) -> Stream:
        hop = self.hop
        if hop is None and (self.windows or _never_forgets(self.trained)):
            hop = max(clip_span(self.trained.clip, self.fps) // HOPS_PER_SPAN, 1)
        stream = Stream(self.trained, fps=self.fps, runner=self.runner, hop=hop)
        self.slot.capacity = min(stream.hop or 1, MAX_WAITING)  # the frames that arrive during a window
        return stream

    def _new_pace(self) -> Pace:
        assert self.stream is not None
        return Pace(self.fps, period=self.stream.hop or 1)

    def _change_speed(self) -> str:
        """Adapts to the speed of the model, after `pace.slowdown` has changed, and tells it."""
        assert self.stream is not None
        if self.stream.hop is not None:
            self.hop = math.ceil(self.stream.hop * self.pace.slowdown)
            self.stream = self._new_stream()
            self.pace = self._new_pace()
            return f"the model is slow: from now on, one window every {self.hop / self.fps:.2f} s"
        needed = self.fps / stride_of(self.trained.clip, self.fps)
        if self.pace.slowdown == 1.0:
            return f"the model keeps up again with the {needed:.3g} frames/s that it needs"
        given, slowdown = needed / self.pace.slowdown, self.pace.slowdown
        return (
            f"the model needs {needed:.3g} frames/s and manages {RESERVE * given:.3g}. It gets {given:.3g}, evenly "
            f"spaced, and takes motion for {slowdown:.1f} times as fast. A smaller model or a GPU helps"
        )
