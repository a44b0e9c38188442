"""A trained model on held-out videos: numbers one can believe."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from stvid.checkpoint import Trained
from stvid.data.loading import probe_cache
from stvid.data.manifest import SPLITS, Item, Manifest
from stvid.errors import InputError
from stvid.files import replacing
from stvid.inference import Answers, classify
from stvid.metrics import accuracy_interval, video_metrics

log = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.csv"


def held_out(
    trained: Trained, *, split: str, manifest: str | Path | None = None, allow_leaks: bool = False
) -> Manifest:
    """The data the run was trained with, or another manifest with the same classes, and videos in the split.

    Args:
        trained: the model.
        split: the split that is to be judged.
        manifest: a CSV instead of the run's own.
        allow_leaks: let the CSV's split hold files or groups that the run was trained on.

    Raises:
        InputError: no manifest beside the run, no such split, an empty one, other classes than the model's, videos
            that are no longer there, or that the run was trained on.
    """
    if split not in SPLITS:
        raise InputError(f"--split {split}: must be one of {', '.join(SPLITS)}")
    path = Path(manifest).expanduser() if manifest else trained.folder / MANIFEST_NAME
    if not path.is_file():
        raise InputError(f"{path} does not exist: it says which videos are held out. Name one with --manifest FILE.csv")
    data = Manifest.read_csv(path, class_names=trained.class_names, only_these=False)
    there = {item.label for item in data.items}
    if there != set(trained.class_names):
        extra = ", ".join(sorted(there - set(trained.class_names))) or "(nothing)"
        lacking = ", ".join(sorted(set(trained.class_names) - there)) or "(nothing)"
        raise InputError(
            f"{path} has other classes than the model: unknown to the model: {extra}; missing from the file: {lacking}"
        )
    items = data.select(split)
    if not items:
        there = ", ".join(name for name in SPLITS if data.select(name)) or "none"
        raise InputError(f"--split {split}: {path} has no videos in it; splits with videos: {there}")
    missing = [item.path for item in items if not os.path.exists(item.path)]
    if len(missing) == len(items):
        raise InputError(f"none of the {len(items)} videos of {path} are there, the first: {missing[0]}. Moved?")
    if manifest and not allow_leaks and (trained.folder / MANIFEST_NAME).is_file():
        _check_unseen(items, Manifest.read_csv(trained.folder / MANIFEST_NAME, class_names=trained.class_names), path)
    return data


def _check_unseen(items: Sequence[Item], trained_with: Manifest, path: Path) -> None:
    seen = [item for item in trained_with.items if item.split != "test"]
    files = {os.path.realpath(item.path) for item in seen}
    groups = {item.group for item in seen if item.group is not None}
    known = [item.path for item in items if os.path.realpath(item.path) in files or item.group in groups]
    if known:
        raise InputError(
            f"{len(known)} of {len(items)} videos in {path} belong to the run's own train or val (same file or group), "
            f"the first: {known[0]}. Take them out, or insist with --allow-leaks"
        )


def evaluate(
    trained: Trained,
    data: Manifest,
    *,
    split: str,
    num_clips: int | None = None,
    num_crops: int | None = None,
    order: str = "forward",
    device: torch.device | None = None,
    num_workers: int | str = "auto",
) -> tuple[dict, list[dict]]:
    """Judges every video of a split and compares with the truth. For the arguments see `inference.classify`.

    A video that cannot be read counts as wrong: in both accuracies, top 5, mean class accuracy and recall.

    Returns:
        The result (plain data; accuracies in [0, 1]; keys as `result.json` documents them) and the table of
        predictions, one row a video in the order of the items.
    """
    items = data.select(split)
    answers = classify(
        trained,
        items,
        num_clips=num_clips,
        num_crops=num_crops,
        order=order,
        device=device,
        num_workers=num_workers,
        cache=probe_cache(data),
        decode_all=True,
    )
    rule = protocol(trained, num_clips=num_clips, num_crops=num_crops)
    return _result(trained, items, answers, split=split, rule=rule), _predictions(trained, items, answers)


def _result(trained: Trained, items: Sequence[Item], answers: Answers, *, split: str, rule: dict) -> dict:
    truth = torch.tensor([trained.class_names.index(item.label) for item in items])
    labels_N = truth[answers.videos_N]
    failed = torch.tensor(sorted(answers.failed), dtype=torch.int64)
    if not len(labels_N):
        raise InputError(f"none of the {len(items)} videos could be read, the first: {items[0].path}")
    right_N = answers.probabilities_NK.argmax(1) == labels_N
    num_right = int(right_N.sum())
    for video, reason in sorted(answers.failed.items()):
        log.warning("counts as wrong, cannot be read (%s): %s", reason, items[video].path)
    metrics = video_metrics(answers.probabilities_NK, labels_N, truth[failed])
    views_right = (answers.logits_VK.argmax(1) == truth[answers.videos_V]).sum().item()
    views_a_video = len(answers.videos_V) // len(labels_N)
    return {
        "split": split,
        "class_names": list(trained.class_names),
        "num_videos": len(items),
        "num_failed": len(failed),
        "protocol": rule,
        "video_accuracy": num_right / len(items),
        "video_accuracy_ci95": list(accuracy_interval(num_right, len(items))),
        "clip_accuracy": views_right / (len(items) * views_a_video),
        **{name: metrics[name] for name in ("top5_accuracy", "mean_class_accuracy", "loss", "ece")},
        "per_class": {
            name: {key: metrics[key][i] for key in ("precision", "recall", "f1", "num_videos")}
            for i, name in enumerate(trained.class_names)
        },
        "confusion": metrics["confusion"],
        "checkpoint": str(trained.path),
        "epoch": trained.epoch,
    }


def protocol(trained: Trained, *, num_clips: int | None, num_crops: int | None) -> dict:
    """How videos are judged: views, and the geometry of a clip. Numbers are comparable only under the same one."""
    clip = trained.clip
    rate = {"fps": clip.fps} if clip.fps is not None else {"frame_stride": clip.frame_stride}
    return {
        "num_clips": trained.protocol["num_clips"] if num_clips is None else num_clips,
        "num_crops": trained.protocol["num_crops"] if num_crops is None else num_crops,
        "num_frames": clip.num_frames,
        **rate,
        "size": list(clip.size),
    }


def _predictions(trained: Trained, items: Sequence[Item], answers: Answers) -> list[dict]:
    position = {video: row for row, video in enumerate(answers.videos_N.tolist())}
    rows = []
    for video, item in enumerate(items):
        row = {"path": item.path, "label": item.label, "predicted": "", "failed": answers.failed.get(video, "")}
        if video in position:
            probabilities = answers.probabilities_NK[position[video]].tolist()
            row["predicted"] = trained.class_names[int(np.argmax(probabilities))]
            row |= {f"p_{name}": round(p, 6) for name, p in zip(trained.class_names, probabilities, strict=True)}
        rows.append(row)
    return rows


def write_predictions(path: str | Path, rows: list[dict], class_names: Sequence[str]) -> None:
    """Writes `path,label,predicted,failed,p_<class>...`, one row a video."""
    columns = ["path", "label", "predicted", "failed", *(f"p_{name}" for name in class_names)]
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def headline(result: dict) -> str:
    """The video accuracy with its interval, in one line."""
    low, high = result["video_accuracy_ci95"]
    return (
        f"{result['split']} video accuracy {result['video_accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f}, "
        f"{result['num_videos']} videos)"
    )


def describe(result: dict) -> str:
    """The result as a page of text: headline, classes, and what was mistaken for what."""
    rule = result["protocol"]
    rate = f"stride {rate}" if (rate := rule.get("frame_stride")) else f"{rule['fps']:g} frames/s"
    low, high = result["video_accuracy_ci95"]
    width = max(len(name) for name in result["class_names"])
    lines = [
        f"{result['split']}: {result['num_videos']} videos, {result['num_failed']} unreadable (counted as wrong)",
        f"protocol: {rule['num_clips']} clips x {rule['num_crops']} crops of {rule['num_frames'] or 'all'} frames, "
        f"{rate}, {rule['size'][0]} x {rule['size'][1]} pixels",
        "",
        f"video accuracy       {result['video_accuracy']:.3f}   (95 % interval {low:.3f} to {high:.3f})",
        f"clip accuracy        {result['clip_accuracy']:.3f}",
        f"mean class accuracy  {result['mean_class_accuracy']:.3f}",
        *([f"top-5 accuracy       {result['top5_accuracy']:.3f}"] if len(result["class_names"]) > 5 else []),
        f"log loss             {result['loss']:.3f}",
        f"calibration error    {result['ece']:.3f}",
        "",
        f"{'class':<{width}}  recall  precision  videos   mistaken for",
    ]
    for i, name in enumerate(result["class_names"]):
        one = result["per_class"][name]
        shown = (f"{one[key]:.3f}" if one[key] is not None else "-" for key in ("recall", "precision"))
        wrong = sorted(((n, j) for j, n in enumerate(result["confusion"][i]) if n and j != i), reverse=True)
        mistaken = ", ".join(f"{result['class_names'][j]} {n}" for n, j in wrong[:3])
        recall, precision = shown
        lines.append(f"{name:<{width}}  {recall:>6}  {precision:>9}  {one['num_videos']:>6}   {mistaken}".rstrip())
    return "\n".join(lines)
