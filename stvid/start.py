"""The model that a run begins with: a new one, or the one it had when it was interrupted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from stvid.checkpoint import CHECKPOINTS, build_model, load_checkpoint
from stvid.clip import ClipSpec
from stvid.errors import InputError
from stvid.fit import check_fit
from stvid.models.recompute import checkpoint_stages

COMPILE = ("default", "reduce-overhead", "max-autotune")


def last_checkpoint(run: Path, *, resume: bool) -> Path | None:
    """From which a run goes on; None for a new one, and where it was killed before its first."""
    last = run / CHECKPOINTS / "last.ckpt"
    return last if resume and last.is_file() else None


def starting_model(
    last: Path | None, config: Mapping, clip: ClipSpec, *, num_classes: int
) -> tuple[nn.Module, tuple[int, int]]:
    """In training mode, with the `position` where training begins (see `Trained`).

    Args:
        last: the checkpoint to go on from; None: there is none.
        config: the run's: `model`, `gradient_checkpointing`, `compile`.
        clip: what the model will see.
        num_classes: outputs of the model.

    Raises:
        InputError: the model cannot be built, or cannot take such clips; an unknown mode of `compile`.
    """
    if last is None:
        model = build_model(config["model"], num_classes=num_classes, in_channels=clip.channels)
        position = (0, 0)
    else:
        before = load_checkpoint(last)
        model, position = before.model.train(), before.position
        _check_same_batches(before.config, config, position)
    check_fit(model, clip)
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
