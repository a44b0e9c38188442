"""Live recognition: the label of a camera, a URL or another live source, frame after frame.

K classes   C channels   H, W height and width
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stvid.data.sampling import stride_of
from stvid.deploy.live_stream import LiveStream
from stvid.deploy.meter import Meter
from stvid.deploy.pace import RESERVE, SURPLUS, Pace
from stvid.deploy.slot import Arrival, FrameSlot
from stvid.deploy.steady_label import SteadyLabel
from stvid.deploy.stream import Stream, default_hop
from stvid.inference import ModelRunner
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
        live: the model's stream, its pace and the label; None before the first frame.
        seconds: time of the latest frame on the source's clock.
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
        self.slot, self.meter = FrameSlot(source), Meter()
        self.live: LiveStream | None = None  # until the first frame
        self.connection, self.fps = 0, DEFAULT_FPS
        self.seconds, self.seen_at = 0.0, time.monotonic()  # of the latest frame
        self.is_lost = False

    @property
    def restarts(self) -> int:
        """How often the model was started anew after a gap or a lost connection."""
        return 0 if self.live is None else self.live.restarts

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
        stream, frame_CHW = self._new_live().stream, torch.zeros(3, *self.trained.clip.size, dtype=torch.uint8)
        for _ in range(WARM_UP):
            if stream.push(frame_CHW) is not None:
                break

    def _new_live(self) -> LiveStream:
        return LiveStream(
            self.trained,
            fps=self.fps,
            label=self.label,
            runner=self.runner,
            waits=self.source.waits,
            windows=self.windows,
        )

    def _without_frame(self) -> LiveEvent:
        """The latest label at the present time. When the source is lost, the label becomes unknown."""
        has_clock = self.live is not None and not self.source.waits  # that goes on without frames
        seconds = self.seconds + (time.monotonic() - self.seen_at if has_clock else 0.0)
        before = self._label()
        lost = self.slot.lost  # once: it is the other thread's
        if not lost or self.is_lost:
            return self._event(seconds, before=before)
        self.is_lost = True
        if self.live is not None:
            self.live.forget()
        return self._event(seconds, before=before, note=f"{lost}; connecting again")

    def _label(self) -> str | None:
        return None if self.live is None else self.live.latest[0]

    def _event(
        self, seconds: float, *, before: str | None, frame_CHW: Tensor | None = None, note: str = ""
    ) -> LiveEvent:
        """What is known at this time; the label before was another one, or not."""
        label, probability = (None, 0.0) if self.live is None else self.live.latest
        changed = label != before
        return LiveEvent(
            seconds=seconds, frame_CHW=frame_CHW, label=label, probability=probability, changed=changed, note=note
        )

    def _with_frame(self, arrival: Arrival) -> Iterator[LiveEvent]:
        began = time.monotonic()
        if self.live is None:
            self.live = self._start(arrival)
            yield self._event(arrival.seconds, before=None, note=self._start_note(arrival, self.live.stream))
        live = self.live
        if arrival.connection != self.connection:
            self.connection, self.is_lost = arrival.connection, False
            before = self._label()
            live.pace.restart()
            live.restart()
            note = f"{self.source.name}: connected again; the model starts anew"
            yield self._event(arrival.seconds, before=before, note=note)
        before = self._label()
        times = live.repetitions(arrival.seconds)
        for _ in range(times):
            if (probabilities_K := live.stream.push(arrival.frame_CHW)) is not None:
                live.answer(probabilities_K, arrival.seconds)
        self.seconds, self.seen_at = arrival.seconds, time.monotonic()
        if times:
            self.meter.add(arrival.arrived)
        yield self._event(arrival.seconds, before=before, frame_CHW=arrival.frame_CHW)
        if not self.source.waits and (note := self._adapt(live, time.monotonic() - began, times)):
            yield self._event(arrival.seconds, before=self._label(), note=note)

    def _start(self, arrival: Arrival) -> LiveStream:
        """The model at the first frame."""
        self.fps, self.connection = self.source.fps or DEFAULT_FPS, arrival.connection
        live = self._new_live()
        self.slot.capacity = live.stream.hop or 1  # the frames that arrive during a window
        return live

    def _start_note(self, arrival: Arrival, stream: Stream) -> str:
        height, width = arrival.frame_CHW.shape[1:]
        rate = f"{self.fps:.4g} frames/s" + ("" if self.source.fps else " (it states no rate)")
        first = f"first answer after {stream.first / self.fps:.1f} s"
        return f"{self.source.name}: {width} x {height} pixels, {rate}; model: {stream.mode}, {first}"

    def _adapt(self, live: LiveStream, seconds: float, times: int) -> str:
        """Adapts to the speed of the model, which took so many seconds for a frame; what changed, or an empty text."""
        has_changed = live.pace.measure(seconds, times)
        if live.stream.hop is not None:
            return self._adapt_hop(live, live.stream.hop)
        return self._frame_rates(live.pace) if has_changed else ""

    def _adapt_hop(self, live: LiveStream, hop: int) -> str:
        """Windows come less often if the model is slow, and as often as at first when it has time again."""
        load = live.pace.load
        if load is None or 1 / SURPLUS <= load < 1:
            return ""
        new_hop = max(math.ceil(RESERVE * load * hop), default_hop(self.trained.clip, self.fps))
        if new_hop == hop:
            return ""
        live.use_hop(new_hop)
        self.slot.capacity = new_hop
        state = "slow" if new_hop > hop else "faster again"
        return f"the model is {state}: from now on, one window every {new_hop / self.fps:.2f} s"

    def _frame_rates(self, pace: Pace) -> str:
        """What a model without windows gets of the frames that it needs, after `pace.slowdown` has changed."""
        needed = self.fps / stride_of(self.trained.clip, self.fps)
        if pace.slowdown == 1.0:
            return f"the model keeps up again with the {needed:.3g} frames/s that it needs"
        given, slowdown = needed / pace.slowdown, pace.slowdown
        return (
            f"the model needs {needed:.3g} frames/s and manages {RESERVE * given:.3g}. It gets {given:.3g}, evenly "
            f"spaced, and takes motion for {slowdown:.1f} times as fast. A smaller model or a GPU helps"
        )
