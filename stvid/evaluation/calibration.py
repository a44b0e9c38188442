"""Probabilities that mean what they say: one temperature for all logits, fitted on val and kept with the run.

V views   N videos   K classes
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from stvid.data.loading import probe_cache
from stvid.data.manifest import Manifest
from stvid.errors import InputError
from stvid.evaluation.evaluate import protocol
from stvid.files import write_json
from stvid.inference import classify
from stvid.metrics import average_views, calibration_error, log_loss, reliability
from stvid.run.checkpoint import TrainedModel
from stvid.run.folder import RunFolder

log = logging.getLogger(__name__)

LOWEST, HIGHEST = 0.1, 10.0  # temperatures; a val set without a mistake would ask for 0
GRID = 61  # tried between them, evenly in the logarithm


def fit_temperature(logits_VK: Tensor, videos_V: Tensor, labels_N: Tensor) -> float:
    """The temperature T at which `softmax(logits / T)`, averaged over a video's views, has the least log loss.

    Temperature scaling (Guo et al. 2017, arXiv:1706.04599). It changes no view's order of classes; over several views
    it can change which class has the greatest mean.

    Args:
        logits_VK: of views.
        videos_V: which video each is of.
        labels_N: true classes of the videos, in ascending order of `videos_V`.

    Returns:
        T, from 0.1 to 10.
    """

    def loss(log_temperature: float) -> float:
        probabilities_NK, _ = average_views(logits_VK / torch.tensor(log_temperature).exp(), videos_V)
        return log_loss(probabilities_NK, labels_N)

    grid = torch.linspace(math.log(LOWEST), math.log(HIGHEST), GRID).tolist()
    best = min(range(GRID), key=lambda i: loss(grid[i]))  # over several views there can be more than one minimum
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)]
    while high - low > 1e-4:  # thirds of what is left
        third = (high - low) / 3
        low, high = (low, high - third) if loss(low + third) <= loss(high - third) else (low + third, high)
    return round(torch.tensor((low + high) / 2).exp().item(), 4)


def calibrate(
    trained: TrainedModel,
    data: Manifest,
    *,
    num_clips: int | None = None,
    num_crops: int | None = None,
    num_workers: int | str = "auto",
    speak: bool = True,
) -> TrainedModel:
    """Fits a temperature on the run's val split and keeps it in `calibration.json` beside its checkpoints.

    Whatever loads this checkpoint afterwards, to evaluate or to predict, answers at that temperature.

    Args:
        trained: the model.
        data: its data set, with a split `val`.
        num_clips, num_crops, num_workers: see `evaluate`.
        speak: say what was found, and write it; of several processes one does.

    Returns:
        The model at its temperature.

    Raises:
        InputError: not one val video could be read; see `inference.classify`.
    """
    how = {"num_clips": num_clips, "num_crops": num_crops}
    plain, items = replace(trained, temperature=1.0), data.select("val")
    answers = classify(plain, items, num_workers=num_workers, cache=probe_cache(data), decode_all=True, **how)
    if not len(answers.videos_N):
        raise InputError(f"--calibrate: none of the {len(items)} val videos could be read, the first: {items[0].path}")
    labels_N = torch.tensor([trained.class_names.index(items[i].label) for i in answers.videos_N.tolist()])
    temperature = fit_temperature(answers.logits_VK, answers.videos_V, labels_N)
    after_NK, _ = average_views(answers.logits_VK / temperature, answers.videos_V)
    found = {
        "temperature": temperature,
        "split": "val",
        "protocol": protocol(plain, **how),
        "num_videos": len(labels_N),
        "loss": [log_loss(answers.probabilities_NK, labels_N), log_loss(after_NK, labels_N)],
        "ece": [calibration_error(reliability(p_NK, labels_N)) for p_NK in (answers.probabilities_NK, after_NK)],
        "checkpoint": trained.path.name,
        "step": trained.step,
    }
    if speak:
        write_json(file := RunFolder(trained.folder).calibration_json, found)
        _tell(found, file)
    return replace(trained, temperature=temperature)


def _tell(found: dict, file: Path) -> None:
    log.info(
        "temperature %.3f, fitted on %d val videos: log loss %.3f before, %.3f after; calibration error %.3f before, "
        "%.3f after; kept in %s",
        *(found["temperature"], found["num_videos"], *found["loss"], *found["ece"], file),
    )
    if not 1.01 * LOWEST < found["temperature"] < 0.99 * HIGHEST:
        log.warning(
            "%.3f is the end of its range: val is too easy, too hard or too small to tell", found["temperature"]
        )
