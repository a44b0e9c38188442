"""Evaluation of a trained model on the videos of a split, and the selection of these videos."""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from stvid.data.content_checks import content_keys
from stvid.data.loading import probe_cache
from stvid.data.manifest import SPLITS, Item, Manifest
from stvid.errors import InputError, listing, nearest
from stvid.evaluation.results import PredictionRow
from stvid.evaluation.split_check import check_split, moved_hint, table_path
from stvid.evaluation.statistics import accuracy_interval
from stvid.inference import ViewPredictions, classify
from stvid.metrics import video_metrics
from stvid.run.checkpoint import TrainedModel
from stvid.run.folder import RunFolder

log = logging.getLogger(__name__)


def evaluate(
    trained: TrainedModel,
    data: Manifest,
    *,
    split: str,
    num_clips: int | None = None,
    num_crops: int | None = None,
    device: torch.device | None = None,
    num_workers: int | str = "auto",
    cache_features: bool = True,
) -> tuple[dict, list[PredictionRow]]:
    """Predicts every video of a split and computes the metrics. For the arguments see `inference.classify`.

    Returns:
        The content of `result.json` as plain data, and the predictions in the order of the items.
    """
    predictions = predict_split(
        trained,
        data,
        split=split,
        num_clips=num_clips,
        num_crops=num_crops,
        device=device,
        num_workers=num_workers,
        cache_features=cache_features,
    )
    result = {
        "split": split,
        "class_names": list(trained.class_names),
        "protocol": evaluation_protocol(trained, num_clips=num_clips, num_crops=num_crops),
        **compute_metrics(predictions, trained.class_names),
        "num_seen": len(seen_in_training(trained, data.select(split))),
        "manifest": None,
        "checkpoint": str(trained.path),
        "epoch": trained.epoch,
        "step": trained.step,
    }
    return result, predictions


def predict_split(
    trained: TrainedModel,
    data: Manifest,
    *,
    split: str,
    num_clips: int | None = None,
    num_crops: int | None = None,
    playback: str = "normal",
    device: torch.device | None = None,
    num_workers: int | str = "auto",
    cache_features: bool = True,
) -> list[PredictionRow]:
    """Predictions for every video of a split, in the order of the items. For the arguments see `inference.classify`."""
    items = data.select(split)
    predictions = classify(
        trained,
        items,
        num_clips=num_clips,
        num_crops=num_crops,
        playback=playback,
        device=device,
        num_workers=num_workers,
        cache=probe_cache(data),
        decode_all=True,
        cache_features=cache_features and playback == "normal",
    )
    if playback == "normal":
        for video, reason in sorted(predictions.failed.items()):
            log.warning("counts as wrong, cannot be read (%s): %s", reason, items[video].path)
    return prediction_rows(trained, items, predictions)


def evaluation_protocol(trained: TrainedModel, *, num_clips: int | None = None, num_crops: int | None = None) -> dict:
    """Views, geometry of the clips and temperature. Only results with the same protocol are comparable."""
    clip = trained.clip
    rate = {"fps": clip.fps} if clip.fps is not None else {"frame_stride": clip.frame_stride}
    return {
        "num_clips": trained.protocol["num_clips"] if num_clips is None else num_clips,
        "num_crops": trained.protocol["num_crops"] if num_crops is None else num_crops,
        "num_frames": clip.num_frames,
        **rate,
        "size": list(clip.size),
        "temperature": trained.temperature,
    }


def prediction_rows(trained: TrainedModel, items: Sequence[Item], predictions: ViewPredictions) -> list[PredictionRow]:
    """Predictions for every item, in this order; unreadable videos have only their reason."""
    position = {video: n for n, video in enumerate(predictions.videos_N.tolist())}
    views: dict[int, list[str]] = {video: [] for video in position}
    for video, predicted in zip(predictions.videos_V.tolist(), predictions.logits_VK.argmax(1).tolist(), strict=True):
        views[video].append(trained.class_names[predicted])
    rows = []
    for video, item in enumerate(items):
        columns = {name: getattr(item, name) for name in ("path", "start", "end", "group", "label")}
        if video not in position:
            rows.append(PredictionRow(**columns, failed=predictions.failed[video]))
            continue
        probabilities = predictions.probabilities_NK[position[video]].tolist()
        rows.append(
            PredictionRow(
                **columns,
                predicted=trained.class_names[int(np.argmax(probabilities))],
                views=len(views[video]),
                views_right=views[video].count(item.label),
                probabilities=tuple(probabilities),
            )
        )
    return rows


def load_manifest(
    trained: TrainedModel, *, split: str, manifest: str | Path | None = None, allow_leaks: bool = False
) -> Manifest:
    """The run's own data set, or that of another manifest, after checking that the split can be evaluated.

    Args:
        trained: the model.
        split: the split to evaluate.
        manifest: CSV file to use instead of the run's own; it may have some or all of the model's classes.
        allow_leaks: accept videos of `manifest` that the run has seen, see `seen_in_training`.

    Raises:
        InputError: the manifest does not exist; the split is unknown or empty; the model does not know a class; none of
            the videos exists; the run has seen some of the videos.
    """
    if split not in SPLITS:
        raise InputError(f"--split {split}: must be one of {', '.join(SPLITS)}")
    folder = RunFolder(trained.folder)
    path = table_path(folder, manifest)
    data = Manifest.read_csv(path, class_names=trained.class_names, allow_new_classes=True)
    if not manifest:
        data = data.with_paths(trained.moved)
    unknown = data.class_names[len(trained.class_names) :]
    if unknown:
        hint = nearest(unknown[0], trained.class_names)
        raise InputError(f"{path} has classes that the model does not know: {listing(unknown)}{hint}")
    items = data.select(split)
    moved = None if manifest else moved_hint(folder, split)
    missing = check_split([(item.split, item.path) for item in data.items], split, table=path, moved_hint=moved)
    if missing and moved:
        log.warning(
            "%d of the %d videos of %s do not exist and count as wrong, the first: %s. %s",
            *(len(missing), len(items), split, missing[0], moved),
        )
    if manifest and not allow_leaks and (seen := seen_in_training(trained, items)):
        raise InputError(
            f"{len(seen)} of {len(items)} videos in {path} belong to the run's own train or val (same file, same "
            f"content, or same group of the same data set), the first: {seen[0].path}. Remove them, or allow them with "
            "--allow-leaks"
        )
    return data


def absent_classes(data: Manifest, split: str) -> list[str]:
    """Classes without a video in the split, in the order of the manifest."""
    present = {item.label for item in data.select(split)}
    return [name for name in data.class_names if name not in present]


def seen_in_training(trained: TrainedModel, items: Sequence[Item]) -> list[Item]:
    """The items that were used to train the run or to select its checkpoint.

    A video counts as seen if train or val of the run's own manifest contains

    - the same file; relative paths are made absolute, and links are followed;
    - a file with the same bytes, for example a copy in another folder. Only files of equal size are read. Folders of
      images and the run's own test videos are not compared by content (`stvid check` does this);
    - a video of the same group, if both belong to the same data set: the file is inside the common folder of all videos
      of the run's manifest. In another data set, `person01` is another person.
    """
    own = RunFolder(trained.folder).manifest_csv
    if not own.is_file():
        return []
    table = Manifest.read_csv(own, class_names=trained.class_names).with_paths(trained.moved)
    real = {path: os.path.realpath(path) for path in {item.path for item in (*table.items, *items)}}
    known = [item for item in table.items if item.split != "test"]
    files = {real[item.path] for item in known}
    groups = {item.group for item in known if item.group is not None}
    roots = _common_folders(real[item.path] for item in table.items)
    copies = identical_copies({real[item.path] for item in items} - {real[item.path] for item in table.items}, files)

    def is_seen(item: Item) -> bool:
        path = real[item.path]
        in_group = item.group in groups and any(Path(path).is_relative_to(root) for root in roots)
        return path in files or path in copies or in_group

    return [item for item in items if is_seen(item)]


def _common_folders(files: Iterable[str]) -> list[str]:
    """The common folder of all files; one per drive if they are on several drives (Windows)."""
    drives = defaultdict(set)
    for file in files:
        drives[os.path.splitdrive(file)[0]].add(os.path.dirname(file))
    return [os.path.commonpath(folders) for folders in drives.values()]


def identical_copies(files: Iterable[str], originals: Iterable[str]) -> set[str]:
    """The files with the same bytes as an original; empty files do not count."""
    sizes, known = (
        {path: os.path.getsize(path) for path in paths if os.path.isfile(path)} for paths in (files, originals)
    )
    shared_sizes = (set(sizes.values()) & set(known.values())) - {0}
    compared = [path for path, size in (sizes | known).items() if size in shared_sizes]
    keys = content_keys(compared, progress=False)
    contents = {keys[path] for path in known if path in keys}
    return {path for path in sizes if keys.get(path) in contents}


def compute_metrics(predictions: Sequence[PredictionRow], class_names: Sequence[str]) -> dict:
    """The metrics of `result.json`; accuracies are fractions in [0, 1].

    An unreadable video counts as wrong in every accuracy, in recall and in F1. The 95 % intervals are those of
    `accuracy_interval`: over groups if there are several; a video without a group is a group of its own.

    Raises:
        InputError: none of the videos could be read.
    """
    readable = [row for row in predictions if not row.failed]
    if not readable:
        raise InputError(f"none of the {len(predictions)} videos could be read, the first: {predictions[0].path}")
    index = {name: i for i, name in enumerate(class_names)}
    failed = torch.tensor([index[row.label] for row in predictions if row.failed], dtype=torch.int64)
    probabilities_NK = torch.tensor([row.probabilities for row in readable])
    metrics = video_metrics(probabilities_NK, torch.tensor([index[row.label] for row in readable]), failed)
    return {
        "num_videos": len(predictions),
        "num_failed": len(failed),
        "num_groups": len({row.group for row in predictions if row.group is not None}) or None,
        **_accuracies(predictions, metrics["mean_class_accuracy"]),
        **{name: metrics[name] for name in ("top5_accuracy", "top_k_accuracy", "macro_f1", "loss", "ece")},
        "per_class": {
            name: {key: metrics[key][i] for key in ("precision", "recall", "f1", "num_videos")}
            for name, i in index.items()
        },
        **{key: metrics[key] for key in ("confusion", "confusion_counts") if key in metrics},
        "reliability": metrics["reliability"],
    }


def _accuracies(predictions: Sequence[PredictionRow], mean_class_accuracy: float) -> dict:
    """Video, clip and mean class accuracy with their intervals, and the basis of the intervals."""
    groups = [row.video_key if row.group is None else row.group for row in predictions]
    over_groups = 1 < len(set(groups)) < len(groups)  # in a cross-validation, a video can occur several times
    num_videos = Counter(row.label for row in predictions)
    correct = [float(row.is_correct) for row in predictions]
    correct_views = [row.views_right / row.views if row.views else 0.0 for row in predictions]
    class_weights = [1 / num_videos[row.label] for row in predictions]
    groups_N = groups if over_groups else None
    return {
        "video_accuracy": sum(correct) / len(correct),
        "video_accuracy_ci95": list(accuracy_interval(correct, groups_N=groups_N)),
        "clip_accuracy": sum(correct_views) / len(correct_views),
        "clip_accuracy_ci95": list(accuracy_interval(correct_views, groups_N=groups_N)),
        "mean_class_accuracy": mean_class_accuracy,
        "mean_class_accuracy_ci95": list(accuracy_interval(correct, weights_N=class_weights, groups_N=groups_N)),
        "interval": {
            "over": "groups" if over_groups else "videos",
            "num": len(set(groups)) if over_groups else len(correct),
        },
    }
