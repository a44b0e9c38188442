"""The comparison page: several evaluations of the same videos."""

from __future__ import annotations

import os

from stvid.cost.report import bytes_text, count_text
from stvid.evaluation import text
from stvid.evaluation.compare import Comparison, Disagreement, PairedTest
from stvid.evaluation.results import Evaluation
from stvid.report.charts import Point, accuracy_over_cost
from stvid.report.clips import common_folder
from stvid.report.rendering import render

SECTIONS = {"result": "Result", "tests": "Tests", "cost": "Cost", "classes": "Classes", "differing": "Disagreements"}
COST_COLUMNS = (
    "parameters",
    "FLOPs per video",
    "inference memory",
    "training memory",
    "clips/s",
    "training time",
    "device",
)
MAX_LISTED = 200  # disagreements
TIME_UNITS = (("hours", 3600), ("minutes", 60))


def comparison_page(comparison: Comparison) -> bytes:
    """The page as HTML, encoded as UTF-8."""
    runs = comparison.evaluations
    has_costs = any(run.cost or run.training for run in runs)
    root = common_folder([video.path for video in comparison.differing])
    class_names = runs[0].result["class_names"]
    return render(
        "comparison.html",
        {},
        sections=[(section, title) for section, title in SECTIONS.items() if section != "cost" or has_costs],
        num_clips=0,
        split=comparison.split,
        runs=runs,
        num_classes=len(class_names),
        num_common=comparison.num_common,
        summary=_summary(comparison),
        common=comparison.common_accuracy if any(comparison.left_out.values()) else {},
        notes=_notes(comparison),
        tests=comparison.tests,
        grouped=any(run.result["num_groups"] for run in runs),
        costs=[(run.name, _cost_cells(run)) for run in runs] if has_costs else [],
        cost_columns=COST_COLUMNS,
        charts=_charts(runs),
        whole_video=any(run.cost["whole_video"] for run in runs if run.cost),
        recalls=[(name, [run.result["per_class"][name]["recall"] for run in runs]) for name in class_names],
        disagreements=[_disagreement_row(video, root) for video in comparison.differing[:MAX_LISTED]],
        num_disagreements=len(comparison.differing),
    )


def _summary(comparison: Comparison) -> str:
    """The best run on the common videos, and whether its lead over the second is significant."""
    best, second = sorted(comparison.common_accuracy, key=lambda name: -comparison.common_accuracy[name])[:2]
    test = next(test for test in comparison.tests if {test.first, test.second} == {best, second})
    if test.only_first == test.only_second:
        return f"{best} and {second} classify the same number of videos correctly."
    lead = f"{best} is ahead of {second} by {100 * abs(test.difference):.1f} points on the same videos"
    return f"{lead}; the difference is {_significance_phrase(test)} ({text.p_equals(test.p_corrected)})."


def _significance_phrase(test: PairedTest) -> str:
    return "significant" if test.p_corrected < text.SIGNIFICANCE_LEVEL else "not significant"


def _notes(comparison: Comparison) -> list[str]:
    """What limits the comparison."""
    notes = [
        f"{text.count(number, 'video')} of {name} {'is' if number == 1 else 'are'} not in all others."
        for name, number in comparison.left_out.items()
        if number
    ]
    cached = [run.name for run in comparison.evaluations if run.training and run.training["stored_features"]]
    if cached:
        notes.append(
            f"Clips per second of {', '.join(cached)}: on cached features, without decoding videos; not comparable "
            "with the other runs."
        )
    for key, values in comparison.protocols.items():
        pairs = zip(comparison.evaluations, values, strict=True)
        settings = ", ".join(f"{run.name} {text.protocol_value(key, value)}" for run, value in pairs)
        notes.append(f"Different protocol, {key.replace('_', ' ')}: {settings}.")
    return notes


def _cost_cells(run: Evaluation) -> list[str]:
    """The cells of a run in the order of `COST_COLUMNS`."""
    cost, training = run.cost or {}, run.training or {}
    speed, seconds = training.get("clips_per_second"), training.get("training_seconds")
    estimated = [text.DASH] * 4
    if cost:
        batch = f"{bytes_text(cost['training_bytes'])} ({text.count(cost['batch_size'], 'clip')})"
        counts = [count_text(cost[key]) for key in ("parameters", "flops_video")]
        estimated = [*counts, bytes_text(cost["answer_bytes"]), batch]
    return [
        *estimated,
        text.DASH if speed is None else f"{speed:.1f}",
        text.DASH if seconds is None else text.training_time(seconds, training.get("encoding_seconds", 0.0)),
        training.get("device") or text.DASH,
    ]


def _charts(runs: tuple[Evaluation, ...]) -> list[str]:
    """Accuracy over each cost that is known for at least two runs."""
    costs = {
        "FLOPs per video": [(run, run.cost["flops_video"]) for run in runs if run.cost],
        "parameters": [(run, run.cost["parameters"]) for run in runs if run.cost],
        **_training_times(runs),
    }
    charts = []
    for number, (name, values) in enumerate(costs.items()):
        points = [
            Point(run.name, cost, run.result["video_accuracy"], tuple(run.result["video_accuracy_ci95"]))
            for run, cost in values
            if cost
        ]
        if len(points) > 1:
            charts.append(accuracy_over_cost(points, cost=name, chart_id=f"cost-{number}"))
    return charts


def _training_times(runs: tuple[Evaluation, ...]) -> dict[str, list[tuple[Evaluation, float]]]:
    """Training times in the largest unit in which all are at least 2, else in seconds."""
    times = [(run, run.training["training_seconds"]) for run in runs if run.training]
    shortest = min((seconds for _, seconds in times), default=0)
    unit, size = next(((unit, size) for unit, size in TIME_UNITS if shortest >= 2 * size), ("seconds", 1))
    return {f"training time, {unit}": [(run, seconds / size) for run, seconds in times]}


def _disagreement_row(video: Disagreement, root: str | None) -> dict:
    name = os.path.relpath(video.path, root) if root else video.path
    return {
        "name": f"{name}{text.part_suffix(video.start, video.end)}",
        "truth": video.label,
        "predictions": video.predictions,
    }
