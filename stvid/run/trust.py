"""Which code a config may name: modules that the user trusts, and the present names of targets that were moved."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from stvid.errors import InputError

MODULE_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
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
    "stvid.run.start.kept_manifest": "stvid.run.stored_run.stored_manifest",
    "stvid.run.start.stored_manifest": "stvid.run.stored_run.stored_manifest",
}


def trusted_modules(trust: str | Sequence[str], target: object = None) -> list[str]:
    """The modules whose code may be imported, as a list of names.

    Args:
        trust: names of packages or modules; one of them may be given as a string.
        target: the `model._target_` that the user has chosen (not one read from a checkpoint); its package is trusted.

    Raises:
        InputError: no list, or something in it that is not the name of a module.
    """
    if not isinstance(trust, str | Sequence):
        name = "null" if trust is None else trust
        raise InputError(f"trust (={name}) must be a list of packages or modules: trust=[my_package]")
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


def untrusted_message(target: str) -> str:
    """The end of a message about code that is not trusted: what to add to which command."""
    package = target.partition(".")[0]
    return (
        f"is code outside of stvid, which is imported only from modules that you trust: add --trust {package} to the "
        f"command, trust=[{package}] to the overrides of training, or trust=['{package}'] to stvid.load"
    )


def update_targets(config: object) -> Any:
    """A copy of plain data in which every moved `_target_` has its present name."""
    if isinstance(config, Mapping):
        updated = {key: update_targets(value) for key, value in config.items()}
        target = updated.get("_target_")
        return updated | {"_target_": MOVED_TARGETS.get(str(target), target)} if "_target_" in updated else updated
    return [update_targets(value) for value in config] if isinstance(config, list | tuple) else config
