"""Results on disk: `predictions.csv` and `result.json`, and the cost of the evaluated model."""

from __future__ import annotations

import copy
import csv
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stvid import __version__
from stvid.checks import read_csv
from stvid.cost.estimate import estimate
from stvid.cost.report import CostReport
from stvid.data.manifest import MAX_SECONDS
from stvid.device import resolve_precision
from stvid.errors import InputError
from stvid.evaluation.text import confusion_rows
from stvid.files import replacing, write_json
from stvid.inference import uses_feature_cache
from stvid.models.layers import checkpoint_stages
from stvid.preprocess import Preprocess
from stvid.run.checkpoint import TrainedModel, load_checkpoint
from stvid.run.folder import RunFolder, find_checkpoint, finished_runs
from stvid.run.results import REMEDY, read_result, read_run_result

log = logging.getLogger(__name__)
COLUMNS = ("path", "start", "end", "group", "label", "predicted", "views", "views_right", "failed")
FRAMES_OF_WHOLE_VIDEO = 16  # number of frames for the cost of a model whose clips are whole videos
MAX_CHUNKS = 200  # chunks of frames per training step; the cost of more takes long to estimate
AUTO_PRECISION = {"cpu": "32-true", "cuda": "bf16-mixed"}  # of trainer.precision=auto, for runs that did not record it


@dataclass(frozen=True, kw_only=True)
class PredictionRow:
    """Prediction for one video, or for one part of a video.

    Attributes:
        path: the file.
        start: start of the part in seconds; None: the start of the file.
        end: end of the part in seconds; None: the end of the file.
        group: see `Item`; None: no group.
        label: the true class.
        predicted: the most probable class; None if the video could not be read.
        views: number of views; 0 if the video could not be read.
        views_right: number of views that are classified correctly on their own.
        failed: why the video could not be read; empty if it could be read.
        probabilities: one per class, in the order of the model's outputs, in [0, 1]; empty if unreadable.
    """

    path: str
    start: float | None = None
    end: float | None = None
    group: str | None = None
    label: str
    predicted: str | None = None
    views: int = 0
    views_right: int = 0
    failed: str = ""
    probabilities: tuple[float, ...] = ()

    @property
    def is_correct(self) -> bool:
        return self.predicted == self.label

    @property
    def video_key(self) -> tuple[str, float | None, float | None]:
        """Identifies the video or part of a video."""
        return self.path, self.start, self.end


def write_predictions(path: str | Path, predictions: Sequence[PredictionRow], class_names: Sequence[str]) -> None:
    """Writes `predictions.csv`: COLUMNS and `p_CLASS...`, one row per video; None is an empty cell.

    Probabilities have nine digits, which represent every float32 exactly.
    """
    columns = [*COLUMNS, *(f"p_{name}" for name in class_names)]
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in predictions:
            values = [getattr(row, name) for name in COLUMNS]
            probabilities = [f"{p:.9g}" for p in row.probabilities] or [""] * len(class_names)
            writer.writerow([*("" if value is None else value for value in values), *probabilities])


def read_predictions(path: str | Path, class_names: Sequence[str]) -> list[PredictionRow]:
    """Reads `predictions.csv`.

    Raises:
        InputError: the file does not exist, or a column is missing (older version, or other classes); a value is not
            what `PredictionRow` says.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; stvid evaluate RUN writes it")
    rows = read_csv(path, required=[*COLUMNS, *(f"p_{name}" for name in class_names)], remedy=REMEDY)
    known = {name: i for i, name in enumerate(class_names)}
    predictions = []
    for line, row in rows:
        try:
            predictions.append(_parse_row(row, class_names, known))
        except ValueError as error:
            raise InputError(f"{path}, line {line} is damaged or was changed: {error}. {REMEDY}") from error
    if not predictions:
        raise InputError(f"{path} is damaged: it lists no videos. {REMEDY}")
    return predictions


def _parse_row(row: dict[str, str], class_names: Sequence[str], known: Mapping[str, int]) -> PredictionRow:
    """Raises ValueError for a value out of its range."""
    failed = bool(row["failed"])
    prediction = PredictionRow(
        path=row["path"],
        start=float(row["start"]) if row["start"] else None,
        end=float(row["end"]) if row["end"] else None,
        group=row["group"] or None,
        label=row["label"],
        predicted=row["predicted"] or None,
        views=int(row["views"]),
        views_right=int(row["views_right"]),
        failed=row["failed"],
        probabilities=() if failed else tuple(float(row[f"p_{name}"]) for name in class_names),
    )
    if not prediction.path or "\0" in prediction.path:
        raise ValueError("no path")
    for name in (prediction.label, *(() if failed else (prediction.predicted,))):
        if name not in known:
            raise ValueError(f"{name!r} is no class of the model")
    if not all(0 <= seconds <= MAX_SECONDS for seconds in (prediction.start or 0.0, prediction.end or 0.0)):
        raise ValueError("start and end must be seconds, 0 or more")
    if not 0 <= prediction.views_right <= prediction.views or failed != (prediction.views == 0):
        raise ValueError(f"{prediction.views_right} of {prediction.views} views cannot be")
    if not failed and not _are_probabilities(prediction.probabilities):
        raise ValueError("the probabilities do not add up to 1")
    if not failed and prediction.probabilities[known[row["predicted"]]] < max(prediction.probabilities):
        raise ValueError(f"{row['predicted']!r} is not the most probable class")
    return prediction


def check_agreement(result: Mapping, predictions: Sequence[PredictionRow], folder: Path) -> None:
    """Raises InputError unless a `result.json` and a `predictions.csv` in a folder are of one evaluation."""
    found = {
        "num_videos": len(predictions),
        "num_failed": sum(bool(row.failed) for row in predictions),
        "video_accuracy": sum(row.is_correct for row in predictions) / len(predictions),
        "clip_accuracy": sum(row.views_right / max(row.views, 1) for row in predictions) / len(predictions),
    }
    for key, value in found.items():
        if key in result and abs(result[key] - value) > 1e-6:
            raise InputError(
                f"{folder}: result.json and predictions.csv are of two evaluations, or one was changed: {key} is "
                f"{result[key]:g} in the first, {value:g} in the second. {REMEDY}"
            )
    counts = Counter((row.label, row.predicted) for row in predictions if not row.failed)
    names = result["class_names"]
    if {"confusion", "confusion_counts"} & set(result) and counts != {
        (names[truth], names[predicted]): number
        for truth, row in enumerate(confusion_rows(result))
        for predicted, number in row.items()
    }:
        raise InputError(f"{folder}: the confusion in result.json is not that of predictions.csv. {REMEDY}")


def _are_probabilities(values: Sequence[float]) -> bool:
    """Whether they lie in [0, 1] and add up to 1, as far as float32 can say."""
    return all(0 <= value <= 1.001 for value in values) and abs(sum(values) - 1) < 1e-3


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation read from disk, with the cost and the training of its model.

    Attributes:
        name: name of the run.
        folder: folder of the evaluation.
        result: content of `result.json`.
        predictions: one per video.
        cost: `parameters`; `flops_clip` and `flops_video` (twice the multiply-adds of the forward pass; all views
            of a video); `answer_bytes` (peak memory of inference on one clip); `training_bytes` (of a step with
            `batch_size` clips and AdamW); `precision` and `device` of the training, to which both apply; `num_frames`
            of a clip; `whole_video`: whether clips are whole videos of any length. None if there is no checkpoint or
            the model cannot be simulated.
        training: `training_seconds` with `encoding_seconds` in them, `clips_per_second`, `peak_memory_gib`, `device`,
            and `stored_features`: whether it used cached features of a frozen encoder instead of decoding videos. None
            if unknown.
    """

    name: str
    folder: Path
    result: dict
    predictions: list[PredictionRow]
    cost: dict | None
    training: dict | None


def evaluated_checkpoint(folder: Path, run: Path) -> Path:
    """The checkpoint that the result in `folder` was measured with; RUN itself if that is a file, or has it no more."""
    result = read_result(folder, details=False)
    path = RunFolder.of(run).checkpoints / Path(result.get("checkpoint", "")).name
    return path if run.is_dir() and path.is_file() else run


def read_evaluation(run: str | Path, split: str, *, trust: Sequence[str] = ()) -> Evaluation:
    """Reads the evaluation of a run, or of a sweep that is a cross-validation, on a split.

    The default for `val` is the result that training wrote. The cost of a sweep is that of its first run.

    Raises:
        InputError: the run does not exist, or was not evaluated on the split.
    """
    path, home = Path(run).expanduser(), RunFolder.of(run)
    evaluation = home.evaluation(split)
    if split == "val" and not evaluation.result_json.exists():
        evaluation = home
    for file in (evaluation.result_json, evaluation.predictions_csv):
        if not file.exists():
            find_checkpoint(_first_run(path))
            command = f"stvid evaluate {run} --split {split}"
            raise InputError(f"{run} was not evaluated on {split}: there is no {file}. First: {command}")
    result = read_result(evaluation.path, details=False)
    predictions = read_predictions(evaluation.predictions_csv, result["class_names"])
    check_agreement(result, predictions, evaluation.path)
    training = read_run_result(_first_run(home.path))
    trained = _load_if_possible(_first_run(path), trust)
    return Evaluation(
        name=home.path.absolute().name,
        folder=evaluation.path,
        result=result,
        predictions=predictions,
        cost=None if trained is None else _cost_summary(trained, training, result["protocol"]),
        training=_training_summary(training, trained),
    )


def _first_run(path: Path) -> Path:
    return finished_runs(path)[0] if RunFolder(path).is_sweep else path


def _load_if_possible(model: Path, trust: Sequence[str]) -> TrainedModel | None:
    try:
        return load_checkpoint(model, trust=trust)
    except InputError:  # a comparison does not need the checkpoint
        return None


def _cost_summary(trained: TrainedModel, run: Mapping, protocol: Mapping) -> dict | None:
    report = estimate_cost(trained, run)
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


def _training_summary(run: Mapping, trained: TrainedModel | None) -> dict | None:
    if "training_seconds" not in run:
        return None
    machine = run["hardware"]
    device = machine["gpus"][0]["name"] if was_trained_on_gpu(run) and machine["gpus"] else machine["cpu"]
    measured = {key: run[key] for key in ("training_seconds", "clips_per_second", "peak_memory_gib")}
    measured["encoding_seconds"] = run.get("encoding_seconds", 0.0)  # missing in results of older versions
    return {**measured, "device": device, "stored_features": trained is not None and uses_feature_cache(trained)}


def training_device_and_precision(trained: TrainedModel, run: Mapping) -> tuple[str, str]:
    """Kind of device (`cpu` or `cuda`) and precision of a training, independent of the current machine.

    Args:
        trained: the model.
        run: the run's own `result.json`, or empty. If it has no such key (unfinished run or older version), the device
            is derived from the measured GPU memory, and the precision from the config.
    """
    device = "cuda" if was_trained_on_gpu(run) else "cpu"
    precision = run.get("precision") or trained.config["trainer"]["precision"]
    return device, AUTO_PRECISION[device] if precision == "auto" else resolve_precision(precision, device)


def was_trained_on_gpu(run: Mapping) -> bool:
    """Whether a run was trained on CUDA devices, according to its own `result.json`."""
    if "device" in run:
        return run["device"] == "cuda"
    return run.get("peak_memory_gib", {}).get("gpu") is not None


def estimate_cost(trained: TrainedModel, run: Mapping) -> CostReport | None:
    """Estimated cost with AdamW, on the device and in the precision of the training; None if simulation fails.

    Args:
        trained: the model.
        run: the run's own `result.json`, or empty.
    """
    config, clip = trained.config, trained.clip
    device, precision = training_device_and_precision(trained, run)
    model = trained.model
    if config.get("gradient_checkpointing"):
        model = copy.deepcopy(model)
        checkpoint_stages(model)
    num_frames = clip.num_frames or FRAMES_OF_WHOLE_VIDEO
    try:
        return estimate(
            model,
            (clip.channels, num_frames, *clip.size),
            batch_size=_batch_size(trained, num_frames),
            precision=precision,
            device=device,
            preprocess=Preprocess(clip=clip),
            ema=config.get("ema") is not None,
        )
    except InputError as error:
        log.info("the cost is unknown: %s", error)
    except Exception:  # for example a model that computes with NumPy
        log.warning("the cost is unknown: the simulation of a training step failed", exc_info=True)
    return None


def _batch_size(trained: TrainedModel, num_frames: int) -> int:
    """Batch size of the training; 1 if the batch would need very many chunks."""
    size, chunk = trained.config["data"]["datamodule"]["batch_size"], trained.model.max_chunk
    if not isinstance(size, int) or (chunk is not None and size * num_frames > MAX_CHUNKS * chunk):
        return 1
    return size


def write_result(
    folder: Path,
    result: dict,
    predictions: Sequence[PredictionRow],
    unknown: Sequence[PredictionRow] = (),
) -> None:
    """Writes `result.json`, `predictions.csv` and, with unknown videos, `unknown.csv`; removes an outdated report.

    A report of the same result, made by the same version of stvid, is kept: it would take long to make again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = RunFolder(folder)
    report, before = _read_bytes(files.report_html), _read_numbers(files)
    files.report_html.unlink(missing_ok=True)  # first: a process that is killed leaves no report of another result
    write_json(files.result_json, result)
    write_predictions(files.predictions_csv, predictions, result["class_names"])
    if unknown:
        write_predictions(files.unknown_csv, unknown, result["class_names"])
    else:
        files.unknown_csv.unlink(missing_ok=True)
    is_same = before == _read_numbers(files)
    if report is not None and is_same and f"Made by stvid {__version__}.".encode() in report:
        with replacing(files.report_html) as partial:
            partial.write_bytes(report)


def _read_numbers(files: RunFolder) -> list[bytes | None]:
    return [_read_bytes(file) for file in (files.result_json, files.predictions_csv)]


def _read_bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
