"""`report.html` and `comparison.html`: one file each that opens anywhere and loads nothing."""

from __future__ import annotations

import csv
import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from stvid.data.manifest import Item
from stvid.errors import InputError
from stvid.evaluation.compare import Comparison
from stvid.evaluation.results import (
    PredictionRow,
    price,
    read_json,
    read_predictions,
    read_result,
)
from stvid.files import replacing
from stvid.report.clips import MOST_CLIPS, choose, encoded_size
from stvid.report.comparison import comparison_page
from stvid.report.content import Report, report_page
from stvid.report.previews import Preview, make_previews
from stvid.run.checkpoint import TrainedModel
from stvid.run.folder import RunFolder
from stvid.training.callbacks.bad_videos import read_bad_videos

log = logging.getLogger(__name__)
MOST_BYTES = 8_000_000  # of a page
CLIP_BYTES = 5_500_000  # of it for clips, as base64
TEXT_BYTES = 4_000_000  # of it for the rest, above which that is cut
AT_ONCE = 64  # previews that are made before the next look at what they weigh


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
    predictions = read_predictions(RunFolder(folder).predictions_csv, result["class_names"])
    run, is_pooled = read_json(RunFolder(trained.folder).result_json), "folds" in result
    is_judged = is_pooled or _is_judged(trained, result)
    explained = not is_pooled and is_judged
    facts = _facts_of_run(trained.folder, run) if not is_pooled else {}
    return Report(
        name=trained.folder.parent.name if is_pooled else trained.folder.name,
        model=type(trained.model).__name__,
        result=result,
        predictions=predictions,
        cost=price(trained, run),
        previews=_previews(trained, result, predictions, explain=explained, cache=cache),
        audit_command=_audit_command(trained, result),
        drawn_with=None if is_judged else f"{trained.path.name} (epoch {trained.epoch}, step {trained.step:,})",
        **facts,
    )


def _facts_of_run(folder: Path, run: Mapping) -> dict:
    """What is known of one run's training; of a cross-validation there are several."""
    files = RunFolder(folder)
    config = files.config_yaml
    return {
        "run": run,
        "epochs": _read_rows(files.metrics_csv),
        "bad_videos": read_bad_videos(files.bad_videos_csv),
        "config": config.read_text(encoding="utf-8") if config.is_file() else "",
    }


def _is_judged(trained: TrainedModel, result: Mapping) -> bool:
    """Whether a result is of these very weights: file, epoch and step of the checkpoint are the same."""
    judged = (Path(result["checkpoint"]).name, result["epoch"], result["step"])
    return judged == (trained.path.name, trained.epoch, trained.step)


def _audit_command(trained: TrainedModel, result: Mapping) -> str:
    """For the same runs, checkpoint, videos and views, wherever it is typed."""
    if "folds" in result:
        runs = [Path(fold["run"]) for fold in result["folds"]]
    else:
        name = Path(result["checkpoint"]).name
        is_best = name == RunFolder(trained.folder).best_ckpt.name  # which a run folder stands for
        runs = [trained.folder if is_best else trained.path.with_name(name)]
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
    _write(path, report_page(report, clip_bytes=CLIP_BYTES, text_bytes=TEXT_BYTES, most_bytes=MOST_BYTES))


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Writes the page that sets several runs side by side.

    Raises:
        InputError: the folder of the file does not exist.
    """
    _write(path, comparison_page(comparison))


def _write(path: Path, page: bytes) -> None:
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.absolute().parent}")
    with replacing(path) as partial:
        partial.write_bytes(page)


def _previews(
    trained: TrainedModel, result: Mapping, predictions: Sequence[PredictionRow], *, explain: bool, cache: Path | None
) -> dict[int, Preview]:
    """As many as a page has room for, in the order of `choose`; `explain`: this model gave the answers."""
    gone = [one.path for one in predictions if not os.path.exists(one.path)]
    if gone:
        log.warning(
            "%d of %d videos are no longer there, so the page has no clips of them: %s",
            len(gone),
            len(predictions),
            gone[0],
        )
    choice = choose(predictions)
    items = [
        Item(path=one.path, label=one.label, split=result["split"], start=one.start, end=one.end, group=one.group)
        for one in predictions
    ]
    place = {name: i for i, name in enumerate(result["class_names"])}
    explained = {video: place[predictions[video].predicted] for video in choice.explained * explain}
    previews, spent = {}, 0
    for start in range(0, min(len(choice.order), MOST_CLIPS), AT_ONCE):
        videos = choice.order[start : start + AT_ONCE]
        asked = {video: explained[video] for video in videos if video in explained}
        previews |= make_previews(trained, items, videos=videos, explained=asked, cache=cache)
        spent = sum(map(encoded_size, previews.values()))
        if spent > CLIP_BYTES:
            break
    return previews


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def draw_report(trained: TrainedModel, folder: Path, *, cache: Path | None) -> None:
    """`report.html` beside an evaluation's `result.json`; see `report_of_run`."""
    write_report(report_of_run(trained, folder, cache=cache), RunFolder(folder).report_html)
