"""Each parameter of a sweep against what it was searched for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stvid.files import replacing
from stvid.search.space import Choice, Interval
from stvid.search.trials import Trial, ranked

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE_NAME = "summary.png"
PANELS_IN_A_ROW = 3
WIDE = 20  # a range whose ends differ by this factor is shown on a logarithmic scale


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
