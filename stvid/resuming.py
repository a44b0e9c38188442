"""Going on with a run: with its own config, and what may be said beside `resume=RUN`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from stvid.errors import InputError, nearest

log = logging.getLogger("stvid")

HARMLESS = (  # what comes out of a run does not depend on these
    "data.num_workers",
    "data.probe_timeout",
    "data.backend",
    "save_every",
    "requeue",
    "report",
    "trainer.log_every_n_steps",
)
KEPT = ("clip", "model", "optimizer", "ema", "compile", "gradient_checkpointing", "find_lr")  # checkpoints say which
VIDEOS = "data.datamodule.manifest"
NOT_KEPT = ("sweep",)
OURS = ("resume", "allow_changes")


def resumed(own: DictConfig, overrides: Sequence[str], fresh: DictConfig) -> DictConfig:
    """A run's own config, with the overrides that are allowed beside `resume=RUN`.

    Args:
        own: as the run folder keeps it, without interpolations.
        overrides: all that was given on the command line.
        fresh: what they would give for a new run; its interpolations tell where else a value belongs.

    Raises:
        InputError: an override that would change what comes out, without `allow_changes=true`; a choice of another
            model, data set or the like; a key that the run does not have.
    """
    parsed = [one for one in OverridesParser.create().parse_overrides(list(overrides)) if not _is_ours(one)]
    changing = [one for one in parsed if one.key_or_group not in HARMLESS]
    if changing and not fresh.allow_changes:
        shown = " ".join(one.input_line for one in changing)
        raise InputError(
            f"resume={fresh.resume} goes on with the run's own config, so that it ends as if it had never stopped; "
            f"leave out {shown}, or insist with allow_changes=true"
        )
    check_complete(own, fresh)
    own = own.copy()
    OmegaConf.set_struct(own, False)
    for one in parsed:
        _apply(own, one, fresh)
    return own


def check_complete(own: DictConfig, fresh: DictConfig) -> None:
    """Raises InputError where a run's config lacks what a run of this version has."""
    missing = [key for key in fresh if key not in own and key not in NOT_KEPT]
    if missing:
        raise InputError(
            f"the run was begun by an older version of stvid, without {', '.join(missing)}; it can be evaluated, "
            "but not go on"
        )


def _is_ours(one: Override) -> bool:
    return one.key_or_group in OURS or one.key_or_group.startswith("hydra")


def _apply(own: DictConfig, one: Override, fresh: DictConfig) -> None:
    key, value = one.key_or_group, one.value()
    before, places = OmegaConf.select(own, key, default=None), _places(key, fresh)
    choice = (
        one.is_delete() or one.is_sweep_override() or "/" in key or (OmegaConf.is_dict(before) and value is not None)
    )
    if choice or key.split(".")[0] in KEPT or any(place.startswith(VIDEOS) for place in places):
        raise InputError(
            f"{one.input_line}: a run that goes on keeps its videos, clips, model, optimizer and average; begin "
            "another one, from these weights if you like: model.weights=RUN"
        )
    if before is None and not one.is_add() and key not in (keys := list(_keys(own))):
        raise InputError(f"{one.input_line}: the run has no key {key}{nearest(key, keys)}")
    log.info("changed: %s from %s to %s", key, before, value)
    for place in places:
        OmegaConf.update(own, place, value)


def _places(key: str, fresh: DictConfig) -> list[str]:
    """Where a value belongs: at its own key, and wherever that key or what is around it is referred to."""
    wiring, parts, places = OmegaConf.to_container(fresh, resolve=False), key.split("."), [key]
    for i in range(1, len(parts) + 1):
        inside = "".join(f".{part}" for part in parts[i:])
        places += [place + inside for place in _wired_to(".".join(parts[:i]), wiring)]
    return places


def _keys(node: object, place: str = "") -> Iterator[str]:
    for key, below in node.items():
        name = f"{place}.{key}".strip(".")
        yield name
        if OmegaConf.is_dict(below):
            yield from _keys(below, name)


def _wired_to(key: str, node: object, place: str = "") -> Iterator[str]:
    """Places that take their value from a key."""
    if isinstance(node, dict):
        for name, below in node.items():
            yield from _wired_to(key, below, f"{place}.{name}".strip("."))
    elif node == f"${{{key}}}":
        yield place
