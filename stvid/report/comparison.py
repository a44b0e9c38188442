"""A comparison's data as its template takes it."""

from __future__ import annotations

import os

from stvid.cost.report import bytes_text, count_text
from stvid.evaluation import text as notation
from stvid.evaluation.compare import Comparison, Difference, PairedTest
from stvid.evaluation.results import Evaluation
from stvid.evaluation.text import CLEAR
from stvid.report.charts import Point, accuracy_over_cost
from stvid.report.clips import root_of
from stvid.report.rendering import render

SECTIONS = {"result": "Result", "tests": "Tests", "cost": "Cost", "classes": "Classes", "differing": "Differences"}
COSTS = ("parameters", "FLOPs a video", "answer", "training step", "clips/s", "training time", "on")
MOST_DIFFERING = 200  # videos, listed
UNITS = (("hours", 3600), ("minutes", 60))


def comparison_page(comparison: Comparison) -> bytes:
    """The page of several evaluations of the same videos."""
    evaluations = comparison.evaluations
    has_costs = any(one.cost or one.training for one in evaluations)
    sections = [(key, name) for key, name in SECTIONS.items() if key != "cost" or has_costs]
    root = root_of([one.path for one in comparison.differing])
    return render(
        "comparison.html",
        {},
        sections=sections,
        num_clips=0,
        split=comparison.split,
        runs=evaluations,
        num_classes=len(evaluations[0].result["class_names"]),
        num_common=comparison.num_common,
        lead=_lead(comparison),
        common=comparison.common_accuracy if any(comparison.left_out.values()) else {},
        notes=_notes(comparison),
        tests=comparison.tests,
        grouped=any(one.result["num_groups"] for one in evaluations),
        costs=[(one.name, _costs(one)) for one in evaluations] if has_costs else [],
        cost_names=COSTS,
        charts=_charts(evaluations),
        whole_video=any(one.cost["whole_video"] for one in evaluations if one.cost),
        recalls=[
            (name, [one.result["per_class"][name]["recall"] for one in evaluations])
            for name in evaluations[0].result["class_names"]
        ],
        differing=[_difference(one, root) for one in comparison.differing[:MOST_DIFFERING]],
        num_differing=len(comparison.differing),
    )


def _lead(comparison: Comparison) -> str:
    """Which run is the best on the common videos, and whether that could be chance."""
    best, second = sorted(comparison.common_accuracy, key=lambda name: -comparison.common_accuracy[name])[:2]
    pair = {best, second}
    test = next(one for one in comparison.tests if {one.first, one.second} == pair)
    if test.only_first == test.only_second:
        return f"{best} and {second} are right on the same number of videos."
    ahead = f"{best} is ahead of {second} by {100 * abs(test.difference):.1f} points on the same videos"
    return f"{ahead}; that {_verdict(test)} ({notation.p_equals(test.p_corrected)})."


def _verdict(test: PairedTest) -> str:
    return "is hardly chance" if test.p_corrected < CLEAR else "may well be chance"


def _notes(comparison: Comparison) -> list[str]:
    """What makes the runs less comparable than they look."""
    notes = [
        f"{notation.count(number, 'video')} of {name} {'is' if number == 1 else 'are'} not in all others."
        for name, number in comparison.left_out.items()
        if number
    ]
    stored = [one.name for one in comparison.evaluations if one.training and one.training["stored_features"]]
    if stored:
        names = ", ".join(stored)
        notes.append(
            f"Clips a second of {names}: on stored features, without decoding videos; not comparable with others."
        )
    for key, values in comparison.protocols.items():
        shown = (notation.protocol_value(key, value) for value in values)
        told = ", ".join(f"{one.name} {value}" for one, value in zip(comparison.evaluations, shown, strict=True))
        notes.append(f"Judged differently, {key.replace('_', ' ')}: {told}.")
    return notes


def _costs(one: Evaluation) -> list[str]:
    """In the order of `COSTS`."""
    cost, training = one.cost or {}, one.training or {}
    speed, seconds = training.get("clips_per_second"), training.get("training_seconds")
    priced = [notation.NOTHING] * 4
    if cost:
        step = f"{bytes_text(cost['training_bytes'])} ({notation.count(cost['batch_size'], 'clip')})"
        counts = [count_text(cost[key]) for key in ("parameters", "flops_video")]
        priced = [*counts, bytes_text(cost["answer_bytes"]), step]
    return [
        *priced,
        notation.NOTHING if speed is None else f"{speed:.1f}",
        notation.NOTHING if seconds is None else notation.duration(seconds),
        training.get("device") or notation.NOTHING,
    ]


def _charts(evaluations: tuple[Evaluation, ...]) -> list[str]:
    """Accuracy over what is known of at least two runs."""
    known = {
        "FLOPs a video": [(one, one.cost["flops_video"]) for one in evaluations if one.cost],
        "parameters": [(one, one.cost["parameters"]) for one in evaluations if one.cost],
        **_training_times(evaluations),
    }
    drawn = []
    for number, (name, costs) in enumerate(known.items()):
        points = [
            Point(one.name, cost, one.result["video_accuracy"], tuple(one.result["video_accuracy_ci95"]))
            for one, cost in costs
            if cost
        ]
        if len(points) > 1:
            drawn.append(accuracy_over_cost(points, cost=name, identity=f"cost-{number}"))
    return drawn


def _training_times(evaluations: tuple[Evaluation, ...]) -> dict[str, list[tuple[Evaluation, float]]]:
    """In the largest unit of which all have at least two; else in seconds."""
    times = [(one, one.training["training_seconds"]) for one in evaluations if one.training]
    shortest = min((seconds for _, seconds in times), default=0)
    name, size = next(((name, size) for name, size in UNITS if shortest >= 2 * size), ("seconds", 1))
    return {f"{name} of training": [(one, seconds / size) for one, seconds in times]}


def _difference(one: Difference, root: str | None) -> dict:
    name = os.path.relpath(one.path, root) if root else one.path
    return {"name": f"{name}{notation.part(one.start, one.end)}", "truth": one.label, "answers": one.answers}
