"""Copies are found by their bytes, and only what could be a copy is read."""

from __future__ import annotations

import filecmp
import os
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from stvid.data import content_checks as module
from stvid.data.content_checks import content_keys, find_duplicates


@pytest.fixture
def files(tmp_path) -> list[str]:
    """Of 0 to 3 bytes, of two values: some are equal, some only of one size; and one beyond a chunk, twice."""
    rng = np.random.default_rng(0)
    contents = [bytes(rng.integers(0, 2, size).tolist()) for size in (0, 1, 2, 3) for _ in range(6)]
    long = bytes(3 << 20)
    for i, content in enumerate([*contents, long, long, long[:-1] + b"\1"]):
        (tmp_path / f"{i:02d}.mp4").write_bytes(content)
    return sorted(map(str, tmp_path.iterdir()))


def keys_of(paths) -> dict[str, str]:
    return content_keys(paths, progress=False)


def pairs(lists) -> set[tuple[str, str]]:
    return {pair for one in lists for pair in combinations(one, 2)}


def test_copies_are_those_that_a_comparison_of_all_pairs_finds(files):
    equal = {pair for pair in combinations(files, 2) if filecmp.cmp(*pair, shallow=False)}
    keys = keys_of(files)
    assert pairs(find_duplicates(keys)) == equal
    assert {pair for pair in combinations(files, 2) if keys[pair[0]] == keys[pair[1]]} == equal
    assert 20 < len(equal) < 100


def test_only_what_has_the_size_of_something_else_is_read(files, tmp_path, monkeypatch):
    (tmp_path / "alone.mp4").write_bytes(bytes(12345))
    read = []
    monkeypatch.setattr(module, "_hash_content", lambda path: read.append(path) or path)
    keys_of([*files, str(tmp_path / "alone.mp4")])
    assert sorted(read) == files


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_is_the_same_file_and_no_copy(files, tmp_path, link):
    link(files[0], tmp_path / "link.mp4")
    paths = [files[0], str(tmp_path / "link.mp4"), files[-1]]
    keys = keys_of(paths)
    assert keys[paths[0]] == keys[paths[1]] != keys[paths[2]]
    assert find_duplicates(keys) == []


def folder(path: Path, **images: bytes) -> str:
    path.mkdir()
    for name, content in images.items():
        (path / f"{name}.png").write_bytes(content)
    return str(path)


def test_a_folder_of_images_is_its_images_names_and_bytes(tmp_path):
    same = [folder(tmp_path / name, a=b"12", b=b"3") for name in ("first", "second")]
    others = [
        folder(tmp_path / "shifted", a=b"1", b=b"23"),
        folder(tmp_path / "renamed", a=b"12", c=b"3"),
        folder(tmp_path / "changed", a=b"12", b=b"4"),
    ]
    (tmp_path / "second" / "notes.txt").write_text("no image")
    assert find_duplicates(keys_of([*same, *others])) == [same]


def test_what_cannot_be_read_has_no_key_and_is_nobodys_copy(files, tmp_path):
    paths = [files[0], str(tmp_path / "missing.mp4"), str(tmp_path / "gone.mp4"), folder(tmp_path / "empty")]
    assert list(keys_of(paths)) == files[:1]


def test_a_bar_is_shown_only_when_there_is_something_to_read(files, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    content_keys([files[0], files[-1]])
    assert capsys.readouterr().err == ""
    content_keys(files)
    assert "comparing files" in capsys.readouterr().err
