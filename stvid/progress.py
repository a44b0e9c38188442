"""A progress bar on a terminal, with log lines above it; nothing if stderr is not a terminal."""

from __future__ import annotations

import logging
import sys
import time

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stvid.terminal import visible

REDRAW_SECONDS = 0.2


class Bar:
    """A progress bar that disappears when it is closed: `with Bar(...) as bar`, or `start` and `close`.

    Log lines and prints appear above the bar. No thread draws it (worker processes are forked meanwhile and would
    inherit the thread's locks), so it only moves when `advance` is called.

    Args:
        what: text before the bar.
        total: number of steps; 0 shows no bar.
        unit: of the steps, in the plural.
        shown: False shows no bar.
    """

    def __init__(self, what: str, *, total: int, unit: str, shown: bool = True):
        console = Console(stderr=True, soft_wrap=True)  # a path in a log line stays in one piece
        self.shown = shown and total > 0 and sys.stderr.isatty() and not console.is_dumb_terminal
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
            disable=not self.shown,
        )
        self.task = self.bar.add_task(visible(what), total=total, unit=visible(unit), note="")
        self.drawn = 0.0
        self.streams: list[tuple[logging.StreamHandler, object]] = []  # log handlers and their own streams

    def __enter__(self) -> Bar:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self, *, done: int = 0) -> None:
        """Shows the bar; `done` steps are complete already."""
        if not self.shown:
            return
        for handler in logging.getLogger().handlers:  # they keep the stream they were created with
            if isinstance(handler, logging.StreamHandler) and handler.stream.isatty():
                self.streams.append((handler, handler.setStream(FileProxy(self.bar.console, handler.stream))))
        self.bar.update(self.task, completed=done)
        self.bar.start()
        self.bar.console.show_cursor(True)  # a killed run must not leave the terminal without a cursor

    @property
    def due(self) -> bool:
        """Whether the next `advance` redraws the bar, so that a new note would be seen."""
        return self.shown and time.monotonic() - self.drawn > REDRAW_SECONDS

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        """Adds completed steps; `note` replaces the text after the bar."""
        self.bar.update(self.task, advance=steps)
        if note is not None:
            self.bar.update(self.task, note=visible(note))
        if self.due:
            self._draw()

    def note(self, text: str) -> None:
        """Shows a text after the bar at once."""
        self.bar.update(self.task, note=visible(text))
        self._draw()

    def close(self) -> None:
        """Removes the bar and restores the log handlers; may be called twice."""
        if self.shown:
            self.bar.stop()
        for handler, stream in self.streams:
            handler.setStream(stream)
        self.streams.clear()

    def _draw(self) -> None:
        if self.shown:
            self.bar.refresh()
        self.drawn = time.monotonic()
