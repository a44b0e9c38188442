"""Work on one file after the other in processes that can be killed: a crash or a hang costs its own file alone.

`concurrent.futures` can do neither: there one crash fails every file still to come, and nothing ends a hang.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import TypeVar

from stvid.errors import TIMEOUT, UNREADABLE, VideoError
from stvid.video.types import identity

T = TypeVar("T")
_MEGABYTES_A_SECOND = 1  # what the slowest machine decodes; a long film is no hang


def each_file(
    work: Callable[[str], T], names: Sequence[str], *, num_workers: int, timeout: float
) -> Iterator[tuple[str, T | VideoError]]:
    """Calls `work(name)` for every file; yields (name, result or VideoError) in the order in which they are found.

    A file that crashes its process becomes `VideoError(unreadable)`, one that takes too long `VideoError(timeout)`.

    Args:
        work: a function of a module (or a `functools.partial` of one), which other processes can import; its result
            must survive pickling. It may raise VideoError; any other exception is raised here.
        names: files.
        num_workers: processes; 0 works in this one, where neither a crash nor a hang can be survived.
        timeout: seconds that one file may take, and one more for each megabyte it has.
    """
    if num_workers == 0:
        yield from ((name, _outcome(work, name)) for name in names)
        return
    waiting = list(reversed(names))
    workers = [_Worker(work, timeout=timeout) for _ in range(min(num_workers, len(names)))]
    try:
        busy = [worker for worker in workers if waiting and worker.begin(waiting.pop())]
        while busy:
            soonest = min(worker.deadline for worker in busy)
            wait([worker.pipe for worker in busy], timeout=max(0.0, soonest - time.monotonic()))
            for worker in list(busy):
                # Asked anew, since the caller may have kept us waiting: an answer that lies there is not late.
                answered = worker.pipe.poll()
                if answered or time.monotonic() >= worker.deadline:
                    name, result = worker.name, worker.end(answered=answered)
                    if isinstance(result, Exception) and not isinstance(result, VideoError):
                        raise result
                    yield name, result
                    busy.remove(worker)
                    if waiting and worker.begin(waiting.pop()):
                        busy.append(worker)
    finally:
        for worker in workers:
            worker.kill()


class _Worker:
    """One process, and the file that it has at hand."""

    def __init__(self, work: Callable[[str], T], *, timeout: float) -> None:
        self._work, self._timeout = work, timeout
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.Process(target=_serve, args=(self._work, theirs), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process is the end of the pipe

    def begin(self, name: str) -> bool:
        self.name, self.limit = name, self._timeout + _megabytes(name) / _MEGABYTES_A_SECOND
        self.deadline = time.monotonic() + self.limit
        with suppress(ConnectionError):  # died while idle: end() will find out
            self.pipe.send(name)
        return True

    def end(self, *, answered: bool):
        if answered:
            try:
                return self.pipe.recv()
            except (EOFError, ConnectionError):
                self._process.join()
                code = self._process.exitcode
                error = VideoError(self.name, UNREADABLE, f"its decoder crashed: exit code {code}")
        else:
            error = VideoError(self.name, TIMEOUT, f"not done within {self.limit:.3g} s")
        self.kill()
        self._start()
        return error

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _megabytes(name: str) -> float:
    with suppress(OSError):
        return identity(name)[0] / 1e6
    return 0.0


def _serve(work: Callable[[str], T], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which kills us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    outcome = partial(_outcome, work)
    with suppress(EOFError):
        while True:
            name = pipe.recv()
            try:
                result = outcome(name)
            except Exception as error:  # a mistake in `work`, not in the file: the parent raises it
                result = error
            pipe.send(result)


def _end_with(parent) -> None:
    """Ends this process when its parent has ended, be it by a kill: also in the midst of a file."""
    parent.join()
    os._exit(1)


def _outcome(work: Callable[[str], T], name: str) -> T | VideoError:
    try:
        return work(name)
    except VideoError as error:
        return error
