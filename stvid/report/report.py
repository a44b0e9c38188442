"""`report.html` and `comparison.html`: one file each that opens anywhere and loads nothing."""

from __future__ import annotations

import csv
import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from stvid.data.loading import probe_cache
from stvid.data.manifest import Item
from stvid.errors import InputError
from stvid.evaluation.compare import Comparison
from stvid.evaluation.results import (
    PredictionRow,
    estimate_cost,
    read_json,
    read_predictions,
    read_result,
    write_result,
)
from stvid.evaluation.text import headline
from stvid.files import replacing
from stvid.report.clips import MAX_CLIPS, select_clips, encoded_size
from stvid.report.comparison import comparison_page
from stvid.report.content import Report, report_page
from stvid.report.previews import Preview, make_previews
from stvid.run.checkpoint import TrainedModel
from stvid.run.folder import (
    PREDICTIONS_NAME,
    REPORT_NAME,
    RESULT_NAME,
    display_path,
    home,
)
from stvid.run.provenance import run_record
from stvid.run.start import is_multirun
from stvid.training.callbacks.bad_videos import read_bad_videos

log = logging.getLogger(__name__)
MAX_BYTES = 8_000_000  # of a page
MAX_CLIP_BYTES = 5_500_000  # of it for clips, as base64
MAX_TEXT_BYTES = 4_000_000  # of it for the rest, above which that is cut
BEST = "best.ckpt"  # what a run folder stands for
PREVIEW_BATCH = 64  # previews that are made before the next look at what they weigh


def write_results(
    trained: TrainedModel,
    result: Mapping,
    predictions: Sequence[PredictionRow],
    *,
    config: Mapping,
    data,
    training: Mapping,
    epochs: int,
) -> None:
    """What a run leaves behind when training is done: `result.json` and `predictions.csv`, what to type next, the page.

    Args:
        trained: the model; the files go into its run folder.
        result: of the evaluation on val; the file also holds how training went, and all that it came from.
        predictions: likewise.
        config: the run's, see `as_used`.
        data: the `VideoDataModule`.
        training: on which kind of device, in which precision, and how it went, see `EpochTable.summary`.
        epochs: that were trained.
    """
    run = trained.folder
    facts = run_record(data.manifest, num_bad=len(read_bad_videos(run / "bad_videos.csv")), code=home() / "train.py")
    result = {**result, "seed": config["seed"], **training, **facts, "config": dict(config)}
    write_result(run, result, predictions)
    log.info("\n%s, epoch %d of %d", headline(result), result["epoch"], epochs)
    log.info("run folder   %s", display_path(run))
    log.info(
        "test it      stvid evaluate %s%s", display_path(run), "" if data.manifest.select("test") else " --split val"
    )
    log.info("use it       stvid predict %s VIDEO...", display_path(run))
    if config["report"] and not is_multirun():  # of forty trials nobody looks at forty pages
        draw_report(trained, run, cache=probe_cache(data.manifest))
        log.info("look at it   %s", display_path(run / REPORT_NAME))


def report_of_run(trained: TrainedModel, folder: Path | None = None, *, cache: Path | None = None) -> Report:
    """Gathers what there is to say of an evaluation, and makes the clips that show it.

    Args:
        trained: the model; of a cross-validation, that of any fold.
        folder: of the evaluation, with `result.json` and `predictions.csv`. None: the run's own, its result on val.
        cache: file that keeps what probing finds, see `loading.probe_cache`; None: none.

    Raises:
        InputError: no `result.json` or `predictions.csv` there, or one of an older version.
    """
    folder = trained.folder if folder is None else folder
    result = read_result(folder)
    predictions = read_predictions(folder / PREDICTIONS_NAME, result["class_names"])
    run, is_pooled = read_json(trained.folder / RESULT_NAME), "folds" in result
    is_judged = is_pooled or _is_evaluated_checkpoint(trained, result)
    explained = not is_pooled and is_judged
    facts = _run_details(trained.folder, run) if not is_pooled else {}
    return Report(
        name=trained.folder.parent.name if is_pooled else trained.folder.name,
        model=type(trained.model).__name__,
        result=result,
        predictions=predictions,
        cost=estimate_cost(trained, run),
        previews=_previews(trained, result, predictions, explain=explained, cache=cache),
        audit_command=_audit_command(trained, result),
        drawn_with=None if is_judged else f"{trained.path.name} (epoch {trained.epoch}, step {trained.step:,})",
        **facts,
    )


def _run_details(folder: Path, run: Mapping) -> dict:
    """What is known of one run's training; of a cross-validation there are several."""
    config = folder / "config.yaml"
    return {
        "run": run,
        "epochs": _read_rows(folder / "metrics.csv"),
        "bad_videos": read_bad_videos(folder / "bad_videos.csv"),
        "config": config.read_text(encoding="utf-8") if config.is_file() else "",
    }


def _is_evaluated_checkpoint(trained: TrainedModel, result: Mapping) -> bool:
    """Whether a result is of these very weights: file, epoch and step of the checkpoint are the same."""
    judged = (Path(result["checkpoint"]).name, result["epoch"], result["step"])
    return judged == (trained.path.name, trained.epoch, trained.step)


def _audit_command(trained: TrainedModel, result: Mapping) -> str:
    """For the same runs, checkpoint, videos and views, wherever it is typed."""
    if "folds" in result:
        runs = [Path(fold["run"]) for fold in result["folds"]]
    else:
        name = Path(result["checkpoint"]).name
        runs = [trained.folder if name == BEST else trained.path.with_name(name)]
    words = [*(str(run.absolute()) for run in runs), "--split", result["split"]]
    if result["manifest"]:
        words += ["--manifest", str(Path(result["manifest"]).absolute())]
        words += ["--allow-leaks"] if result["num_seen"] else []
    for key, option in (("num_clips", "--clips"), ("num_crops", "--crops")):
        if result["protocol"][key] != trained.protocol[key]:
            words += [option, str(result["protocol"][key])]
    return shlex.join(["stvid", "evaluate", *words, "--audit"])


def write_report(report: Report, path: Path) -> None:
    """Writes the page, at most 8 MB of it: as many clips as fit. The file is written whole or not at all.

    Raises:
        InputError: the folder of the file does not exist.
    """
    _write_page(path, report_page(report, clip_bytes=MAX_CLIP_BYTES, text_bytes=MAX_TEXT_BYTES, most_bytes=MAX_BYTES))


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Writes the page that sets several runs side by side.

    Raises:
        InputError: the folder of the file does not exist.
    """
    _write_page(path, comparison_page(comparison))


def _write_page(path: Path, page: bytes) -> None:
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.absolute().parent}")
    with replacing(path) as partial:
        partial.write_bytes(page)


def _previews(
    trained: TrainedModel, result: Mapping, predictions: Sequence[PredictionRow], *, explain: bool, cache: Path | None
) -> dict[int, Preview]:
    """As many as a page has room for, in the order of `select_clips`; `explain`: this model gave the answers."""
    gone = [one.path for one in predictions if not os.path.exists(one.path)]
    if gone:
        log.warning(
            "%d of %d videos are no longer there, so the page has no clips of them: %s",
            len(gone),
            len(predictions),
            gone[0],
        )
    choice = select_clips(predictions)
    items = [
        Item(path=one.path, label=one.label, split=result["split"], start=one.start, end=one.end, group=one.group)
        for one in predictions
    ]
    place = {name: i for i, name in enumerate(result["class_names"])}
    explained = {video: place[predictions[video].predicted] for video in choice.explained * explain}
    previews, spent = {}, 0
    for start in range(0, min(len(choice.order), MAX_CLIPS), PREVIEW_BATCH):
        videos = choice.order[start : start + PREVIEW_BATCH]
        asked = {video: explained[video] for video in videos if video in explained}
        previews |= make_previews(trained, items, videos=videos, explained=asked, cache=cache)
        spent = sum(map(encoded_size, previews.values()))
        if spent > MAX_CLIP_BYTES:
            break
    return previews


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def draw_report(trained: TrainedModel, folder: Path, *, cache: Path | None) -> None:
    """`report.html` beside an evaluation's `result.json`; see `report_of_run`."""
    write_report(report_of_run(trained, folder, cache=cache), folder / REPORT_NAME)
