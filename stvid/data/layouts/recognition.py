"""Which data set a folder or a table holds, told from the names of some of its files. Imports nothing heavy."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

MAX_NAMES = 5000  # to look at
MAX_FILES = 20  # of one folder
MAX_DEPTH = 3  # folders below the root
VIDEO = re.compile(
    r".+\.(3g2|3gp|asf|avi|divx|f4v|flv|gif|m1v|m2ts|m2v|m4v|mjpeg"
    r"|mkv|mov|mp4|mpe|mpeg|mpg|mts|ogv|qt|ts|vob|webm|wmv)",
    re.I,
)
IMAGE = re.compile(r".+\.(jpe?g|png|bmp|webp|tiff?)", re.I)
MARKS = {  # data set -> (name of a file or folder that only it has, what it is)
    "ucf101": (r"ucfTrainTestlist|trainlist0[123]\.txt", "its official lists are there"),
    "hmdb51": (r"testTrainMulti_7030_splits|.+_test_split[123]\.txt", "its official lists are there"),
    "ssv2": (r"something-something-v2-(train|validation|labels)\.json", "its label files are there"),
    "kth": (
        r"person\d\d_(boxing|handclapping|handwaving|jogging|running|walking)_d\d(_uncomp)?\.\w+",
        "its videos are called like those of KTH",
    ),
}
BESIDE = {"ucf101": ("ApplyEyeMakeup", "ucfTrainTestlist"), "hmdb51": ("brush_hair", "testTrainMulti_7030_splits")}
SSV2_FILES = {"train.json", "validation.json", "labels.json"}
UT_INTERACTION = re.compile(r"\d+_\d+_[0-5]\.\w+")  # sample, sequence, label: only if all videos are called so
KINETICS_TABLE = re.compile(r"(.+[-_])?(train|val|valid|validate|validation)\.csv", re.I)


def recognize(path: Path) -> tuple[str, str, Path, str]:
    """The choice of the config group `data` for a folder or a table.

    Args:
        path: an existing folder with videos or folders of images, or a file, which is taken for a CSV table.

    Returns:
        The choice (`folder` if no published data set is recognised), the key that holds the path, the path for it, and
        the reason in a few words.
    """
    if path.is_file():
        return "manifest", "data.path", path, "a table of videos"
    if (path / "index.jsonl").is_file() and (path / "train-000000.tar").is_file():
        return "shards", "data.root", path, "its index.jsonl lists the videos of tar files"
    if _has_columns(path / "manifest.csv", "path", "label", "split"):
        return "manifest", "data.path", path / "manifest.csv", "its manifest.csv lists the videos"
    files = list(itertools.islice(_names(path), MAX_NAMES))
    names = [file.name for file in files]
    for choice, (pattern, reason) in MARKS.items():
        if any(re.fullmatch(pattern, name) for name in names):
            return choice, "data.root", path, reason
    for choice, (class_name, lists) in BESIDE.items():
        if class_name in names and (path.absolute().parent / lists).is_dir():
            return choice, "data.root", path, "its official lists are beside it"
    if set(names) >= SSV2_FILES:
        return "ssv2", "data.root", path, MARKS["ssv2"][1]
    if any(KINETICS_TABLE.fullmatch(file.name) and _has_columns(file, "youtube_id", "time_start") for file in files):
        return "kinetics", "data.root", path, "its tables are there"
    videos = [name for name in names if VIDEO.fullmatch(name)]
    if len(videos) > 1 and all(UT_INTERACTION.fullmatch(name) for name in videos):
        return "ut_interaction", "data.root", path, "its videos are called SAMPLE_SEQUENCE_LABEL"
    if not videos and any(IMAGE.fullmatch(name) for name in names):
        return "frames", "data.root", path, "one folder of images per video"
    return "folder", "data.root", path, "one folder of videos per class"


def _names(folder: Path) -> Iterator[Path]:
    """Files and folders below a folder, level by level; of a folder with many files the first ones."""
    level = [folder]
    for _ in range(MAX_DEPTH + 1):
        deeper = []
        for parent in level:
            entries = [entry for entry in _entries(parent) if not entry.name.startswith(".")]
            folders = [Path(entry.path) for entry in entries if entry.is_dir()]
            yield from folders
            yield from itertools.islice((Path(entry.path) for entry in entries if not entry.is_dir()), MAX_FILES)
            deeper += folders
        level = deeper


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(itertools.islice(entries, MAX_NAMES), key=lambda entry: entry.name)
    except OSError:
        return []


def _has_columns(table: Path, *columns: str) -> bool:
    try:
        with table.open(encoding="utf-8-sig", errors="replace") as file:
            header = file.readline(1000)
    except OSError:
        return False
    return {*columns} <= {cell.strip().strip('"') for cell in header.split(",")}
