"""Pretrained weights from libraries and files: read without running code, matched tensor by tensor, reported."""

from __future__ import annotations

import difflib
import logging
import os
import pickle
import re
import struct
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

from stvid.errors import InputError
from stvid.models.base import Normalization

log = logging.getLogger(__name__)
WRAPPERS = ("state_dict", "model_state", "model")  # keys of the state dict in checkpoints of training programs
PREFIXES = ("module.", "_orig_mod.", "model.")  # from DistributedDataParallel, torch.compile, Lightning
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")  # names of layers in torchvision's files
UNREADABLE = (  # errors of torch.load for files that are truncated, damaged, or not weights
    pickle.UnpicklingError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, AssertionError,
    struct.error, OSError,
)  # fmt: skip
SHOWN = 3  # names of tensors in a message


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """How the tensors of a state dict were used.

    Attributes:
        source: of the state dict.
        matched: names of tensors loaded unchanged.
        reshaped: names of tensors loaded in another shape, with both shapes.
        skipped: names of tensors of heads that the model does not have, or for another number of classes.
    """

    source: str
    matched: tuple[str, ...]
    reshaped: tuple[str, ...]
    skipped: tuple[str, ...]

    def __str__(self) -> str:
        counts = [f"{len(self.matched)} matched", _count(self.reshaped, "reshaped"), _count(self.skipped, "skipped")]
        return f"weights {self.source}: {', '.join(counts)}"


def read_weights(weights: str, *, network: str | None = None, key: str = "weights") -> dict[str, Tensor]:
    """Reads the state dict that the user's option names; its keys are the names of the network's parameters.

    Args:
        weights: a local file (see `read_file`), or torchvision's weights of `network`: `DEFAULT` or a name (downloaded
            on first use).
        network: a network of torchvision; None: only files are allowed.
        key: the config key below `model` that holds `weights`.

    Raises:
        InputError: neither a file nor a name; a file that cannot be read; weights that cannot be downloaded.
    """
    weights = str(weights)  # YAML has values that are not text, such as true
    if names_file(weights, key=key):
        try:
            return read_file(weights)
        except InputError as error:
            raise InputError(f"model.{key} (={weights}): {error}") from error
    if network is None:
        hint = "there are none to download for this model; give a file (.pth, .ckpt, .safetensors) or a run"
        raise InputError(f"model.{key} (={weights}): there is no such file; {hint}")
    entry = find_weights(network, weights, key=key)
    try:
        return _normalize_names(entry.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:  # no network; a truncated download
        raise InputError(
            f"model.{key} (={weights}): {entry.url} could not be downloaded ({error}). Download it elsewhere and give "
            f"the file: model.{key}=FILE"
        ) from error


def names_file(weights: str, *, key: str = "weights") -> bool:
    """Whether the user's option names an existing file.

    Raises:
        InputError: it looks like a file name, and there is no such file.
    """
    path = Path(str(weights)).expanduser()
    if not path.exists() and (os.sep in str(weights) or "/" in str(weights) or path.suffix):
        raise InputError(f"model.{key} (={weights}): there is no such file")
    return path.exists()


def read_file(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file, without the prefixes that training programs add. Code in the file is never executed.

    Args:
        path: a file written by `torch.save` (a state dict, alone or under `state_dict`, `model` or `model_state`), or
            a `.safetensors` file.

    Raises:
        InputError: no such file, unreadable, or without a state dict.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"{path} is no file")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        contained = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise InputError(
            f"{path} holds no state dict, alone or under {', '.join(WRAPPERS)}; it holds {contained[:200] or 'nothing'}"
        )
    return _normalize_names(content)


def load_weights(
    module: nn.Module, state: Mapping[str, Tensor], *, source: str, head: Sequence[str] = ("head.",)
) -> LoadReport:
    """Loads a state dict into a module and logs which tensors were used.

    Except for heads, module and state dict must have the same names; `reshape_kernel` adapts some shapes. The head is
    loaded if all its tensors fit; otherwise it is not changed.

    Args:
        module: to load into.
        state: tensors by name.
        source: for the log and for errors, such as `resnet18.pth for r3d_18`.
        head: prefixes of names, in the module or the state dict, that belong to a head.

    Raises:
        InputError: the state dict belongs to another architecture.
    """
    own, head = module.state_dict(), tuple(head)
    fitting = {
        name: fitted
        for name, value in state.items()
        if name in own and (fitted := reshape_kernel(value, own[name].shape)) is not None
    }
    own_head = [name for name in own if name.startswith(head)]
    if not all(name in fitting for name in own_head):  # never a part of it: a bias without its weight is useless
        fitting = {name: value for name, value in fitting.items() if not name.startswith(head)}
    _check_backbone(own, state, fitting, source=source, head=head)
    with torch.no_grad():
        for name, value in fitting.items():
            own[name].copy_(value)  # a module's state dict shares memory with it
    changed = [name for name in fitting if state[name].shape != own[name].shape]
    report = LoadReport(
        source=source,
        matched=tuple(name for name in fitting if name not in changed),
        reshaped=tuple(f"{name}: {_size(state[name])} -> {_size(own[name])}" for name in changed),
        skipped=tuple(name for name in state if name.startswith(head) and name not in fitting),
    )
    log.info("%s", report)
    return report


def reshape_kernel(value: Tensor, shape: Sequence[int]) -> Tensor | None:
    """Adapts a tensor to the shape of a parameter: the output of the layer is the same for repeated inputs.

    2D kernels (`O x I x H x W`) are repeated over the time of 3D ones (`O x I x T x H x W`) and divided by T (Carreira
    & Zisserman 2017, arXiv:1705.07750). Kernels for 3 input channels are repeated for several groups of 3 and divided
    by the number of groups.

    Returns:
        None if the shapes belong to different layers.
    """
    if value.ndim == 4 and len(shape) == 5:
        value = (value / shape[2])[:, :, None].expand(-1, -1, shape[2], -1, -1)
    if value.ndim >= 4 and len(shape) == value.ndim and value.shape[1] == 3 and shape[1] % 3 == 0:
        groups = shape[1] // 3
        value = value if groups == 1 else torch.cat([value / groups] * groups, dim=1)
    return value if value.shape == tuple(shape) else None


def _check_backbone(own: Mapping, state: Mapping, fitting: Mapping, *, source: str, head: tuple) -> None:
    """Raises InputError if names of parameters or statistics differ, heads excepted."""

    def without_head(names: Iterable[str]) -> list[str]:  # old files have no num_batches_tracked
        return [name for name in names if not name.startswith(head) and not name.endswith("num_batches_tracked")]

    own_names, state_names = without_head(own), without_head(state)
    lacking = [name for name in own_names if name not in fitting]
    if not lacking and all(name in own for name in state_names):
        return
    shapes = [f"{n} ({_size(state[n])}, expected {_size(own[n])})" for n in lacking if n in state]
    problems = [
        _count(names, problem)
        for names, problem in (
            ([name for name in lacking if name not in state], "missing"),
            (shapes, "of another shape"),
            ([name for name in state_names if name not in own], "not known to the model"),
        )
        if names
    ]
    raise InputError(
        f"the weights {source} belong to another architecture: of the model's {len(own_names)} tensors "
        f"{len(own_names) - len(lacking)} were found, {', '.join(problems)}"
    )


def _normalize_names(content: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Removes prefixes; if there is one, tensors without it (such as the weights of a loss) are left out."""
    state = dict(content)
    while prefix := next((p for p in PREFIXES if any(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return {OLD_DENSENET.sub(r"\1\2.", name): value for name, value in state.items()}


def _read_torch(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, for files that are no pickles
            return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise InputError(
            f"{path} is no file of weights, is truncated, or holds more than tensors, which is never loaded "
            f"({type(error).__name__})"
        ) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise InputError(f"{path} needs safetensors: pip install safetensors") from error
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _count(names: Sequence[str], description: str) -> str:
    examples = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names)} {description}" + (f" ({examples})" if names else "")


def _size(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "one number"


def find_weights(name: str, weights: str, *, key: str = "weights") -> WeightsEnum:
    """torchvision's entry for `weights` (`DEFAULT`, or a name) of its network `name`.

    `key` is the config key below `model`, for the message.

    Raises:
        InputError: the network has no weights of that name; the message lists those it has.
    """
    from torchvision.models import (
        get_model_weights,
    )  # imported here, since conv3d and the small encoder need no torchvision

    choices = get_model_weights(name)
    names = ["DEFAULT", *choices.__members__]
    if weights not in names:
        raise InputError(f"model.{key} (={weights}) is not among the weights of {name}: {', '.join(names)}")
    return choices[weights]


def normalization_of(name: str, weights: str | None) -> Normalization | None:
    """The normalization of `weights` of torchvision's network `name`; None for None and for files (unknown)."""
    from torchvision.models import get_model_weights

    if weights is None or (weights != "DEFAULT" and weights not in get_model_weights(name).__members__):
        return None
    transforms = find_weights(name, weights).transforms()
    return Normalization(tuple(transforms.mean), tuple(transforms.std))


def nearest_name(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: similar names, or some examples."""
    close = " or ".join(difflib.get_close_matches(name, known, n=3))
    return f"; did you mean {close}?" if close else f"; there are {len(known)}, such as {', '.join(known[:3])}"
