"""Provenance of a result: data, versions, code, machine; plain data that names no person and no computer."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections import Counter
from pathlib import Path

import torch

import stvid
from stvid.data.manifest import SPLITS, Manifest
from stvid.device import GIB, num_cores

# name in the record -> name of the package
PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "lightning": "pytorch-lightning",
    "torchmetrics": "torchmetrics",
    "hydra": "hydra-core",
    "av": "av",
    "numpy": "numpy",
}


def run_record(manifest: Manifest, *, num_bad: int, code: Path) -> dict:
    """The keys `data`, `versions`, `git` and `hardware` of `result.json`.

    Args:
        manifest: the data set.
        num_bad: number of its unreadable videos.
        code: the script that runs; `git` is the state of its checkout.
    """
    return {
        "data": data_record(manifest, num_bad=num_bad),
        "versions": versions(),
        "git": git_state(code),
        "hardware": hardware(),
    }


def data_record(manifest: Manifest, *, num_bad: int) -> dict:
    """Fingerprint and size of a data set: videos per class for each split that has videos."""
    counts = {split: Counter(item.label for item in manifest.select(split)) for split in SPLITS}
    return {
        "manifest_sha256": manifest_fingerprint(manifest),
        "num_videos": {
            split: {name: of_split[name] for name in manifest.class_names}
            for split, of_split in counts.items()
            if of_split
        },
        "num_bad": num_bad,
    }


def manifest_fingerprint(manifest: Manifest) -> str:
    """64 hexadecimal digits, which change with any item, label, split, time or group.

    The SHA-256 of one line of JSON per item, `[path, label, split, start, end, group]`, sorted. Paths are relative to
    the folder that all videos have in common. So the fingerprint does not change if the data set is moved or copied,
    or its table sorted. The content of the files has no effect.
    """
    try:
        common = os.path.commonpath([os.path.dirname(item.path) for item in manifest.items])
    except ValueError:  # on several drives
        common = None
    lines = []
    for item in manifest.items:
        path = Path(item.path).as_posix() if common is None else Path(os.path.relpath(item.path, common)).as_posix()
        lines.append(json.dumps([path, item.label, item.split, item.start, item.end, item.group]))
    return hashlib.sha256("".join(f"{line}\n" for line in sorted(lines)).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python, stvid and `PACKAGES`; with a device of CUDA or ROCm also of that."""
    record = {"python": platform.python_version(), "stvid": stvid.__version__}
    record |= {name: importlib.metadata.version(package) for name, package in PACKAGES.items()}
    devices = {"cuda": torch.version.cuda, "rocm": torch.version.hip} if torch.cuda.is_available() else {}
    return record | {name: version for name, version in devices.items() if version is not None}


def git_state(code: Path) -> dict | None:
    """The `commit` of a file's repository, and `dirty`: whether any file differs from it.

    A file that git neither tracks nor ignores counts as a difference. None: git does not track the file (such as an
    installed package in an ignored folder), there is no commit yet, or git is not installed.
    """

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(code.resolve().parent), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", code.name)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> dict:
    """Architecture, CPU, number of cores that this process may use, main memory, and GPUs with their memory."""
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": num_cores(),
        "memory_gib": _memory_gib(),
        "gpus": [{"name": gpu.name, "memory_gib": round(gpu.total_memory / GIB, 1)} for gpu in gpus],
    }


def _cpu_name() -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or None
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or None


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB, 1)
    except (AttributeError, ValueError):
        return None
