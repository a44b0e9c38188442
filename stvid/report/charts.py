"""The curves and bars of a report as SVG that takes its colours and its font from the page.

Every function returns one `<svg role="img">` whose title and description state what it shows, in numbers. What is drawn
stands in the templates in `page/templates/charts`; places are in units of the picture, 12 of which are a line of text.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stvid.data.sampling import PLAYBACKS
from stvid.evaluation.text import count, interval, percent, printable
from stvid.report.rendering import environment
from stvid.report.scales import Scale, Tick, limits_around, text_width

FONT = 11
ACCENT, SECOND, MUTED = "var(--accent)", "var(--second)", "var(--muted)"
WIDTH, HEIGHT = 340, 238
TOP, BOTTOM = 38, 34  # above the axes: title and legend; below: numbers and name of the axis
MAX_NAME_LENGTH = 48  # letters of a run's name below a chart
UNITS = ("", " k", " M", " G", " T", " P", " E")


class Curve(NamedTuple):
    """A column of `metrics.csv` and how it is drawn."""

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
    """Loss, accuracies and learning rate over the epochs, a chart of each that is known; the checkpoint's is marked.

    Args:
        epochs: rows of `metrics.csv`.
        best: the epoch whose weights were judged, from 1.
    """
    charts = []
    for name, (title, curves) in PANELS.items():
        scale = 100 if name == "accuracy" else 1
        points = {curve: _finite_points(epochs, curve.column, scale) for curve in curves}
        if drawn := {curve: found for curve, found in points.items() if found}:
            charts.append(_learning_curve(name, title, drawn, best, num_epochs=len(epochs), legend=len(curves) > 1))
    return charts


def _finite_points(epochs: Sequence[Mapping[str, str]], column: str, scale: float) -> list[tuple[int, float]]:
    """Epoch and value, where there is a finite one."""
    rows = [(int(row["epoch"]), scale * float(row[column])) for row in epochs if row.get(column)]
    return [(epoch, value) for epoch, value in rows if math.isfinite(value)]


def _learning_curve(
    name: str,
    title: str,
    points: Mapping[Curve, list[tuple[int, float]]],
    best: int,
    *,
    num_epochs: int,
    legend: bool,
) -> str:
    everything = [point for found in points.values() for point in found]
    y = Scale(**limits_around(value for _, value in everything), start=HEIGHT - BOTTOM, end=TOP)
    y_ticks = y.ticks(_label_height)
    first, last = min(epoch for epoch, _ in everything), max(epoch for epoch, _ in everything)
    room = min(0.05 * (last - first), 0.5) or 0.5
    x = Scale(low=first - room, high=last + room, start=_axis_start(y_ticks), end=WIDTH - 14)
    said = []
    for curve, found in points.items():
        at_best = dict(found).get(best)
        there = "" if at_best is None else f", {at_best:.4g} in epoch {best}"
        said.append(f"{curve.name}: from {found[0][1]:.4g} to {found[-1][1]:.4g}{there}")
    return _svg(
        "curve",
        f"curve-{name}",
        f"{title} by epoch",
        f"{count(num_epochs, 'epoch')}. {'; '.join(said)}.",
        heading=title,
        x=x,
        y=y,
        x_ticks=x.ticks(_label_width, whole=True),
        y_ticks=y_ticks,
        curves=points,
        best=best if first <= best <= last else None,
        legend=_legend(points, x.start) if legend else [],
    )


def _legend(curves: Sequence[Curve], start: float) -> list[tuple[Curve, float]]:
    """Curves and the places where their entries begin, one behind the other: a dash, then the name."""
    sizes = [26 + text_width(curve.name, 10) + 8 for curve in curves]
    start = min(start, WIDTH - sum(sizes))
    return list(zip(curves, itertools.accumulate(sizes, initial=start), strict=False))


def reliability(result: Mapping) -> str:
    """How often answers of each confidence are right, and below, how many of them there are."""
    bins = result["reliability"]
    filled = [one for one in bins if one["num_videos"]]
    x = Scale(low=0, high=100, start=34, end=WIDTH - 12)
    right = Scale(low=0, high=100, start=200, end=TOP)
    number = Scale(low=0, high=1.3 * max(one["num_videos"] for one in filled), start=286, end=228)
    said = "; ".join(
        f"answers of {interval((one['low'], one['high']))}: {percent(one['accuracy'])} of "
        f"{count(one['num_videos'], 'video')} right"
        for one in filled
    )
    return _svg(
        "reliability",
        "reliability",
        "How often answers of each probability are right",
        f"{said}.",
        height=286 + BOTTOM,
        x=x,
        right=right,
        number=number,
        x_ticks=x.ticks(_label_width),
        right_ticks=right.ticks(_label_height),
        number_ticks=number.ticks(_label_height, text=_short_count, whole=True),
        bins=filled,
        gap=7 / len(bins),
        brief=_short_count,
    )


def _short_count(number: float) -> str:
    """At most four letters of a number of videos: `987`, `1.2k`, `12k`."""
    return f"{number:g}" if number < 1000 else f"{number / 1000:.1f}k" if number < 9950 else f"{number / 1000:.0f}k"


def audit_bars(result: Mapping) -> str:
    """Video accuracy as the videos are and played otherwise, with 95 % intervals, and what chance would give."""
    found = [("as they are", result), *((name.replace("_", " "), result["audit"][name]) for name in PLAYBACKS[1:])]
    rows = [(name, one["video_accuracy"], one["video_accuracy_ci95"]) for name, one in found]
    chance, bottom = 1 / len(result["class_names"]), 20 + 30 * len(rows)
    x = Scale(low=0, high=100, start=8 + max(text_width(name, FONT) for name, *_ in rows), end=WIDTH - 12)
    said = "; ".join(f"{name}: {percent(accuracy)} ({interval(bounds)})" for name, accuracy, bounds in rows)
    return _svg(
        "audit",
        "audit",
        "Video accuracy of videos played otherwise",
        f"{said}; chance: {percent(chance)}.",
        height=bottom + BOTTOM,
        x=x,
        top=20,
        bottom=bottom,
        x_ticks=x.ticks(_label_width),
        rows=rows,
        chance=100 * chance,
    )


class Point(NamedTuple):
    """A model in `accuracy_over_cost`: accuracies are fractions, the cost is above 0."""

    name: str
    cost: float
    accuracy: float
    bounds: tuple[float, float]


def accuracy_over_cost(points: Sequence[Point], *, cost: str, identity: str) -> str:
    """Video accuracy with its interval over a cost, on a logarithmic axis; models are numbered, names stand below.

    Args:
        points: the models.
        cost: what the axis says, such as `FLOPs a video`.
        identity: prefix of the chart's ids, one of its own on a page.
    """
    y = Scale(**limits_around(100 * bound for point in points for bound in point.bounds), start=HEIGHT - BOTTOM, end=24)
    y_ticks = y.ticks(_label_height)
    x = Scale(**limits_around((point.cost for point in points), 0.1, is_log=True), start=_axis_start(y_ticks), end=WIDTH - 12)
    places = [(x(point.cost), y(100 * point.accuracy)) for point in points]
    said = "; ".join(f"{p.name}: {percent(p.accuracy)} ({interval(p.bounds)}) at {p.cost:.3g}" for p in points)
    return _svg(
        "cost",
        identity,
        f"Video accuracy over {cost}",
        f"{said}.",
        height=HEIGHT + 8 + 15 * len(points),
        x=x,
        y=y,
        x_ticks=x.ticks(_label_width, text=_with_unit),
        y_ticks=y_ticks,
        cost=cost,
        points=list(zip(points, places, _label_positions(places, x, y), strict=True)),
        names=[(HEIGHT + 16 + 15 * i, _shorten_name(printable(point.name))) for i, point in enumerate(points)],
    )


def _label_positions(places: Sequence[tuple[float, float]], x: Scale, y: Scale) -> list[tuple[float, float]]:
    """Middles of the numbers beside the points: each where it covers no point and no other number, if that can be."""
    taken, chosen = list(places), []
    for i, (left, top) in enumerate(places, start=1):
        aside = 7 + text_width(str(i), FONT) / 2
        choices = [(left + dx * aside, top + dy) for dy in (0, -12, 12) for dx in (1, -1)]
        inside = [one for one in choices if x.start < one[0] < x.end and y.end < one[1] < y.start]
        free = [one for one in inside if all(abs(one[0] - a) > aside - 1 or abs(one[1] - b) > 9 for a, b in taken)]
        chosen.append((free or inside or choices)[0])
        taken.append(chosen[-1])
    return chosen


def _with_unit(number: float) -> str:
    """`500 M`, without digits that say nothing."""
    power = min(max(math.floor(math.log10(number) + 1e-9) // 3, 0), len(UNITS) - 1)
    return f"{number / 1000**power:g}{UNITS[power]}"


def _shorten_name(name: str) -> str:
    """The end of a long name, where runs differ."""
    return name if len(name) <= MAX_NAME_LENGTH else f"…{name[1 - MAX_NAME_LENGTH :]}"


def _label_width(label: str) -> float:
    return text_width(label, FONT)


def _label_height(label: str) -> float:
    return 1.6 * FONT


def _axis_start(ticks: Sequence[Tick]) -> float:
    """Where axes begin whose numbers stand at the left of them."""
    return 10 + max(text_width(tick.label, FONT) for tick in ticks)


def _svg(template: str, identity: str, title: str, description: str, *, height: float = HEIGHT, **content) -> str:
    """One chart.

    Args:
        template: of `page/templates/charts`.
        identity: letters and dashes, unlike that of any other chart on the page.
        title: names it for who cannot see it.
        description: its numbers, likewise.
        height: of the picture, which is 340 units wide.
        content: what the template asks for.
    """
    chart = {"id": identity, "title": printable(title), "description": printable(description)}
    chart |= {"width": WIDTH, "height": height, "font": FONT}
    return environment().get_template(f"charts/{template}.svg").render(chart=chart, **content)
