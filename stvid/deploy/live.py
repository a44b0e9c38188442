"""Live recognition: the label of a camera, a URL or another live source, frame after frame.

K classes   C channels   H, W height and width
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stvid.data.sampling import stride_of
from stvid.deploy.meter import Meter
from stvid.deploy.pace import RESERVE, SURPLUS, Pace
from stvid.deploy.segments import UNKNOWN
from stvid.deploy.slot import Arrival, FrameSlot
from stvid.deploy.steady_label import SteadyLabel
from stvid.deploy.stream import Stream, default_hop
from stvid.inference import ModelRunner
from stvid.models.cnn_lstm import CNNLSTM
from stvid.run.checkpoint import TrainedModel
from stvid.video.capture import DEFAULT_FPS
from stvid.video.live import LiveSource

WARM_UP = 256  # frames after which the model is warm, with or without an answer
IDLE_INTERVAL = 0.5  # seconds from one event to the next while no frame comes


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


def live_hop(trained: TrainedModel, fps: float, *, windows: bool = False) -> int | None:
    """`hop` of the `Stream` for a source that does not end; None: its own choice.

    A carried state that pools all frames since the start hardly changes its answers after some minutes. Such a model
    reads windows instead, if its clips have a length.

    Args:
        trained: the model.
        fps: frames per second of the source.
        windows: the model reads windows in any case.
    """
    model = trained.model
    pools_all = isinstance(model, CNNLSTM) and model.pooling.kind != "last" and trained.clip.num_frames is not None
    return default_hop(trained.clip, fps) if windows or pools_all else None


class LiveRecognition:
    """Runs a model on a live source: `for event in live.events(): ...`.

    When the source is faster than the model, older frames are dropped, and the answer is always about the newest one.
    `Pace` chooses the frames that the model gets. A model that reads windows gets all frames, since keeping them takes
    no time, and reads windows less often for as long as it is slow. A source that waits (`LiveSource.waits`) loses no
    frame, and the model gets every frame once.

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
            while (arrivals := self.slot.take(timeout=IDLE_INTERVAL)) is not None:
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
        return self._forget(event.seconds, note=f"{lost}; connecting again")

    def _forget(self, seconds: float, *, note: str = "") -> LiveEvent:
        """The label is unknown until the next answer, if there was one."""
        self.label.reset()
        before = self.latest.label
        if before is not None:
            self.latest = dataclasses.replace(self.latest, label=UNKNOWN, probability=0.0)
        return dataclasses.replace(self.latest, seconds=seconds, changed=before != self.latest.label, note=note)

    def _with_frame(self, arrival: Arrival) -> Iterator[LiveEvent]:
        began = time.monotonic()
        if self.stream is None:
            yield self._start(arrival)
        elif arrival.connection != self.connection:
            self.connection, self.is_lost = arrival.connection, False
            self.pace.restart()
            yield self._restart(arrival.seconds, note=f"{self.source.name}: connected again; the model starts anew")
        assert self.stream is not None
        before = self.latest.label
        times = 1 if self.source.waits else self.pace.repetitions(arrival.seconds)
        if times is None:  # after a gap
            self._restart(arrival.seconds)
            times = 1
        event = dataclasses.replace(self.latest, seconds=arrival.seconds)
        for _ in range(times):
            if (probabilities_K := self.stream.push(arrival.frame_CHW)) is not None:
                label, probability = self.label.update(probabilities_K, arrival.seconds)
                event = dataclasses.replace(event, label=label, probability=probability)
        self.latest, self.latest_at = event, time.monotonic()
        if times:
            self.meter.add(arrival.arrived)
        yield dataclasses.replace(event, frame_CHW=arrival.frame_CHW, changed=event.label != before)
        if not self.source.waits and (note := self._adapt(time.monotonic() - began, times)):
            yield dataclasses.replace(event, note=note)

    def _start(self, arrival: Arrival) -> LiveEvent:
        """Starts the model at the first frame, and tells how."""
        self.fps = self.source.fps or DEFAULT_FPS
        self.stream = self._new_stream()
        self.pace = self._new_pace(self.stream)
        self.connection = arrival.connection
        height, width = arrival.frame_CHW.shape[1:]
        rate = f"{self.fps:.4g} frames/s" + ("" if self.source.fps else " (it states no rate)")
        first = f"first answer after {self.stream.first / self.fps:.1f} s"
        note = f"{self.source.name}: {width} x {height} pixels, {rate}; model: {self.stream.mode}, {first}"
        return dataclasses.replace(self.latest, seconds=arrival.seconds, note=note)

    def _restart(self, seconds: float, *, note: str = "") -> LiveEvent:
        """Starts the model anew, after a gap or a lost connection: it forgets all frames, and the label."""
        assert self.stream is not None
        self.stream.restart()
        self.restarts += 1
        return self._forget(seconds, note=note)

    def _new_stream(self, hop: int | None = None) -> Stream:
        """See `Stream`; `hop` None: see `live_hop`."""
        if hop is None:
            hop = live_hop(self.trained, self.fps, windows=self.windows)
        stream = Stream(self.trained, fps=self.fps, runner=self.runner, hop=hop)
        self.slot.capacity = stream.hop or 1  # the frames that arrive during a window
        return stream

    def _new_pace(self, stream: Stream) -> Pace:
        return Pace(self.fps, period=stream.hop or 1)

    def _adapt(self, seconds: float, times: int) -> str:
        """Adapts to the speed of the model, which took so many seconds for a frame; what changed, or an empty text."""
        assert self.stream is not None
        has_changed = self.pace.measure(seconds, times)
        if self.stream.hop is not None:
            return self._adapt_hop(self.stream.hop)
        return self._frame_rates() if has_changed else ""

    def _adapt_hop(self, hop: int) -> str:
        """Windows come less often if the model is slow, and as often as at first when it has time again."""
        load = self.pace.load
        if load is None or 1 / SURPLUS <= load < 1:
            return ""
        new_hop = max(math.ceil(RESERVE * load * hop), default_hop(self.trained.clip, self.fps))
        if new_hop == hop:
            return ""
        self.stream = self._new_stream(new_hop)
        self.pace = self._new_pace(self.stream)
        state = "slow" if new_hop > hop else "faster again"
        return f"the model is {state}: from now on, one window every {new_hop / self.fps:.2f} s"

    def _frame_rates(self) -> str:
        """What a model without windows gets of the frames that it needs, after `pace.slowdown` has changed."""
        needed = self.fps / stride_of(self.trained.clip, self.fps)
        if self.pace.slowdown == 1.0:
            return f"the model keeps up again with the {needed:.3g} frames/s that it needs"
        given, slowdown = needed / self.pace.slowdown, self.pace.slowdown
        return (
            f"the model needs {needed:.3g} frames/s and manages {RESERVE * given:.3g}. It gets {given:.3g}, evenly "
            f"spaced, and takes motion for {slowdown:.1f} times as fast. A smaller model or a GPU helps"
        )
