"""The curves and bars of a report as SVG that takes its colours from the page: `currentColor` and CSS variables.

Every function returns one `<svg role="img">` whose title and description state what it shows, in numbers.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from stvid.cost.table import count_text
from stvid.data.playback import PLAYBACKS
from stvid.evaluation.notation import count, interval, percent, printable

# stand-ins while matplotlib draws -> what the page says
INK, LINE, ACCENT, SECOND, MUTED = "#000001", "#000002", "#000003", "#000004", "#000005"
COLOURS = {
    INK: "currentColor",
    LINE: "var(--line)",
    ACCENT: "var(--accent)",
    SECOND: "var(--second)",
    MUTED: "var(--muted)",
}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "stvid",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "text.parse_math": False,
}
LONGEST_NAME = 24  # letters of a model's name in a chart
SIZE = (4.7, 3.3)  # inches of 72 units


class Curve(NamedTuple):
    """A column of `metrics.csv` and how it is drawn."""

    column: str
    name: str
    colour: str
    dashes: str


PANELS = {
    "loss": ("Loss", [Curve("train_loss", "train", MUTED, "--"), Curve("val_loss", "val", ACCENT, "-")]),
    "accuracy": (
        "Accuracy, %",
        [
            Curve("train_clip_accuracy", "train, clips", MUTED, "--"),
            Curve("val_clip_accuracy", "val, clips", SECOND, "-."),
            Curve("val_video_accuracy", "val, videos", ACCENT, "-"),
        ],
    ),
    "lr": ("Learning rate", [Curve("lr", "learning rate", ACCENT, "-")]),
}


def learning_curves(epochs: Sequence[Mapping[str, str]], best: int) -> list[str]:
    """Loss, accuracies and learning rate over the epochs, a chart of each that is known; the checkpoint's is marked.

    Args:
        epochs: rows of `metrics.csv`.
        best: the epoch whose weights were judged, from 1.
    """
    with matplotlib.rc_context(STYLE):
        return [
            _panel(epochs, best, name, title, curves)
            for name, (title, curves) in PANELS.items()
            if any(row.get(curve.column) for row in epochs for curve in curves)
        ]


def _panel(epochs: Sequence[Mapping[str, str]], best: int, name: str, title: str, curves: Sequence[Curve]) -> str:
    figure, axes = _axes()
    scale = 100 if name == "accuracy" else 1
    said = []
    for curve in curves:
        points = [(int(row["epoch"]), scale * float(row[curve.column])) for row in epochs if row.get(curve.column)]
        if not points:
            continue
        axes.plot(
            *zip(*points, strict=True),
            color=curve.colour,
            linestyle=curve.dashes,
            label=curve.name,
            marker="o" if len(points) == 1 else None,
        )
        at_best = dict(points).get(best)
        if at_best is not None:
            axes.plot([best], [at_best], "o", color=curve.colour, markersize=5)
        there = "" if at_best is None else f", {at_best:.4g} in epoch {best}"
        said.append(f"{curve.name}: from {points[0][1]:.4g} to {points[-1][1]:.4g}{there}")
    axes.axvline(best, color=MUTED, linewidth=1, linestyle=":")
    axes.set(title=title, xlabel="epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(curves) > 1:
        axes.legend()
    return to_svg(figure, f"curve-{name}", f"{title} by epoch", f"{count(len(epochs), 'epoch')}. {'; '.join(said)}.")


def reliability(result: Mapping) -> str:
    """How often answers of each confidence are right, and below, how many of them there are."""
    bins = result["reliability"]
    filled = [one for one in bins if one["num_videos"]]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.9, 4.3), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle="--", label="as sure as right")
        for axes, heights, colour in (
            (above, [100 * one["accuracy"] for one in filled], ACCENT),
            (below, [one["num_videos"] for one in filled], MUTED),
        ):
            places = [50 * (one["low"] + one["high"]) for one in filled]
            width = 100 / len(bins) * 0.86
            axes.bar(places, heights, width=width, color=colour, alpha=0.85, linewidth=0)
        below.bar_label(below.containers[0], fontsize=9, padding=2, color=MUTED)
        above.set(title="Right, % of the answers", xlim=(0, 100), ylim=(0, 100))
        below.set(xlabel="probability of the answer, %", ylabel="videos")
        below.set_ylim(0, 1.35 * max(one["num_videos"] for one in filled))
        below.grid(visible=False)
        above.legend(loc="upper left")
        said = "; ".join(
            f"answers of {interval((one['low'], one['high']))}: {percent(one['accuracy'])} of "
            f"{count(one['num_videos'], 'video')} right"
            for one in filled
        )
        return to_svg(figure, "reliability", "How often answers of each probability are right", f"{said}.")


def audit_bars(result: Mapping) -> str:
    """Video accuracy as the videos are and played otherwise, with 95 % intervals, and what chance would give."""
    found = [("as they are", result), *((name.replace("_", " "), result["audit"][name]) for name in PLAYBACKS[1:])]
    rows = [(name, one["video_accuracy"], one["video_accuracy_ci95"]) for name, one in found]
    chance = 1 / len(result["class_names"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 0.42 * len(rows) + 0.9), layout="constrained")
        axes = figure.subplots()
        places = range(len(rows))[::-1]
        for place, (_, accuracy, (low, high)) in zip(places, rows, strict=True):
            first = place == len(rows) - 1
            axes.barh(place, 100 * accuracy, height=0.56, color=ACCENT if first else MUTED, alpha=1 if first else 0.6)
            axes.plot([100 * low, 100 * high], [place, place], color=INK, linewidth=1.4, marker="|", markersize=7)
        axes.axvline(100 * chance, color=SECOND, linewidth=1.4, linestyle="--")
        axes.text(100 * chance + 1, len(rows) - 0.45, "chance", color=SECOND, fontsize=10, va="bottom")
        axes.set_yticks(list(places), [name for name, *_ in rows])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set(xlim=(0, 100), ylim=(-0.6, len(rows) - 0.1), xlabel="video accuracy, %")
        axes.grid(axis="y", visible=False)
        said = "; ".join(f"{name}: {percent(accuracy)} ({interval(bounds)})" for name, accuracy, bounds in rows)
        return to_svg(
            figure, "audit", "Video accuracy of videos played otherwise", f"{said}; chance: {percent(chance)}."
        )


class Point(NamedTuple):
    """A model in `accuracy_over_cost`: accuracies are fractions, the cost is above 0."""

    name: str
    cost: float
    accuracy: float
    bounds: tuple[float, float]


def accuracy_over_cost(points: Sequence[Point], *, cost: str, identity: str) -> str:
    """Video accuracy with its interval over a cost, on a logarithmic axis; each model by its name.

    Args:
        points: the models.
        cost: what the axis says, such as `FLOPs a video`.
        identity: prefix of the chart's ids, one of its own on a page.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes()
        for index, point in enumerate(sorted(points, key=lambda point: point.cost)):
            low, high = point.bounds
            axes.plot([point.cost] * 2, [100 * low, 100 * high], color=MUTED, linewidth=1.4, marker="_", markersize=7)
            axes.plot([point.cost], [100 * point.accuracy], "o", color=ACCENT, markersize=7)
            above = index % 2 == 0
            axes.annotate(
                _short(printable(point.name)),
                (point.cost, 100 * (high if above else low)),
                xytext=(0, 6 if above else -6),
                textcoords="offset points",
                ha="center",
                va="bottom" if above else "top",
                fontsize=10,
                parse_math=False,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda number, _: count_text(number))
        axes.margins(x=0.25, y=0.2)
        axes.set(title="Video accuracy, %", xlabel=cost)
        said = "; ".join(f"{p.name}: {percent(p.accuracy)} ({interval(p.bounds)}) at {p.cost:.3g}" for p in points)
        return to_svg(figure, identity, f"Video accuracy over {cost}", f"{said}.")


def _short(name: str) -> str:
    """The end of a long name, where runs differ."""
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    return figure, figure.subplots()


def to_svg(figure: Figure, identity: str, title: str, description: str) -> str:
    """The figure as an `<svg>` to stand in a page: the page's colours and font, ids of its own, no date.

    Args:
        figure: drawn with the colours of this module.
        identity: letters and dashes, unlike that of any other chart on the page.
        title: names it for who cannot see it.
        description: its numbers, likewise.
    """
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    box = re.search(r'viewBox="([^"]*)"', text)[1]
    body = re.sub(r"<(metadata|style).*?</\1>", "", text[text.index(">", text.index("<svg")) + 1 :], flags=re.DOTALL)
    body = body.replace("xlink:href", "href")
    body = re.sub(r"\s*font-family:[^;\"]*;?", "", body)
    body = re.sub(r"font: (?:\w+ )*?(\d*bold )?([\d.]+)px [^;\"]*", _font, body)
    body = re.sub(r'\bid="|(?<=href=)"#|url\(#', lambda found: f"{found[0]}{identity}-", body)
    for stand_in, colour in COLOURS.items():
        body = body.replace(stand_in, colour)
    names = f"{identity}-title {identity}-desc"
    return (
        f'<svg class="chart" role="img" viewBox="{box}" aria-labelledby="{names}">'
        f'<title id="{identity}-title">{html.escape(printable(title))}</title>'
        f'<desc id="{identity}-desc">{html.escape(printable(description))}</desc>{body.strip()}'
    )


def _font(found: re.Match) -> str:
    weight = "bold" if "bold" in found[0] or re.search(r"\b[6-9]00\b", found[0]) else "normal"
    return f"font-size: {found[2]}px; font-weight: {weight}"
