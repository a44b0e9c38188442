"""Trials of a sweep: their state and file, the leaderboard, summary.csv and summary.png."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stvid.errors import train_command
from stvid.files import replacing
from stvid.run.folder import display_path
from stvid.sweep.space import Choice, Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
import json
import math
from dataclasses import asdict, dataclass, field

from stvid.files import write_json

SUMMARY_NAME = "summary.csv"
LONGEST = 60  # characters of a cell on the screen
PICTURE_NAME = "summary.png"
PANELS_IN_A_ROW = 3
WIDE = 20  # a range whose ends differ by this factor is shown on a logarithmic scale
TRIALS_NAME = "trials.json"
RESULT_NAME = "result.json"
RESULT_KEYS = ("video_accuracy", "clip_accuracy", "mean_class_accuracy", "loss")
RUNNING = "running"


def columns_and_rows(trials: Sequence[Trial]) -> tuple[list[str], list[dict]]:
    """A row for each trial, the best first, failed ones last."""
    varied = list(dict.fromkeys(key for trial in trials for key in trial.values))
    rows = [{"run": t.number, **t.values, **t.metrics, "status": t.status} for t in ranked(trials)]
    return ["run", *varied, *RESULT_KEYS, "status"], rows


def write_summary(folder: Path, trials: Sequence[Trial]) -> None:
    columns, rows = columns_and_rows(trials)
    with replacing(folder / SUMMARY_NAME) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def table(trials: Sequence[Trial]) -> str:
    """The same as aligned text, without columns that no trial fills."""
    columns, rows = columns_and_rows(trials)
    columns = [name for name in columns if any(name in row for row in rows)]
    lines = [columns, *[[_shown(row.get(name, "")) for name in columns] for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def retrain_command(fixed: Sequence[str], trial: Trial) -> str:
    """What to type, in a shell, to train with a trial's overrides once more."""
    return train_command(*fixed, *trial.overrides)


def closing_words(folder: Path, fixed: Sequence[str], trials: Sequence[Trial], *, with_best: bool) -> str:
    """The table, where it is kept, and what to do with the best (not of folds, among which nobody chooses)."""
    words = f"\n{table(trials)}\n\nwritten to    {display_path(folder / SUMMARY_NAME)}"
    best = ranked(trials)[0]
    if not best.metrics or not with_best:
        return words
    best_run = display_path(folder / str(best.number))
    return f"{words}\nthe best      {best_run}\nretrain it    {retrain_command(fixed, best)}"


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    text = str(value).partition("\n")[0]
    if re.fullmatch(r"-?\d+\.\d{6,}(e-\d+)?", text):
        return f"{float(text):.4g}"  # drawn from an interval; the file and the command have all digits
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def draw(trials: Sequence[Trial], varied: Mapping[str, Choice | Interval], path: Path) -> None:
    """Draws a panel for each parameter that varies, a point for each trial with a result."""
    from matplotlib.figure import Figure  # without pyplot, so that no window system is asked for

    judged = [trial for trial in ranked(trials) if trial.metrics]
    columns = min(PANELS_IN_A_ROW, len(varied))
    rows = -(-len(varied) // columns)
    figure = Figure(figsize=(4 * columns, 3.4 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (key, dimension) in zip(panels, varied.items(), strict=False):
        _panel(axes, key, dimension, judged)
    for axes in panels[len(varied) :]:
        axes.set_visible(False)
    for axes in panels[: len(varied) : columns]:
        axes.set_ylabel("video accuracy on val")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def _panel(axes: Axes, key: str, dimension: Choice | Interval, judged: Sequence[Trial]) -> None:
    """Filled points went to their end, hollow ones were stopped early; the star is the best."""
    at = _positions(axes, dimension, [trial.values[key] for trial in judged])
    values = [trial.metrics["video_accuracy"] for trial in judged]
    done = [trial.status == "done" for trial in judged]
    for wanted, label, face in ((True, "done", "tab:blue"), (False, "stopped early", "none")):
        x = [place for place, ended in zip(at, done, strict=True) if ended is wanted]
        y = [value for value, ended in zip(values, done, strict=True) if ended is wanted]
        if x:
            axes.scatter(x, y, facecolors=face, edgecolors="tab:blue", alpha=0.7, label=label)
    axes.scatter(at[:1], values[:1], marker="*", s=160, color="tab:orange", edgecolors="black", label="best")
    axes.set_xlabel(key.lstrip("+"))
    axes.grid(alpha=0.3)


def _positions(axes: Axes, dimension: Choice | Interval, texts: Sequence[str]) -> list[float]:
    """Where each value lies on the axis: numbers as such, all else side by side with its name."""
    listed = dimension.values if isinstance(dimension, Choice) else (dimension.low, dimension.high)
    try:
        numbers = [float(value) for value in listed]
    except ValueError:
        axes.set_xticks(range(len(listed)), [_short(str(value)) for value in listed])
        axes.set_xlim(-0.5, len(listed) - 0.5)
        return [float(listed.index(text)) for text in texts]
    is_log = dimension.log if isinstance(dimension, Interval) else max(numbers) >= WIDE * min(numbers)
    if is_log and min(numbers) > 0:
        from matplotlib.ticker import NullFormatter

        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    return [float(text) for text in texts]


def _short(name: str) -> str:
    return name if len(name) <= 16 else name[:14] + "..."


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
