"""One evaluation as it lies in a run's folder, and what the model costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from stvid.checkpoint import CHECKPOINTS, Trained, find_checkpoint, load
from stvid.clip import Preprocess
from stvid.cost import estimate
from stvid.errors import InputError
from stvid.evaluation.predictions import Prediction, read_predictions

RESULT_NAME, PREDICTIONS_NAME = "result.json", "predictions.csv"
WHOLE_VIDEO = 16  # frames that are priced where a model sees whole videos
MANY_CHUNKS = 200  # of frames in a step


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One evaluation.

    Attributes:
        name: of the run.
        folder: where the evaluation lies.
        result: `result.json`.
        predictions: one a video.
        cost: `parameters`; `flops_clip` and `flops_video` (forward, twice the multiply-adds; all views of a video);
            `answer_bytes` for one clip, `training_bytes` for a step on `batch_size` clips with AdamW, both in float32
            on a CPU; `num_frames` that were priced, `whole_video` whether that stands for videos of any length. None:
            the checkpoint is not there, or the model cannot be simulated.
        training: `training_seconds`, `clips_per_second`, `peak_memory_gib` and `device`; None: not known.
    """

    name: str
    folder: Path
    result: dict
    predictions: list[Prediction]
    cost: dict | None
    training: dict | None


def read_judged(run: str | Path, split: str) -> Judged:
    """The evaluation of a run folder or checkpoint on a split; `val` may be the run's own.

    Raises:
        InputError: no such run, or it has not been evaluated on the split.
    """
    path = Path(run).expanduser()
    home = path if path.is_dir() else path.absolute().parent
    home = home.parent if home.name == CHECKPOINTS else home
    folder = home / "evaluate" / split
    if split == "val" and not (folder / RESULT_NAME).is_file():
        folder = home
    for name in (RESULT_NAME, PREDICTIONS_NAME):
        if not (folder / name).is_file():
            find_checkpoint(path)
            command = f"stvid evaluate {run} --split {split}"
            raise InputError(f"{run} was not evaluated on {split}: there is no {folder / name}. First: {command}")
    result = json.loads((folder / RESULT_NAME).read_text(encoding="utf-8"))
    return Judged(
        name=home.absolute().name,
        folder=folder,
        result=result,
        predictions=read_predictions(folder / PREDICTIONS_NAME, result["class_names"]),
        cost=_cost(path, result["protocol"]),
        training=_training(home / RESULT_NAME),
    )


def _cost(run: Path, protocol: Mapping) -> dict | None:
    try:
        trained = load(run)
        clip = replace(trained.clip, num_frames=trained.clip.num_frames or WHOLE_VIDEO)
        batch = _batch(trained, clip.num_frames)
        shape = (clip.channels, clip.num_frames, *clip.size)
        report = estimate(trained.model, shape, batch_size=batch, preprocess=Preprocess(clip=clip))
    except InputError:  # evaluations are comparable without it
        return None
    return {
        "parameters": report.parameters,
        "flops_clip": report.flops_forward,
        "flops_video": report.flops_forward * protocol["num_clips"] * protocol["num_crops"],
        "answer_bytes": report.peak_inference_bytes,
        "training_bytes": report.peak_train_bytes,
        "batch_size": batch,
        "num_frames": clip.num_frames,
        "whole_video": trained.clip.num_frames is None,
    }


def _batch(trained: Trained, num_frames: int) -> int:
    """As in training; one clip where frames go through the model in so many chunks that a batch takes long to price."""
    size, chunk = trained.config["data"]["datamodule"]["batch_size"], getattr(trained.model, "encoder_chunk", None)
    if not isinstance(size, int) or (chunk is not None and size * num_frames > MANY_CHUNKS * chunk):
        return 1
    return size


def _training(file: Path) -> dict | None:
    result = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "training_seconds" not in result:
        return None
    memory, machine = result["peak_memory_gib"], result["hardware"]
    on_gpu = memory["gpu"] is not None and machine["gpus"]
    device = machine["gpus"][0]["name"] if on_gpu else machine["cpu"]
    facts = {key: result[key] for key in ("training_seconds", "clips_per_second", "peak_memory_gib")}
    return {**facts, "device": device}
