"""Writes a form to a file, which takes its place only after it was run and compared with the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from stvid.device import default_device, inference_precision
from stvid.errors import InputError
from stvid.export.form import Form
from stvid.export.onnx_file import open_onnx, write_onnx
from stvid.export.parity import TOLERANCE, Exported, Parity
from stvid.export.program import REMEDY, open_program, write_program
from stvid.files import replacing
from stvid.run.checkpoint import TrainedModel

T = TypeVar("T")
WRITERS = {"onnx": write_onnx, "torch": write_program}
OPENERS = {"onnx": open_onnx, "torch": open_program}
FLOAT32 = "32-true"  # of every file, and of the model that it is compared with
RUNTIMES = {"onnx": "onnxruntime", "torch": "torch.export"}  # names for reports


def write_checked(
    form: Form, path: Path, metadata: Mapping[str, str], *, file_format: str, check: Callable[[Exported], T]
) -> T:
    """Writes a form, and returns what the check of the file returns. If that raises an error, there is no file.

    Args:
        form: what to write.
        path: the file. One that exists is not replaced, see `stvid.files.replacing`.
        metadata: see `stvid.export.metadata`.
        file_format: `onnx` or `torch`.
        check: takes the file as a function from inputs to outputs, such as `check_parity`.

    Raises:
        InputError: the model cannot be exported, see `write_onnx` and `write_program`; the file does not run; the
            check fails.
    """
    with replacing(path, overwrite=False) as partial:
        WRITERS[file_format](form, partial, metadata)
        return check(_open(partial, file_format))


def _open(path: Path, file_format: str) -> Exported:
    """The file as a function from inputs to outputs; where it fails, a size is usually taken for a constant in it."""
    try:
        exported = OPENERS[file_format](path)
    except Exception as error:  # each runtime has its own errors
        raise InputError(_failure("cannot be opened", error)) from error

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        try:
            return exported(inputs)
        except Exception as error:
            shapes = ", ".join(" x ".join(map(str, value.shape)) for value in inputs)
            raise InputError(_failure(f"fails for inputs of {shapes}", error)) from error

    return run


def _failure(problem: str, error: Exception) -> str:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return f"the exported file {problem}: {reason}\nNo file was written. {REMEDY}"


def export_record(trained: TrainedModel, form: Form, parity: Parity, path: Path, *, file_format: str) -> dict:
    """Plain data about an exported form: what `stvid export --json` writes."""
    return {
        "file": str(path),
        "format": file_format,
        "bytes": path.stat().st_size,
        "inputs": {spec.name: [str(spec.dtype).removeprefix("torch."), *spec.shape] for spec in form.inputs},
        "outputs": {spec.name: [str(spec.dtype).removeprefix("torch."), *spec.shape] for spec in form.outputs},
        "parity": {
            "source": parity.source,
            "batch_sizes": list(parity.batch_sizes),
            "num_frames": list(parity.num_frames),
            "max_difference": parity.max_difference,
            "tolerance": TOLERANCE,
        },
        "speed": {
            "num_frames": parity.timed_frames,
            "milliseconds_torch": parity.milliseconds_model,
            "milliseconds_file": parity.milliseconds_file,
            "runtime": RUNTIMES[file_format],
        },
        "precision": {
            "file": FLOAT32,
            "run": trained.config["trainer"]["precision"],
            "predict": inference_precision(trained.config["trainer"]["precision"], default_device().type),
        },
    }


def export_text(record: Mapping) -> str:
    """The record for the terminal."""
    parity, speed, precision = record["parity"], record["speed"], record["precision"]["predict"]
    specs = [("in", record["inputs"]), ("out", record["outputs"])]
    lines = [
        f"{label:<10}{name}: {dtype} {' x '.join(map(str, shape))}"
        for label, group in specs
        for name, (dtype, *shape) in group.items()
    ]
    unit = "frame" if speed["num_frames"] == 1 else f"{speed['num_frames']} frames"
    batches, frames = (" and ".join(map(str, parity[key])) for key in ("batch_sizes", "num_frames"))
    lines += [
        f"{'checked':<10}{parity['source']}, batch {batches}, {frames} frames: the same classes",
        f"{'':<10}largest difference of a probability {parity['max_difference']:.1e} (allowed {parity['tolerance']:g})",
        f"{'speed':<10}{speed['milliseconds_torch']:.1f} ms per {unit} with torch, "
        f"{speed['milliseconds_file']:.1f} ms with {speed['runtime']} (CPU, batch 1)",
    ]
    if precision != FLOAT32:
        lines += [
            f"{'precision':<10}the file computes in float32; stvid predict computes in {precision} on this computer,",
            f"{'':<10}as the run's training did, so its probabilities differ by more",
        ]
    return "\n".join(lines)
