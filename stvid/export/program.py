"""`torch.export`: a form becomes a program (`ExportedProgram`), which `.pt2` files hold and ONNX files are made of."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from stvid.errors import InputError
from stvid.export.form import Form
from stvid.terminal import silent

REMEDY = (
    "What is exported must do the same for every clip: no `if`, loop, `int()` or `.item()` that depends on the values "
    "of a tensor, on the batch or on the number of frames, and x.shape[0] in the place of len(x). torch.where, masks "
    "and torch.cond can be exported. In `if torch.compiler.is_exporting():` a forward can do the same in another way"
)


def trace(form: Form) -> ExportedProgram:
    """Traces a form with torch.export.

    Raises:
        InputError: torch.export cannot trace the module; the message names the part that it stops in.
        Exception: the module fails on the example itself; its own error.
    """
    # as torch's ONNX exporter does: without it, a layer whose output could have one step in time fixes the size
    sizes_of_one = torch.fx.experimental._config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad():
        form.module(*form.example)
        try:
            with silent(), sizes_of_one, recurrent_layers_as_operators():
                program = torch.export.export(
                    form.module,
                    form.example,
                    dynamic_shapes=dynamic_shapes(form),
                    prefer_deferred_runtime_asserts_over_guards=True,
                )
        except InputError:
            raise
        except Exception as error:  # torch.export has no common class for what it cannot trace
            raise InputError(_untraceable(form.module, error)) from error
    _clean(program)
    return program


def _clean(program: ExportedProgram) -> None:
    """Removes paths of this computer, and asserted sizes: for a recurrent layer, torch asserts a batch other than 1."""
    graph = program.graph
    for node in reversed(graph.nodes):
        node.meta.pop("stack_trace", None)
        if node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


@contextlib.contextmanager
def recurrent_layers_as_operators() -> Iterator[None]:
    """LSTM and GRU stay one operator each, for any number of frames; else they are unrolled for those of the example.

    torch's own ONNX exporter enters the same two contexts when it traces a module itself. An operator remembers what it
    ran when it was last traced, and the contexts leave that as it is: without `clear`, a GRU that was traced before is
    unrolled all the same, and one that is traced later is not.
    """
    try:
        from torch.export._patches import (
            register_gru_while_loop_decomposition,
            register_lstm_while_loop_decomposition,
        )
    except ImportError as error:
        raise InputError(
            f"torch {torch.__version__} is too old to export a model: pip install --upgrade 'stvid[export]'"
        ) from error
    operators = torch.ops.aten.lstm.input, torch.ops.aten.gru.input
    with register_lstm_while_loop_decomposition(), register_gru_while_loop_decomposition():
        for operator in operators:
            operator._dispatch_cache.clear()
        try:
            yield
        finally:
            for operator in operators:
                operator._dispatch_cache.clear()


def dynamic_shapes(form: Form) -> dict[str, Any]:
    """For each argument of the module the axes whose size may differ, as torch's exporters take them."""
    names = {size for spec in form.inputs for size in spec.shape if isinstance(size, str)}
    dims = {name: Dim(name, min=1) for name in sorted(names)}
    shapes = [{axis: dims[size] for axis, size in enumerate(spec.shape) if size in dims} for spec in form.inputs]
    return inspect.signature(form.module.forward).bind(*shapes).arguments


def write_program(form: Form, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a `.pt2` file, which `torch.export.load(path).module()` runs; the metadata are its `extra_files`.

    Raises:
        InputError: see `trace`.
    """
    content, program = io.BytesIO(), trace(form)
    program.example_inputs = None  # pictures, which would be a large part of a small file
    torch.export.save(program, content, extra_files=dict(metadata))
    path.write_bytes(content.getbuffer())  # not by `save`: when a disk is full, torch ends the whole process


def open_program(path: Path) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    """A `.pt2` file as a function from its inputs to its outputs, on the CPU."""
    with open(path, "rb") as file:
        module = torch.export.load(file).module()

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            outputs = module(*inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    return run


def _untraceable(module: nn.Module, error: Exception) -> str:
    """What torch.export cannot trace, where it stands, and what would help."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if fixed := re.match(r"(?:Constraints violated|Specializations unexpectedly required) \(([\w, ]+)\)", reason):
        reason = f"it takes for a constant what may differ from call to call: {fixed[1]}"
        if "time" in fixed[1]:
            reason += ". A model that was trained on clips of one length (clip.num_frames=16) has no such axis"
    place = _part_of(module, error)
    return f"this model cannot be exported: torch.export stops in {place}: {reason}\n{REMEDY}"


def _part_of(module: nn.Module, error: Exception) -> str:
    """The innermost part of a module whose method raised an error: its name and class."""
    names = {id(part): name for name, part in module.named_modules()}
    found = f"the whole model ({type(module).__name__})"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        part = frame.f_locals.get("self")
        if isinstance(part, nn.Module) and names.get(id(part)):
            found = f"{names[id(part)]} ({type(part).__name__})"
    return found
