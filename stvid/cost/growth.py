"""How cost grows with the length of a clip, models side by side: as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from stvid.cost.report import CostReport
from stvid.cost.table import aligned, bytes_text, count_text
from stvid.errors import InputError

SUFFIXES = (".png", ".svg", ".pdf")


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
