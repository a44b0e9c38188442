"""Settings of a sweep, the file that keeps them, and the lock that keeps a second sweep out."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import FrameType

import yaml
from filelock import FileLock, Timeout
from hydra.core.override_parser.types import Override

from stvid.errors import InputError, nearest
from stvid.files import replacing

log = logging.getLogger(__name__)
LOCK_NAME = ".lock"
SWEEP_NAME = "sweep.yaml"
CHOICES = {"method": ("grid", "random", "optuna"), "pruner": ("none", "median", "halving")}
LEAST = {"trials": 1, "parallel": 1, "seed": 0, "startup_trials": 0, "warmup_epochs": 1}
MAY_CHANGE = ("trials", "parallel", "retry_failed")  # when a sweep goes on; the rest would make it another sweep


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


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The keys below `sweep`.

    Attributes:
        method: grid (every combination), random, or optuna (TPE: learns from the trials so far).
        trials: how many in all, at least 1; None: every one of a grid.
        parallel: trials handed to the launcher at once, at least 1.
        seed: of what is drawn; at least 0.
        pruner: none, median or halving: when a trial is stopped early. Not for a grid.
        startup_trials: drawn at random and never stopped early, for the others to be judged by; at least 0.
        warmup_epochs: epochs every trial gets before it is judged, at least 1.
        retry_failed: run the failed trials of a grid again.

    Raises:
        InputError: a value out of its range, with the values there are.
    """

    method: str = "grid"
    trials: int | None = None
    parallel: int = 1
    seed: int = 0
    pruner: str = "none"
    startup_trials: int = 5
    warmup_epochs: int = 3
    retry_failed: bool = False

    def __post_init__(self) -> None:
        for key, choices in CHOICES.items():
            if getattr(self, key) not in choices:
                raise InputError(f"sweep.{key} (={getattr(self, key)}) must be one of {', '.join(choices)}")
        for key, least in LEAST.items():
            value = getattr(self, key)
            if key == "trials" and value is None and self.method == "grid":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"sweep.{key} (={value}) must be a whole number, at least {least}")
        if not isinstance(self.retry_failed, bool):
            raise InputError(f"sweep.retry_failed (={self.retry_failed}) must be true or false")
        if self.method == "grid" and self.pruner != "none":
            choices = ", ".join(name for name in CHOICES["method"] if name != "grid")
            raise InputError(f"sweep.pruner (={self.pruner}): a grid runs all it lists; sweep={choices} can stop early")
        if self.method != "grid" and self.retry_failed:
            raise InputError("sweep.retry_failed is for a grid; elsewhere a higher sweep.trials makes up for failures")


def read_settings(values: Mapping[str, object]) -> Settings:
    """Raises InputError for a key that is none, or a value out of its range."""
    known = [field.name for field in fields(Settings)]
    for key in values:
        if key not in known:
            raise InputError(f"unknown config key sweep.{key}{nearest(str(key), known)}")
    return Settings(**values)


def merged(begun: Settings, asked: Settings, keys: Sequence[str], folder: Path) -> Settings:
    """The settings of a sweep that goes on: those it was begun with, and of `keys` what may change as asked now.

    Raises:
        InputError: one of `keys` may not change, and would.
    """
    for key in keys:
        then, now = getattr(begun, key), getattr(asked, key)
        if key not in MAY_CHANGE and then != now:
            raise InputError(
                f"sweep.{key} (={now}): {folder} holds a sweep begun with {then}. "
                f"Leave it out, or name another hydra.sweep.dir. What may change: {', '.join(MAY_CHANGE)}"
            )
    return replace(begun, **{key: getattr(asked, key) for key in keys if key in MAY_CHANGE})


def read_sweep(folder: Path) -> tuple[list[str], Settings]:
    """Overrides and settings of the sweep in a folder."""
    stored = yaml.safe_load((folder / SWEEP_NAME).read_text(encoding="utf-8"))
    return stored["overrides"], read_settings(stored["settings"])


def write_sweep(folder: Path, overrides: Sequence[str], settings: Settings) -> None:
    """What `read_sweep` reads; that failed trials are to run again holds for one time only."""
    stored = {"overrides": list(overrides), "settings": asdict(replace(settings, retry_failed=False))}
    with replacing(folder / SWEEP_NAME) as partial:
        partial.write_text(yaml.safe_dump(stored, sort_keys=False, allow_unicode=True), encoding="utf-8")
