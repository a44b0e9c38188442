"""Pretrained weights from libraries and files: read without running code, matched tensor by tensor, reported."""

from __future__ import annotations

import difflib
import logging
import os
import pickle
import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

from stvid.errors import InputError

log = logging.getLogger(__name__)
WRAPPERS = ("state_dict", "model_state", "model")  # under which training programs keep the state dict
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel, torch.compile, Lightning
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")  # as torchvision's files name its layers
UNREADABLE = (  # what torch.load says of files that are cut off, scrambled, or no weights at all
    pickle.UnpicklingError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, AssertionError,
    struct.error, OSError,
)  # fmt: skip
SHOWN = 3  # names of tensors in a message


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of the tensors of a state dict.

    Attributes:
        source: where it came from.
        matched: names taken as they are.
        reshaped: names taken in another shape, with both shapes.
        skipped: names of decisions (heads) that the model has not, or for other classes.
    """

    source: str
    matched: tuple[str, ...]
    reshaped: tuple[str, ...]
    skipped: tuple[str, ...]

    def __str__(self) -> str:
        told = [f"{len(self.matched)} matched", _counted(self.reshaped, "reshaped"), _counted(self.skipped, "skipped")]
        return f"weights {self.source}: {', '.join(told)}"


def read_weights(weights: str, *, network: str | None = None, key: str = "weights") -> dict[str, Tensor]:
    """The state dict behind a word of the user's, by the names of the network's own parameters.

    Args:
        weights: a local file (see `read_file`), or torchvision's weights of `network`: `DEFAULT` or a name. Those are
            downloaded on first use.
        network: a network of torchvision's; None: only files will do.
        key: the config key below `model` that holds the word.

    Raises:
        InputError: neither a file nor a name; a file that cannot be read, weights that cannot be downloaded.
    """
    weights = str(weights)  # yaml knows words that are no text, such as true
    if names_file(weights, key=key):
        try:
            return read_file(weights)
        except InputError as error:
            raise InputError(f"model.{key} (={weights}): {error}") from error
    if network is None:
        hint = "this model has none to download, give a file (.pth, .ckpt, .safetensors) or a run"
        raise InputError(f"model.{key} (={weights}): there is no such file; {hint}")
    found = find_weights(network, weights, key=key)
    try:
        return _plain(found.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:  # no way out of this machine; a download that was cut off
        raise InputError(
            f"model.{key} (={weights}): {found.url} could not be downloaded ({error}). Fetch it elsewhere and give the "
            f"file: model.{key}=FILE"
        ) from error


def names_file(weights: str, *, key: str = "weights") -> bool:
    """Whether a word of the user's names a file that is there.

    Raises:
        InputError: it looks like a file, and there is none.
    """
    path = Path(str(weights)).expanduser()
    if not path.exists() and (os.sep in str(weights) or "/" in str(weights) or path.suffix):
        raise InputError(f"model.{key} (={weights}): there is no such file")
    return path.exists()


def read_file(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file, without the prefixes that training programs add; no code in it is ever run.

    Args:
        path: what `torch.save` wrote (a state dict, or one under `state_dict`, `model` or `model_state`), or
            `.safetensors`.

    Raises:
        InputError: no such file, unreadable, or no tensors by name in it.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"{path} is no file")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        found = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise InputError(
            f"{path} holds no state dict, alone or under {', '.join(WRAPPERS)}; it holds {found[:200] or 'nothing'}"
        )
    return _plain(content)


def load_weights(
    module: nn.Module, state: Mapping[str, Tensor], *, source: str, head: Sequence[str] = ("head.",)
) -> LoadReport:
    """Puts a state dict into a module and logs what was taken.

    All of the module but its head must be in the state dict, and nothing else; see `reshaped` for the shapes that
    will do. The head is taken where all of it fits, else left as it is.

    Args:
        module: as it was built.
        state: tensors by name.
        source: for the log and for errors, such as `resnet18.pth for r3d_18`.
        head: beginnings of names, in the module or the state dict, that belong to a decision.

    Raises:
        InputError: the state dict belongs to another architecture.
    """
    own, head = module.state_dict(), tuple(head)
    fitting = {
        name: fitted
        for name, value in state.items()
        if name in own and (fitted := reshaped(value, own[name].shape)) is not None
    }
    own_head = [name for name in own if name.startswith(head)]
    if not all(name in fitting for name in own_head):  # not half of it: a bias without its weight is noise
        fitting = {name: value for name, value in fitting.items() if not name.startswith(head)}
    _check_trunk(own, state, fitting, source=source, head=head)
    with torch.no_grad():
        for name, value in fitting.items():
            own[name].copy_(value)  # a state dict shares its memory with the module
    other = [name for name in fitting if state[name].shape != own[name].shape]
    report = LoadReport(
        source=source,
        matched=tuple(name for name in fitting if name not in other),
        reshaped=tuple(f"{name}: {_size(state[name])} -> {_size(own[name])}" for name in other),
        skipped=tuple(name for name in state if name.startswith(head) and name not in fitting),
    )
    log.info("%s", report)
    return report


def reshaped(value: Tensor, shape: Sequence[int]) -> Tensor | None:
    """A tensor in the shape of a parameter, such that the layer answers alike where its inputs repeat.

    The kernels of an image network (`O x I x H x W`) are repeated over the time of a 3D network's (`O x I x T x H x W`)
    and divided by T (Carreira & Zisserman 2017, arXiv:1705.07750). Those over 3 input channels are repeated over
    several groups of 3 and divided by the number of groups.

    Returns:
        None where the shapes are of different layers.
    """
    if value.ndim == 4 and len(shape) == 5:
        value = (value / shape[2])[:, :, None].expand(-1, -1, shape[2], -1, -1)
    if value.ndim >= 4 and len(shape) == value.ndim and value.shape[1] == 3 and shape[1] % 3 == 0:
        groups = shape[1] // 3
        value = value if groups == 1 else torch.cat([value / groups] * groups, dim=1)
    return value if value.shape == tuple(shape) else None


def _check_trunk(own: Mapping, state: Mapping, fitting: Mapping, *, source: str, head: tuple) -> None:
    """Raises InputError where parameters or statistics before the head have no partner, on either side."""

    def trunk(names):  # old files do not count the batches of batch norm
        return [name for name in names if not name.startswith(head) and not name.endswith("num_batches_tracked")]

    lacking = [name for name in trunk(own) if name not in fitting]
    if not lacking and all(name in own for name in trunk(state)):
        return
    shapes = [f"{n} ({_size(state[n])}, wanted {_size(own[n])})" for n in lacking if n in state]
    told = [
        _counted(names, what)
        for names, what in (
            ([name for name in lacking if name not in state], "missing"),
            (shapes, "of another shape"),
            ([name for name in trunk(state) if name not in own], "not known to the model"),
        )
        if names
    ]
    raise InputError(
        f"the weights {source} belong to another architecture: of the model's {len(trunk(own))} tensors "
        f"{len(trunk(own)) - len(lacking)} were found, {', '.join(told)}"
    )


def _plain(content: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as the network itself has them; what lies beside what has a prefix (the weights of a loss) is left out."""
    state = dict(content)
    while prefix := next((p for p in PREFIXES if any(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return {OLD_DENSENET.sub(r"\1\2.", name): value for name, value in state.items()}


def _read_torch(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, for files that are no pickles
            return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise InputError(
            f"{path} is no file of weights, is cut off, or holds more than tensors, which is never loaded "
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


def _counted(names: Sequence[str], what: str) -> str:
    few = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names)} {what}" + (f" ({few})" if names else "")


def _size(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "one number"


def find_weights(name: str, weights: str | None, *, key: str = "weights") -> WeightsEnum | None:
    """What torchvision knows as `weights` (`DEFAULT`, or a name) of its network `name`; None for None.

    `key` is the config key below `model` that an error names.

    Raises:
        InputError: the network has no weights of that name; those it has are told.
    """
    if weights is None:
        return None
    from torchvision.models import get_model_weights  # imported here: our own networks need no torchvision

    choices = get_model_weights(name)
    names = ["DEFAULT", *choices.__members__]
    if weights not in names:
        raise InputError(f"model.{key} (={weights}) is not among the weights of {name}: {', '.join(names)}")
    return choices[weights]


class Normalization(NamedTuple):
    """Mean and deviation per channel, of pixels in [0, 1], that weights were trained with."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def pixels_of(name: str, weights: str | None) -> Normalization | None:
    """What `weights` of torchvision's network `name` expect; None for None, and for a file, which does not tell."""
    from torchvision.models import get_model_weights

    if weights != "DEFAULT" and weights not in get_model_weights(name).__members__:
        return None
    recipe = find_weights(name, weights).transforms()
    return Normalization(tuple(recipe.mean), tuple(recipe.std))


def nearest_name(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: those that are like it, or some that there are."""
    close = " or ".join(difflib.get_close_matches(name, known, n=3))
    return f"; did you mean {close}?" if close else f"; there are {len(known)}, such as {', '.join(known[:3])}"
