"""How a sweep searches, and the file beside its trials that lets it go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import yaml

from stvid.errors import InputError, nearest
from stvid.files import replacing

SWEEP_NAME = "sweep.yaml"
CHOICES = {"method": ("grid", "random", "optuna"), "pruner": ("none", "median", "halving")}
LEAST = {"trials": 1, "parallel": 1, "seed": 0, "startup_trials": 0, "warmup_epochs": 1}
MAY_CHANGE = ("trials", "parallel", "retry_failed")  # when a sweep goes on; the rest would make it another sweep


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
