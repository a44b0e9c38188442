"""Decisions about the architecture, held by walking the imports."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

# a module imports only from those above it; a folder's modules count as one where it is named
ORDER = [
    "terminal", "errors", "disks", "exits", "checks", "files", "progress", "device", "distributed", "clip",
    "preprocess", "video", "data", "models",
    "cost", "metrics", "training", "run", "cached_views", "inference", "export", "deploy", "recognizer", "serve",
    "evaluation", "report", "sweep", "commands", "cli", "__main__",
]  # fmt: skip
ONLY_IN = {
    "decord": {"video/reader.py"},
    "torchcodec": {"video/reader.py"},
    "av": {"video/"},
    "pytorch_lightning": {"train.py", "training/", "data/datamodule.py"},
    "h5py": {"data/feature_cache.py", "data/feature_entries.py"},
    "hydra": {"train.py", "run/", "sweep/", "commands/"},
    "optuna": {"sweep/"},
    "fastapi": {"serve/"},
    "starlette": {"serve/"},
    "uvicorn": {"serve/"},
    "python_multipart": {"serve/"},
    "prometheus_client": {"serve/"},
    "ray": {"serve/ray_app.py", "commands/ray_engine.py"},
    "pyarrow": {"deploy/prediction_tables.py"},
    "onnx": {"export/"},
    "onnxscript": {"export/"},
    "onnxruntime": {"export/", "models/onnx_encoder.py"},
}
FORBIDDEN = {
    "models": {"files", "video", "data", "metrics"},
    "training": {"video", "models"},
}
FILES = sorted((ROOT / "stvid").rglob("*.py"))


def imported(path):
    """Dotted names of everything the file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(path):
    return path.relative_to(ROOT / "stvid").with_suffix("").parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_run_one_way(path):
    part = part_of(path)
    if part == "__init__":
        return
    assert part in ORDER, f"{part} has no place in the order"
    for name in imported(path):
        if name.startswith("stvid.") and name.split(".")[1] in ORDER:
            other = name.split(".")[1]
            assert ORDER.index(other) <= ORDER.index(part), f"{path} imports {name}, which stands below it"
            assert other not in FORBIDDEN.get(part, ()), f"{path} imports {name}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_big_libraries_stay_in_their_rooms(library):
    for path in [*FILES, ROOT / "train.py"]:
        place = path.relative_to(ROOT).as_posix().removeprefix("stvid/")
        if any(place.startswith(allowed) for allowed in ONLY_IN[library]):
            continue
        assert not any(name.split(".")[0] == library for name in imported(path)), f"{place} imports {library}"


def test_every_name_in_the_order_is_or_will_be_a_part():
    planned = set()
    assert {part_of(path) for path in FILES} - {"__init__"} == set(ORDER) - planned


WITHOUT_UNIX = """
import builtins, importlib, os, signal, sys
import fastapi, hydra, pytorch_lightning, torch, torchvision  # on Linux these may need what is hidden from here on
import uvicorn

usual = builtins.__import__

def windows_import(name, globals=None, *rest, **more):
    if (globals or {}).get("__name__", "").startswith("stvid") and name.split(".")[0] in UNIX_MODULES:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return usual(name, globals, *rest, **more)

UNIX_MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"}
builtins.__import__ = windows_import
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGQUIT", "SIGALRM", "SIGKILL", "SIGCHLD", "pthread_sigmask"):
    delattr(signal, name)
for name in ("fork", "getpgid", "killpg", "sched_getaffinity", "setsid", "sysconf", "statvfs", "uname"):
    delattr(os, name)
for name in sys.argv[1:]:
    importlib.import_module(name)

from stvid.device import num_cores, peak_host_gib
from stvid.run.provenance import hardware
from stvid.training.callbacks.preemption import SIGNALS
assert num_cores() == os.cpu_count()
assert peak_host_gib() is None and hardware()["memory_gib"] is None
assert SIGNALS == (signal.SIGTERM, signal.SIGINT)
"""


def test_every_module_is_imported_where_there_are_no_unix_modules_and_signals():
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in FILES]
    names = [".".join(part).removesuffix(".__init__") for part in parts]
    command = [sys.executable, "-c", WITHOUT_UNIX, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
