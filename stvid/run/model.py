"""The model that a config names: its class is imported, and it is built."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from stvid.errors import InputError, nearest
from stvid.models.base import VideoModel
from stvid.run.folder import find_checkpoint
from stvid.run.trust import is_trusted, untrusted_message, update_targets

OUR_TARGET = re.compile(r"stvid\.models\.\w+\.\w+")
PRETRAINED = ("weights", "inflate")  # keys of models that name pretrained weights


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
    return model_class(num_classes=num_classes, **arguments)  # type: ignore[call-arg]  # a subclass takes it


def build_on_meta(config: Mapping, **options: Any) -> VideoModel:
    """A model without memory for its weights, on the device `meta`; for the arguments see `build_model`."""
    try:
        with torch.device("meta"):
            return build_model(config, **options)
    except NotImplementedError:  # RegNet computes its widths with tensors, which have no values on the meta device
        return build_model(config, **options)


@contextlib.contextmanager
def limited_parts(limit: int) -> Iterator[None]:
    """Raises InputError when the models that this thread builds in the block have more modules and tensors than this.

    A config from a checkpoint may ask for so many layers that building them does not end.
    """
    thread, count = threading.get_ident(), 0

    def on_registration(*arguments: object) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > limit:
            raise InputError("its config asks for many more layers than the file has weights for")

    with contextlib.ExitStack() as hooks:
        for register in (
            register_module_module_registration_hook,
            register_module_parameter_registration_hook,
            register_module_buffer_registration_hook,
        ):
            hooks.callback(register(on_registration).remove)
        yield


def _find_model_class(target: str, trust: Sequence[str]) -> type[VideoModel]:
    is_ours = OUR_TARGET.fullmatch(target) is not None
    module_name, _, class_name = target.rpartition(".")
    if not is_ours and not (module_name and is_trusted(target, trust)):
        raise InputError(f"model._target_ (={target}) {untrusted_message(target)}")
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
