"""Bars on a terminal, with log lines above them; nothing at all where stderr is no terminal."""

from __future__ import annotations

import logging
import sys
import time

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 0.2  # seconds between two pictures of a bar


class Bar:
    """A line that fills up, gone when it is closed: `with Bar(...) as bar`, or `start` and `close`.

    What is logged or printed to the terminal meanwhile stands above it. No thread draws it (processes are forked
    while it is there, and would inherit the thread's locks), so it moves when `advance` is called and not otherwise.

    Args:
        what: is going on.
        total: steps until it is done; 0 shows nothing.
        unit: of the steps, in the plural.
        shown: False shows nothing.
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
        self.task = self.bar.add_task(what, total=total, unit=unit, note="")
        self.drawn = 0.0
        self.streams: list[tuple[logging.StreamHandler, object]] = []  # log handlers, and where they write otherwise

    def __enter__(self) -> Bar:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self, *, done: int = 0) -> None:
        """Shows the bar; so many steps are done already."""
        if not self.shown:
            return
        for handler in logging.getLogger().handlers:  # they hold on to the stream that was there when they were made
            if isinstance(handler, logging.StreamHandler) and handler.stream.isatty():
                self.streams.append((handler, handler.setStream(FileProxy(self.bar.console, handler.stream))))
        self.bar.update(self.task, completed=done)
        self.bar.start()
        self.bar.console.show_cursor(True)  # a run that is killed shall not leave the terminal without one

    @property
    def due(self) -> bool:
        """Whether the next `advance` draws the bar anew: worth a note."""
        return self.shown and time.monotonic() - self.drawn > EVERY

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        """So many steps are done; `note` is a text behind the bar from now on."""
        self.bar.update(self.task, advance=steps, **({} if note is None else {"note": note}))
        if self.due:
            self._draw()

    def note(self, text: str) -> None:
        """Shows a text behind the bar at once."""
        self.bar.update(self.task, note=text)
        self._draw()

    def close(self) -> None:
        """Takes the bar away; the terminal is as before. Closing twice does no harm."""
        if self.shown:
            self.bar.stop()
        for handler, stream in self.streams:
            handler.setStream(stream)
        self.streams.clear()

    def _draw(self) -> None:
        if self.shown:
            self.bar.refresh()
        self.drawn = time.monotonic()
