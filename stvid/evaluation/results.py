"""Results on disk: predictions.csv, result.json, and the evaluations read back from them."""

from __future__ import annotations

import copy
import csv
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stvid.cost.estimate import estimate
from stvid.cost.report import CostReport
from stvid.device import resolve_precision
from stvid.errors import InputError
from stvid.files import replacing, write_json
from stvid.models.layers import checkpoint_stages
from stvid.preprocess import Preprocess
from stvid.run.checkpoint import TrainedModel, load_checkpoint
from stvid.run.folder import (
    CHECKPOINTS,
    PREDICTIONS_NAME,
    REPORT_NAME,
    RESULT_NAME,
    find_checkpoint,
    is_sweep_folder,
    runs_in,
)

log = logging.getLogger(__name__)
FACTS = ("path", "start", "end", "group", "label", "predicted", "views", "views_right", "failed")
WHOLE_VIDEO = 16  # frames that are priced where a model sees whole videos
MANY_CHUNKS = 200  # of frames in a step; more take long to price
AUTO = {"cpu": "32-true", "cuda": "bf16-mixed"}  # what trainer.precision=auto most often was, where a run does not say


@dataclass(frozen=True, kw_only=True)
class PredictionRow:
    """One video, or one part of a video.

    Attributes:
        path: of its file.
        start: seconds at which the part begins; None: the beginning.
        end: seconds at which it ends; None: the end.
        group: see `Item`; None: no group.
        label: the truth.
        predicted: the most probable class; None where the video could not be read.
        views: how many views it was judged by; 0 where it could not be read.
        views_right: how many of them were right, each for itself.
        failed: why it could not be read; empty: it was.
        probabilities: of the classes, in the order of the model's outputs, in [0, 1]; empty where it was not read.
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
    def is_right(self) -> bool:
        return self.predicted == self.label

    @property
    def video(self) -> tuple[str, float | None, float | None]:
        """What tells it from any other video or part."""
        return self.path, self.start, self.end


def write_predictions(path: str | Path, predictions: Sequence[PredictionRow], class_names: Sequence[str]) -> None:
    """Writes `predictions.csv`: FACTS and `p_CLASS...`, a row a video; an empty cell is a None.

    Probabilities have the nine digits that tell every float32 from the next.
    """
    columns = [*FACTS, *(f"p_{name}" for name in class_names)]
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for one in predictions:
            facts = [getattr(one, name) for name in FACTS]
            cells = [f"{p:.9g}" for p in one.probabilities] or [""] * len(class_names)
            writer.writerow([*("" if fact is None else fact for fact in facts), *cells])


def read_predictions(path: str | Path, class_names: Sequence[str]) -> list[PredictionRow]:
    """The table as it was written.

    Raises:
        InputError: no such file, or one that another version of stvid wrote, or for other classes.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; stvid evaluate RUN writes it")
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        missing = [name for name in (*FACTS, *(f"p_{name}" for name in class_names)) if name not in columns]
        if missing:
            raise InputError(f"{path} has no column {missing[0]}: write it anew with stvid evaluate RUN")
        return [_prediction(row, class_names) for row in reader]


def _prediction(row: dict[str, str], class_names: Sequence[str]) -> PredictionRow:
    failed = bool(row["failed"])
    return PredictionRow(
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


def read_evaluation(run: str | Path, split: str, *, trust: Sequence[str] = ()) -> Evaluation:
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
    trained = _loaded(_model_of(path), trust)
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


def _loaded(model: Path, trust: Sequence[str]) -> TrainedModel | None:
    try:
        return load_checkpoint(model, trust=trust)
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
    return features != "off" and trained.model.supports_feature_cache and trained.model.backbone_is_frozen


def trained_on(trained: TrainedModel, run: Mapping) -> tuple[str, str]:
    """The kind of device (`cpu` or `cuda`) and the precision of a training, whatever machine asks.

    Args:
        trained: the model.
        run: the run's own `result.json`, or nothing. Where it does not say (a run that was not finished, or one of an
            older version), a GPU's memory tells the device, and the config the precision.
    """
    device = "cuda" if on_gpu(run) else "cpu"
    precision = run.get("precision") or trained.config["trainer"]["precision"]
    return device, AUTO[device] if precision == "auto" else resolve_precision(precision, device)


def on_gpu(run: Mapping) -> bool:
    """Whether a run was trained on CUDA devices, by its own `result.json`."""
    if "device" in run:
        return run["device"] == "cuda"
    return run.get("peak_memory_gib", {}).get("gpu") is not None


def price(trained: TrainedModel, run: Mapping) -> CostReport | None:
    """What the model needs as it was trained (`trained_on`), with AdamW; None where it cannot be simulated.

    Args:
        trained: the model.
        run: the run's own `result.json`, or nothing.
    """
    config, clip = trained.config, trained.clip
    device, precision = trained_on(trained, run)
    model = trained.model
    if config.get("gradient_checkpointing"):
        model = copy.deepcopy(model)
        checkpoint_stages(model)
    num_frames = clip.num_frames or WHOLE_VIDEO
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
        log.info("cost not known: %s", error)
    except Exception:  # a model that computes with NumPy, for example, answers and cannot be simulated
        log.warning("cost not known: the simulation of a training step failed", exc_info=True)
    return None


def _batch_size(trained: TrainedModel, num_frames: int) -> int:
    """As in training; one clip where frames go through the model in very many chunks."""
    size, chunk = trained.config["data"]["datamodule"]["batch_size"], trained.model.max_chunk
    if not isinstance(size, int) or (chunk is not None and size * num_frames > MANY_CHUNKS * chunk):
        return 1
    return size


def write_result(folder: Path, result: dict, predictions: Sequence[PredictionRow]) -> None:
    """`result.json` and `predictions.csv`; an older page about others goes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT_NAME).unlink(missing_ok=True)
    write_json(folder / RESULT_NAME, result)
    write_predictions(folder / PREDICTIONS_NAME, predictions, result["class_names"])
