"""A sweep's first steps: is it a new one, or one to go on with, and is it nobody else's."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout
from hydra.core.override_parser.types import Override

from stvid.errors import InputError
from stvid.search.settings import SWEEP_NAME, Settings, merged, read_sweep

log = logging.getLogger(__name__)

LOCK_NAME = ".lock"


def begin(folder: Path, given: Sequence[Override], asked: Settings) -> tuple[list[str], Settings]:
    """The overrides and settings that count: those given, or of a sweep that goes on its own.

    Args:
        folder: of the sweep.
        given: all overrides of the command line but Hydra's own.
        asked: what `sweep` holds on this command line.

    Raises:
        InputError: the folder holds a sweep of other overrides or settings; overrides beside `resume`; a key of
            `sweep` that varies.
    """
    ours = [override for override in given if override.key_or_group.partition(".")[0] == "sweep"]
    for override in ours:
        if override.is_sweep_override():
            raise InputError(f"{override.input_line}: what says how to search cannot vary itself")
    resumed = [override.input_line for override in given if override.key_or_group == "resume"]
    words = [override.input_line for override in given if override not in ours and override.key_or_group != "resume"]
    if not (folder / SWEEP_NAME).is_file():
        if resumed:
            raise InputError(f"{resumed[0]}: no {SWEEP_NAME} there, so it holds no sweep; one run goes on without -m")
        return words, asked
    own, begun = read_sweep(folder)
    if resumed and words:
        raise InputError(f"{resumed[0]} goes on with the sweep's own overrides; leave out {' '.join(words)}")
    if not resumed and words != own:
        raise InputError(
            f"{folder} holds a sweep of other overrides: {' '.join(own)}. "
            f"Go on with it (-m resume={folder}), or name another hydra.sweep.dir"
        )
    named = {override.key_or_group.partition(".")[2] or "method" for override in ours}
    keys = [field.name for field in fields(Settings) if not resumed or field.name in named]
    return own, merged(begun, asked, keys, folder)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps a second process from running the same trials.

    A kill of the first process frees the folder as soon as the processes that it forked have ended too.

    Raises:
        InputError: another process has it.
    """
    lock = FileLock(folder / LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{folder}: another process is running this sweep") from None
    except (OSError, NotImplementedError) as error:  # a file system without locks
        log.warning("%s cannot be locked (%s): see to it that no second process runs this sweep", folder, error)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Makes SIGTERM an orderly exit, in which a launcher takes its processes along."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
