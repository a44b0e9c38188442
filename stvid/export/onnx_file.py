"""ONNX files, for onnxruntime and other programs that know no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stvid.errors import InputError
from stvid.export.form import Form
from stvid.export.packages import check_onnx_packages
from stvid.export.program import dynamic_shapes, trace
from stvid.terminal import silent

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

OPSET = 18  # what torch's exporter writes without converting; onnxruntime reads it since 1.14
MAX_BYTES = 2**31 - 2**24  # protobuf's limit for a file, less what is not weights
OPERATOR = re.compile(r"target=torch\.ops\.([\w.]+)")  # in a message of torch's exporter


def write_onnx(form: Form, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes one `.onnx` file, which holds the weights too; the metadata are its `metadata_props`.

    Raises:
        InputError: a package is missing; the model is too large for one file; torch.export cannot trace it, see
            `trace`; ONNX has no operator for a part of it.
    """
    check_onnx_packages()
    size = sum(value.numel() * value.element_size() for value in form.module.state_dict().values())
    if size > MAX_BYTES:
        raise InputError(
            f"the weights have {size / 2**30:.1f} GiB, and one ONNX file holds at most 2 GiB; use --format torch"
        )
    program = trace(form)
    try:
        with torch.no_grad(), silent():
            exported = torch.onnx.export(
                program,
                input_names=[spec.name for spec in form.inputs],
                output_names=[spec.name for spec in form.outputs],
                dynamic_shapes=dynamic_shapes(form),  # here only the names of the axes
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        operator = OPERATOR.search(str(error))
        reason = f"no operator of ONNX computes {operator[1]}" if operator else str(error).strip().splitlines()[0]
        raise InputError(
            f"this model cannot be written as ONNX: {reason}. Use --format torch, or a layer that does without it"
        ) from error
    assert exported is not None  # None only for torch's older exporter
    _remove_traces(exported)
    _rename_inner_values(exported, {spec.name for spec in (*form.inputs, *form.outputs)})
    exported.model.metadata_props.update(metadata)
    exported.save(path, external_data=False)


def open_onnx(path: Path) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    """An `.onnx` file as a function from its inputs to its outputs: onnxruntime, on as many threads as torch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors are raised too
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        arrays = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, arrays)]

    return run


def _rename_inner_values(exported: ONNXProgram, names: Collection[str]) -> None:
    """Gives other names to inner values that torch's exporter has named like an input or output, such as `mean`."""
    for node in exported.model.graph.all_nodes():
        for value in node.outputs:
            if value.name in names and not value.is_graph_output():
                value.name = f"inner_{value.name}"


def _remove_traces(exported: ONNXProgram) -> None:
    """Removes what torch notes about its own source files: paths of this computer, and half of a small file."""
    graphs: list[Any] = [exported.model.graph, *exported.model.functions.values()]
    for graph in graphs:
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
