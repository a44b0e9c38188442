"""`stvid cost`: parameters, memory and compute of a configured model, before it is trained."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from stvid.clip import ClipSpec
from stvid.cost import CostReport
from stvid.cost.planning import MOST, SHARE, UNKNOWN_BATCH, Plan, free_bytes
from stvid.cost.table import bytes_text, check_picture, draw_growth, growth_table, layer_table, paragraph, totals
from stvid.device import resolve_precision
from stvid.errors import InputError
from stvid.files import write_json
from stvid.models.layers import checkpoint_stages
from stvid.run.checkpoint import build_model, trusted_modules
from stvid.run.config import compose_config, hydra_errors_as_input_errors

log = logging.getLogger("stvid")
CLASSES = {"actions": 8, "hmdb51": 51, "kinetics": 400, "kth": 6, "ssv2": 174, "ucf101": 101, "ut_interaction": 6}
FAMILIES = ("conv3d", "cnn_lstm")
FRAMES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)  # of the comparison
OTHER_CLASSES = 400  # where the data set would have to be looked at; that of Kinetics, by which models are compared


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
    with hydra_errors_as_input_errors():
        config = compose_config(overrides)
        optimization = instantiate(config.optimizer, _convert_="all")
    clip = _clip(config, frames)
    classes = _classes(config) if classes is None else classes
    if classes < 1:
        raise InputError(f"--classes (={classes}) must be at least 1")
    accelerator = config.trainer.accelerator
    options = {"in_channels": clip.channels, "trust": trusted_modules(config.trust, config.model.get("_target_"))}
    model = _without_memory(_plain(config.model), num_classes=classes, **options)
    if config.gradient_checkpointing:
        checkpoint_stages(model)
    if device is None:
        device = "cuda" if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu"
    return Plan(
        model=model,
        num_classes=classes,
        clip=clip,
        make_optimizer=lambda model: optimization.configure(model, 1)[0],
        precision=resolve_precision(config.trainer.precision, accelerator),
        device=torch.device(device),
        batch_size=config.data.batch_size,
        ema=config.ema is not None,
    )


def _without_memory(config: Mapping, **options: object) -> nn.Module:
    try:
        with torch.device("meta"):
            return build_model(config, **options, pretrained=False)
    except NotImplementedError:  # RegNet computes its widths with tensors
        return build_model(config, **options, pretrained=False)


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


def run(options: argparse.Namespace) -> None:
    if options.out and not options.compare:
        raise InputError(f"--out {options.out}: a picture is drawn of a comparison only; add --compare")
    if not options.compare:
        planned = plan(options.overrides, classes=options.classes, frames=options.frames, device=options.device)
        report = planned.price(planned.chosen_batch())
        if options.json:
            write_json(options.json, report.to_dict())
        print(cost_text(planned, report))
        return
    if options.frames is not None:
        raise InputError(f"--frames {options.frames}: --compare prices clips of 1 to 1,000 frames; leave it out")
    if options.out:
        check_picture(options.out)
    reports = compare_costs(options.overrides, classes=options.classes, device=options.device)
    if options.json:
        write_json(options.json, {name: [report.to_dict() for report in series] for name, series in reports.items()})
    print(growth_table(reports))
    if options.out:
        draw_growth(reports, options.out)
        print(f"\ndrawn to {options.out}")
