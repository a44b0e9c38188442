"""The model that a training starts with: a new one, or that of the run which is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stvid.clip import ClipSpec
from stvid.errors import InputError
from stvid.models.base import VideoModel, check_input
from stvid.models.layers import checkpoint_stages
from stvid.run.checkpoint import check_training_state, load_checkpoint
from stvid.run.model import build_model

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")


def build_or_resume_model(
    checkpoint: Path | None, config: Mapping, clip: ClipSpec, *, num_classes: int
) -> tuple[VideoModel, tuple[int, int]]:
    """The model in training mode, and the `position` where training starts (see `TrainedModel`).

    Args:
        checkpoint: the checkpoint to resume from; None: build a new model.
        config: the run's: `model`, `gradient_checkpointing`, `compile`, `trust`.
        clip: the clips that the model gets.
        num_classes: outputs of the model.

    Raises:
        InputError: the model cannot be built, or does not take such clips; an unknown mode of `compile`; fewer epochs
            than the run has trained.
    """
    if checkpoint is None:
        model = build_model(config["model"], num_classes=num_classes, in_channels=clip.channels, trust=config["trust"])
        position = (0, 0)
    else:
        check_training_state(checkpoint)
        trained = load_checkpoint(checkpoint, calibrated=False, trust=config["trust"])
        model, position = trained.model.train(), trained.position
        if config["min_steps"] is None:  # else the run may have more epochs
            _check_epochs_left(config["trainer"]["max_epochs"], position)
        _check_same_batches(trained.config, config, position)
    check_input(model, clip)
    if config["gradient_checkpointing"]:
        checkpoint_stages(model)
    if config["compile"] is not None:
        if config["compile"] not in COMPILE_MODES:
            raise InputError(f"compile (={config['compile']}) must be null or one of {', '.join(COMPILE_MODES)}")
        model.compile(mode=config["compile"])
    return model, position


def _check_epochs_left(max_epochs: int, position: tuple[int, int]) -> None:
    """Raises InputError if a run is to end before the position that it has reached."""
    epoch, num_batches = position
    if position > (max_epochs, 0):
        raise InputError(
            f"trainer.max_epochs (={max_epochs}): the run is {'in' if num_batches else 'at the end of'} epoch "
            f"{epoch + (num_batches > 0)} already; it must be at least {epoch + (num_batches > 0)}"
        )


def _check_same_batches(old: Mapping, new: Mapping, position: tuple[int, int]) -> None:
    """Raises InputError if a run is to continue in the middle of an epoch with other batches than it began with."""
    epoch, num_batches = position
    if num_batches and _batch_settings(old) != _batch_settings(new):
        raise InputError(
            f"the run was interrupted after {num_batches} batches of epoch {epoch + 1}: data.batch_size, "
            "trainer.devices and trainer.num_nodes can be changed at the end of an epoch only"
        )


def _batch_settings(config: Mapping) -> list:
    return [config["data"]["datamodule"]["batch_size"], config["trainer"]["devices"], config["trainer"]["num_nodes"]]
