"""Evaluation of one run, with audit, calibration and unknown videos; writes the results."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from stvid.clip import ClipSpec
from stvid.data.loading import probe_cache
from stvid.deploy.segmentation import check_classes
from stvid.errors import InputError, listing
from stvid.evaluation.calibration import calibrate, keep_threshold, model_for_val
from stvid.evaluation.evaluate import absent_classes, evaluate, load_manifest, predict_split
from stvid.evaluation.results import PredictionRow, write_result
from stvid.evaluation.temporal_audit import PlaybackPredictions, audit_metrics, predict_playbacks
from stvid.evaluation.unknown import find_unknown, log_threshold, predict_unknown, separation
from stvid.files import why_not_writable
from stvid.run.checkpoint import TrainedModel, load_checkpoint
from stvid.run.folder import RunFolder, check_stays_inside
from stvid.run.relocation import find_run_videos

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How runs are evaluated.

    Attributes:
        split: train, val or test.
        num_clips: clips per video, spread evenly over it; None: as in the validation of training.
        num_crops: crops per clip: 1, 3 or 5; None: as in the validation of training.
        manifest: CSV file with other videos; None: the run's own manifest.
        allow_leaks: accept videos of `manifest` that the run was trained on.
        audit: also evaluate changed playbacks, see `temporal_audit`.
        calibrate: first fit a temperature on val, see `calibrate`.
        unknown: folder with videos of none of the classes, see `unknown.separation`; None: without.
        background: with `unknown`: classes that mean that nothing happens.
        num_workers: processes that read videos.
        cache_features: with a frozen encoder, use the feature cache, see `cached_views`.
        trust: modules outside of stvid that may be imported, see `load_checkpoint`.
        data_root: where the run's videos are now, if they were moved, see `find_run_videos`; the run is not changed.
    """

    split: str = "test"
    num_clips: int | None = None
    num_crops: int | None = None
    manifest: str | None = None
    allow_leaks: bool = False
    audit: bool = False
    calibrate: bool = False
    unknown: str | None = None
    background: Sequence[str] = ()
    num_workers: int | str = "auto"
    cache_features: bool = True
    trust: Sequence[str] = ()
    data_root: str | None = None


class Fold(NamedTuple):
    """One run of a cross-validation.

    Attributes:
        name: `fold N`, or the name of the run's folder.
        run: the run's folder.
        result, predictions: see `evaluate`.
        playbacks: see `predict_playbacks`; empty without an audit.
        clip: the geometry of the clips.
    """

    name: str
    run: Path
    result: dict
    predictions: list[PredictionRow]
    playbacks: PlaybackPredictions
    clip: ClipSpec


@dataclass(frozen=True, kw_only=True)
class EvaluationRun:
    """A finished evaluation.

    Attributes:
        folder: where it is written.
        fold: the evaluated run as a fold of a cross-validation; None for a whole cross-validation.
        result: content of `result.json`.
        predictions: one per video.
        probe_cache: file that keeps the results of probing; None for several runs.
        not_written: why the result could not be written; None: it is in `folder`.
    """

    folder: Path
    fold: Fold | None
    result: dict
    predictions: list[PredictionRow]
    probe_cache: Path | None = None
    not_written: OSError | None = None


def evaluate_run(run: str | Path, options: EvaluationOptions, *, is_main_process: bool = True) -> EvaluationRun:
    """Evaluates one run; all processes share the work, and the main process writes.

    A result that cannot be written is not lost, see `EvaluationRun.not_written`. If that is known before, a warning
    says so before the work.

    Raises:
        InputError: no such run or split, unknown classes, impossible views, videos that the run was trained on;
            `calibrate` for a run folder that cannot be written; a link in the run that leads out of it.
    """
    trained = load_checkpoint(run, trust=options.trust)
    check_stays_inside(RunFolder(trained.folder), trains=False)
    val_model = _model_for_val(trained, options)
    if is_main_process and val_model is not trained:
        log.info(
            "%s was trained on val too, so val is measured with %s; the temperature and the threshold are for both",
            *(trained.path.name, val_model.path.name),
        )
    if options.data_root:
        needed = set() if options.manifest else {options.split}
        needed |= {"val"} if options.calibrate or options.unknown else set()
        moved = find_run_videos(RunFolder(trained.folder), options.data_root, splits=needed, option="--data-root")
        trained, val_model = replace(trained, moved=moved), replace(val_model, moved=moved)
    check_classes(options.background, trained.class_names, option="--background")
    data = load_manifest(trained, split=options.split, manifest=options.manifest, allow_leaks=options.allow_leaks)
    unknown_data = None
    if options.unknown:
        evaluated = data.select(options.split)
        unknown_data = find_unknown(trained, options.unknown, evaluated, background=options.background)
    absent = absent_classes(data, options.split)
    if is_main_process and absent:
        log.warning(
            "split %r has no videos of %d of the model's %d classes; they have no metrics: %s",
            *(options.split, len(absent), len(trained.class_names), listing(absent)),
        )
    suffix = f"_{Path(options.manifest).stem}" if options.manifest else ""
    folder = RunFolder(trained.folder).evaluation(f"{options.split}{suffix}").path
    if is_main_process and (reason := why_not_writable(folder)):
        if options.calibrate:
            raise InputError(
                f"--calibrate keeps the temperature with the run, but {trained.folder} is not writable: {reason}"
            )
        log.warning("the result is printed, but not written: %s is not writable: %s; --json F works", folder, reason)
    views: dict[str, Any] = {
        "num_clips": options.num_clips,
        "num_crops": options.num_crops,
        "num_workers": options.num_workers,
    }
    if options.calibrate:
        val = load_manifest(trained, split="val")
        val_model = calibrate(
            val_model, val, cache_features=options.cache_features, is_main_process=is_main_process, **views
        )
        trained = replace(trained, temperature=val_model.temperature, threshold=val_model.threshold)
    result, predictions = evaluate(trained, data, split=options.split, cache_features=options.cache_features, **views)
    result["manifest"] = options.manifest and str(Path(options.manifest).absolute())
    unknown: list[PredictionRow] = []
    if unknown_data:
        unknown = predict_unknown(
            trained, unknown_data, cache_features=options.cache_features, is_main_process=is_main_process, **views
        )
        result["unknown"] = _separate_unknown(
            val_model, options, predictions, unknown, is_main_process=is_main_process, **views
        )
    not_written = write_if_possible(folder, result, predictions, unknown) if is_main_process else None
    playbacks = {}
    if options.audit:
        playbacks = predict_playbacks(trained, data, split=options.split, is_main_process=is_main_process, **views)
        result |= audit_metrics(predictions, playbacks, trained.class_names, trained.clip)
        if is_main_process:
            not_written = write_if_possible(folder, result, predictions, unknown)
    fold = Fold(_fold_name(trained), trained.folder, result, predictions, playbacks, trained.clip)
    cache = probe_cache(data)
    return EvaluationRun(
        folder=folder,
        fold=fold,
        result=result,
        predictions=predictions,
        probe_cache=cache,
        not_written=not_written,
    )


def _separate_unknown(
    val_model: TrainedModel,
    options: EvaluationOptions,
    predictions: list[PredictionRow],
    unknown: list[PredictionRow],
    *,
    is_main_process: bool,
    **views: Any,
) -> dict:
    """The entry `unknown` of the result; keeps the threshold with the run."""
    assert options.unknown is not None
    val = predictions
    if options.split != "val" or options.manifest:
        data = load_manifest(val_model, split="val")
        val = predict_split(val_model, data, split="val", cache_features=options.cache_features, **views)
    found = separation(predictions, unknown, val, val_model.class_names, background=options.background)
    if is_main_process:
        is_kept = why_not_writable(val_model.folder) is None
        if is_kept and found["threshold"] is not None:
            keep_threshold(val_model, found)
        log_threshold(found, is_kept=is_kept)
    return {"folder": str(Path(options.unknown).absolute()), **found}


def _model_for_val(trained: TrainedModel, options: EvaluationOptions) -> TrainedModel:
    """See `model_for_val`. Raises InputError if val is to be evaluated with a model that was trained on it."""
    if trained.is_refit and options.split == "val" and options.manifest is None:
        raise InputError(
            f"--split val: {trained.path} was trained on the videos of val too (refit=true), so val says nothing about "
            "it. The checkpoint before the refit has not seen them: stvid evaluate "
            f"{RunFolder(trained.folder).best_ckpt} --split val"
        )
    used = [option for option, value in (("--calibrate", options.calibrate), ("--unknown", options.unknown)) if value]
    return model_for_val(trained, option=used[0], trust=options.trust) if used else trained


def write_if_possible(
    folder: Path, result: dict, predictions: Sequence[PredictionRow], unknown: Sequence[PredictionRow] = ()
) -> OSError | None:
    """Writes a result; returns the error of the disk, if there is one."""
    try:
        write_result(folder, result, predictions, unknown)
    except OSError as error:
        return error
    return None


def _fold_name(trained: TrainedModel) -> str:
    """`fold N` if the data set has folds, else the name of the run's folder."""
    number = trained.config["data"].get("fold")
    return trained.folder.name if number is None else f"fold {number}"
