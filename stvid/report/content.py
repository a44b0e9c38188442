"""Content of a report, section by section, as its templates expect it; truncated if the page would be too large."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from stvid.cost.report import CostReport
from stvid.errors import listing
from stvid.evaluation import text
from stvid.evaluation.diagnosis import diagnose, loss_note
from stvid.evaluation.results import PredictionRow
from stvid.report import charts, tables
from stvid.report.clips import cards, common_folder, page_data, previews_within_budget, select_clips
from stvid.report.previews import Preview
from stvid.report.rendering import render

SECTIONS = {
    "result": "Result",
    "confusion": "Confusion",
    "mistakes": "Mistakes",
    "classes": "Classes",
    "calibration": "Calibration",
    "unknown": "Unknown videos",
    "time": "Time",
    "training": "Training",
    "cost": "Cost",
    "data": "Data",
    "record": "Provenance",
}
MAX_UNREADABLE = 100  # unreadable videos in the list
MAX_VIDEOS = 400  # videos with a card on a truncated page
MAX_CLASSES = 1000  # with more classes, the page is truncated whatever its size
MAX_CLASS_ROWS = 200  # rows of a table of classes on a truncated page


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that a page shows; empty parts are omitted.

    Attributes:
        name: name of the run.
        model: class of the model.
        result: content of `result.json` of an evaluation.
        predictions: the predictions of this evaluation.
        run: the run's own `result.json` (training, data, versions, code, machine); empty for several runs.
        epochs: rows of `metrics.csv`.
        bad_videos: path -> reason for the videos that could not be read in training.
        config: the run's config as text.
        cost: cost of the model.
        previews: position among the predictions -> preview.
        audit_command: command line that runs the temporal audit.
        other_checkpoint: the checkpoint that made the page, if it is not the evaluated one.
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
    other_checkpoint: str | None = None


def report_page(report: Report, *, clip_bytes: int, text_bytes: int, max_bytes: int) -> bytes:
    """The page of a run or an evaluation.

    Args:
        report: what to show.
        clip_bytes: limit for the clips, as base64.
        text_bytes: limit for the rest of the page; above it, the page is truncated step by step.
        max_bytes: limit for the whole page; it reduces the space for clips if the rest is large.
    """
    content = _content(report)
    if content["num_classes"] > MAX_CLASSES:  # a browser needs long for so large tables
        content |= drop_matrix(content)
        content |= truncate_classes(content)
    size_without_clips = len(_render_page(report, content, {}))
    for truncate in TRUNCATIONS:
        if size_without_clips > text_bytes:
            content |= truncate(content)
            size_without_clips = len(_render_page(report, content, {}))
    budget = min(clip_bytes, max_bytes - size_without_clips)
    return _render_page(report, content, previews_within_budget(list(content["cards"]), report.previews, budget))


def _content(report: Report) -> dict:
    result = report.result
    selection = select_clips(report.predictions)
    content = {
        "name": report.name,
        "data_name": _data_name(report),
        "model": report.model,
        "result": result,
        "names": result["class_names"],
        "large": tables.is_large(result),
        "selection": selection,
        "cards": cards(report.predictions, result["class_names"], selection),
        "summary": text.summary_sentence(result),
        "protocol": text.protocol_sentence(result),
        "interval_basis": text.interval_basis(result),
        "metrics": tables.metric_entries(result),
        "pairs": tables.confused_pairs(result),
        "rows": tables.confusion_rows(result),
        "totals": tables.cell_totals(result),
        "class_rows": tables.class_rows(result),
        "absent": listing([name for name in result["class_names"] if not result["per_class"][name]["num_videos"]]),
        "costs": tables.cost_tables(report.cost, result, report.run),
        "provenance": tables.provenance_entries(result, report.run),
        "config": report.config,
        "evaluated_checkpoint": _evaluated_checkpoint(report),
        "other_checkpoint": report.other_checkpoint,
        "num_classes": len(result["class_names"]),
        "left_out": {},
        **_audit_content(report),
        **_calibration_content(result),
        **_unknown_content(result),
        **_training_content(report),
        **_data_content(report),
    }
    required = {"unknown": "unknown_chart", "training": "curves", "cost": "costs"}
    empty = {section for section, key in required.items() if not content[key]}
    content["sections"] = [(section, title) for section, title in SECTIONS.items() if section not in empty]
    return content


def _render_page(report: Report, content: Mapping, previews: Mapping[int, Preview]) -> bytes:
    result = report.result
    data = page_data(report.predictions, result["class_names"], content["cards"], content["totals"], previews)
    explained = [preview for preview in previews.values() if preview.heat_sprite]
    return render(
        "report.html",
        data,
        **content,
        previews=previews,
        num_clips=len(previews),
        num_explained=len(explained),
        has_evidence=any(preview.evidence is not None for preview in explained),
    )


def _data_name(report: Report) -> str:
    """The data set, for the title: the folder or table of its videos."""
    data = (report.run.get("config") or {}).get("data") or {}
    place = data.get("root") or data.get("path") or common_folder([row.path for row in report.predictions])
    return Path(place).name if place else ""


def _audit_content(report: Report) -> dict:
    if "audit" not in report.result:
        return {"audit_command": report.audit_command}
    return {
        "verdicts": text.temporal_verdicts(report.result),
        "audit_chart": charts.audit_bars(report.result),
        "audit_rows": tables.audit_rows(report.result),
        "audit_classes": tables.audit_classes(report.result),
    }


def _evaluated_checkpoint(report: Report) -> str | None:
    """The evaluated checkpoint, if another one made the page."""
    if report.other_checkpoint is None:
        return None
    result = report.result
    return f"{os.path.basename(result['checkpoint'])} (epoch {result['epoch']}, step {result['step']:,})"


def _calibration_content(result: Mapping) -> dict:
    return {
        "reliability": charts.reliability(result),
        "calibration": text.calibration_sentence(result),
        "temperature": text.temperature_sentence(result),
    }


def _unknown_content(result: Mapping) -> dict:
    if "unknown" not in result:
        return {"unknown_chart": None}
    return {"unknown_chart": charts.unknown_histograms(result), "unknown_threshold": text.unknown_sentence(result)}


def _training_content(report: Report) -> dict:
    return {
        "curves": charts.learning_curves(report.epochs, report.result["epoch"]) if report.epochs else [],
        "num_epochs": len(report.epochs),
        "loss_note": loss_note(report.run.get("config") or {}, report.epochs),
        "diagnosis": diagnose(report.run, report.epochs) if "per_class" in report.run else [],
    }


def _data_content(report: Report) -> dict:
    root = common_folder([row.path for row in report.predictions])
    splits, rows = tables.data_rows(report.run["data"]) if report.run else ([], [])

    def relative(path: str) -> str:
        return os.path.relpath(path, root) if root and Path(path).is_relative_to(root) else path

    split = report.result["split"]
    reasons = {row.path: (split, row.failed) for row in report.predictions if row.failed}
    reasons |= {path: ("training", reason) for path, reason in report.bad_videos.items() if path not in reasons}
    unreadable = [(relative(path), source, reason) for path, (source, reason) in reasons.items()]
    return {
        "splits": splits,
        "data_rows": rows,
        "data_totals": [sum(row["counts"][i] for row in rows) for i in range(len(splits))],
        "unreadable": unreadable[:MAX_UNREADABLE],
        "num_more_unreadable": max(len(unreadable) - MAX_UNREADABLE, 0),
        "data_entries": tables.data_entries(report.result, report.run, root),
    }


def drop_matrix(content: Mapping) -> dict:
    """Drops the confusion matrix; only the cells of the most confused pairs can still be opened."""
    open_cells = [f"{pair['truth']}-{pair['predicted']}" for pair in content["pairs"]]
    totals = {cell: content["totals"][cell] for cell in open_cells}
    note = f"{len(content['totals']):,} of its cells have videos"
    return {"rows": [], "totals": totals, "left_out": {**content["left_out"], "matrix": note}}


def truncate_videos(content: Mapping) -> dict:
    """Keeps the videos with the highest priority for a clip; cells refer to `predictions.csv` for the others."""
    return {"cards": dict(islice(content["cards"].items(), MAX_VIDEOS))}


def truncate_classes(content: Mapping) -> dict:
    """Keeps the classes with the lowest recall in every table."""
    if content["num_classes"] <= MAX_CLASS_ROWS:
        return {}
    by_recall = sorted(content["class_rows"], key=lambda row: 2.0 if row["recall"] is None else row["recall"])
    rows = by_recall[:MAX_CLASS_ROWS]
    kept = {row["name"] for row in rows}
    truncated = {
        key: [row for row in content[key] if row["name"] in kept]
        for key in ("audit_classes", "data_rows")
        if key in content
    }
    return {**truncated, "class_rows": rows, "left_out": {**content["left_out"], "classes": len(kept)}}


TRUNCATIONS = (drop_matrix, truncate_videos, truncate_classes)
