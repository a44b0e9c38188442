"""Checkpoints: what a run records in them, and how a model is rebuilt from one without executing untrusted code."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import logging
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import torch

from stvid.clip import ClipSpec
from stvid.errors import InputError, nearest
from stvid.models.base import VideoModel
from stvid.run.folder import RunFolder, find_checkpoint
from stvid.video.types import MAX_PIXELS

log = logging.getLogger(__name__)
OUR_TARGET = re.compile(r"stvid\.models\.\w+\.\w+")
MODULE_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
PRETRAINED = ("weights", "inflate")  # keys of models that name pretrained weights
FORMAT = 1  # of `checkpoint_record`; raise it when older checkpoints can no longer be read
MOVED_TARGETS = {  # `_target_` in configs of older versions: the present name
    "stvid.models.video_network.VideoNetwork": "stvid.models.torchvision3d.TorchvisionVideoModel",
    "stvid.models.torchvision3d.VideoNetwork": "stvid.models.torchvision3d.TorchvisionVideoModel",
    "stvid.models.inflated.InflatedNetwork": "stvid.models.i3d.I3D",
    "stvid.models.i3d.InflatedNetwork": "stvid.models.i3d.I3D",
    "stvid.training.optim.Optimization": "stvid.training.optim.OptimizerFactory",
    "stvid.training.sharding.ShardedStrategy": "stvid.training.parallel.ShardedStrategy",
    "stvid.data.actions.actions": "stvid.data.synthetic.actions.actions",
    "stvid.data.layouts.folder.folder": "stvid.data.layouts.class_folders.folder",
    "stvid.data.layouts.frames.frames": "stvid.data.layouts.class_folders.frames",
    "stvid.data.layouts.table.manifest": "stvid.data.manifest.read_manifest",
    "stvid.data.layouts.table.read_manifest": "stvid.data.manifest.read_manifest",
    "stvid.run.start.kept_manifest": "stvid.run.start.stored_manifest",
}


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

    @property
    def max_pixels(self) -> int:
        """Pixels of a frame above which a video is unreadable, as in training."""
        return self.config.get("data", {}).get("datamodule", {}).get("max_pixels", MAX_PIXELS)


def trusted_modules(trust: str | Sequence[str], target: object = None) -> list[str]:
    """The modules whose code may be imported, as a list of names.

    Args:
        trust: names of packages or modules; one of them may be given as a string.
        target: the `model._target_` that the user has chosen (not one read from a checkpoint); its package is trusted.

    Raises:
        InputError: something that is not the name of a module.
    """
    names = [trust] if isinstance(trust, str) else list(trust)
    for name in names:
        if not isinstance(name, str) or not MODULE_NAME.fullmatch(name):
            raise InputError(f"trust (={name!r}) must be the name of a package or module, such as my_package")
    package = str(target).partition(".")[0]
    if target is not None and package != "stvid" and package not in names:
        names.append(package)
    return names


def is_trusted(target: str, trust: Sequence[str]) -> bool:
    """Whether `target`, a dotted name, is in one of the modules in `trust`."""
    return any(target == name or target.startswith(f"{name}.") for name in trust)


def update_targets(config: object) -> object:
    """A copy of plain data in which every moved `_target_` has its present name."""
    if isinstance(config, Mapping):
        updated = {key: update_targets(value) for key, value in config.items()}
        target = updated.get("_target_")
        return updated | {"_target_": MOVED_TARGETS.get(target, target)} if "_target_" in updated else updated
    return [update_targets(value) for value in config] if isinstance(config, list | tuple) else config


def build_model(
    config: Mapping, *, num_classes: int, in_channels: int = 3, pretrained: bool = True, trust: Sequence[str] = ()
) -> VideoModel:
    """Builds the model that a `model` config names: `_target_`, and arguments of its constructor.

    Configs travel in checkpoints. So only models defined in `stvid.models` are imported, and modules in `trust`.

    Args:
        config: plain data, as in `configs/model/conv3d.yaml`.
        num_classes: number of outputs of the model.
        in_channels: channels of its clips, `ClipSpec.channels`.
        pretrained: load the weights that `weights` (or `inflate`) names; False: leave them random, because a state
            dict will be loaded.
        trust: packages or modules, outside of stvid, that may be imported, see `trusted_modules`.

    Raises:
        InputError: a target that is not trusted, does not exist or is not a model; arguments that its constructor does
            not take; weights that cannot be read. Other errors of the constructor are not caught.
    """
    arguments = update_targets(dict(config))
    target = str(arguments.pop("_target_", None))
    model_class = _find_model_class(target, trust)
    parameters = _parameters(model_class)
    known = set(parameters) - {"num_classes", "in_channels"}
    for key in arguments:
        if key not in known:
            raise InputError(f"unknown key model.{key}: {model_class.__name__} does not take it{nearest(key, known)}")
    for key in PRETRAINED:
        if arguments.get(key) is not None:
            arguments[key] = _checkpoint_of_run(arguments[key]) if pretrained else None
    if "in_channels" in parameters:
        arguments["in_channels"] = in_channels
    elif in_channels != 3:
        raise InputError(
            f"clip.input=rgb_diff has {in_channels} channels, and {model_class.__name__} takes no in_channels"
        )
    return model_class(num_classes=num_classes, **arguments)


def _find_model_class(target: str, trust: Sequence[str]) -> type[VideoModel]:
    is_ours = OUR_TARGET.fullmatch(target) is not None
    module_name, _, class_name = target.rpartition(".")
    if not is_ours and not (module_name and is_trusted(target, trust)):
        raise InputError(f"model._target_ (={target}) {_untrusted(target)}")
    module = _import_model_module(module_name, target, is_ours)
    model_class = getattr(module, class_name, None)
    if model_class is None:
        raise InputError(f"model._target_ (={target}) does not exist: {module_name} has no {class_name}")
    is_model = inspect.isclass(model_class) and issubclass(model_class, VideoModel)
    if is_ours and not (is_model and model_class.__module__ == module_name):
        raise InputError(f"model._target_ (={target}) is no model defined in {module_name}")
    if not is_model or "num_classes" not in _parameters(model_class):
        raise InputError(
            f"model._target_ (={target}) must be a subclass of stvid.VideoModel whose constructor takes the keyword "
            "num_classes, and in_channels if it accepts clip.input=rgb_diff; docs/models.md has an example"
        )
    return model_class


def _parameters(model_class: type[VideoModel]) -> list[str]:
    return list(inspect.signature(model_class).parameters)


def _untrusted(target: str) -> str:
    package = target.partition(".")[0]
    return (
        f"is code outside of stvid, which is imported only from modules that you trust: add --trust {package} to the "
        f"command, trust=[{package}] to the overrides of training, or trust=['{package}'] to stvid.load"
    )


def _import_model_module(name: str, target: str, is_ours: bool) -> ModuleType:
    """Imports a module, for modules outside of stvid with the current folder on the path."""
    try:
        with contextlib.nullcontext() if is_ours else _current_folder_on_path():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise  # a module that this one imports
        place = "" if is_ours else f", neither in {os.getcwd()} nor installed"
        raise InputError(
            f"model._target_ (={target}) does not exist: there is no module {error.name}{place}"
        ) from error


@contextlib.contextmanager
def _current_folder_on_path() -> Iterator[None]:
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _checkpoint_of_run(weights: str) -> str:
    """The checkpoint of a run folder; anything else unchanged."""
    folder = Path(str(weights)).expanduser()
    return str(find_checkpoint(folder)) if folder.is_dir() else weights


def load_checkpoint(run: str | Path, *, calibrated: bool = True, trust: str | Sequence[str] = ()) -> TrainedModel:
    """Rebuilds the model of a run folder or checkpoint. Only data is read from the file (`weights_only=True`).

    Args:
        run: a run folder or a checkpoint file.
        calibrated: use the temperature that was fitted for the checkpoint, if any; False: temperature 1.
        trust: packages or modules, outside of stvid, that may be imported if the checkpoint names a class in them.

    Raises:
        InputError: no such run; not a checkpoint of stvid; a model outside of stvid that is not trusted; weights of
            another model than that of its config.
    """
    path, trust = find_checkpoint(run), trusted_modules(trust)
    if not zipfile.is_zipfile(path):  # the format of torch.save
        raise InputError(f"{path} is no readable checkpoint: truncated, or another kind of file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise InputError(f"{path} is no readable checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or "stvid" not in content:
        raise InputError(f"{path} is a checkpoint of another program: it has no 'stvid' entry")
    if content["stvid"].get("format") != FORMAT:
        raise InputError(f"{path} has format {content['stvid'].get('format')}, this version of stvid reads {FORMAT}")
    try:
        fields = _read_fields(content, content["stvid"])
        config = dict(fields["config"]["model"])
        state = {key.removeprefix("model."): value for key, value in content["state_dict"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is incomplete or was changed: {type(error).__name__} {error}") from error
    target = str(config.get("_target_"))
    if not OUR_TARGET.fullmatch(target) and not is_trusted(target, trust):
        raise InputError(f"{path}: its model, {target}, {_untrusted(target)}")
    sizes = {"num_classes": len(fields["class_names"]), "in_channels": fields["clip"].channels}
    model = build_model(config, **sizes, pretrained=False, trust=trust)
    _check_state(model, state, path)
    model.load_state_dict(state)
    trained = TrainedModel(path=path, folder=RunFolder.of(path).path, model=model.eval(), **fields)
    return replace(trained, temperature=_read_temperature(trained)) if calibrated else trained


def _read_fields(content: Mapping, stored: Mapping) -> dict:
    """The attributes of `TrainedModel` that are read from a checkpoint, without the model."""
    return {
        "clip": ClipSpec(**stored["clip"]),
        "class_names": tuple(stored["class_names"]),
        "protocol": stored["protocol"],
        "config": update_targets(stored["config"]),
        "epoch": content["epoch"] + 1,
        "position": _position(content["loops"]["fit_loop"]),
        "step": content["global_step"],
    }


def _check_state(model: VideoModel, state: Mapping, path: Path) -> None:
    """Raises InputError if names or shapes of the weights differ from those of the model."""
    own = model.state_dict()
    differences = {
        "missing": own.keys() - state.keys(),
        "not known to the model": state.keys() - own.keys(),
        "of another shape": {name for name in own.keys() & state.keys() if _shape(own[name]) != _shape(state[name])},
    }
    problems = [f"{len(names)} {text} ({', '.join(sorted(names)[:3])})" for text, names in differences.items() if names]
    if problems:
        raise InputError(f"the weights in {path} belong to another model than its config says: {', '.join(problems)}")


def _shape(value: object) -> tuple[int, ...] | None:
    """None for what is not a tensor, such as a module's extra state."""
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _read_temperature(trained: TrainedModel) -> float:
    """The temperature that was fitted for this checkpoint; 1 if there is none."""
    file = RunFolder(trained.folder).calibration_json
    if not file.is_file():
        return 1.0
    try:
        calibration = json.loads(file.read_text(encoding="utf-8"))
        fitted_for, temperature = (calibration["checkpoint"], calibration["step"]), float(calibration["temperature"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged, delete it: {error}") from error
    if fitted_for == (trained.path.name, trained.step):
        return temperature
    log.warning(
        "%s belongs to another checkpoint than %s and is not used; --calibrate fits a new one", file, trained.path
    )
    return 1.0


def _position(loop: Mapping) -> tuple[int, int]:
    epochs = loop["epoch_progress"]["current"]
    within = epochs["ready"] > epochs["processed"]
    return epochs["processed"], loop["epoch_loop.batch_progress"]["current"]["ready"] if within else 0
