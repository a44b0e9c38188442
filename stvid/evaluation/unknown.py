"""Videos of none of the classes: how well the confidence separates them, and the threshold that follows from val.

N known videos   M unknown videos
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from stvid.data.loading import probe_cache
from stvid.data.manifest import Item, Manifest
from stvid.deploy.inputs import find_sources
from stvid.errors import InputError
from stvid.evaluation.calibration import MIN_YOUDEN
from stvid.evaluation.evaluate import identical_copies, prediction_rows
from stvid.evaluation.results import PredictionRow
from stvid.evaluation.statistics import accuracy_interval, auroc, auroc_interval
from stvid.inference import classify
from stvid.run.checkpoint import TrainedModel
from stvid.run.folder import RunFolder

log = logging.getLogger(__name__)
RECALL = 0.95  # share of the known videos that a threshold accepts
NUM_BINS = 20  # of the histograms
MIN_VAL = 20  # with fewer val videos, less than one of them lies below a threshold with a recall of 95 %


def find_unknown(
    trained: TrainedModel, folder: str, evaluated: Sequence[Item], *, background: Collection[str] = ()
) -> Manifest:
    """All videos below a folder, as test videos without a label.

    Args:
        trained: the model.
        folder: with video files or folders of images, at any depth.
        evaluated: the known videos that are evaluated.
        background: classes that mean that nothing happens; test and evaluated videos of these may be in the folder.

    Raises:
        InputError: no videos; some of them are in train, val or test of the run's own data set, or evaluated.
    """
    paths = [str(source.path.absolute()) for source in find_sources([folder])]
    known = [item for item in evaluated if item.label not in background]
    if (table := RunFolder(trained.folder).manifest_csv).is_file():
        own = Manifest.read_csv(table, class_names=trained.class_names).with_paths(trained.moved)
        known += [item for item in own.items if item.split != "test" or item.label not in background]
    _check_are_no_known_videos(paths, {item.path for item in known}, folder)
    items = tuple(Item(path=path, label="", split="test") for path in paths)
    return Manifest(items=items, class_names=trained.class_names)


def predict_unknown(
    trained: TrainedModel,
    data: Manifest,
    *,
    num_clips: int | None = None,
    num_crops: int | None = None,
    num_workers: int | str = "auto",
    cache_features: bool = True,
    is_main_process: bool = True,
) -> list[PredictionRow]:
    """Predictions for videos of none of the classes.

    Args:
        trained: the model.
        data: see `find_unknown`.
        num_clips, num_crops, num_workers, cache_features: see `evaluate`.
        is_main_process: log the unreadable videos.

    Raises:
        InputError: none of them can be read.
    """
    predictions = classify(
        trained,
        data.items,
        num_clips=num_clips,
        num_crops=num_crops,
        num_workers=num_workers,
        cache=probe_cache(data),
        decode_all=True,
        cache_features=cache_features,
    )
    if is_main_process:
        for video, reason in sorted(predictions.failed.items()):
            log.warning("left out of the unknown videos, cannot be read (%s): %s", reason, data.items[video].path)
    if not len(predictions.videos_N):
        first = data.items[0].path
        raise InputError(f"--unknown: none of the {len(data.items)} videos could be read, the first: {first}")
    return prediction_rows(trained, data.items, predictions)


def _check_are_no_known_videos(paths: Sequence[str], known: Collection[str], folder: str) -> None:
    real = {path: os.path.realpath(path) for path in (*paths, *known)}
    files = {real[path] for path in known}
    copies = identical_copies({real[path] for path in paths} - files, files)
    found = [path for path in paths if real[path] in files or real[path] in copies]
    if found:
        raise InputError(
            f"--unknown {folder}: {len(found)} of {len(paths)} videos are in the run's own data set or are evaluated "
            f"as known ones (same file, or same content), the first: {found[0]}. The videos of --unknown must be of "
            "none of the classes, and new to the run: remove them, or name another folder"
        )


def separation(
    known: Sequence[PredictionRow],
    unknown: Sequence[PredictionRow],
    val: Sequence[PredictionRow],
    class_names: Sequence[str],
    *,
    background: Collection[str] = (),
) -> dict:
    """How well the confidence separates known from unknown videos, and the threshold that is chosen on val.

    The confidence of a video is its largest probability (after the temperature, averaged over the views) among the
    classes that are not background: the baseline of Hendrycks and Gimpel (2017, arXiv:1610.02136). Known videos are all
    readable ones of `known` whose class is not background, whether their class is predicted correctly or not. A
    threshold accepts a video whose confidence is at or above it.

    - `auroc`: see `statistics.auroc`; its interval resamples the groups of the known videos, if they have several.
    - `false_acceptance`: the share of the unknown videos that is accepted by the largest threshold that accepts 95 % of
      the known ones (the false positive rate at 95 % true positive rate; Liang et al. 2018, arXiv:1706.02690). Its
      interval is that of this share, at this threshold.
    - `threshold`: the largest one that accepts 95 % of the known videos of val, rounded down. It depends neither on
      test nor on unknown videos, so `known_at_threshold` and `unknown_at_threshold`, the shares of the evaluated and
      the unknown videos that it accepts, are estimates for new ones. It is None if the share of val that it accepts
      is not at least 0.1 larger than that of the unknown videos.

    Args:
        known: predictions for the evaluated videos.
        unknown: those of `predict_unknown`.
        val: predictions for val of the run's own manifest, at the same temperature and views.
        class_names: in the order of the model's outputs.
        background: classes that mean that nothing happens.

    Returns:
        The entry `unknown` of `result.json`.

    Raises:
        InputError: no known video, of the evaluated ones or of val, could be read.
    """
    scores = [confidences(rows, class_names, background) for rows in (known, unknown, val)]
    known_N, unknown_M, val_N = scores
    for name, values in (("evaluated", known_N), ("val", val_N)):
        if not values:
            raise InputError(f"--unknown: none of the {name} videos is readable and of a class that is not background")
    groups = [row.video_key if row.group is None else row.group for row in _known(known, background)]
    false_acceptance = share_at(unknown_M, threshold_for(known_N))
    threshold = max(math.floor(1e6 * threshold_for(val_N)) / 1e6, 1e-6)
    share = share_at(val_N, threshold)
    return {
        "num_videos": len(unknown),
        "num_failed": sum(bool(row.failed) for row in unknown),
        "num_known": len(known_N),
        "background": sorted(background),
        "recall": RECALL,
        "auroc": auroc(known_N, unknown_M),
        "auroc_ci95": list(auroc_interval(known_N, unknown_M, groups_N=groups)),
        "false_acceptance": false_acceptance,
        "false_acceptance_ci95": list(accuracy_interval([float(p >= threshold_for(known_N)) for p in unknown_M])),
        "threshold": threshold if share - share_at(unknown_M, threshold) >= MIN_YOUDEN else None,
        "num_val": len(val_N),
        "val_at_threshold": share,
        "known_at_threshold": share_at(known_N, threshold),
        "unknown_at_threshold": share_at(unknown_M, threshold),
        "histogram": {name: _histogram(values) for name, values in (("known", known_N), ("unknown", unknown_M))},
    }


def _known(rows: Sequence[PredictionRow], background: Collection[str]) -> list[PredictionRow]:
    return [row for row in rows if not row.failed and row.label not in background]


def confidences(
    rows: Sequence[PredictionRow], class_names: Sequence[str], background: Collection[str] = ()
) -> list[float]:
    """The largest probability among the classes that are not background, of every readable video that is not of one."""
    columns = [i for i, name in enumerate(class_names) if name not in background]
    return [max(row.probabilities[i] for i in columns) for row in _known(rows, background)]


def threshold_for(known_N: Sequence[float], recall: float = RECALL) -> float:
    """The largest threshold that accepts the share `recall` of the videos: the confidence of one of them."""
    return sorted(known_N, reverse=True)[math.ceil(recall * len(known_N)) - 1]


def share_at(confidences_N: Sequence[float], threshold: float) -> float:
    """The share of videos that a threshold accepts."""
    return float((np.asarray(confidences_N) >= threshold).mean())


def _histogram(confidences_N: Sequence[float]) -> list[int]:
    """Numbers of videos in 20 equal bins of the confidence from 0 to 1."""
    return np.histogram(np.clip(confidences_N, 0, 1), bins=NUM_BINS, range=(0, 1))[0].tolist()


def log_threshold(unknown: Mapping, *, is_kept: bool) -> None:
    """Says which threshold was chosen, and what it means for `predict` and streams; `is_kept`: with the run."""
    if unknown["threshold"] is None:
        log.warning(
            "no threshold was chosen: that of 95 %% of the val videos also accepts %.0f %% of the unknown ones; the "
            "threshold of the run stays as it is. A class for videos in which nothing happens may help (docs/using.md)",
            100 * unknown["unknown_at_threshold"],
        )
        return
    log.info(
        "threshold %.6g for predict and stream, chosen on %d val videos%s",
        *(unknown["threshold"], unknown["num_val"], "" if is_kept else "; not kept, the run is not writable"),
    )
    if unknown["num_val"] < MIN_VAL:
        log.warning("val has few videos (%d), so the threshold is uncertain", unknown["num_val"])
