"""`stvid cost`: parameters, memory and compute of a configured model, before it is trained."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from stvid.clip import ClipSpec
from stvid.cost.planning import DEFAULT_BATCH_SIZE, MAX_BATCH_SIZE, MEMORY_FRACTION, Plan, free_bytes
from stvid.cost.report import CostReport, bytes_text, count_text, layer_table, paragraph, totals_text
from stvid.device import resolve_precision
from stvid.errors import InputError
from stvid.files import replacing, write_json
from stvid.models.layers import checkpoint_stages
from stvid.run.config import compose_config
from stvid.run.config_errors import hydra_errors_as_input_errors
from stvid.run.config_tree import to_plain
from stvid.run.model import build_on_meta
from stvid.run.trust import trusted_modules
from stvid.terminal import aligned, show, table_width

CLASSES = {"actions": 8, "hmdb51": 51, "kinetics": 400, "kth": 6, "ssv2": 174, "ucf101": 101, "ut_interaction": 6}
DEFAULT_CLASSES = 400  # of a data set that is not in CLASSES; the number of Kinetics-400
FAMILIES = ("conv3d", "cnn_lstm")
FRAMES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)  # clip lengths of the comparison


def run(options: argparse.Namespace) -> None:
    if not options.compare:
        plan = make_plan(options.overrides, classes=options.classes, frames=options.frames, device=options.device)
        report = plan.estimate(plan.resolve_batch_size())
        if options.json:
            write_json(options.json, report.to_dict())
        show(cost_text(plan, report))
        return
    reports = compare_costs(options.overrides, classes=options.classes, device=options.device)
    if options.json:
        write_json(options.json, {name: [report.to_dict() for report in series] for name, series in reports.items()})
    show(growth_table(reports))
    if options.out:
        draw_growth(reports, Path(options.out))
        show(f"\ndrawn to {options.out}")


def make_plan(overrides: Sequence[str], *, classes: int | None, frames: int | None, device: str | None) -> Plan:
    """The training that `python train.py OVERRIDES` would start. Needs no data set, and no memory for weights.

    Args:
        overrides: config overrides.
        classes: outputs of the model. None: those of a data set with a known number, else 400.
        frames: of a clip. None: as configured.
        device: `cpu` or `cuda`; None: the one that training would use.

    Raises:
        InputError: a value out of its range; whole videos without a number of frames.
    """
    with hydra_errors_as_input_errors():
        config = compose_config(overrides)
        optimization = instantiate(config.optimizer, _convert_="all")
    clip = _clip(config, frames)
    classes = _num_classes(config) if classes is None else classes
    if classes < 1:
        raise InputError(f"--classes (={classes}) must be at least 1")
    accelerator = config.trainer.accelerator
    trust = trusted_modules(config.trust, config.model.get("_target_"))
    model = build_on_meta(
        to_plain(config.model), num_classes=classes, in_channels=clip.channels, trust=trust, pretrained=False
    )
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


def _clip(config: DictConfig, frames: int | None) -> ClipSpec:
    arguments = to_plain(config.clip)
    arguments.pop("_target_")
    if frames is not None:
        arguments["num_frames"] = frames
    elif config.data.whole_video:
        arguments["num_frames"] = None
    clip = ClipSpec(**arguments)
    if clip.num_frames is None:
        raise InputError("whole videos have no fixed number of frames; give the number to estimate for: --frames N")
    return clip


def _num_classes(config: DictConfig) -> int:
    layout = config.data.datamodule.manifest["_target_"].rsplit(".", 1)[-1]
    return CLASSES.get(layout, DEFAULT_CLASSES)


def cost_text(plan: Plan, report: CostReport) -> str:
    """The layers, the totals, and the largest batch that fits on this machine."""
    clip = " x ".join(map(str, report.input_shape))
    device = {"cpu": "a CPU", "cuda": "a CUDA device"}[report.device]
    lines = [
        f"{type(plan.model).__name__} for {plan.num_classes} classes on clips of {clip}, batches of "
        f"{report.batch_size}, {report.precision} on {device}",
        *("", layer_table(report), "", totals_text(report)),
    ]
    free = free_bytes(plan.device)
    if free is not None:
        size = plan.largest_batch()
        limit = " (no larger one is tried)" if size == MAX_BATCH_SIZE else ""
        batch = f"a batch of {size}{limit}" if size else "not even a batch of 2"
        lines.append(
            paragraph("fits", f"{batch} in {MEMORY_FRACTION:.0%} of the {bytes_text(free)} that are free here")
        )
    return "\n".join(lines)


def compare_costs(overrides: Sequence[str], *, classes: int | None, device: str | None) -> dict[str, list[CostReport]]:
    """Estimates both model families on clips of 1 to 1,000 frames.

    Args:
        overrides: config overrides. `model=` is ignored; `model.KEY=` applies to the families that have the key.
        classes, device: as for `make_plan`.

    Raises:
        InputError: a `model.KEY` that neither family has, or an error of `make_plan`.
    """
    shared = [text for text in overrides if not text.startswith(("model=", "model."))]
    model_keys = {text: text.removeprefix("model.").partition("=")[0].split(".")[0] for text in overrides}
    model_keys = {text: key for text, key in model_keys.items() if text.startswith("model.")}
    family_keys = {family: {str(key) for key in compose_config([f"model={family}"]).model} for family in FAMILIES}
    for text, key in model_keys.items():
        if not any(key in keys for keys in family_keys.values()):
            raise InputError(f"{text}: neither {' nor '.join(FAMILIES)} has a key model.{key}")
    reports = {}
    for family, keys in family_keys.items():
        own = [text for text, key in model_keys.items() if key in keys]
        plans = [
            make_plan([*shared, f"model={family}", *own], classes=classes, frames=frames, device=device)
            for frames in FRAMES
        ]
        size = DEFAULT_BATCH_SIZE if isinstance(plans[0].batch_size, str) else plans[0].batch_size
        reports[family] = [plan.estimate(size) for plan in plans]
    return reports


def growth_table(reports: Mapping[str, Sequence[CostReport]]) -> str:
    """A line for each number of frames: FLOPs and activations of a clip, and peak of a training step, for each model.

    Args:
        reports: name of a model -> its reports. All models have the same numbers of frames in the same order.
    """
    columns = ("FLOPs", "activations", "step")
    rows = [("frames", *(f"{name} {column}" for name in reports for column in columns))]
    for same_length in zip(*reports.values(), strict=True):
        cells = [
            text
            for report in same_length
            for text in (
                count_text(report.flops_forward),
                bytes_text(report.activation_bytes),
                bytes_text(report.peak_train_bytes),
            )
        ]
        rows.append((str(same_length[0].input_shape[1]), *cells))
    first = next(iter(reports.values()))[0]
    height, width = first.input_shape[2:]
    header = (
        f"clips of {height} x {width} pixels, {first.precision}; FLOPs and activations of one clip, "
        f"peak of a training step on {first.batch_size}"
    )
    table = aligned(rows, left=0)
    if max(map(len, table.split("\n"))) > table_width():  # a table for each model
        starts = range(1, len(rows[0]), len(columns))
        table = "\n\n".join(aligned([(row[0], *row[i : i + len(columns)]) for row in rows], left=0) for i in starts)
    return f"{textwrap.fill(header, table_width())}\n\n{table}"


def draw_growth(reports: Mapping[str, Sequence[CostReport]], path: Path) -> None:
    """Draws FLOPs, activations and peak of a training step over the number of frames, both axes logarithmic."""
    from matplotlib.figure import Figure  # without pyplot, which would look for a window system

    first = next(iter(reports.values()))[0]
    panels = {
        "FLOPs of inference, one clip": ("flops_forward", count_text),
        "activations kept in training, one clip": ("activation_bytes", bytes_text),
        f"peak of a training step on {first.batch_size} clips": ("peak_train_bytes", bytes_text),
    }
    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, (title, (field, text)) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for name, series in reports.items():
            axes.loglog([r.input_shape[1] for r in series], [getattr(r, field) for r in series], marker="o", label=name)
        axes.xaxis.set_major_formatter(lambda frames, _: f"{frames:,.0f}")
        axes.set_yscale("log", base=10 if text is count_text else 2)
        axes.yaxis.set_major_formatter(lambda number, _, text=text: text(number))
        axes.set(title=title, xlabel="frames of a clip")
        axes.grid(alpha=0.3)
        axes.legend()
    height, width = first.input_shape[2:]
    figure.suptitle(f"clips of {height} x {width} pixels, {first.precision}")
    with replacing(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], dpi=120)
