"""Checkpoints: what a run records in them, and how a model is rebuilt from one without executing untrusted code."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from stvid.checks import anything, dict_of, fields, list_of, maybe, number, read_json, text
from stvid.clip import ClipSpec
from stvid.errors import InputError
from stvid.models.base import VideoModel
from stvid.models.torch_file import read_torch_file
from stvid.run.folder import RunFolder, find_checkpoint
from stvid.run.model import OUR_TARGET, build_model, build_on_meta, limited_parts
from stvid.run.results import PROTOCOL
from stvid.run.trust import is_trusted, trusted_modules, untrusted_message, update_targets
from stvid.video.types import MAX_PIXELS

log = logging.getLogger(__name__)
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.1, 10.0  # without a wrong val video, the optimum would be 0
MAX_CLIP_PIXELS = 2**28  # of a clip in a checkpoint: T x H x W; 3 GiB as float32 RGB
MAX_VIEW_PIXELS = 2**30  # of all views of a video
MAX_REMOVED_PARTS = 30_000  # modules and tensors of an image network that is built as a whole, and then divided
MAX_DEPTH, MAX_VALUES = 50, 2**22  # of the plain data in a checkpoint
COUNT = number(0, 2**53, whole=True)
CALIBRATION = fields(
    {"checkpoint": text(), "step": COUNT, "temperature": number(MIN_TEMPERATURE, MAX_TEMPERATURE)},
    optional={"threshold": maybe(number(1e-6, 1)), "refit_step": COUNT},  # older ones have no threshold
)
CALIBRATION_REMEDY = "Delete it; stvid evaluate RUN --calibrate writes a new one"
CLIP = fields(
    {
        "num_frames": maybe(number(1, 10**6, whole=True)),
        "size": list_of(number(1, 2**16, whole=True), length=2),
    },
    optional={
        "frame_stride": maybe(number(1, 10**6, whole=True)),
        "fps": maybe(number(1e-6, 10**6)),
        "normalize": text(),
        "mean": list_of(number(), length=3),
        "std": list_of(number(0), length=3),
        "input": text(),
        "diff_seconds": number(0, 10**6),
        "diff_gain": number(0),
        "short": text(),
    },
)
PROGRESS = fields({"current": fields({"ready": COUNT, "processed": COUNT})})
CONTENT = fields(
    {
        "stvid": fields(
            {
                "config": fields(
                    {
                        "model": dict_of(anything),
                        "data": fields(
                            {
                                "datamodule": fields(
                                    {"batch_size": number(1, 2**31, whole=True)},
                                    optional={"max_pixels": number(1, 2**31, whole=True)},
                                )
                            }
                        ),
                        "trainer": fields({"precision": text()}),
                    }
                ),
                "clip": CLIP,
                "class_names": list_of(text(), unique=True),
                "protocol": PROTOCOL,
            }
        ),
        "state_dict": dict_of(anything),
        "epoch": COUNT,
        "global_step": COUNT,
        "loops": fields(
            {
                "fit_loop": fields(
                    {
                        "epoch_progress": PROGRESS,
                        "epoch_loop.batch_progress": fields({"current": fields({"ready": COUNT})}),
                    }
                )
            }
        ),
    }
)


def _mapping(value: Any, place: str) -> None:
    if not isinstance(value, Mapping):
        raise InputError(f"{place} must be a mapping")


# from which Lightning resumes; without an optimizer's state it would silently begin with a new one
TRAINING_STATE = fields(
    {
        "optimizer_states": list_of(fields({"state": _mapping, "param_groups": list_of(_mapping)}), length=1),
        "lr_schedulers": list_of(fields({}, dict.fromkeys(("last_epoch", "_step_count"), COUNT))),
        "callbacks": dict_of(_mapping),
        "pytorch-lightning_version": text(),
    }
)
FORMAT = 1  # of `checkpoint_record`; raise it when older checkpoints can no longer be read


def checkpoint_record(*, config: Mapping, clip: ClipSpec, class_names: tuple[str, ...], protocol: Mapping) -> dict:
    """Plain data stored in every checkpoint: everything that `load_checkpoint` needs in addition to the weights.

    Args:
        config: the run's config, resolved, with the values that were used (`stvid.run.start.with_used_values`).
        clip: the clip's geometry.
        class_names: in the order of the model's outputs.
        protocol: views of a held-out video: `num_clips`, `num_crops`.
    """
    return {
        "format": FORMAT,
        "config": dict(config),
        "clip": clip.to_dict(),
        "class_names": list(class_names),
        "protocol": dict(protocol),
    }


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """The model of a run.

    Attributes:
        path: the checkpoint's file.
        folder: the run folder; for a checkpoint outside of one, the folder that contains it.
        model: with its weights, in evaluation mode, on the CPU.
        clip, class_names, protocol, config: see `checkpoint_record`.
        epoch: number of epochs trained.
        position: where training continues: the epoch, from 0, and the number of its batches that are done.
        step: number of optimizer steps trained.
        temperature: logits are divided by it, see `stvid.evaluation.calibration`; 1: not calibrated.
        threshold: probability from which segments and streams take a class for present, see the same; None: not fitted.
        moved: path in the run's `manifest.csv` -> where the video is now, see `stvid.run.relocation.find_run_videos`.
    """

    path: Path
    folder: Path
    model: VideoModel
    clip: ClipSpec
    class_names: tuple[str, ...]
    protocol: Mapping
    config: Mapping
    epoch: int
    position: tuple[int, int] = (0, 0)
    step: int = 0
    temperature: float = 1.0
    threshold: float | None = None
    moved: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_refit(self) -> bool:
        """Whether it was trained on val of the run too (`refit=true`)."""
        return self.path.name == RunFolder(self.folder).refit_ckpt.name

    @property
    def max_pixels(self) -> int:
        """Pixels of a frame above which a video is unreadable, as in training."""
        return self.config.get("data", {}).get("datamodule", {}).get("max_pixels", MAX_PIXELS)


def load_checkpoint(run: str | Path, *, calibrated: bool = True, trust: str | Sequence[str] = ()) -> TrainedModel:
    """Rebuilds the model of a run folder or checkpoint. Only data is read from the file (`weights_only=True`).

    Args:
        run: a run folder or a checkpoint file.
        calibrated: use temperature and threshold that were fitted for the checkpoint, if any; False: 1 and none.
        trust: packages or modules, outside of stvid, that may be imported if the checkpoint names a class in them.

    Raises:
        InputError: no such run; not a checkpoint of stvid; a model outside of stvid that is not trusted; weights of
            another model than that of its config.
    """
    path, trust = find_checkpoint(run), trusted_modules(trust)
    content = _read_content(path)
    stored = content["stvid"]
    config = dict(update_targets(stored["config"]["model"]))
    state = {key.removeprefix("model."): value for key, value in content["state_dict"].items()}
    target = str(config.get("_target_"))
    is_ours = OUR_TARGET.fullmatch(target) is not None
    if not is_ours and not is_trusted(target, trust):
        raise InputError(f"{path}: its model, {target}, {untrusted_message(target)}")
    clip, class_names = _read_clip(stored["clip"], stored["protocol"], path), tuple(stored["class_names"])
    options: dict[str, Any] = {
        "num_classes": len(class_names),
        "in_channels": clip.channels,
        "pretrained": False,
        "trust": trust,
    }
    if is_ours:
        outline = _outline(config, options, state, path)
        _check_state(outline, state, path)
    model = build_model(config, **options)
    _check_state(model, state, path)
    model.load_state_dict(state)
    trained = TrainedModel(
        path=path,
        folder=RunFolder.of(path).path,
        model=model.eval(),
        clip=clip,
        class_names=class_names,
        protocol=stored["protocol"],
        config=update_targets(stored["config"]),
        epoch=content["epoch"] + 1,
        position=_position(content["loops"]["fit_loop"]),
        step=content["global_step"],
    )
    return _with_calibration(trained) if calibrated else trained


def checkpoint_sha256(path: Path) -> str:
    """SHA-256 of a checkpoint's file, 64 hexadecimal digits, by which others recognise the model."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def check_training_state(path: Path) -> None:
    """Raises InputError if a checkpoint has not all that a training needs to go on from it."""
    try:
        content = _read_content(path)
        TRAINING_STATE(content, "the checkpoint")
        if not re.fullmatch(r"\d+(\.\d+)+[\w.+-]*", content["pytorch-lightning_version"]):
            raise InputError("the checkpoint.pytorch-lightning_version is no version")
    except InputError as error:
        raise InputError(f"{path} cannot be resumed from: {error}") from error


def read_step(path: Path) -> int:
    """The number of optimizer steps of a checkpoint. Raises InputError, see `load_checkpoint`."""
    return _read_content(path)["global_step"]


def read_record(path: Path) -> dict:
    """The `checkpoint_record` in a checkpoint; the weights are neither built nor copied.

    Raises:
        InputError: see `load_checkpoint`.
    """
    return _read_content(path)["stvid"]


def _read_content(path: Path) -> dict:
    """The content of a checkpoint of ours, with every value checked that `load_checkpoint` reads, except the weights.

    Raises:
        InputError: another kind of file, another format, a value that is missing or out of its range.
    """
    content = read_torch_file(path)
    if not _is_small_tree(content):
        raise InputError(f"{path} is damaged or was changed: its content is nested too deeply, or too large")
    if not isinstance(content, dict) or "stvid" not in content:
        raise InputError(f"{path} is a checkpoint of another program: it has no 'stvid' entry")
    try:
        fields({"format": anything})(content["stvid"], "stvid")
        if content["stvid"]["format"] != FORMAT:
            raise InputError(f"it has format {content['stvid']['format']!r}, this version of stvid reads {FORMAT}")
        CONTENT(content, "the checkpoint")
    except InputError as error:
        raise InputError(f"{path} is incomplete or was changed: {error}") from error
    return content


def _is_small_tree(content: object) -> bool:
    """Whether plain data has few values and levels. In a pickle, a list may be in many places, and in itself."""
    level, count = [content], 0
    for _ in range(MAX_DEPTH):
        children: list[object] = []
        for node in level:
            if isinstance(node, dict | list | tuple | set):
                children.extend(node.values() if isinstance(node, dict) else node)
            if count + len(children) > MAX_VALUES:
                return False
        count += len(children)
        level = children
    return not level


def _read_clip(stored: Mapping, protocol: Mapping, path: Path) -> ClipSpec:
    try:
        clip = ClipSpec(**stored)
    except (TypeError, InputError) as error:
        raise InputError(f"{path} is incomplete or was changed: stvid.clip: {error}") from error
    pixels, num_views = (clip.num_frames or 1) * math.prod(clip.size), protocol["num_clips"] * protocol["num_crops"]
    for name, number_of_pixels, limit in (
        ("clips have", pixels, MAX_CLIP_PIXELS),
        ("views of a video have", pixels * num_views, MAX_VIEW_PIXELS),
    ):
        if number_of_pixels > limit:
            raise InputError(f"{path} is incomplete or was changed: its {name} more than {limit:,} pixels")
    return clip


def _outline(config: Mapping, options: Mapping[str, Any], state: Mapping, path: Path) -> VideoModel:
    """The model without memory for its weights (on the device `meta`), to compare it with a state dict.

    Raises:
        InputError: the config makes no model, or one with many more parts than the state dict has.
    """
    try:
        with limited_parts(20 * len(state) + MAX_REMOVED_PARTS):
            return build_on_meta(config, **options)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, MemoryError) as error:
        raise InputError(  # values that our constructors, or torch's, cannot take; other errors are mistakes of ours
            f"{path}: no model can be built from its config, which may be damaged: {type(error).__name__}: {error}"
        ) from error


def _check_state(model: VideoModel, state: Mapping, path: Path) -> None:
    """Raises InputError if names or shapes of the weights differ from those of the model."""
    own = model.state_dict()
    differences = {
        "missing": own.keys() - state.keys(),
        "not known to the model": state.keys() - own.keys(),
        "of another shape": {name for name in own.keys() & state.keys() if _shape(own[name]) != _shape(state[name])},
        "of another type": {name for name in own.keys() & state.keys() if not _has_type(state[name], own[name])},
    }
    problems = [f"{len(names)} {text} ({', '.join(sorted(names)[:3])})" for text, names in differences.items() if names]
    if problems:
        raise InputError(f"the weights in {path} belong to another model than its config says: {', '.join(problems)}")
    tensors = {id(value): value for value in (*model.parameters(), *model.buffers())}
    if sum(value.numel() for value in tensors.values()) > path.stat().st_size:  # a number takes a byte at least
        raise InputError(f"{path} is damaged: the model has more weights than the file has bytes")


def _shape(value: object) -> tuple[int, ...] | None:
    """None for what is not a plain tensor, such as a module's extra state."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
        return None
    return tuple(value.shape)


def _has_type(value: object, own: object) -> bool:
    """Whether a tensor has numbers (one on the device `meta` has none) of the same kind: floats, or whole numbers."""
    if not isinstance(value, torch.Tensor) or not isinstance(own, torch.Tensor):
        return True  # told already
    return not value.is_meta and not value.is_complex() and value.is_floating_point() == own.is_floating_point()


def _with_calibration(trained: TrainedModel) -> TrainedModel:
    """The model with the temperature and the threshold that were fitted for this checkpoint, if there are any.

    Those of the model before a refit (`refit=true`) are used for the refitted one too.
    """
    folder = RunFolder(trained.folder)
    file = folder.calibration_json
    if not file.exists():
        return trained
    calibration = read_json(file, CALIBRATION, remedy=CALIBRATION_REMEDY)
    fitted_for = [(calibration["checkpoint"], calibration["step"])]
    if "refit_step" in calibration:
        fitted_for.append((folder.refit_ckpt.name, calibration["refit_step"]))
    if (trained.path.name, trained.step) in fitted_for:
        temperature, threshold = float(calibration["temperature"]), calibration.get("threshold")
        return replace(trained, temperature=temperature, threshold=threshold)
    log.warning(
        "%s belongs to another checkpoint than %s and is not used; --calibrate fits a new one", file, trained.path
    )
    return trained


def _position(loop: Mapping) -> tuple[int, int]:
    epochs = loop["epoch_progress"]["current"]
    within = epochs["ready"] > epochs["processed"]
    return epochs["processed"], loop["epoch_loop.batch_progress"]["current"]["ready"] if within else 0
