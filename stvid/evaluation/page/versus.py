"""A comparison's data as its template takes it."""

from __future__ import annotations

import os

from stvid.cost.table import bytes_text, count_text
from stvid.evaluation.charts import Point, accuracy_over_cost
from stvid.evaluation.compare import Comparison, Difference, PairedTest
from stvid.evaluation.judged import Judged
from stvid.evaluation.page import words
from stvid.evaluation.page.clips import root_of
from stvid.evaluation.page.rendering import render

SECTIONS = {"result": "Result", "tests": "Tests", "cost": "Cost", "classes": "Classes", "differing": "Differences"}
COSTS = ("parameters", "FLOPs a video", "answer", "training step", "clips/s", "training time", "on")
MOST_DIFFERING = 200  # videos, listed
CLEAR = 0.05  # p, below which a difference is called unlikely to be chance


def comparison_page(comparison: Comparison) -> bytes:
    """The page of several evaluations of the same videos."""
    judged = comparison.judged
    has_costs = any(one.cost or one.training for one in judged)
    sections = [(key, name) for key, name in SECTIONS.items() if key != "cost" or has_costs]
    root = root_of([one.path for one in comparison.differing])
    return render(
        "comparison.html",
        {},
        sections=sections,
        num_clips=0,
        split=comparison.split,
        runs=judged,
        num_classes=len(judged[0].result["class_names"]),
        num_common=comparison.num_common,
        lead=_lead(comparison),
        notes=_notes(comparison),
        tests=comparison.tests,
        grouped=any(one.result.get("num_groups") for one in judged),
        costs=[(one.name, _costs(one)) for one in judged] if has_costs else [],
        cost_names=COSTS,
        charts=_charts(judged),
        whole_video=any(one.cost["whole_video"] for one in judged if one.cost),
        recalls=[
            (name, [one.result["per_class"][name]["recall"] for one in judged])
            for name in judged[0].result["class_names"]
        ],
        differing=[_difference(one, root) for one in comparison.differing[:MOST_DIFFERING]],
        num_differing=len(comparison.differing),
    )


def _lead(comparison: Comparison) -> str:
    """Which run is the best, and whether that could be chance."""
    ranked = sorted(comparison.judged, key=lambda one: -one.result["video_accuracy"])
    best, second = ranked[:2]
    pair = {best.name, second.name}
    test = next(one for one in comparison.tests if {one.first, one.second} == pair)
    if test.only_first == test.only_second:
        return f"{best.name} and {second.name} are right on the same number of videos."
    better = test.first if test.difference > 0 else test.second
    other = (pair - {better}).pop()
    ahead = f"{better} is ahead of {other} by {100 * abs(test.difference):.1f} points on the same videos"
    return f"{ahead}; that {_verdict(test)} (p {words.p_value(test.p_corrected)})."


def _verdict(test: PairedTest) -> str:
    return "is hardly chance" if test.p_corrected < CLEAR else "may well be chance"


def _notes(comparison: Comparison) -> list[str]:
    """What makes the runs less comparable than they look."""
    notes = [
        f"{words.count(number, 'video')} of {name} {'is' if number == 1 else 'are'} not in all others."
        for name, number in comparison.left_out.items()
        if number
    ]
    for key, values in comparison.protocols.items():
        told = ", ".join(f"{one.name} {value}" for one, value in zip(comparison.judged, values, strict=True))
        notes.append(f"Judged differently, {key.replace('_', ' ')}: {told}.")
    return notes


def _costs(one: Judged) -> list[str]:
    """In the order of `COSTS`."""
    cost, training = one.cost or {}, one.training or {}
    speed, seconds = training.get("clips_per_second"), training.get("training_seconds")
    priced = [words.NOTHING] * 4
    if cost:
        step = f"{bytes_text(cost['training_bytes'])} ({words.count(cost['batch_size'], 'clip')})"
        counts = [count_text(cost[key]) for key in ("parameters", "flops_video")]
        priced = [*counts, bytes_text(cost["answer_bytes"]), step]
    return [
        *priced,
        words.NOTHING if speed is None else f"{speed:.1f}",
        words.NOTHING if seconds is None else words.duration(seconds),
        training.get("device") or words.NOTHING,
    ]


def _charts(judged: tuple[Judged, ...]) -> list[str]:
    """Accuracy over what is known of at least two runs."""
    known = {
        "FLOPs a video": [(one, one.cost["flops_video"]) for one in judged if one.cost],
        "parameters": [(one, one.cost["parameters"]) for one in judged if one.cost],
        "seconds of training": [(one, one.training["training_seconds"]) for one in judged if one.training],
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


def _difference(one: Difference, root: str | None) -> dict:
    name = os.path.relpath(one.path, root) if root else one.path
    return {"name": f"{name}{words.part(one.start, one.end)}", "truth": one.label, "answers": one.answers}
