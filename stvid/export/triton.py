"""A model repository for NVIDIA's Triton Inference Server, which keeps the state of each stream itself.

    REPOSITORY/NAME/config.pbtxt      what goes in and out, and which tensors are the state
    REPOSITORY/NAME/labels.txt        class names
    REPOSITORY/NAME/1/model.onnx      the streaming form

A client sends the frames of one stream as one sequence. The sequence batcher with implicit state hands each request the
state of its sequence, zeros at the start, and puts requests of several sequences into one batch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from stvid.errors import InputError
from stvid.export.form import Form, TensorSpec
from stvid.export.stream_form import stream_states
from stvid.terminal import visible

DTYPES = {torch.uint8: "TYPE_UINT8", torch.bool: "TYPE_BOOL", torch.int64: "TYPE_INT64", torch.float32: "TYPE_FP32"}
MAX_BATCH, MAX_STREAMS = 32, 256
MAX_IDLE = 60  # seconds; after Triton's own second, a stream with 16 frames a call would have lost its state
MODEL, CONFIG, LABELS = "1/model.onnx", "config.pbtxt", "labels.txt"
T = TypeVar("T")


def write_triton_model(folder: Path, form: Form, class_names: Sequence[str], write: Callable[[Path], T]) -> T:
    """Makes the folder of one model in a repository; if an error is raised, there is none.

    Args:
        folder: `REPOSITORY/NAME`; the repository is made if it does not exist.
        form: a streaming form.
        class_names: in the order of the probabilities.
        write: writes the form to an ONNX file, and checks it.

    Returns:
        What `write` returns.

    Raises:
        InputError: the folder exists already; and what `write` raises.
        OSError: the folder cannot be written; its `filename` is `folder`.
    """
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    try:
        (partial / MODEL).parent.mkdir(parents=True)
        result = write(partial / MODEL)
        (partial / CONFIG).write_bytes(triton_config(form).encode())
        (partial / LABELS).write_bytes("".join(f"{visible(name)}\n" for name in class_names).encode())
        if os.path.lexists(folder):  # on POSIX, `rename` would replace an empty folder
            raise InputError(f"{folder} exists already and is not replaced; delete it, or name another folder")
        partial.rename(folder)
    except OSError as error:
        if str(partial) in str(error.filename):
            error.filename = str(folder)  # the one that the user knows
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):  # those that are not empty stay
            for parent in new_parents:
                parent.rmdir()
    return result


def triton_config(form: Form) -> str:
    """`config.pbtxt` of a streaming form: a `ModelConfig` of Triton in protobuf's text format.

    Names come from the folder and the version from its subfolder, so neither is in here.
    """
    states = stream_states(form)
    inputs = [spec for spec in form.inputs if spec.name not in states]
    outputs = [spec for spec in form.outputs if spec.name not in states.values()]
    lines = ['backend: "onnxruntime"', f"max_batch_size: {MAX_BATCH}"]
    lines += [f"input {{ {_tensor(spec)} }}" for spec in inputs]
    for spec in outputs:
        labels = f' label_filename: "{LABELS}"' if spec.name == "probabilities" else ""
        lines.append(f"output {{ {_tensor(spec)}{labels} }}")
    if not states:  # each frame by itself
        return "\n".join([*lines, "dynamic_batching { }\n"])
    lines += [
        "sequence_batching {",
        f"  max_sequence_idle_microseconds: {MAX_IDLE * 10**6}",
        f"  oldest {{ max_candidate_sequences: {MAX_STREAMS} }}",
    ]
    for spec in form.inputs:
        if spec.name in states:
            lines.append(f'  state {{ input_name: "{spec.name}" output_name: "{states[spec.name]}" {_shape(spec)}')
            lines.append(f'    initial_state {{ name: "{spec.name}" zero_data: true {_shape(spec)} }} }}')
    return "\n".join([*lines, "}\n"])


def _tensor(spec: TensorSpec) -> str:
    return f'name: "{spec.name}" {_shape(spec)}'


def _shape(spec: TensorSpec) -> str:
    """Type and shape; the batch is not part of it."""
    return f"data_type: {DTYPES[spec.dtype]} dims: [ {', '.join(map(str, spec.shape[1:]))} ]"
