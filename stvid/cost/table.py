"""A cost report as text, and the growth of cost with clip length as a table and a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from stvid.cost.estimate import CostReport
from stvid.errors import InputError

WIDTH = 120  # columns
BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
DECIMAL = ("", "k", "M", "G", "T", "P", "E")
SUFFIXES = (".png", ".svg", ".pdf")


def bytes_text(number: float) -> str:
    """Three digits and a binary unit: `35.3 MiB`; powers of 1024."""
    return _text(number, BINARY, 1024)


def count_text(number: float) -> str:
    """Three digits and a decimal unit: `33.4 M`; powers of 1000."""
    return _text(number, DECIMAL, 1000)


def _text(number: float, units: Sequence[str], base: int) -> str:
    power = 0
    while number >= 999.5 and power < len(units) - 1:
        number, power = number / base, power + 1
    digits = 0 if power == 0 else max(0, 2 - len(str(int(number))) + 1)
    return f"{number:.{digits}f} {units[power]}".rstrip()


def layer_table(report: CostReport) -> str:
    """A line for each layer, at most 120 columns wide; long names lose their beginning."""
    head = ("layer", "type", "output", "parameters", "activations", "multiply-adds")
    rows = [
        (
            *(layer.name or "(model)", layer.type, " x ".join(map(str, layer.output_shape))),
            *(count_text(layer.parameters), bytes_text(layer.activation_bytes), count_text(layer.macs)),
        )
        for layer in report.layers
    ]
    total = count_text(report.parameters), bytes_text(report.activation_bytes), count_text(report.macs)
    return aligned([head, *rows, ("total, one clip", "", "", *total)], left=3)


def totals(report: CostReport) -> str:
    """The four senses of size, a paragraph each."""
    clips = f"{report.batch_size} clip{'s' if report.batch_size > 1 else ''}"
    part = (
        "" if report.trainable_parameters == report.parameters else f", {report.trainable_parameters:,} of them trained"
    )
    kept = report.activation_bytes
    paragraphs = {
        "parameters": f"{report.parameters:,}{part}",
        "model": f"{bytes_text(report.model_bytes)}; in training, with gradients and optimizer, "
        f"{bytes_text(report.train_state_bytes)}",
        "space": f"activations kept for the backward pass: {bytes_text(kept)} for a clip, "
        f"{bytes_text(kept * report.batch_size)} for {clips}. Peak of a training step on {clips}: "
        f"{bytes_text(report.peak_train_bytes)}. Peak of an answer: {bytes_text(report.peak_inference_bytes)} for a "
        f"clip, {bytes_text(report.peak_inference_batch_bytes)} for {clips}",
        "compute": f"{count_text(report.macs)} multiply-adds = {count_text(report.flops_forward)} FLOPs for a clip; "
        f"in a training step {count_text(report.flops_train_step)} FLOPs for a clip, "
        f"{count_text(report.flops_train_step * report.batch_size)} for {clips}",
    }
    return "\n".join(paragraph(name, text) for name, text in paragraphs.items())


def paragraph(name: str, text: str) -> str:
    """A named paragraph, indented, at most 120 columns wide."""
    return textwrap.fill(text, WIDTH, initial_indent=f"{name:<12}", subsequent_indent=" " * 12)


def brief(report: CostReport) -> str:
    """The totals in one line, for the beginning of a run."""
    return (
        f"{count_text(report.parameters)} parameters, {count_text(report.flops_forward)} FLOPs a clip; a training step "
        f"on {report.batch_size} clips takes {bytes_text(report.peak_train_bytes)} and "
        f"{count_text(report.flops_train_step * report.batch_size)} FLOPs"
    )


def aligned(rows: Sequence[Sequence[str]], *, left: int) -> str:
    """Columns, the first `left` of them to the left, the others to the right; the first gives way where it must."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rest = sum(widths[1:]) + 2 * (len(widths) - 1)
    widths[0] = max(min(widths[0], WIDTH - rest), 12)
    lines = []
    for row in rows:
        first = row[0] if len(row[0]) <= widths[0] else "…" + row[0][1 - widths[0] :]
        cells = (first, *row[1:])
        padded = [
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def growth_table(reports: Mapping[str, Sequence[CostReport]]) -> str:
    """A line for each number of frames; for each model FLOPs and activations of a clip, and peak of a training step.

    Args:
        reports: name of a model -> its reports, on clips of the same numbers of frames.
    """
    parts = ("FLOPs", "activations", "step")
    rows = [("frames", *(f"{name} {part}" for name in reports for part in parts))]
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
    some = next(iter(reports.values()))[0]
    height, width = some.input_shape[2:]
    head = (
        f"clips of {height} x {width} pixels, {some.precision}; FLOPs and activations of one clip, "
        f"peak of a training step on {some.batch_size}"
    )
    return f"{head}\n\n{aligned(rows, left=0)}"


def check_picture(path: str | Path) -> None:
    """Raises InputError where `draw_growth` could not write: no folder, another suffix."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"--out {path}: the picture must end in {', '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--out {path}: there is no folder {path.absolute().parent}")


def draw_growth(reports: Mapping[str, Sequence[CostReport]], path: str | Path) -> None:
    """Draws FLOPs, activations and peak of a training step over the number of frames, both axes logarithmic."""
    check_picture(path)
    from matplotlib.figure import Figure  # without pyplot, so that no window system is asked for

    some = next(iter(reports.values()))[0]
    panels = {
        "FLOPs of an answer, one clip": ("flops_forward", count_text),
        "activations kept in training, one clip": ("activation_bytes", bytes_text),
        f"peak of a training step on {some.batch_size} clips": ("peak_train_bytes", bytes_text),
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
    height, width = some.input_shape[2:]
    figure.suptitle(f"clips of {height} x {width} pixels, {some.precision}")
    figure.savefig(path, dpi=120)
