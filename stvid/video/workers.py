"""Processes files in killable worker processes: a crash or a hang affects only its own file.

`concurrent.futures` does neither: one crash fails all remaining files, and nothing ends a hang.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from stvid.errors import TIMEOUT, UNREADABLE, VideoError

T = TypeVar("T")
_MESSAGES = 10  # progress messages of a worker in the time limit


def map_files(
    function: Callable[[str], T], names: Sequence[str], *, num_workers: int, timeout: float
) -> Generator[tuple[str, T | VideoError], None, None]:
    """Calls `function(name)` for every file; yields (name, result or VideoError) in order of completion.

    A file that crashes its process becomes `VideoError(unreadable)`, one that makes no progress `VideoError(timeout)`.

    Args:
        function: importable by other processes (a module's function or a `functools.partial` of one), with a picklable
            result. It may raise VideoError; any other exception is raised here.
        names: files.
        num_workers: processes; 0 works in this process, where a crash or a hang cannot be survived.
        timeout: seconds without `report_progress`, in which a file must begin, go on and end. A long film may take
            hours.
    """
    if num_workers == 0:
        yield from ((name, _call(function, name)) for name in names)
        return
    remaining = list(reversed(names))
    workers = [_Worker(function, timeout=timeout) for _ in range(min(num_workers, len(names)))]
    try:
        busy = [worker for worker in workers if remaining and worker.start_file(remaining.pop())]
        while busy:
            next_deadline = min(worker.deadline for worker in busy)
            wait([worker.pipe for worker in busy], timeout=max(0.0, next_deadline - time.monotonic()))
            for worker in list(busy):
                # Look at the pipe first, since the caller may have been slow: what has arrived is not late.
                if worker.has_ended() or time.monotonic() >= worker.deadline:
                    name, result = worker.name, worker.finish_file()
                    if isinstance(result, Exception) and not isinstance(result, VideoError):
                        raise result
                    yield name, result
                    busy.remove(worker)
                    if remaining and worker.start_file(remaining.pop()):
                        busy.append(worker)
    finally:
        for worker in workers:
            worker.kill()


def report_progress() -> None:
    """Called for each part of a file that is read: tells those who limit the time for it that work goes on.

    In a process of `map_files`, the time limit of the file starts anew. In a block of `progress_watched`, the block's
    function is called; the error that it raises ends the reading. Otherwise nothing happens.
    """
    if _progress is not None:
        _progress.report()
    if (check := getattr(_thread, "check", None)) is not None:
        check()


@contextmanager
def progress_watched(check: Callable[[], object]) -> Iterator[None]:
    """In this thread, `report_progress` also calls `check`, until the block ends."""
    _thread.check = check
    try:
        yield
    finally:
        _thread.check = None


class _Progress:
    """Sends a message for the many calls in each fraction of the time limit."""

    def __init__(self, pipe: Connection, *, timeout: float) -> None:
        self._pipe, self._interval, self._next = pipe, timeout / _MESSAGES, 0.0

    def report(self) -> None:
        if time.monotonic() >= self._next:
            self._pipe.send(_GOES_ON)
            self._next = time.monotonic() + self._interval


_progress: _Progress | None = None  # of this process, if it is a worker
_thread = threading.local()  # its `check`, see `progress_watched`
_GOES_ON, _ENDED = "goes on", "ended"  # messages of a worker; the result follows the second


class _Worker:
    """One process and the file that it works on."""

    def __init__(self, function: Callable[[str], T], *, timeout: float) -> None:
        self._function, self._timeout = function, timeout
        self._start_process()

    def _start_process(self) -> None:
        self.pipe, child_pipe = multiprocessing.Pipe()
        arguments = (self._function, child_pipe, self._timeout)
        self._process = multiprocessing.Process(target=_run_worker, args=arguments, daemon=True)
        self._process.start()
        child_pipe.close()  # so that the pipe closes when the process ends

    def start_file(self, name: str) -> bool:
        self.name, self._state = name, _GOES_ON
        self.deadline = time.monotonic() + self._timeout
        with suppress(ConnectionError):  # died while idle: finish_file() reports it
            self.pipe.send(name)
        return True

    def has_ended(self) -> bool:
        """Reads the messages that have arrived; True if the file is done, or if the process has died."""
        try:
            while self._state == _GOES_ON and self.pipe.poll():
                self._state = self.pipe.recv()
                self.deadline = time.monotonic() + self._timeout
        except (EOFError, ConnectionError):
            self._state = _ENDED
        return self._state == _ENDED

    def finish_file(self) -> Any:
        if self._state == _ENDED:
            try:
                return self.pipe.recv()
            except (EOFError, ConnectionError):
                self._process.join()
                code = self._process.exitcode
                error = VideoError(self.name, UNREADABLE, f"its decoder crashed: exit code {code}")
        else:
            error = VideoError(self.name, TIMEOUT, f"no new frame for {self._timeout:.3g} s")
        self.kill()
        self._start_process()
        return error

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _run_worker(function: Callable[[str], T], pipe: Connection, timeout: float) -> None:
    global _progress
    _progress = _Progress(pipe, timeout=timeout)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent kills this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_exit_with_parent, args=(multiprocessing.parent_process(),), daemon=True).start()
    call = partial(_call, function)
    with suppress(EOFError):
        while True:
            name = pipe.recv()
            result: T | Exception
            try:
                result = call(name)
            except Exception as error:  # a bug in `function`, not a bad file: the parent raises it
                result = error
            pipe.send(_ENDED)
            pipe.send(result)


def _exit_with_parent(parent: BaseProcess) -> None:
    """Ends this process when its parent ends, also when the parent is killed or a file is in progress."""
    parent.join()
    os._exit(1)


def _call(function: Callable[[str], T], name: str) -> T | VideoError:
    try:
        return function(name)
    except VideoError as error:
        return error
