"""A trained model on held-out videos: numbers one can believe."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from stvid.checkpoint import TrainedModel
from stvid.data.loading import probe_cache
from stvid.data.manifest import Item, Manifest
from stvid.evaluation.held_out import seen_in_training
from stvid.evaluation.predictions import PredictionRow
from stvid.evaluation.scores import scores_of
from stvid.inference import ViewPredictions, classify

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
