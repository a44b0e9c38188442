"""Content of a report, section by section, as the templates take it, cut where a page would be too large."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stvid.cost.report import CostReport
from stvid.errors import listing
from stvid.evaluation import text as words
from stvid.evaluation.results import PredictionRow
from stvid.report import charts, tables
from stvid.report import tables as facts
from stvid.report.clips import cards, choose, fitting, page_data, root_of
from stvid.report.previews import Preview
from stvid.report.rendering import render

if TYPE_CHECKING:
    pass
from itertools import islice

SECTIONS = {
    "result": "Result",
    "confusion": "Confusion",
    "mistakes": "Mistakes",
    "classes": "Classes",
    "calibration": "Calibration",
    "time": "Time",
    "training": "Training",
    "cost": "Cost",
    "data": "Data",
    "record": "Record",
}
MOST_PROBLEMS = 100  # videos that could not be read, listed
MOST_VIDEOS = 400  # that can be looked up, as many as there may be clips
MOST_ROWS = 200  # of a table of classes


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a page shows; what is empty is left out of it.

    Attributes:
        name: of the run.
        model: its family.
        result: as `result.json` of an evaluation has it.
        predictions: of its videos.
        run: the run's own `result.json`: how training went, data, versions, code, machine; nothing of several runs.
        epochs: rows of `metrics.csv`.
        bad_videos: path -> reason, that training has met.
        config: the run's, as text.
        cost: of the model.
        previews: position among the predictions -> preview.
        audit_command: what to type for an audit.
        drawn_with: the checkpoint that the page was made with, where it is another than the one that was judged.
    """

    name: str
    model: str
    result: Mapping
    predictions: Sequence[PredictionRow]
    run: Mapping = field(default_factory=dict)
    epochs: Sequence[Mapping[str, str]] = ()
    bad_videos: Mapping[str, str] = field(default_factory=dict)
    config: str = ""
    cost: CostReport | None = None
    previews: Mapping[int, Preview] = field(default_factory=dict)
    audit_command: str = ""
    drawn_with: str | None = None


def report_page(report: Report, *, clip_bytes: int, text_bytes: int, most_bytes: int) -> bytes:
    """The page of a run or an evaluation.

    Args:
        report: what it shows.
        clip_bytes: of base64, that clips may take.
        text_bytes: that the rest may take: where it is more, one thing after another is cut.
        most_bytes: of the whole page; where it is large without clips, these take less.
    """
    content = _content(report)
    without = len(_rendered(report, content, {}))
    for cut in CUTS:
        if without > text_bytes:
            content |= cut(content)
            without = len(_rendered(report, content, {}))
    budget = min(clip_bytes, most_bytes - without)
    return _rendered(report, content, fitting(list(content["cards"]), report.previews, budget))


def _content(report: Report) -> dict:
    result = report.result
    choice = choose(report.predictions)
    content = {
        "name": report.name,
        "model": report.model,
        "result": result,
        "names": result["class_names"],
        "large": tables.is_large(result),
        "choice": choice,
        "cards": cards(report.predictions, result["class_names"], choice),
        "sentence": words.first_sentence(result),
        "protocol": words.protocol(result),
        "interval_basis": words.interval_basis(result),
        "numbers": facts.headline_numbers(result),
        "pairs": tables.confused_pairs(result),
        "rows": tables.confusion_rows(result),
        "totals": tables.cell_totals(result),
        "class_rows": tables.class_rows(result),
        "absent": listing([name for name in result["class_names"] if not result["per_class"][name]["num_videos"]]),
        "costs": facts.cost_groups(report.cost, result, report.run),
        "record": facts.record_facts(result, report.run),
        "config": report.config,
        "judged_by": _judged_by(report),
        "drawn_with": report.drawn_with,
        "num_classes": len(result["class_names"]),
        "left_out": {},
        **_time(report),
        **_calibration(result),
        **_training(report),
        **_data(report),
    }
    needs = {"training": "curves", "cost": "costs"}
    absent = {identity for identity, key in needs.items() if not content[key]}
    content["sections"] = [(identity, name) for identity, name in SECTIONS.items() if identity not in absent]
    return content


def _rendered(report: Report, content: Mapping, previews: Mapping[int, Preview]) -> bytes:
    result = report.result
    data = page_data(report.predictions, result["class_names"], content["cards"], content["totals"], previews)
    explained = [preview for preview in previews.values() if preview.focus]
    return render(
        "report.html",
        data,
        **content,
        previews=previews,
        num_clips=len(previews),
        num_explained=len(explained),
        has_evidence=any(preview.evidence is not None for preview in explained),
    )


def _time(report: Report) -> dict:
    if "audit" not in report.result:
        return {"audit_command": report.audit_command}
    return {
        "verdicts": words.time_verdict(report.result),
        "audit_chart": charts.audit_bars(report.result),
        "audit_rows": tables.audit_rows(report.result),
        "audit_classes": tables.audit_classes(report.result),
    }


def _judged_by(report: Report) -> str | None:
    """Which checkpoint gave the answers, where the page is made with another one."""
    if report.drawn_with is None:
        return None
    result = report.result
    return f"{os.path.basename(result['checkpoint'])} (epoch {result['epoch']}, step {result['step']:,})"


def _calibration(result: Mapping) -> dict:
    return {
        "reliability": charts.reliability(result),
        "calibration": words.calibration(result),
        "temperature": words.temperature(result),
    }


def _training(report: Report) -> dict:
    return {
        "curves": charts.learning_curves(report.epochs, report.result["epoch"]) if report.epochs else [],
        "num_epochs": len(report.epochs),
    }


def _data(report: Report) -> dict:
    root = root_of([one.path for one in report.predictions])
    splits, rows = tables.data_rows(report.run["data"]) if report.run else ([], [])

    def shown(path: str) -> str:
        return os.path.relpath(path, root) if root and path.startswith(root) else path

    where = report.result["split"]
    found = {one.path: (where, one.failed) for one in report.predictions if one.failed}
    found |= {path: ("training", reason) for path, reason in report.bad_videos.items() if path not in found}
    problems = [(shown(path), where, reason) for path, (where, reason) in found.items()]
    return {
        "splits": splits,
        "data_rows": rows,
        "data_totals": [sum(row["counts"][i] for row in rows) for i in range(len(splits))],
        "problems": problems[:MOST_PROBLEMS],
        "more_problems": len(problems) - len(problems[:MOST_PROBLEMS]),
        "data_facts": facts.data_facts(report.result, report.run, root),
    }


def without_matrix(content: Mapping) -> dict:
    """The pairs that are most often confused stay; a cell of no pair can no longer be opened."""
    open_cells = [f"{pair['truth']}-{pair['answer']}" for pair in content["pairs"]]
    totals = {cell: content["totals"][cell] for cell in open_cells}
    said = f"{len(content['totals']):,} of its cells have videos"
    return {"rows": [], "totals": totals, "left_out": {**content["left_out"], "matrix": said}}


def fewer_videos(content: Mapping) -> dict:
    """Those that are worth a clip stay; for the others, what a cell opens names `predictions.csv`."""
    return {"cards": dict(islice(content["cards"].items(), MOST_VIDEOS))}


def fewer_classes(content: Mapping) -> dict:
    """In every table, the classes that are recognised least."""
    if content["num_classes"] <= MOST_ROWS:
        return {}
    rows = sorted(content["class_rows"], key=lambda row: 2.0 if row["recall"] is None else row["recall"])[:MOST_ROWS]
    kept = {row["name"] for row in rows}
    others = ("audit_classes", "data_rows")
    cut = {key: [row for row in content[key] if row["name"] in kept] for key in others if key in content}
    return {**cut, "class_rows": rows, "left_out": {**content["left_out"], "classes": len(kept)}}


CUTS = (without_matrix, fewer_videos, fewer_classes)
