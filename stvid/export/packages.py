"""The packages of the extra `export`. Imports no torch, so that a missing one is told at once."""

from __future__ import annotations

import importlib.util

from stvid.errors import InputError

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_onnx_packages() -> None:
    """Raises InputError if a package that ONNX files are made or run with is missing. Imports none of them."""
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--format onnx needs {', '.join(missing)}: pip install 'stvid[export]'")
