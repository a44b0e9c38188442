"""Provenance in result.json; the oracles are hashlib by hand and git itself."""

import getpass
import hashlib
import json
import platform
import shutil
import socket
import subprocess
from dataclasses import replace

import pytest
import torch

import stvid
from stvid.data.layouts.class_folders import folder
from stvid.data.manifest import Item, Manifest
from stvid.device import num_cores, peak_host_gib
from stvid.run.provenance import data_record, git_state, hardware, manifest_fingerprint, run_record, versions
from stvid.run.results import PROVENANCE

ITEMS = (
    Item(path="/data/set/run/b.mp4", label="run", split="train"),
    Item(path="/data/set/run/a.mp4", label="run", split="train", start=1.5, end=2.0, group="anna"),
    Item(path="/data/set/walk/ü.mp4", label="walk", split="val"),
)
DATA = Manifest(items=ITEMS, class_names=("run", "walk"))


def with_first(**changes):
    return Manifest(items=(replace(ITEMS[0], **changes), *ITEMS[1:]), class_names=DATA.class_names)


def test_the_fingerprint_is_the_hash_of_lines_written_by_hand():
    text = (
        '["run/a.mp4", "run", "train", 1.5, 2.0, "anna"]\n'
        '["run/b.mp4", "run", "train", null, null, null]\n'
        '["walk/\\u00fc.mp4", "walk", "val", null, null, null]\n'
    )
    assert manifest_fingerprint(DATA) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "changes",
    [{"label": "walk"}, {"split": "test"}, {"start": 0.5}, {"end": 3.0}, {"group": "bob"}, {"path": "/data/set/c.mp4"}],
    ids=str,
)
def test_any_change_of_an_item_changes_the_fingerprint(changes):
    assert manifest_fingerprint(with_first(**changes)) != manifest_fingerprint(DATA)


def test_moving_or_sorting_a_data_set_keeps_the_fingerprint(video_folder, tmp_path):
    here = folder(root=str(video_folder))
    existing = folder(root=str(shutil.copytree(video_folder, tmp_path / "moved" / "elsewhere")))
    assert here.items != existing.items
    assert manifest_fingerprint(existing) == manifest_fingerprint(here)
    assert manifest_fingerprint(replace(here, items=here.items[::-1])) == manifest_fingerprint(here)


def test_a_name_that_is_not_utf_8_has_a_fingerprint():
    assert len(manifest_fingerprint(with_first(path="/data/set/run/\udcff.mp4"))) == 64


def test_videos_are_counted_by_split_and_class():
    record = data_record(DATA, num_bad=1)
    assert record["num_videos"] == {"train": {"run": 2, "walk": 0}, "val": {"run": 0, "walk": 1}}
    assert record["num_bad"] == 1


def git(folder, *arguments):
    options = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *options, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_state_is_the_commit_and_whether_files_differ_from_it(tmp_path):
    script = tmp_path / "code" / "train.py"
    script.parent.mkdir()
    script.write_text("1")
    assert git_state(script) is None, "no repository"
    git(tmp_path, "init")
    (tmp_path / ".gitignore").write_text("outputs/\n")
    git(tmp_path, "add", ".")
    assert git_state(script) is None, "no commit yet"
    git(tmp_path, "commit", "-m", "first")
    commit = git(tmp_path, "log", "-1", "--format=%H")
    assert git_state(script) == {"commit": commit, "dirty": False}
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "train.py").write_text("1")
    assert git_state(script) == {"commit": commit, "dirty": False}, "an ignored file is no difference"
    assert git_state(tmp_path / "outputs" / "train.py") is None, "an installed copy is not the repository's"
    script.write_text("2")
    assert git_state(script) == {"commit": commit, "dirty": True}


def test_without_git_there_is_no_git_state(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path / "train.py") is None


def test_versions_are_those_of_the_imported_packages():
    record = versions()
    assert record["python"] == platform.python_version()
    assert record["stvid"] == stvid.__version__
    assert record["torch"] == torch.__version__.partition("+")[0]
    assert bool({"cuda", "rocm"} & set(record)) == torch.cuda.is_available()
    assert {"torchvision", "lightning", "torchmetrics", "hydra", "av", "numpy"} <= set(record)


@pytest.mark.parametrize("name", ["cuda", "rocm"])
def test_versions_of_either_kind_of_gpu_are_texts(name, monkeypatch):
    """With ROCm `torch.cuda` is available, but has no version; a result is only read with texts."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "12.8" if name == "cuda" else None)
    monkeypatch.setattr(torch.version, "hip", "6.4" if name == "rocm" else None)
    record = versions()
    assert record[name] in ("12.8", "6.4")
    PROVENANCE["versions"](record, "versions")
    assert len({"cuda", "rocm"} & set(record)) == 1


def test_the_record_describes_the_machine_without_its_name_or_its_users(tmp_path):
    record = run_record(DATA, num_bad=0, code=tmp_path / "train.py")
    assert set(record) == {"data", "versions", "git", "hardware"}
    assert record["hardware"]["cores"] == num_cores()
    assert len(record["hardware"]["gpus"]) == torch.cuda.device_count()
    text = json.dumps(record)
    for name in (socket.gethostname(), getpass.getuser()):
        assert f'"{name}"' not in text
    assert "/data/set" not in text


def test_peak_memory_is_between_what_was_just_filled_and_all_memory():
    numbers = torch.ones(2**26)  # a quarter of a GiB
    assert len(numbers) / 2**28 < peak_host_gib() < hardware()["memory_gib"]
