"""How the program ends: errors without a traceback that are no bugs, a closed output, Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from stvid.disks import system_error_text
from stvid.errors import InputError
from stvid.terminal import LogFormatter, visible_lines

MAX_LINES = 1000  # of the log, that are printed with an error


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """Ends the program without a traceback for what is no bug; other errors keep their traceback.

    Exit codes: 2 after an error that the user can fix, whose message is printed on stderr; 130 after Ctrl-C; 1 if the
    reader of the output closed it, as `head` does.
    """
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return
    except InputError as error:
        message = _without_worker(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        if not _is_output_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
        raise SystemExit(1) from None
    except (OSError, RuntimeError) as error:
        found = system_error_text(error)
        if found is None:
            raise
        message = found
    print(visible_lines(f"error: {message}").replace("\n", "\n  "), file=sys.stderr)  # a name cannot forge a line
    raise SystemExit(2)


def _without_worker(message: str) -> str:
    """The message of an error, to which torch adds a traceback if it was raised in a process of a data loader."""
    if not message.startswith("Caught InputError in DataLoader worker process"):
        return message
    return message.rpartition("stvid.errors.InputError: ")[2].rstrip()


def _is_output_closed() -> bool:
    """Whether stdout is a pipe that nobody reads any more: other pipes and sockets may break too."""
    try:
        number = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # a captured output has no file
        return False
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


@contextlib.contextmanager
def logs_printed_with_error() -> Iterator[list[logging.LogRecord]]:
    """Around a check before the work, which logs the same lines again: they are printed if the block raises.

    Yields the list of the lines so far, those of level INFO included, which are not printed. If the work does not
    repeat a part of the check, it logs the lines of that part.
    """
    logger, kept = logging.getLogger("stvid"), _Kept()
    formatter = LogFormatter("%(message)s")
    propagate, logger.propagate = logger.propagate, False
    level, shown = logger.level, logger.getEffectiveLevel()
    logger.setLevel(min(shown, logging.INFO))
    logger.addHandler(kept)
    try:
        yield kept.lines
    except Exception:
        for line in [line for line in kept.lines if line.levelno >= shown][-MAX_LINES:]:
            print(formatter.format(line), file=sys.stderr)
        raise
    finally:
        logger.removeHandler(kept)
        logger.propagate = propagate
        logger.setLevel(level)


class _Kept(logging.Handler):
    """Keeps the lines of a log in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[logging.LogRecord] = []

    def emit(self, line: logging.LogRecord) -> None:
        self.lines.append(line)


class ConsoleHandler(logging.StreamHandler):
    """Log lines on the screen. If the reader closed the output, logging fails like `print`, without a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            raise
        super().handleError(record)


def exit_on_interrupt() -> None:
    """Ctrl-C ends the program at once, until `interrupt_normally`: for the time of imports.

    There is nothing to save yet, and some libraries turn a KeyboardInterrupt while they are imported into an error of
    their own. A program in the background may ignore Ctrl-C, and goes on doing so.
    """
    _replace_handler(signal.default_int_handler, _leave)


def interrupt_normally() -> None:
    """Ctrl-C raises KeyboardInterrupt again."""
    _replace_handler(_leave, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


def _replace_handler(old: object, new: Callable) -> None:
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is old:
        signal.signal(signal.SIGINT, new)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Yields an event that Ctrl-C or SIGTERM sets, for work that only they end. A second Ctrl-C interrupts as usual.

    In another thread than the main one, and for a signal that the program ignores, nothing changes.
    """
    event = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if event.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        event.set()

    previous = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    previous[number] = signal.signal(number, stop)
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Turns SIGTERM into SystemExit, so that `finally` blocks run: they end processes, and remove unfinished files."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
