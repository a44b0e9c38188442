"""One evaluation as it lies in a run's folder, and what the model costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stvid.checkpoint import CHECKPOINTS, TrainedModel, find_checkpoint, load_checkpoint
from stvid.errors import InputError
from stvid.evaluation.predictions import PREDICTIONS_NAME, PredictionRow, read_predictions
from stvid.evaluation.price import on_gpu, price
from stvid.evaluation.runs import RESULT_NAME, is_sweep_folder, runs_in


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation.

    Attributes:
        name: of the run.
        folder: where the evaluation lies.
        result: `result.json`.
        predictions: one a video.
        cost: `parameters`; `flops_clip` and `flops_video` (forward, twice the multiply-adds; all views of a video);
            `answer_bytes` for one clip, `training_bytes` for a step on `batch_size` clips with AdamW, both in
            `precision` on `device`, the run's own; `num_frames` that were priced, `whole_video` whether that stands
            for videos of any length. None: the checkpoint is not there, or the model cannot be simulated.
        training: `training_seconds`, `clips_per_second`, `peak_memory_gib`, `device`, and whether it was on
            `stored_features` of a frozen encoder, so that no video was decoded; None: not known.
    """

    name: str
    folder: Path
    result: dict
    predictions: list[PredictionRow]
    cost: dict | None
    training: dict | None


def read_evaluation(run: str | Path, split: str) -> Evaluation:
    """The evaluation of a run, or of a sweep as a cross-validation, on a split; `val` may be the run's own.

    What the model costs is told of a sweep's first run.

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
            find_checkpoint(_model_of(path))
            command = f"stvid evaluate {run} --split {split}"
            raise InputError(f"{run} was not evaluated on {split}: there is no {folder / name}. First: {command}")
    result = read_result(folder)
    run = read_json(_model_of(home) / RESULT_NAME)
    trained = _loaded(_model_of(path))
    return Evaluation(
        name=home.absolute().name,
        folder=folder,
        result=result,
        predictions=read_predictions(folder / PREDICTIONS_NAME, result["class_names"]),
        cost=None if trained is None else _cost(trained, run, result["protocol"]),
        training=_training(run, trained),
    )


def read_result(folder: Path) -> dict:
    """`result.json` of an evaluation.

    Raises:
        InputError: there is none, or one of an older version.
    """
    result = read_json(folder / RESULT_NAME)
    if not result:
        raise InputError(f"{folder} holds no result.json, so there is nothing to report: stvid evaluate RUN writes one")
    if "num_seen" not in result:
        raise InputError(f"{folder / RESULT_NAME} is of an older version of stvid; stvid evaluate RUN writes a new one")
    return result


def read_json(file: Path) -> dict:
    """What a file holds; nothing where there is none."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _model_of(path: Path) -> Path:
    return runs_in(path)[0] if is_sweep_folder(path) else path


def _loaded(model: Path) -> TrainedModel | None:
    try:
        return load_checkpoint(model)
    except InputError:  # evaluations are comparable without it
        return None


def _cost(trained: TrainedModel, run: Mapping, protocol: Mapping) -> dict | None:
    report = price(trained, run)
    if report is None:
        return None
    return {
        "parameters": report.parameters,
        "flops_clip": report.flops_forward,
        "flops_video": report.flops_forward * protocol["num_clips"] * protocol["num_crops"],
        "answer_bytes": report.peak_inference_bytes,
        "training_bytes": report.peak_train_bytes,
        "batch_size": report.batch_size,
        "num_frames": report.input_shape[1],
        "whole_video": trained.clip.num_frames is None,
        "precision": report.precision,
        "device": report.device,
    }


def _training(run: Mapping, trained: TrainedModel | None) -> dict | None:
    if "training_seconds" not in run:
        return None
    machine = run["hardware"]
    device = machine["gpus"][0]["name"] if on_gpu(run) and machine["gpus"] else machine["cpu"]
    facts = {key: run[key] for key in ("training_seconds", "clips_per_second", "peak_memory_gib")}
    return {**facts, "device": device, "stored_features": trained is not None and _on_stored_features(trained)}


def _on_stored_features(trained: TrainedModel) -> bool:
    features = trained.config["data"]["datamodule"].get("features", "off")  # checkpoints of older versions have none
    return features != "off" and getattr(trained.model, "encoder_is_frozen", False)
