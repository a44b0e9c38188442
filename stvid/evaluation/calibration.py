"""Calibration on val, saved with the run: one temperature for all logits, and a threshold for "something happens".

V views   N videos   K classes
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stvid.checks import read_json
from stvid.data.loading import probe_cache
from stvid.data.manifest import Manifest
from stvid.deploy.segments import DEFAULT_THRESHOLD
from stvid.errors import InputError
from stvid.evaluation.evaluate import evaluation_protocol
from stvid.files import write_json
from stvid.inference import classify
from stvid.metrics import average_views, calibration_error, log_loss, reliability
from stvid.run.checkpoint import (
    CALIBRATION,
    CALIBRATION_REMEDY,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    TrainedModel,
    load_checkpoint,
    read_step,
)
from stvid.run.folder import RunFolder

log = logging.getLogger(__name__)

MIN_YOUDEN = 0.1  # a threshold that separates less than this is not kept
GRID_SIZE = 61  # temperatures tried first, equally spaced in the logarithm


def fit_temperature(logits_VK: Tensor, videos_V: Tensor, labels_N: Tensor) -> float:
    """Temperature T that minimises the log loss of `softmax(logits / T)`, averaged over the views of each video.

    Temperature scaling (Guo et al. 2017, arXiv:1706.04599) does not change the order of the classes for a single view;
    with several views it can change the predicted class.

    Args:
        logits_VK: logits of the views.
        videos_V: index of the video of each view.
        labels_N: true classes of the videos, in ascending order of `videos_V`.

    Returns:
        T, from 0.1 to 10.
    """

    def loss(log_temperature: float) -> float:
        probabilities_NK, _ = average_views(logits_VK / torch.tensor(log_temperature).exp(), videos_V)
        return log_loss(probabilities_NK, labels_N)

    grid = torch.linspace(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE), GRID_SIZE).tolist()
    best = min(range(GRID_SIZE), key=lambda i: loss(grid[i]))  # with several views there can be several minima
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, GRID_SIZE - 1)]
    while high - low > 1e-4:  # ternary search
        third = (high - low) / 3
        low, high = (low, high - third) if loss(low + third) <= loss(high - third) else (low + third, high)
    return round(torch.tensor((low + high) / 2).exp().item(), 4)


def fit_threshold(positives: Sequence[float], negatives: Sequence[float]) -> tuple[float, float, float]:
    """The threshold that separates two sets of probabilities best.

    It maximises Youden's J (Youden 1950): the share of positives at or above the threshold, minus that of the
    negatives. Of equally good thresholds, it is in the middle.

    Args:
        positives: in [0, 1], at least one.
        negatives: in [0, 1], at least one.

    Returns:
        The threshold, above 0 and at most 1, and the two shares.
    """
    high, low = np.asarray(positives), np.asarray(negatives)
    values = np.unique(np.concatenate([high, low]))  # between two neighbours, every threshold is equally good
    youden = np.array([(high >= value).mean() - (low >= value).mean() for value in values])
    best = np.flatnonzero(youden >= youden.max() - 1e-12)
    middle = best[len(best) // 2]
    below = values[middle - 1] if middle else 0.0
    threshold = max(float(below + values[middle]) / 2, 1e-6)
    return threshold, float((high >= threshold).mean()), float((low >= threshold).mean())


def model_for_val(trained: TrainedModel, *, option: str, trust: Sequence[str] = ()) -> TrainedModel:
    """The model that is measured on val: after `refit=true` the one before it, which has not seen val; else the same.

    Both were trained in the same way, and have the same temperature and threshold.

    Args:
        trained: the model.
        option: that needs val, for messages.
        trust: see `load_checkpoint`.

    Raises:
        InputError: the checkpoint before the refit is missing; see also `load_checkpoint`.
    """
    folder = RunFolder(trained.folder)
    if not trained.is_refit:
        return trained
    if not folder.evaluated_ckpt.is_file():
        raise InputError(
            f"{option} needs a model that has not seen val. {trained.path} was trained on val too (refit=true), and "
            f"the checkpoint before the refit is missing: {folder.best_ckpt}. Put it back, or train the run again"
        )
    before = load_checkpoint(folder.evaluated_ckpt, calibrated=False, trust=trust)
    return replace(before, temperature=trained.temperature, threshold=trained.threshold, moved=trained.moved)


def _owner(trained: TrainedModel) -> dict:
    """The entries of `calibration.json` that say which checkpoints it belongs to; see `model_for_val`.

    Args:
        trained: the model that was measured on val.
    """
    folder = RunFolder(trained.folder)
    owner = {"checkpoint": trained.path.name, "step": trained.step}
    if trained.path.name == folder.evaluated_ckpt.name and folder.refit_ckpt.is_file():
        owner["refit_step"] = read_step(folder.refit_ckpt)
    return owner


def calibrate(
    trained: TrainedModel,
    data: Manifest,
    *,
    num_clips: int | None = None,
    num_crops: int | None = None,
    num_workers: int | str = "auto",
    cache_features: bool = True,
    is_main_process: bool = True,
) -> TrainedModel:
    """Fits a temperature and a threshold on the run's val split and saves them as `calibration.json` in the run folder.

    From then on, every evaluation and prediction with this checkpoint, and with that of its refit, uses the
    temperature; segments and streams use the threshold. It separates the videos that are predicted correctly from the
    same videos frozen, in which nothing happens, by the probability of the most probable class (`fit_threshold`).

    Args:
        trained: the model, see `model_for_val`.
        data: its data set; the split `val` is used.
        num_clips, num_crops, num_workers, cache_features: see `evaluate`.
        is_main_process: log and save the temperature.

    Returns:
        The model with the temperature and the threshold.

    Raises:
        InputError: none of the val videos could be read; see also `inference.classify`.
    """
    uncalibrated, items = replace(trained, temperature=1.0), data.select("val")
    read = partial(
        classify,
        num_clips=num_clips,
        num_crops=num_crops,
        num_workers=num_workers,
        cache=probe_cache(data),
        decode_all=True,
    )
    predictions = read(uncalibrated, items, cache_features=cache_features)
    if not len(predictions.videos_N):
        raise InputError(f"--calibrate: none of the {len(items)} val videos could be read, the first: {items[0].path}")
    labels_N = torch.tensor([trained.class_names.index(items[i].label) for i in predictions.videos_N.tolist()])
    temperature = fit_temperature(predictions.logits_VK, predictions.videos_V, labels_N)
    calibrated = replace(trained, temperature=temperature)
    before_NK = predictions.probabilities_NK
    after_NK, _ = average_views(predictions.logits_VK / temperature, predictions.videos_V)
    calibration = {
        "temperature": temperature,
        "split": "val",
        "protocol": evaluation_protocol(uncalibrated, num_clips=num_clips, num_crops=num_crops),
        "num_videos": len(labels_N),
        "loss": [log_loss(p_NK, labels_N) for p_NK in (before_NK, after_NK)],
        "ece": [calibration_error(reliability(p_NK, labels_N)) for p_NK in (before_NK, after_NK)],
        **_compare_with_frozen(after_NK, labels_N, read(calibrated, items, playback="frozen").probabilities_NK),
        **_owner(trained),
    }
    if is_main_process:
        write_json(file := RunFolder(trained.folder).calibration_json, calibration)
        _log_calibration(calibration, file)
    return replace(calibrated, threshold=calibration["threshold"])


def _compare_with_frozen(probabilities_NK: Tensor, labels_N: Tensor, frozen_NK: Tensor) -> dict:
    """The entries of `calibration.json` about the threshold, which is None if it would separate (almost) nothing."""
    best_N, predicted_N = probabilities_NK.max(dim=1)
    positives = best_N[predicted_N == labels_N].tolist()
    threshold, share, share_frozen = None, None, None
    if positives and len(frozen_NK):
        threshold, share, share_frozen = fit_threshold(positives, frozen_NK.max(dim=1).values.tolist())
        threshold = round(threshold, 6) if share - share_frozen >= MIN_YOUDEN else None
    shares = {"share_at_threshold": share, "share_frozen_at_threshold": share_frozen}
    return {"threshold": threshold, "threshold_from": "frozen", **shares}


def keep_threshold(trained: TrainedModel, unknown: Mapping) -> None:
    """Keeps a threshold in `calibration.json`, in the place of another one, beside the temperature of the model.

    Args:
        trained: the model, see `model_for_val`.
        unknown: see `unknown.separation`, with a threshold.

    Raises:
        OSError: the file cannot be written.
    """
    file, kept, owner = RunFolder(trained.folder).calibration_json, {}, _owner(trained)
    if file.exists():
        kept = read_json(file, CALIBRATION, remedy=CALIBRATION_REMEDY)
        if {key: kept.get(key) for key in ("checkpoint", "step", "refit_step")} != {"refit_step": None, **owner}:
            kept = {}
    kept = {key: value for key, value in kept.items() if "threshold" not in key}
    threshold = {
        "threshold": unknown["threshold"],
        "threshold_from": "unknown",
        "share_at_threshold": unknown["val_at_threshold"],
        "share_unknown_at_threshold": unknown["unknown_at_threshold"],
    }
    write_json(file, {**kept, "temperature": trained.temperature, "split": "val", **threshold, **owner})


def _log_calibration(calibration: dict, file: Path) -> None:
    log.info(
        "temperature %.3f, fitted on %d val videos: log loss %.3f before, %.3f after; calibration error %.3f before, "
        "%.3f after; saved in %s",
        *(calibration["temperature"], calibration["num_videos"], *calibration["loss"], *calibration["ece"], file),
    )
    share, share_frozen = calibration["share_at_threshold"], calibration["share_frozen_at_threshold"]
    if calibration["threshold"] is not None:
        log.info(
            "threshold %.3f for segments and streams: %.0f %% of the correct val videos reach it, %.0f %% of the same "
            "videos frozen",
            *(calibration["threshold"], 100 * share, 100 * share_frozen),
        )
    elif share is None:
        log.warning("no threshold was fitted: no val video was predicted correctly")
    else:
        log.warning(
            "no threshold was fitted: the model is as sure of frozen videos as of moving ones, which is right only if "
            "one of its classes means that nothing happens (predict --background CLASS); segments and streams use %s",
            DEFAULT_THRESHOLD,
        )
    if not 1.01 * MIN_TEMPERATURE < calibration["temperature"] < 0.99 * MAX_TEMPERATURE:
        log.warning(
            "the temperature %.3f is at the end of its range: val is too easy, too hard or too small to fit it",
            calibration["temperature"],
        )
