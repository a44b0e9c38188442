"""Resuming a run: its own config, the overrides allowed beside `resume=RUN`, and the model to continue with."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from stvid.clip import ClipSpec
from stvid.errors import InputError, nearest
from stvid.models.base import VideoModel, check_input
from stvid.models.layers import checkpoint_stages
from stvid.run.checkpoint import build_model, is_trusted, load_checkpoint
from stvid.run.config import known_targets, targets
from stvid.run.folder import CHECKPOINTS

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
NOT_KEPT = ("sweep", "trust")
OURS = ("resume", "allow_changes", "trust")
COMPILE = ("default", "reduce-overhead", "max-autotune")


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


def check_targets(own: DictConfig, fresh: DictConfig, trust: Sequence[str]) -> None:
    """Raises InputError if a run's config names code that is not in configs/, in the command, or trusted."""
    allowed = {node["_target_"] for _, node in targets(OmegaConf.to_container(fresh, resolve=True))} | known_targets()
    for key, node in targets(OmegaConf.to_container(own, resolve=False)):
        target = str(node["_target_"])
        if not (target in allowed or is_trusted(target, trust)):
            raise InputError(
                f"resume={fresh.resume}: {key}._target_ (={target}) of the run is code outside of stvid, which is "
                f"imported only from modules that you trust: add trust=[{target.partition('.')[0]}]"
            )


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


def last_checkpoint(run: Path, *, resume: bool) -> Path | None:
    """From which a run goes on; None for a new one, and where it was killed before its first."""
    last = run / CHECKPOINTS / "last.ckpt"
    return last if resume and last.is_file() else None


def starting_model(
    last: Path | None, config: Mapping, clip: ClipSpec, *, num_classes: int
) -> tuple[VideoModel, tuple[int, int]]:
    """In training mode, with the `position` where training begins (see `Trained`).

    Args:
        last: the checkpoint to go on from; None: there is none.
        config: the run's: `model`, `gradient_checkpointing`, `compile`, `trust`.
        clip: what the model will see.
        num_classes: outputs of the model.

    Raises:
        InputError: the model cannot be built, or cannot take such clips; an unknown mode of `compile`.
    """
    if last is None:
        sizes = {"num_classes": num_classes, "in_channels": clip.channels}
        model = build_model(config["model"], **sizes, trust=config["trust"])
        position = (0, 0)
    else:
        before = load_checkpoint(last, trust=config["trust"])
        model, position = before.model.train(), before.position
        _check_same_batches(before.config, config, position)
    check_input(model, clip)
    if config["gradient_checkpointing"]:
        checkpoint_stages(model)
    if config["compile"] is not None:
        if config["compile"] not in COMPILE:
            raise InputError(f"compile (={config['compile']}) must be null or one of {', '.join(COMPILE)}")
        model.compile(mode=config["compile"])
    return model, position


def _check_same_batches(before: Mapping, config: Mapping, position: tuple[int, int]) -> None:
    """Raises InputError where a run is to go on in the middle of an epoch that was cut into other batches."""
    batch_sizes = (one["data"]["datamodule"]["batch_size"] for one in (before, config))
    devices = ([one["trainer"][key] for key in ("devices", "num_nodes")] for one in (before, config))
    if position[1] and (len(set(batch_sizes)) > 1 or next(devices) != next(devices)):
        raise InputError(
            f"the run was interrupted after {position[1]} batches of epoch {position[0] + 1}: data.batch_size, "
            "trainer.devices and trainer.num_nodes can be changed at the end of an epoch only"
        )
