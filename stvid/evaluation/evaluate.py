"""Evaluation of a trained model on held-out videos."""

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
from stvid.evaluation.statistics import accuracy_interval
from stvid.inference import ViewPredictions, classify
from stvid.metrics import video_metrics
from stvid.run.checkpoint import TrainedModel
from stvid.run.folder import MANIFEST_NAME

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
) -> tuple[dict, list[PredictionRow]]:
    """Judges every video of a split and compares with the truth. For the arguments see `inference.classify`.

    Returns:
        The result, as `result.json` documents it (plain data), and the predictions, in the order of the items.
    """
    views = {"num_clips": num_clips, "num_crops": num_crops}
    predictions = predict_split(trained, data, split=split, device=device, num_workers=num_workers, **views)
    result = {
        "split": split,
        "class_names": list(trained.class_names),
        "protocol": protocol(trained, **views),
        **scores_of(predictions, trained.class_names),
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
) -> list[PredictionRow]:
    """What the model says of every video of a split, in the order of the items. See `inference.classify`."""
    items = data.select(split)
    answers = classify(
        trained,
        items,
        num_clips=num_clips,
        num_crops=num_crops,
        playback=playback,
        device=device,
        num_workers=num_workers,
        cache=probe_cache(data),
        decode_all=True,
    )
    for video, reason in sorted(answers.failed.items()) if playback == "normal" else ():
        log.warning("counts as wrong, cannot be read (%s): %s", reason, items[video].path)
    return _predictions(trained, items, answers)


def protocol(trained: TrainedModel, *, num_clips: int | None = None, num_crops: int | None = None) -> dict:
    """How videos are judged: views, the geometry of a clip, and the temperature. Only the same one is comparable."""
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


def _predictions(trained: TrainedModel, items: Sequence[Item], answers: ViewPredictions) -> list[PredictionRow]:
    position = {video: row for row, video in enumerate(answers.videos_N.tolist())}
    views: dict[int, list[str]] = {video: [] for video in position}
    for video, answer in zip(answers.videos_V.tolist(), answers.logits_VK.argmax(1).tolist(), strict=True):
        views[video].append(trained.class_names[answer])
    predictions = []
    for video, item in enumerate(items):
        facts = {name: getattr(item, name) for name in ("path", "start", "end", "group", "label")}
        if video not in position:
            predictions.append(PredictionRow(**facts, failed=answers.failed[video]))
            continue
        probabilities = answers.probabilities_NK[position[video]].tolist()
        predictions.append(
            PredictionRow(
                **facts,
                predicted=trained.class_names[int(np.argmax(probabilities))],
                views=len(views[video]),
                views_right=views[video].count(item.label),
                probabilities=tuple(probabilities),
            )
        )
    return predictions


def select_test_split(
    trained: TrainedModel, *, split: str, manifest: str | Path | None = None, allow_leaks: bool = False
) -> Manifest:
    """The data the run was trained with, or another manifest of some or all of its classes, with videos in the split.

    Args:
        trained: the model.
        split: the split that is to be judged.
        manifest: a CSV instead of the run's own.
        allow_leaks: let the CSV's split hold what the run has seen, see `seen_in_training`.

    Raises:
        InputError: no manifest beside the run, no such split, an empty one, classes that the model does not know,
            videos that are no longer there, or that the run has seen.
    """
    if split not in SPLITS:
        raise InputError(f"--split {split}: must be one of {', '.join(SPLITS)}")
    path = Path(manifest).expanduser() if manifest else trained.folder / MANIFEST_NAME
    if not path.is_file():
        raise InputError(f"{path} does not exist: it says which videos are held out. Name one with --manifest FILE.csv")
    data = Manifest.read_csv(path, class_names=trained.class_names, allow_new_classes=True)
    unknown = data.class_names[len(trained.class_names) :]
    if unknown:
        hint = nearest(unknown[0], trained.class_names)
        raise InputError(f"{path} has classes that the model does not know: {listing(unknown)}{hint}")
    items = data.select(split)
    if not items:
        there = ", ".join(name for name in SPLITS if data.select(name)) or "none"
        raise InputError(f"--split {split}: {path} has no videos in it; splits with videos: {there}")
    missing = [item.path for item in items if not os.path.exists(item.path)]
    if len(missing) == len(items):
        raise InputError(f"none of the {len(items)} videos of {path} are there, the first: {missing[0]}. Moved?")
    if manifest and not allow_leaks and (seen := seen_in_training(trained, items)):
        raise InputError(
            f"{len(seen)} of {len(items)} videos in {path} belong to the run's own train or val (same file, same "
            f"content, or same group of the same data set), the first: {seen[0].path}. Take them out, or insist with "
            "--allow-leaks"
        )
    return data


def absent_classes(data: Manifest, split: str) -> list[str]:
    """Classes of a manifest that a split has no videos of, in the manifest's order."""
    there = {item.label for item in data.select(split)}
    return [name for name in data.class_names if name not in there]


def seen_in_training(trained: TrainedModel, items: Sequence[Item]) -> list[Item]:
    """Those that the run was trained on, or whose val chose its checkpoint.

    A video counts as seen where train or val of the run's own manifest holds

    - the same file, by whatever path: relative ones are made absolute and links are followed;
    - another file with the same bytes, for instance a copy in another folder. Only files that have the size of one of
      the run's are read. Folders of images and the run's own test videos are not compared in this way (`stvid check`
      does so);
    - a video of the same group, and both are of one data set: the file lies in the folder that all videos of the run's
      manifest have in common, or below it. Elsewhere, `person01` is another person.
    """
    own = trained.folder / MANIFEST_NAME
    if not own.is_file():
        return []
    table = Manifest.read_csv(own, class_names=trained.class_names)
    real = {path: os.path.realpath(path) for path in {item.path for item in (*table.items, *items)}}
    known = [item for item in table.items if item.split != "test"]
    files = {real[item.path] for item in known}
    groups = {item.group for item in known if item.group is not None}
    homes = _common_folders(real[item.path] for item in table.items)
    copies = _copies({real[item.path] for item in items} - {real[item.path] for item in table.items}, files)

    def is_seen(item: Item) -> bool:
        path = real[item.path]
        in_group = item.group in groups and any(Path(path).is_relative_to(home) for home in homes)
        return path in files or path in copies or in_group

    return [item for item in items if is_seen(item)]


def _common_folders(files: Iterable[str]) -> list[str]:
    """The folder that all files have in common; where they lie on several drives (Windows), one for each."""
    drives = defaultdict(set)
    for file in files:
        drives[os.path.splitdrive(file)[0]].add(os.path.dirname(file))
    return [os.path.commonpath(folders) for folders in drives.values()]


def _copies(files: Iterable[str], originals: Iterable[str]) -> set[str]:
    """Those of the files that hold the same bytes as an original; empty files are nobody's copy."""
    sizes, known = (
        {path: os.path.getsize(path) for path in paths if os.path.isfile(path)} for paths in (files, originals)
    )
    alike = (set(sizes.values()) & set(known.values())) - {0}
    compared = [path for path, size in (sizes | known).items() if size in alike]
    keys = content_keys(compared, progress=False)
    contents = {keys[path] for path in known if path in keys}
    return {path for path in sizes if keys.get(path) in contents}


def scores_of(predictions: Sequence[PredictionRow], class_names: Sequence[str]) -> dict:
    """The keys of `result.json` that say how good the answers are; accuracies are fractions in [0, 1].

    A video that could not be read counts as wrong: in every accuracy, recall and f1. Intervals are of 95 %, see
    `accuracy_interval`: over groups where there are several, a video without a group being one of its own.

    Raises:
        InputError: not one video could be read.
    """
    read = [one for one in predictions if not one.failed]
    if not read:
        raise InputError(f"none of the {len(predictions)} videos could be read, the first: {predictions[0].path}")
    number = {name: i for i, name in enumerate(class_names)}
    failed = torch.tensor([number[one.label] for one in predictions if one.failed], dtype=torch.int64)
    probabilities_NK = torch.tensor([one.probabilities for one in read])
    metrics = video_metrics(probabilities_NK, torch.tensor([number[one.label] for one in read]), failed)

    groups = [one.video if one.group is None else one.group for one in predictions]
    over_groups = 1 < len(set(groups)) < len(groups)  # of a cross-validation, a video may be there several times
    counts = Counter(one.label for one in predictions)
    right = [float(one.is_right) for one in predictions]
    share = [one.views_right / one.views if one.views else 0.0 for one in predictions]
    known = {"groups_N": groups if over_groups else None}
    one_over_class = [1 / counts[one.label] for one in predictions]
    return {
        "num_videos": len(predictions),
        "num_failed": len(failed),
        "num_groups": len({one.group for one in predictions if one.group is not None}) or None,
        "video_accuracy": sum(right) / len(right),
        "video_accuracy_ci95": list(accuracy_interval(right, **known)),
        "clip_accuracy": sum(share) / len(share),
        "clip_accuracy_ci95": list(accuracy_interval(share, **known)),
        "mean_class_accuracy": metrics["mean_class_accuracy"],
        "mean_class_accuracy_ci95": list(accuracy_interval(right, weights_N=one_over_class, **known)),
        "interval": {
            "over": "groups" if over_groups else "videos",
            "num": len(set(groups)) if over_groups else len(right),
        },
        **{name: metrics[name] for name in ("top5_accuracy", "top_k_accuracy", "macro_f1", "loss", "ece")},
        "per_class": {
            name: {key: metrics[key][i] for key in ("precision", "recall", "f1", "num_videos")}
            for name, i in number.items()
        },
        "confusion": metrics["confusion"],
        "reliability": metrics["reliability"],
    }
