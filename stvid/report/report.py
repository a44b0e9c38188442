"""Writes `report.html` and `comparison.html`, each a single self-contained file."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from stvid.data.layouts.discovery import resolve_folder
from stvid.data.manifest import Item
from stvid.errors import InputError
from stvid.evaluation.compare import Comparison
from stvid.evaluation.results import (
    PredictionRow,
    check_agreement,
    estimate_cost,
    read_predictions,
)
from stvid.files import replacing
from stvid.report.clips import MAX_CLIPS, encoded_size, select_clips
from stvid.report.comparison import comparison_page
from stvid.report.content import Report, report_page
from stvid.report.previews import Preview, make_previews
from stvid.run.checkpoint import TrainedModel
from stvid.run.folder import RunFolder
from stvid.run.relocation import find_moved
from stvid.run.results import REMEDY, read_result, read_run_result
from stvid.training.callbacks.bad_videos import read_bad_videos
from stvid.training.callbacks.progress import read_epochs
from stvid.video.shard_index import video_exists

log = logging.getLogger(__name__)
MAX_BYTES = 8_000_000  # size of a page
MAX_CLIP_BYTES = 5_500_000  # clips as base64
MAX_TEXT_BYTES = 4_000_000  # the rest of the page; above this it is truncated
PREVIEW_BATCH = 64  # previews made before their size is checked again


def report_of_run(
    trained: TrainedModel, folder: Path | None = None, *, cache: Path | None = None, data_root: str | None = None
) -> Report:
    """Collects the content of a report, and makes the previews.

    Args:
        trained: the model; for a cross-validation, that of any fold.
        folder: folder of the evaluation, with `result.json` and `predictions.csv`; None: the run folder itself, with
            the result on val.
        cache: file that keeps the results of probing, see `loading.probe_cache`; None: no cache.
        data_root: where the videos are now, if they were moved after the evaluation.

    Raises:
        InputError: no such `data_root`; `result.json` or `predictions.csv` is missing or of an older version.
    """
    folder = trained.folder if folder is None else folder
    result = read_result(folder)
    predictions = read_predictions(RunFolder(folder).predictions_csv, result["class_names"])
    if data_root:
        moved = find_moved({row.path: None for row in predictions}, resolve_folder(data_root, key="--data-root"))
        predictions = [replace(row, path=moved.get(row.path, row.path)) for row in predictions]
    check_agreement(result, predictions, folder)
    if result["class_names"] != list(trained.class_names):
        raise InputError(
            f"{RunFolder(folder).result_json} is of another model: it has other classes than {trained.path}. {REMEDY}"
        )
    is_pooled = "folds" in result
    run = read_run_result(trained.folder, details=not is_pooled)
    is_evaluated = is_pooled or _is_evaluated_checkpoint(trained, result)
    checkpoint = f"{trained.path.name} (epoch {trained.epoch}, step {trained.step:,})"
    return Report(
        name=trained.folder.parent.name if is_pooled else trained.folder.name,
        model=type(trained.model).__name__,
        result=result,
        predictions=predictions,
        cost=estimate_cost(trained, run),
        previews=_previews(trained, result, predictions, explain=is_evaluated and not is_pooled, cache=cache),
        audit_command=_audit_command(trained, result),
        other_checkpoint=None if is_evaluated else checkpoint,
        **({} if is_pooled else _run_details(trained, run)),
    )


def _run_details(trained: TrainedModel, run: Mapping) -> dict:
    """The parts of a `Report` that describe the training of one run.

    The config is that of the checkpoint: `config.yaml` may have been changed since, or be a link to any other file.
    """
    files = RunFolder(trained.folder)
    return {
        "run": run,
        "epochs": read_epochs(files.metrics_csv),
        "bad_videos": read_bad_videos(files.bad_videos_csv),
        "config": yaml.safe_dump(trained.config, sort_keys=False, allow_unicode=True),
    }


def _is_evaluated_checkpoint(trained: TrainedModel, result: Mapping) -> bool:
    """Whether the result belongs to this checkpoint: same file name, epoch and step."""
    evaluated = (Path(result["checkpoint"]).name, result["epoch"], result["step"])
    return evaluated == (trained.path.name, trained.epoch, trained.step)


def _audit_command(trained: TrainedModel, result: Mapping) -> str:
    """Command line of an audit with the same runs, checkpoint, videos and views; it works in any folder."""
    if "folds" in result:
        runs = [Path(fold["run"]) for fold in result["folds"]]
    else:
        name = Path(result["checkpoint"]).name
        is_best = name == RunFolder(trained.folder).best_ckpt.name
        runs = [trained.folder if is_best else trained.path.with_name(name)]
    arguments = [*(str(run.absolute()) for run in runs), "--split", result["split"]]
    if result["manifest"]:
        arguments += ["--manifest", str(Path(result["manifest"]).absolute())]
        arguments += ["--allow-leaks"] if result["num_seen"] else []
    for key, option in (("num_clips", "--clips"), ("num_crops", "--crops")):
        if result["protocol"][key] != trained.protocol[key]:
            arguments += [option, str(result["protocol"][key])]
    return shlex.join(["stvid", "evaluate", *arguments, "--audit"])


def write_report(report: Report, path: Path) -> None:
    """Writes the page, at most 8 MB, with as many clips as fit. The file is replaced atomically.

    Raises:
        InputError: the folder of the file does not exist.
    """
    _write_page(path, report_page(report, clip_bytes=MAX_CLIP_BYTES, text_bytes=MAX_TEXT_BYTES, max_bytes=MAX_BYTES))


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Writes the page that compares several runs.

    Raises:
        InputError: the folder of the file does not exist.
    """
    _write_page(path, comparison_page(comparison))


def _write_page(path: Path, page: bytes) -> None:
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path} cannot be written: the folder {path.absolute().parent} does not exist")
    with replacing(path) as partial:
        partial.write_bytes(page)


def _previews(
    trained: TrainedModel, result: Mapping, predictions: Sequence[PredictionRow], *, explain: bool, cache: Path | None
) -> dict[int, Preview]:
    """Previews in the order of `select_clips`, as many as fit on a page; `explain`: with heat maps."""
    missing = [row.path for row in predictions if not video_exists(row.path)]
    if missing:
        log.warning(
            "%d of %d videos no longer exist, so the page has no clips of them; the first: %s",
            *(len(missing), len(predictions), missing[0]),
        )
    selection = select_clips(predictions)
    items = [
        Item(path=row.path, label=row.label, split=result["split"], start=row.start, end=row.end, group=row.group)
        for row in predictions
    ]
    index = {name: i for i, name in enumerate(result["class_names"])}
    explained = {video: index[predictions[video].predicted] for video in selection.explained * explain}
    previews: dict[int, Preview] = {}
    for start in range(0, min(len(selection.order), MAX_CLIPS), PREVIEW_BATCH):
        videos = selection.order[start : start + PREVIEW_BATCH]
        classes = {video: explained[video] for video in videos if video in explained}
        previews |= make_previews(trained, items, videos=videos, explained=classes, cache=cache)
        if sum(map(encoded_size, previews.values())) > MAX_CLIP_BYTES:
            break
    return previews


def draw_report(trained: TrainedModel, folder: Path, *, cache: Path | None) -> None:
    """Writes `report.html` next to the `result.json` of an evaluation; see `report_of_run`."""
    write_report(report_of_run(trained, folder, cache=cache), RunFolder(folder).report_html)
