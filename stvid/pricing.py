"""What a config's model needs on the machine at hand, and the batch that fits there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

import stvid.run  # noqa: F401  (registers what configs/train.yaml refers to)
from stvid.checkpoint import build_model
from stvid.clip import ClipSpec, Preprocess
from stvid.config import compose_config
from stvid.cost import CostReport, estimate
from stvid.cost.memory import MOST, SHARE, free_bytes, largest_batch
from stvid.cost.table import brief, bytes_text, layer_table, paragraph, totals
from stvid.data.datamodule import VideoDataModule
from stvid.data.loading import clip_lengths
from stvid.errors import InputError
from stvid.models.recompute import checkpoint_stages
from stvid.training.hardware import resolve_precision
from stvid.training.optim import OptimizerFactory
from stvid.training.trial import halve_until_it_fits, try_training

log = logging.getLogger("stvid")

CLASSES = {"actions": 8, "hmdb51": 51, "kinetics": 400, "kth": 6, "ssv2": 174, "ucf101": 101, "ut_interaction": 6}
FAMILIES = ("conv3d", "cnn_lstm")
FRAMES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)  # of the comparison
MANY_CHUNKS = 200  # of frames in a step, a simulation of tens of seconds
UNKNOWN_BATCH = 16  # clips, where `auto` cannot know the free memory
OTHER_CLASSES = 400  # where the data set would have to be looked at; that of Kinetics, by which models are compared


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A model and how it would be trained.

    Attributes:
        model: may be on the meta device.
        num_classes: of its result.
        clip: `num_frames` is a number.
        optimization: how it learns.
        precision: as Lightning calls it.
        device: where; its type is all that a price depends on.
        batch_size: clips in a batch, or `auto`.
        ema: an average of the weights is kept.
    """

    model: nn.Module
    num_classes: int
    clip: ClipSpec
    optimization: OptimizerFactory
    precision: str
    device: torch.device
    batch_size: int | str
    ema: bool = False

    def price(self, batch_size: int) -> CostReport:
        """Of a training step on so many clips."""
        return estimate(
            self.model,
            (self.clip.channels, self.clip.num_frames, *self.clip.size),
            batch_size=batch_size,
            precision=self.precision,
            device="cuda" if self.device.type == "cuda" else "cpu",
            optimizer=lambda model: self.optimization.configure(model, 1)[0],
            preprocess=Preprocess(clip=self.clip),
            ema=self.ema,
        )

    def largest_batch(self, *, most: int = MOST) -> int | None:
        """Clips in the largest batch that fits into 80 % of the memory that is free; None where that is not known."""
        free = free_bytes(self.device)
        if free is None:
            return None
        return largest_batch(lambda size: self.price(size).peak_train_bytes, budget=SHARE * free, most=most)

    def chosen_batch(self, *, most: int = MOST) -> int:
        """`batch_size`; for `auto` the largest that fits, at most `most`, or 16 where the free memory is not known.

        Raises:
            InputError: `auto`, and not even 2 clips fit.
        """
        if self.batch_size != "auto":
            return self.batch_size
        size = self.largest_batch(most=min(most, MOST))
        if size == 0:
            needed, free = self.price(2).peak_train_bytes, free_bytes(self.device)
            raise InputError(
                f"data.batch_size=auto: a training step on 2 clips needs {bytes_text(needed)}, {bytes_text(free)} are "
                "free. Choose a smaller clip.size or clip.num_frames, or another model"
            )
        return UNKNOWN_BATCH if size is None else size


def plan(overrides: Sequence[str], *, classes: int | None, frames: int | None, device: str | None) -> Plan:
    """What `python train.py OVERRIDES` would train, without its data set and without memory for weights.

    Args:
        overrides: config overrides.
        classes: outputs of the model. None: those of the data set where its name tells, else 400.
        frames: of a clip. None: as configured.
        device: `cpu` or `cuda`; None: what training would use.

    Raises:
        InputError: a value out of its range; whole videos, and no number of frames.
    """
    config = compose_config(overrides)
    clip = _clip(config, frames)
    classes = _classes(config) if classes is None else classes
    if classes < 1:
        raise InputError(f"--classes (={classes}) must be at least 1")
    accelerator = config.trainer.accelerator
    model = _without_memory(_plain(config.model), num_classes=classes, in_channels=clip.channels)
    if config.gradient_checkpointing:
        checkpoint_stages(model)
    if device is None:
        device = "cuda" if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu"
    return Plan(
        model=model,
        num_classes=classes,
        clip=clip,
        optimization=instantiate(config.optimizer, _convert_="all"),
        precision=resolve_precision(config.trainer.precision, accelerator),
        device=torch.device(device),
        batch_size=config.data.batch_size,
        ema=config.ema is not None,
    )


def _without_memory(config: Mapping, **sizes: int) -> nn.Module:
    try:
        with torch.device("meta"):
            return build_model(config, **sizes, pretrained=False)
    except NotImplementedError:  # RegNet computes its widths with tensors
        return build_model(config, **sizes, pretrained=False)


def cost_text(planned: Plan, report: CostReport) -> str:
    """The layers, the totals, and what fits here, for a person."""
    clip = " x ".join(map(str, report.input_shape))
    device = {"cpu": "a CPU", "cuda": "a CUDA device"}[report.device]
    head = f"{type(planned.model).__name__} for {planned.num_classes} classes on clips of {clip}, "
    head += f"batches of {report.batch_size}, "
    head += f"{report.precision} on {device}"
    lines = [head, "", layer_table(report), "", totals(report)]
    free = free_bytes(planned.device)
    if free is not None:
        fits = planned.largest_batch()
        most = f" (no more than {MOST} are tried)" if fits == MOST else ""
        found = f"a batch of {fits}{most}" if fits else "not even a batch of 2"
        lines.append(paragraph("fits", f"{found} into {SHARE:.0%} of the {bytes_text(free)} that are free here"))
    return "\n".join(lines)


def compare_costs(overrides: Sequence[str], *, classes: int | None, device: str | None) -> dict[str, list[CostReport]]:
    """Prices both families of model on clips of 1 to 1,000 frames.

    Args:
        overrides: config overrides. `model=` is left out of account; `model.KEY=` goes to the family that has the key.
        classes, device: as for `plan`.

    Raises:
        InputError: a `model.KEY` that neither family has, or what `plan` raises.
    """
    shared = [text for text in overrides if not text.startswith(("model=", "model."))]
    own = {text: text.removeprefix("model.").partition("=")[0] for text in overrides if text.startswith("model.")}
    keys = {family: {str(key) for key in compose_config([f"model={family}"]).model} for family in FAMILIES}
    for text, key in own.items():
        if not any(key.split(".")[0] in keys[family] for family in FAMILIES):
            raise InputError(f"{text}: neither {' nor '.join(FAMILIES)} has a key model.{key}")
    reports = {}
    for family in FAMILIES:
        mine = [text for text, key in own.items() if key.split(".")[0] in keys[family]]
        chosen = [*shared, f"model={family}", *mine]
        plans = [plan(chosen, classes=classes, frames=frames, device=device) for frames in FRAMES]
        size = plans[0].batch_size if plans[0].batch_size != "auto" else UNKNOWN_BATCH
        reports[family] = [planned.price(size) for planned in plans]
    return reports


def plan_batch(
    model: nn.Module,
    optimization: OptimizerFactory,
    data: VideoDataModule,
    device: torch.device,
    precision: str,
    num_processes: int,
    ema: float | None = None,
    *,
    try_step: Callable[[int], None] | None = None,
) -> int:
    """Says what a run will need before it starts, and returns its batch size.

    `auto` is the largest batch that fits into 80 % of the memory that is free now, at most 256 clips and at most the
    number of training videos; 16 where the free memory is not known. That is a prediction, without the workspaces that
    cuDNN allocates. So on a CUDA device two training steps are tried, and the batch is halved while they run out of
    memory. A number stays as it is; where its step needs more than is free, a warning names the largest batch that
    fits.

    Whole videos are priced as if every one were as long as the longest, and clips as if no features of theirs were
    stored. A model that cannot be simulated is trained unpriced, unless the batch size depends on it, and so is one
    whose frames are encoded in more than 200 chunks, which takes long to simulate. An error in a simulation is logged
    with its traceback: a mistake in the model comes again when it is trained.

    Args:
        model: on the CPU; it stays as it is.
        optimization: how it learns.
        data: set up.
        device: where training will be; the model need not be there yet.
        precision: as `resolve_precision` gives it.
        num_processes: that train together.
        ema: decay of an average of the weights; None: there is none.
        try_step: trains on so many clips, or raises torch.OutOfMemoryError; None: `try_training`.

    Raises:
        InputError: `auto`, and not even 2 clips fit; `auto` for several processes, which would each find another.
    """
    optimization.configure(model, 1)  # a mistake in it is not one of the model's
    clip, size, classes = data.clip, data.batch_size, len(data.manifest.class_names)
    log.info("%s for %d classes on %s, precision %s", type(model).__name__, classes, device, precision)
    if clip.num_frames is None:
        clip = replace(clip, num_frames=max(clip_lengths(data.train)))
    if size == "auto" and num_processes > 1:
        raise InputError(
            f"data.batch_size=auto: {num_processes} processes must have the same batch size; `stvid cost` says "
            "what fits, give the number"
        )
    chunk = getattr(model, "encoder_chunk", None)
    if size != "auto" and chunk is not None and size * clip.num_frames > MANY_CHUNKS * chunk:
        log.info("cost not known: so many chunks of frames take long to simulate; `stvid cost` does")
        return size
    planned = Plan(
        model=model,
        num_classes=classes,
        clip=clip,
        optimization=optimization,
        precision=precision,
        device=device,
        batch_size=size,
        ema=ema is not None,
    )
    if size == "auto":
        size = planned.chosen_batch(most=max(len(data.train), 2))
        if device.type == "cuda":
            size = _confirmed(planned, size, try_step)
        log.info("data.batch_size=auto takes %d clips, of %d training videos", size, len(data.train))
    try:
        report = planned.price(size)
    except InputError as error:
        log.info("cost not known: %s", error)
        return size
    except Exception:  # a model that computes with NumPy, for example, can be trained and not simulated
        log.warning("cost not known: the simulation of a training step failed, training goes on", exc_info=True)
        return size
    log.info("%s", brief(report))
    _warn_of_memory(planned, report)
    return size


def _confirmed(planned: Plan, size: int, try_step: Callable[[int], None] | None) -> int:
    def really(batch_size: int) -> None:
        try_training(
            planned.model,
            planned.optimization,
            planned.clip,
            batch_size=batch_size,
            device=planned.device,
            precision=planned.precision,
            ema=planned.ema,
        )

    found = halve_until_it_fits(size, try_step or really)
    if not found:
        raise InputError(
            f"data.batch_size=auto: a training step on 2 clips runs out of the memory of {planned.device}. "
            "Choose a smaller clip.size or clip.num_frames, or another model"
        )
    return found


def _warn_of_memory(planned: Plan, report: CostReport) -> None:
    free = free_bytes(planned.device)
    if free is None or report.peak_train_bytes <= free:
        return
    fits = planned.largest_batch(most=report.batch_size)
    hint = f"the largest batch that fits: data.batch_size={fits}" if fits else "not even 2 clips fit"
    log.warning("only %s of memory are free, so this is likely to stop for want of it; %s", bytes_text(free), hint)


def _clip(config: DictConfig, frames: int | None) -> ClipSpec:
    arguments = _plain(config.clip)
    arguments.pop("_target_")
    if frames is not None:
        arguments["num_frames"] = frames
    elif config.data.whole_video:
        arguments["num_frames"] = None
    clip = ClipSpec(**arguments)
    if clip.num_frames is None:
        raise InputError("whole videos have no fixed number of frames; say what to price: --frames N")
    return clip


def _classes(config: DictConfig) -> int:
    layout = config.data.datamodule.manifest["_target_"].rsplit(".", 1)[-1]
    return CLASSES.get(layout, OTHER_CLASSES)


def _plain(node: DictConfig) -> Mapping:
    return OmegaConf.to_container(node, resolve=True)
