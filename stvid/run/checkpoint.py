"""What a run leaves behind, and how a model is rebuilt from it without running a stranger's code."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from stvid.clip import ClipSpec
from stvid.errors import InputError, nearest
from stvid.run.folder import RunFolder, find_checkpoint

log = logging.getLogger(__name__)
ALLOWED_TARGET = re.compile(r"(stvid\.models\.\w+)\.(\w+)")
PRETRAINED = ("weights", "inflate")  # the keys of models that name weights to start from
FORMAT = 1  # of the record below; raise it when older checkpoints can no longer be read


def record(*, config: Mapping, clip: ClipSpec, class_names: tuple[str, ...], protocol: Mapping) -> dict:
    """Plain data that goes into every checkpoint, and all that `load_checkpoint` needs beside the weights.

    Args:
        config: the run's, resolved, with the values that were really used (`stvid.run.start.with_used_values`).
        clip: the clip's geometry.
        class_names: in the order of the model's outputs.
        protocol: how held-out videos are judged: `num_clips`, `num_crops`.
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
    """A model as a run left it.

    Attributes:
        path: the checkpoint's file.
        folder: the run folder; for a checkpoint that lies alone, the folder it lies in.
        model: with its weights, in eval mode, on the CPU.
        clip, class_names, protocol, config: see `record`.
        epoch: epochs trained, from 1.
        position: where training goes on: the epoch, from 0, and how many of its batches are done.
        step: optimizer steps trained.
        temperature: what logits are divided by, see `stvid.evaluation.calibration`; 1: nothing was calibrated.
    """

    path: Path
    folder: Path
    model: nn.Module
    clip: ClipSpec
    class_names: tuple[str, ...]
    protocol: Mapping
    config: Mapping
    epoch: int
    position: tuple[int, int] = (0, 0)
    step: int = 0
    temperature: float = 1.0


def build_model(config: Mapping, *, num_classes: int, in_channels: int = 3, pretrained: bool = True) -> nn.Module:
    """Builds what a `model` config names: `_target_`, and its constructor's arguments.

    Only classes defined in a module of `stvid.models` are ever called, because configs travel in checkpoints.

    Args:
        config: plain data, such as `configs/model/conv3d.yaml` holds.
        num_classes: outputs of the model.
        in_channels: channels of its clips, `ClipSpec.channels`.
        pretrained: load the weights that `weights` (or `inflate`) names: a library's, a file, or a run; False leaves
            them random, for a state dict to come.

    Raises:
        InputError: a target outside `stvid.models`, arguments that its constructor does not take, or weights that
            cannot be had. Any other error of the constructor is raised as it is.
    """
    arguments = dict(config)
    target = str(arguments.pop("_target_", None))
    match = ALLOWED_TARGET.fullmatch(target)
    if not match:
        raise InputError(f"model._target_ (={target}) must be stvid.models.FILE.CLASS; nothing else is ever called")
    try:
        module = importlib.import_module(match[1])
    except ModuleNotFoundError as error:
        if error.name != match[1]:  # a module that this one imports
            raise
        raise InputError(f"model._target_ (={target}) does not exist: {error}") from error
    model_class = getattr(module, match[2], None)
    if model_class is None:
        raise InputError(f"model._target_ (={target}) does not exist: {match[1]} has no {match[2]}")
    if not (inspect.isclass(model_class) and issubclass(model_class, nn.Module) and model_class.__module__ == match[1]):
        raise InputError(f"model._target_ (={target}) is no model defined in {match[1]}")
    parameters = set(inspect.signature(model_class).parameters)
    known = parameters - {"num_classes", "in_channels"}
    for key in arguments:
        if key not in known:
            raise InputError(f"unknown key model.{key}: {match[2]} does not take it{nearest(key, known)}")
    for key in PRETRAINED:
        if arguments.get(key) is not None:
            arguments[key] = _file_of_run(arguments[key]) if pretrained else None
    facts = {"num_classes": num_classes, **({"in_channels": in_channels} if "in_channels" in parameters else {})}
    if in_channels != 3 and "in_channels" not in facts:
        raise InputError(f"clip.input=rgb_diff has {in_channels} channels, and {match[2]} takes no in_channels")
    return model_class(**facts, **arguments)


def _file_of_run(weights: str) -> str:
    """A run folder's checkpoint, in the place of the folder; anything else as it is."""
    folder = Path(str(weights)).expanduser()
    return str(find_checkpoint(folder)) if folder.is_dir() else weights


def load_checkpoint(run: str | Path, *, calibrated: bool = True) -> TrainedModel:
    """Rebuilds the model of a run folder or checkpoint; reads data only (`weights_only=True`).

    Args:
        run: its folder or checkpoint.
        calibrated: at the temperature that was fitted for it, if any; else at 1.

    Raises:
        InputError: nothing there, not a checkpoint of stvid's, or weights of another model than its config says.
    """
    path = find_checkpoint(run)
    if not zipfile.is_zipfile(path):  # what torch.save writes, whole
        raise InputError(f"{path} is no readable checkpoint: another kind of file, or cut off")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise InputError(f"{path} is no readable checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or "stvid" not in content:
        raise InputError(f"{path} is a checkpoint of another program: it has no 'stvid' entry")
    if content["stvid"].get("format") != FORMAT:
        raise InputError(f"{path} has format {content['stvid'].get('format')}, this version of stvid reads {FORMAT}")
    try:
        facts = _facts(content, content["stvid"])
        config = dict(facts["config"]["model"])
        state = {key.removeprefix("model."): value for key, value in content["state_dict"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is incomplete or was changed: {type(error).__name__} {error}") from error
    model = build_model(
        config, num_classes=len(facts["class_names"]), in_channels=facts["clip"].channels, pretrained=False
    )
    _check_state(model, state, path)
    model.load_state_dict(state)
    trained = TrainedModel(path=path, folder=RunFolder.of(path).path, model=model.eval(), **facts)
    return replace(trained, temperature=_temperature(trained)) if calibrated else trained


def _facts(content: Mapping, kept: Mapping) -> dict:
    """What a checkpoint tells of a `TrainedModel`, beside its model."""
    return {
        "clip": ClipSpec(**kept["clip"]),
        "class_names": tuple(kept["class_names"]),
        "protocol": kept["protocol"],
        "config": kept["config"],
        "epoch": content["epoch"] + 1,
        "position": _position(content["loops"]["fit_loop"]),
        "step": content["global_step"],
    }


def _check_state(model: nn.Module, state: Mapping, path: Path) -> None:
    """Raises InputError where names or shapes of the weights are not those of the model."""
    own = model.state_dict()
    others = {
        "missing": own.keys() - state.keys(),
        "not known to the model": state.keys() - own.keys(),
        "of another shape": {name for name in own.keys() & state.keys() if _shape(own[name]) != _shape(state[name])},
    }
    told = [f"{len(names)} {what} ({', '.join(sorted(names)[:3])})" for what, names in others.items() if names]
    if told:
        raise InputError(f"the weights in {path} belong to another model than its config says: {', '.join(told)}")


def _shape(value: object) -> tuple[int, ...] | None:
    """None of what is no tensor, such as a module's extra state."""
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _temperature(trained: TrainedModel) -> float:
    """The one that was fitted for this very checkpoint; 1 where there is none."""
    file = RunFolder(trained.folder).calibration_json
    if not file.is_file():
        return 1.0
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        fitted_for, temperature = (kept["checkpoint"], kept["step"]), float(kept["temperature"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged, delete it: {error}") from error
    if fitted_for == (trained.path.name, trained.step):
        return temperature
    log.warning("%s is of another checkpoint than %s and is not used; --calibrate fits one anew", file, trained.path)
    return 1.0


def _position(loop: Mapping) -> tuple[int, int]:
    epochs = loop["epoch_progress"]["current"]
    within = epochs["ready"] > epochs["processed"]
    return epochs["processed"], loop["epoch_loop.batch_progress"]["current"]["ready"] if within else 0
