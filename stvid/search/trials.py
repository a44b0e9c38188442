"""What became of each trial, and the file that keeps it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stvid.files import write_json

TRIALS_NAME = "trials.json"
RESULT_NAME = "result.json"
RESULT_KEYS = ("video_accuracy", "clip_accuracy", "mean_class_accuracy", "loss")
RUNNING = "running"


@dataclass(kw_only=True)
class Trial:
    """One run of a sweep.

    Attributes:
        number: from 0; its folder bears it.
        values: override key -> value as the override writes it; of what varies.
        status: running, done, stopped early at epoch N, or failed: MESSAGE.
        metrics: `video_accuracy`, in [0, 1], and what else of RESULT_KEYS its result.json holds.
        is_mistake: failed, and for the user to mend.
    """

    number: int
    values: dict[str, str]
    status: str = RUNNING
    metrics: dict[str, float] = field(default_factory=dict)
    is_mistake: bool = False

    @property
    def overrides(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.values.items()]

    @property
    def has_failed(self) -> bool:
        return self.status.startswith("failed")

    @property
    def message(self) -> str:
        """Why it failed."""
        return self.status.removeprefix("failed: ")

    def end(self, value: object, *, run: Path, stopped_at: int | None) -> None:
        """Takes note of what the training returned; anything but a number is a failure."""
        if not isinstance(value, int | float) or not math.isfinite(value):
            self.fail(f"the training returned {value!r}, no number")
            return
        self.metrics = {"video_accuracy": float(value), **result_of(run)}
        self.status = "done" if stopped_at is None else f"stopped early at epoch {stopped_at}"
        self.is_mistake = False  # not any more, where it was tried again

    def fail(self, message: str, *, is_mistake: bool = False) -> None:
        self.status, self.is_mistake = f"failed: {message}", is_mistake


def result_of(run: Path) -> dict[str, float]:
    """The numbers of a finished run; none of one that is not."""
    file = run / RESULT_NAME
    if not file.is_file():
        return {}
    result = json.loads(file.read_text(encoding="utf-8"))
    return {key: result[key] for key in RESULT_KEYS if key in result}


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Best video accuracy first, of equal ones that of the lower loss; then those that run, the failed ones last."""

    def place(trial: Trial) -> tuple:
        metrics = trial.metrics
        return trial.has_failed, -metrics.get("video_accuracy", -1.0), metrics.get("loss", math.inf), trial.number

    return sorted(trials, key=place)


def read_trials(folder: Path) -> list[Trial]:
    """The trials of a sweep by number; none where it has not begun."""
    file = folder / TRIALS_NAME
    return [Trial(**each) for each in json.loads(file.read_text(encoding="utf-8"))] if file.is_file() else []


def write_trials(folder: Path, trials: Sequence[Trial]) -> None:
    write_json(folder / TRIALS_NAME, [asdict(trial) for trial in trials])
