"""Charts of a report as SVG; colours and fonts are those of the page.

Every function returns one `<svg role="img">` with a title and a description that states the numbers. The templates are
in `templates/charts`. Positions are in units of the chart; a line of text is 12 units high.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stvid.data.sampling import PLAYBACKS
from stvid.evaluation.text import count, interval, percent
from stvid.report.rendering import environment
from stvid.report.scales import Scale, Tick, limits_around, text_width
from stvid.terminal import visible

FONT = 11
ACCENT, SECOND, MUTED = "var(--accent)", "var(--second)", "var(--muted)"
WIDTH, HEIGHT = 340, 238
TOP, BOTTOM = 38, 34  # space above the axes (title, legend) and below them (numbers, name of the axis)
MAX_NAME_LENGTH = 48  # letters of a run's name below a chart
UNITS = ("", " k", " M", " G", " T", " P", " E")


class Curve(NamedTuple):
    """A column of `metrics.csv`, and its name and style in a chart."""

    column: str
    name: str
    colour: str
    dashes: str


PANELS = {
    "loss": ("Loss", [Curve("train_loss", "train", MUTED, "6 3"), Curve("val_loss", "val", ACCENT, "none")]),
    "accuracy": (
        "Accuracy, %",
        [
            Curve("train_clip_accuracy", "train, clips", MUTED, "6 3"),
            Curve("val_clip_accuracy", "val, clips", SECOND, "8 3 2 3"),
            Curve("val_video_accuracy", "val, videos", ACCENT, "none"),
        ],
    ),
    "lr": ("Learning rate", [Curve("lr", "learning rate", ACCENT, "none")]),
}


def learning_curves(epochs: Sequence[Mapping[str, str]], best: int) -> list[str]:
    """Charts of loss, accuracies and learning rate over the epochs, as far as they are known.

    Args:
        epochs: rows of `metrics.csv`.
        best: epoch of the evaluated checkpoint, from 1; it is marked.
    """
    charts = []
    for name, (title, curves) in PANELS.items():
        scale = 100 if name == "accuracy" else 1
        points = {curve: _finite_points(epochs, curve.column, scale) for curve in curves}
        points = {curve: values for curve, values in points.items() if values}
        if points:
            charts.append(_learning_curve(name, title, points, best, num_epochs=len(epochs), legend=len(curves) > 1))
    return charts


def _finite_points(epochs: Sequence[Mapping[str, str]], column: str, scale: float) -> list[tuple[int, float]]:
    """Epoch and value of every epoch with a finite value."""
    rows = [(int(row["epoch"]), scale * float(row[column])) for row in epochs if row.get(column)]
    return [(epoch, value) for epoch, value in rows if math.isfinite(value)]


def _learning_curve(
    name: str,
    title: str,
    curves: Mapping[Curve, list[tuple[int, float]]],
    best: int,
    *,
    num_epochs: int,
    legend: bool,
) -> str:
    all_points = [point for points in curves.values() for point in points]
    y = Scale(**limits_around(value for _, value in all_points), start=HEIGHT - BOTTOM, end=TOP)
    y_ticks = y.ticks(_label_height)
    first, last = min(epoch for epoch, _ in all_points), max(epoch for epoch, _ in all_points)
    margin = min(0.05 * (last - first), 0.5) or 0.5
    x = Scale(low=first - margin, high=last + margin, start=_axis_start(y_ticks), end=WIDTH - 14)
    descriptions = []
    for curve, points in curves.items():
        value = dict(points).get(best)
        at_best = "" if value is None else f", {value:.4g} in epoch {best}"
        descriptions.append(f"{curve.name}: from {points[0][1]:.4g} to {points[-1][1]:.4g}{at_best}")
    return _svg(
        "curve",
        f"curve-{name}",
        f"{title} by epoch",
        f"{count(num_epochs, 'epoch')}. {'; '.join(descriptions)}.",
        heading=title,
        x=x,
        y=y,
        x_ticks=x.ticks(_label_width, whole=True),
        y_ticks=y_ticks,
        curves=curves,
        best=best if first <= best <= last else None,
        legend=_legend(list(curves), x.start) if legend else [],
    )


def _legend(curves: Sequence[Curve], start: float) -> list[tuple[Curve, float]]:
    """The curves and the horizontal positions of their entries (a dash and the name), side by side."""
    sizes = [26 + text_width(curve.name, 10) + 8 for curve in curves]
    start = min(start, WIDTH - sum(sizes))
    return list(zip(curves, itertools.accumulate(sizes, initial=start), strict=False))


def reliability(result: Mapping) -> str:
    """Reliability diagram: accuracy over confidence, and below it the number of videos in each bin."""
    bins = result["reliability"]
    filled = [row for row in bins if row["num_videos"]]
    x = Scale(low=0, high=100, start=34, end=WIDTH - 12)
    accuracy = Scale(low=0, high=100, start=200, end=TOP)
    number = Scale(low=0, high=1.3 * max(row["num_videos"] for row in filled), start=286, end=228)
    descriptions = (
        f"confidence {interval((row['low'], row['high']))}: {percent(row['accuracy'])} of "
        f"{count(row['num_videos'], 'video')} correct"
        for row in filled
    )
    return _svg(
        "reliability",
        "reliability",
        "Accuracy over confidence",
        f"{'; '.join(descriptions)}.",
        height=286 + BOTTOM,
        x=x,
        accuracy=accuracy,
        number=number,
        x_ticks=x.ticks(_label_width),
        accuracy_ticks=accuracy.ticks(_label_height),
        number_ticks=number.ticks(_label_height, text=_short_count, whole=True),
        bins=filled,
        gap=7 / len(bins),
        short_count=_short_count,
    )


def _short_count(number: float) -> str:
    """A number of videos in at most four characters: `987`, `1.2k`, `12k`."""
    return f"{number:g}" if number < 1000 else f"{number / 1000:.1f}k" if number < 9950 else f"{number / 1000:.0f}k"


class Panel(NamedTuple):
    """A histogram: its name and colour, numbers of videos by bin, and the vertical axis."""

    name: str
    colour: str
    bins: Sequence[int]
    scale: Scale
    ticks: Sequence[Tick]


def unknown_histograms(result: Mapping) -> str:
    """Confidence of the known videos, and below it of the unknown ones, with the threshold."""
    unknown = result["unknown"]
    x = Scale(low=0, high=100, start=34, end=WIDTH - 12)
    panels = []
    for (name, bins), colour, top in zip(unknown["histogram"].items(), (ACCENT, SECOND), (TOP, 164), strict=True):
        scale = Scale(low=0, high=1.1 * max(*bins, 1), start=top + 90, end=top)
        ticks = scale.ticks(_label_height, text=_short_count, whole=True)
        panels.append(Panel(f"{name.capitalize()} videos", colour, bins, scale, ticks))
    low, high = unknown["auroc_ci95"]
    shares = [percent(unknown[f"{name}_at_threshold"]) for name in ("known", "unknown")]
    return _svg(
        "unknown",
        "unknown",
        "Confidence of known and unknown videos",
        f"AUROC {unknown['auroc']:.3f} ({low:.3f} to {high:.3f}); {shares[0]} of the known and {shares[1]} of the "
        "unknown videos reach the threshold.",
        height=254 + BOTTOM,
        x=x,
        x_ticks=x.ticks(_label_width),
        panels=panels,
        threshold=unknown["threshold"],
    )


def audit_bars(result: Mapping) -> str:
    """Video accuracy of each playback with its 95 % interval, and the accuracy of chance."""
    changed = ((name.replace("_", " "), result["audit"][name]) for name in PLAYBACKS[1:])
    metrics_by_name = [("unchanged", result), *changed]
    rows = [(name, metrics["video_accuracy"], metrics["video_accuracy_ci95"]) for name, metrics in metrics_by_name]
    chance, bottom = 1 / len(result["class_names"]), 20 + 30 * len(rows)
    x = Scale(low=0, high=100, start=8 + max(text_width(name, FONT) for name, *_ in rows), end=WIDTH - 12)
    descriptions = (f"{name}: {percent(accuracy)} ({interval(bounds)})" for name, accuracy, bounds in rows)
    return _svg(
        "audit",
        "audit",
        "Video accuracy of each playback",
        f"{'; '.join(descriptions)}; chance: {percent(chance)}.",
        height=bottom + BOTTOM,
        x=x,
        top=20,
        bottom=bottom,
        x_ticks=x.ticks(_label_width),
        rows=rows,
        chance=100 * chance,
    )


class Point(NamedTuple):
    """A model in `accuracy_over_cost`; accuracies are fractions, the cost is positive."""

    name: str
    cost: float
    accuracy: float
    bounds: tuple[float, float]


def accuracy_over_cost(points: Sequence[Point], *, cost: str, chart_id: str) -> str:
    """Video accuracy with its interval over a cost on a logarithmic axis; the numbered models are named below.

    Args:
        points: the models.
        cost: name of the axis, such as `FLOPs per video`.
        chart_id: prefix of the ids in the chart, unique on the page.
    """
    y = Scale(**limits_around(100 * bound for point in points for bound in point.bounds), start=HEIGHT - BOTTOM, end=24)
    y_ticks = y.ticks(_label_height)
    x_limits = limits_around((point.cost for point in points), 0.1, is_log=True)
    x = Scale(**x_limits, start=_axis_start(y_ticks), end=WIDTH - 24)  # half of a label is beyond the last tick
    positions = [(x(point.cost), y(100 * point.accuracy)) for point in points]
    descriptions = (f"{p.name}: {percent(p.accuracy)} ({interval(p.bounds)}) at {p.cost:.3g}" for p in points)
    return _svg(
        "cost",
        chart_id,
        f"Video accuracy over {cost}",
        f"{'; '.join(descriptions)}.",
        height=HEIGHT + 8 + 15 * len(points),
        x=x,
        y=y,
        x_ticks=x.ticks(_label_width, text=_with_unit),
        y_ticks=y_ticks,
        cost=cost,
        points=list(zip(points, positions, _label_positions(positions, x, y), strict=True)),
        names=[(HEIGHT + 16 + 15 * i, _shorten_name(visible(point.name))) for i, point in enumerate(points)],
    )


def _label_positions(positions: Sequence[tuple[float, float]], x: Scale, y: Scale) -> list[tuple[float, float]]:
    """Centres of the numbers beside the points, if possible without covering a point or another number."""
    occupied, centres = list(positions), []
    for i, (left, top) in enumerate(positions, start=1):
        distance = 7 + text_width(str(i), FONT) / 2
        candidates = [(left + dx * distance, top + dy) for dy in (0, -12, 12) for dx in (1, -1)]
        inside = [(cx, cy) for cx, cy in candidates if x.start < cx < x.end and y.end < cy < y.start]
        free = [
            (cx, cy) for cx, cy in inside if all(abs(cx - a) > distance - 1 or abs(cy - b) > 9 for a, b in occupied)
        ]
        centres.append((free or inside or candidates)[0])
        occupied.append(centres[-1])
    return centres


def _with_unit(number: float) -> str:
    """A number with a decimal unit and without trailing zeros: `500 M`."""
    power = min(max(math.floor(math.log10(number) + 1e-9) // 3, 0), len(UNITS) - 1)
    return f"{number / 1000**power:g}{UNITS[power]}"


def _shorten_name(name: str) -> str:
    """The end of a long name, because runs differ at the end."""
    return name if len(name) <= MAX_NAME_LENGTH else f"…{name[1 - MAX_NAME_LENGTH :]}"


def _label_width(label: str) -> float:
    return text_width(label, FONT)


def _label_height(label: str) -> float:
    return 1.6 * FONT


def _axis_start(ticks: Sequence[Tick]) -> float:
    """Left end of the horizontal axis: the labels of the vertical axis are on its left."""
    return 10 + max(text_width(tick.label, FONT) for tick in ticks)


def _svg(template: str, chart_id: str, title: str, description: str, *, height: float = HEIGHT, **content: Any) -> str:
    """Renders one chart.

    Args:
        template: name in `templates/charts`.
        chart_id: letters and dashes, unique on the page.
        title: short text for screen readers.
        description: the numbers of the chart, for screen readers.
        height: of the chart; its width is always 340 units.
        content: variables of the template.
    """
    chart: dict[str, Any] = {"id": chart_id, "title": visible(title), "description": visible(description)}
    chart |= {"width": WIDTH, "height": height, "font": FONT}
    return environment().get_template(f"charts/{template}.svg").render(chart=chart, **content)
