"""Trials of a sweep: their state (trials.json), the leaderboard (summary.csv) and its picture (summary.png)."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stvid.checks import dict_of, fields, flag, list_of, number, read_json, text
from stvid.errors import InputError, train_command
from stvid.files import replacing, write_json
from stvid.run.folder import RunFolder, display_path
from stvid.run.results import read_run_result
from stvid.sweep.space import Choice, Interval, Space
from stvid.terminal import aligned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULT_KEYS = ("video_accuracy", "clip_accuracy", "mean_class_accuracy", "loss")
RUNNING = "running"
REMEDY = "Start the sweep again in another folder"
TRIAL_KEYS = {
    "number": number(0, whole=True),
    "values": dict_of(text()),
    "status": text(),
    "metrics": dict_of(number()),
    "is_mistake": flag,
}
TRIAL = fields(TRIAL_KEYS)
MAX_CELL_WIDTH = 60  # characters of a cell in the printed table
PANELS_PER_ROW = 3
LOG_SCALE_RATIO = 20  # numbers are drawn on a logarithmic axis if the largest is this many times the smallest


@dataclass(kw_only=True)
class Trial:
    """One run of a sweep.

    Attributes:
        number: from 0; the name of its folder.
        values: override key -> value, written as in an override; the keys that vary.
        status: running, done, stopped early at epoch N, or failed: MESSAGE.
        metrics: `video_accuracy`, in [0, 1], and the other RESULT_KEYS of its result.json.
        is_mistake: it failed by a mistake of the user's.
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

    def finish(self, value: object, *, run: Path, stopped_epoch: int | None) -> None:
        """Records the return value of the training function; anything but a finite number is a failure."""
        if not isinstance(value, int | float) or not math.isfinite(value):
            self.fail(f"the training returned {value!r}, not a finite number")
            return
        self.metrics = {"video_accuracy": float(value), **read_metrics(run)}
        self.status = "done" if stopped_epoch is None else f"stopped early at epoch {stopped_epoch}"
        self.is_mistake = False  # a retry succeeded

    def fail(self, message: str, *, is_mistake: bool = False) -> None:
        self.status, self.is_mistake = f"failed: {message}", is_mistake


def read_metrics(run: Path) -> dict[str, float]:
    """The RESULT_KEYS in a run's result.json; empty if the run is not finished.

    Raises:
        InputError: the file is damaged.
    """
    result = read_run_result(run)
    return {key: result[key] for key in RESULT_KEYS if key in result}


def read_trials(folder: Path, space: Space) -> list[Trial]:
    """The trials of a sweep by number; empty for a new sweep.

    Args:
        folder: of the sweep.
        space: every trial has a value from it for each key that varies.

    Raises:
        InputError: the file is damaged, or was changed so that it holds trials of another sweep.
    """
    file = RunFolder(folder).trials_json
    if not file.exists():
        return []
    content = read_json(file, list_of(TRIAL), remedy=REMEDY)
    trials = [Trial(**{key: values[key] for key in TRIAL_KEYS}) for values in content]
    for place, trial in enumerate(trials):
        if trial.number != place:
            raise InputError(f"{file} is damaged or was changed: trial {trial.number} is at place {place}. {REMEDY}")
        check_values(space, trial.values, where=f"{file}, trial {place}")
    return trials


def check_values(space: Space, values: Mapping[str, str], *, where: str) -> None:
    """Raises InputError for values of a trial that the search space does not have; `where`: for the message."""
    if list(values) != list(space.varied):
        raise InputError(f"{where}: its keys are {list(values)}, those of the sweep {list(space.varied)}. {REMEDY}")
    for key, dimension in space.varied.items():
        if not dimension.contains(values[key]):
            raise InputError(f"{where}: {key}={values[key]} is not among {dimension}. {REMEDY}")


def write_trials(folder: Path, trials: Sequence[Trial]) -> None:
    write_json(RunFolder(folder).trials_json, [asdict(trial) for trial in trials])


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Highest video accuracy first, ties by lower loss; then running trials; failed ones last."""

    def sort_key(trial: Trial) -> tuple:
        metrics = trial.metrics
        return trial.has_failed, -metrics.get("video_accuracy", -1.0), metrics.get("loss", math.inf), trial.number

    return sorted(trials, key=sort_key)


def leaderboard(trials: Sequence[Trial]) -> tuple[list[str], list[dict]]:
    """Column names, and a row for each trial, the best first."""
    varied = list(dict.fromkeys(key for trial in trials for key in trial.values))
    rows = [{"run": t.number, **t.values, **t.metrics, "status": t.status} for t in ranked(trials)]
    return ["run", *varied, *RESULT_KEYS, "status"], rows


def write_summary(folder: Path, trials: Sequence[Trial]) -> None:
    columns, rows = leaderboard(trials)
    with replacing(RunFolder(folder).summary_csv) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def leaderboard_text(trials: Sequence[Trial]) -> str:
    """The leaderboard as aligned text, without empty columns."""
    columns, rows = leaderboard(trials)
    columns = [name for name in columns if any(name in row for row in rows)]
    lines = [columns, *[[_cell_text(row.get(name, "")) for name in columns] for row in rows]]
    return aligned(lines, left=len(columns), drop=("mean_class_accuracy", "clip_accuracy", "loss"))


def summary_text(folder: Path, fixed: Sequence[str], trials: Sequence[Trial], *, with_best: bool) -> str:
    """The leaderboard, the file that holds it, and the best run.

    Args:
        folder: of the sweep.
        fixed: overrides that all trials share.
        trials: at least one.
        with_best: name the best run, and the command that trains it again. False for folds: none is better.
    """
    text = f"\n{leaderboard_text(trials)}\n\nwritten to    {display_path(RunFolder(folder).summary_csv)}"
    best = ranked(trials)[0]
    if not best.metrics or not with_best:
        return text
    best_run = display_path(folder / str(best.number))
    return f"{text}\nbest run      {best_run}\nretrain it    {retrain_command(fixed, best)}"


def retrain_command(fixed: Sequence[str], trial: Trial) -> str:
    """The shell command that trains again with a trial's overrides."""
    return train_command(*fixed, *trial.overrides)


def _cell_text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    text = str(value).partition("\n")[0]
    if re.fullmatch(r"-?\d+\.\d{6,}(e-\d+)?", text):
        return f"{float(text):.4g}"  # drawn from an interval; summary.csv and the retrain command keep all digits
    return _shorten(text, MAX_CELL_WIDTH)


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def draw_summary(trials: Sequence[Trial], varied: Mapping[str, Choice | Interval], path: Path) -> None:
    """Draws a panel for each key that varies: value against video accuracy, a point for each trial with a result."""
    from matplotlib.figure import Figure  # without pyplot, which would look for a window system

    finished = [trial for trial in ranked(trials) if trial.metrics]
    columns = min(PANELS_PER_ROW, len(varied))
    rows = -(-len(varied) // columns)
    figure = Figure(figsize=(4 * columns, 3.4 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (key, dimension) in zip(panels, varied.items(), strict=False):
        _draw_panel(axes, key, dimension, finished)
    for axes in panels[len(varied) :]:
        axes.set_visible(False)
    for axes in panels[: len(varied) : columns]:
        axes.set_ylabel("video accuracy on val")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def _draw_panel(axes: Axes, key: str, dimension: Choice | Interval, finished: Sequence[Trial]) -> None:
    """Filled points: trained to the end; hollow points: stopped early; star: the best."""
    positions = _x_positions(axes, dimension, [trial.values[key] for trial in finished])
    points = [
        (x, trial.metrics["video_accuracy"], trial.status == "done")
        for x, trial in zip(positions, finished, strict=True)
    ]
    for is_done, label, face in ((True, "done", "tab:blue"), (False, "stopped early", "none")):
        selected = [(x, y) for x, y, done in points if done is is_done]
        if selected:
            axes.scatter(*zip(*selected, strict=True), facecolors=face, edgecolors="tab:blue", alpha=0.7, label=label)
    axes.scatter(*points[0][:2], marker="*", s=160, color="tab:orange", edgecolors="black", label="best")
    axes.set_xlabel(key.lstrip("+"))
    axes.grid(alpha=0.3)


def _x_positions(axes: Axes, dimension: Choice | Interval, texts: Sequence[str]) -> list[float]:
    """Numbers are drawn at their value, other values side by side with their names."""
    listed = dimension.values if isinstance(dimension, Choice) else (dimension.low, dimension.high)
    try:
        numbers = [float(value) for value in listed]
    except ValueError:
        axes.set_xticks(range(len(listed)), [_shorten(str(value), 16) for value in listed])
        axes.set_xlim(-0.5, len(listed) - 0.5)
        return [float(listed.index(text)) for text in texts]
    is_log = dimension.log if isinstance(dimension, Interval) else max(numbers) >= LOG_SCALE_RATIO * min(numbers)
    if is_log and min(numbers) > 0:
        from matplotlib.ticker import NullFormatter

        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    return [float(text) for text in texts]
