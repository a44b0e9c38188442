"""Outputs of `stvid stream`: JSON lines, the screen, a window and a recording. Each takes one event after the other."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from stvid.deploy.annotate import Overlay, class_colours
from stvid.deploy.display import Display
from stvid.deploy.live import LiveEvent, LiveRecognition
from stvid.terminal import clock, show, visible
from stvid.video.recording import open_recording

BAR = 20  # columns of the bar that shows the probability
REDRAW = 0.1  # seconds


class JsonLines:
    """Prints a JSON object on stdout when the label changes, and once per second of the source; notes go to stderr."""

    def __init__(self, live: LiveRecognition):
        self.live, self.second = live, 0

    def add(self, event: LiveEvent) -> None:
        if event.note:
            show(event.note, file=sys.stderr, flush=True)
        if event.changed:
            self._print("label", event)
        if (second := math.floor(event.seconds)) > self.second:
            self.second = second
            self._print("second", event)

    def _print(self, kind: str, event: LiveEvent) -> None:
        meter, slot = self.live.meter, self.live.slot
        content = {
            "time": round(event.seconds, 3),
            "event": kind,
            "class": event.label,
            "probability": round(event.probability, 4),
            "fps": round(meter.fps, 2),
            "latency_ms": None if meter.latency_ms is None else round(meter.latency_ms, 2),
            "dropped": slot.dropped,
            "reconnects": slot.connections,
        }
        print(json.dumps(content), flush=True)


class Screen:
    """Prints a line when the label changes; on a terminal, the last line shows the present state."""

    def __init__(self, live: LiveRecognition):
        self.live, self.drawn = live, -math.inf
        self.console = Console(soft_wrap=True, highlight=False, markup=False)
        self.line = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> Screen:
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self.line.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.line.stop()

    def add(self, event: LiveEvent) -> None:
        if event.note:
            self.console.print(visible(event.note))
        if event.changed:
            self.console.print(f"{clock(event.seconds, digits=1):>10}  {_answer(event)}")
        sys.stdout.flush()
        if self.line.is_started and time.monotonic() - self.drawn >= REDRAW:
            self.drawn = time.monotonic()
            self.line.update(Text(self._state(event), no_wrap=True, overflow="ellipsis"), refresh=True)

    def _state(self, event: LiveEvent) -> str:
        meter, slot = self.live.meter, self.live.slot
        if event.label is None:
            answer = "waiting for the first answer"
        else:
            filled = round(BAR * event.probability)
            answer = f"{'█' * filled}{'░' * (BAR - filled)}  {_answer(event)}"
        latency = "-" if meter.latency_ms is None else f"{meter.latency_ms:.0f}"
        state = f"{meter.fps:.1f} frames/s  latency {latency} ms  dropped {slot.dropped:,}"
        return f"{clock(event.seconds, digits=1):>10}  {answer}  {'connection lost  ' if slot.lost else ''}{state}"


def _answer(event: LiveEvent) -> str:
    return f"{visible(event.label)}  {event.probability:.0%}"


class Pictures:
    """Draws the label on the frames, shows them in a window and records them.

    Args:
        live: what the events come from.
        out: the file that is recorded; None: none.
        title: of the window; None: no window.
    """

    def __init__(self, live: LiveRecognition, *, out: str | None, title: str | None):
        self.live, self.out = live, out
        self.display = None if title is None else Display(visible(title))
        self.colours = class_colours(live.trained.class_names)
        self.overlay: Overlay | None = None
        if out is not None or title is not None:
            Overlay(64, 64, colours=self.colours)  # loads the font, so that no frame waits for that
        self.size = (0, 0)
        self.files = ExitStack()
        self.record: Callable[[np.ndarray, float], None] | None = None
        self.has_failed = False  # the recording

    def __enter__(self) -> Pictures:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.display is not None:
            self.display.close()
        if self.has_failed:  # nothing is left of it
            self.files.__exit__(kind, error, traceback)
        self.files.close()  # whatever else ended the stream

    @property
    def is_open(self) -> bool:
        """False after the user has closed the window."""
        return self.display is None or self.display.is_open

    def add(self, event: LiveEvent) -> None:
        if self.out is None and self.display is None:
            return
        if event.frame_CHW is None:
            if self.display is not None:
                self.display.update()
            return
        frame_HWC = event.frame_CHW.permute(1, 2, 0).numpy().copy()
        if self.overlay is None or frame_HWC.shape[:2] != self.size:
            self.size = frame_HWC.shape[:2]
            self.overlay = Overlay(*self.size, colours=self.colours)
        if event.label is not None:
            frame_HWC = self.overlay.draw(frame_HWC, event.label, event.probability)
        if self.out is not None:
            self._record(frame_HWC, event.seconds)
        if self.display is not None:
            self.display.show(frame_HWC)

    def _record(self, frame_HWC: np.ndarray, seconds: float) -> None:
        assert self.out is not None
        self.has_failed = True
        if self.record is None:
            self.record = self.files.enter_context(open_recording(self.out, fps=self.live.fps))
        self.record(frame_HWC, seconds)
        self.has_failed = False
