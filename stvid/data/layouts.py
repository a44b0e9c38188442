"""Known layouts of data sets on disk, each one function that returns a Manifest."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from stvid.data.manifest import SPLITS, Item, Manifest
from stvid.data.splitting import split_items
from stvid.errors import InputError

log = logging.getLogger(__name__)

EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("3gp", "asf", "avi", "divx", "flv", "gif", "m2ts", "m2v", "m4v", "mjpeg", "mkv"),
        *("mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts", "vob", "webm", "wmv"),
    )
)
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def manifest(*, path: str, class_names: Sequence[str] | None = None) -> Manifest:
    """`data=manifest`: a CSV of path,label,split[,start,end,group]. See `Manifest.read_csv`."""
    return Manifest.read_csv(Path(str(path)).expanduser(), class_names=class_names)


def folder(
    *,
    root: str,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    group_pattern: str | None = None,
    group_csv: str | None = None,
    seed: int = 0,
) -> Manifest:
    """`data=folder`: one folder per class, videos at any depth below it.

    Where `train/` (and `val/`, `test/`) folders stand below the root, each holds class folders and they are the
    splits; a missing `val/` is taken out of train. Otherwise a seeded split is made: stratified by class, whole
    groups where groups are known. What was done goes to the log.

    Args:
        root: the folder.
        val_fraction: share of the videos for val, in (0, 1), where the split is made here.
        test_fraction: the same for test.
        group_pattern: regular expression searched in each video's path below its class folder; its first
            parenthesis (or the whole match) names the group.
        group_csv: table `path,group`, paths relative to the root.
        seed: of the split.

    Raises:
        InputError: no such folder, no videos, a pattern or table that leaves a video without a group, too few videos
            for a split.
    """
    root = Path(str(root)).expanduser().absolute()
    if not root.is_dir():
        raise InputError(f"data.root {root} {'is not a folder' if root.exists() else 'does not exist'}")
    group_of = _grouping(root, group_pattern, group_csv)
    found = {
        split: entry for entry in _folders(root) if (split := SPLIT_FOLDERS.get(entry.name.lower())) and _folders(entry)
    }
    if "train" in found:
        items = [item for split, path in found.items() for item in _items(path, split, group_of)]
        if "val" not in found:
            train = [item for item in items if item.split == "train"]
            items = [item for item in items if item.split != "train"]
            items += split_items(train, fractions={"train": 1 - val_fraction, "val": val_fraction}, seed=seed)
        made = f"splits from the folders {', '.join(path.name for path in found.values())}"
        made += "" if "val" in found else f"; val is {val_fraction:.0%} of train, seed {seed}"
    else:
        fractions = {"train": 1 - val_fraction - test_fraction, "val": val_fraction, "test": test_fraction}
        items = split_items(_items(root, "train", group_of), fractions=fractions, seed=seed)
        by = " by group" if group_pattern or group_csv else ""
        made = f"no train/ folder, so a stratified split was made{by}, seed {seed}"
    counts = Counter(item.split for item in items)
    log.info("%s: %s (%s)", root, made, ", ".join(f"{s} {counts[s]}" for s in SPLITS if counts[s]) or "no videos")
    items = sorted(items, key=lambda item: (SPLITS.index(item.split), item.path))
    return Manifest(items=tuple(items), class_names=tuple(sorted({item.label for item in items})))


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _items(root: Path, split: str, group_of) -> list[Item]:
    """Every video below the class folders of `root`."""
    items = []
    for class_folder in _folders(root):
        videos = find_videos(class_folder)
        if not videos:
            log.warning("%s holds no videos and is not taken for a class", class_folder)
        items += [
            Item(path=str(video), label=class_folder.name, split=split, group=group_of(video, class_folder))
            for video in videos
        ]
    loose = [entry for entry in root.iterdir() if entry.is_file() and entry.suffix.lower() in EXTENSIONS]
    if not items:
        hint = f"{len(loose)} videos lie in it directly, without a class" if loose else "it holds no video files"
        raise InputError(
            f"no videos found in class folders below {root}: {hint}. Expected {root}/CLASS/.../VIDEO, with one of the "
            f"extensions {' '.join(sorted(EXTENSIONS))}"
        )
    if loose:
        log.warning("%d videos lie directly in %s, without a class, and are left out", len(loose), root)
    return items


def find_videos(class_folder: Path) -> list[Path]:
    """Video files at any depth below a folder, links followed, hidden ones left out, in a fixed order."""
    found, seen = [], set()
    for parent, folders, files in os.walk(class_folder, followlinks=True):
        if os.path.realpath(parent) in seen:  # a link back to where we have been
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in EXTENSIONS)


def _grouping(root: Path, pattern: str | None, table: str | None):
    """A function (video, its class folder) -> group or None."""
    if pattern and table:
        raise InputError("data.group_pattern and data.group_csv both name groups; give one of them")
    if pattern:
        return _pattern_grouping(pattern)
    if table:
        return _table_grouping(root, Path(table).expanduser())
    return lambda video, class_folder: None


def _pattern_grouping(pattern: str):
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise InputError(f"data.group_pattern {pattern!r} is not a regular expression: {error}") from error

    def group_of(video: Path, class_folder: Path) -> str:
        below = video.relative_to(class_folder).as_posix()
        match = regex.search(below)
        if not match:
            raise InputError(f"data.group_pattern {pattern!r} matches nothing in {below!r} ({video})")
        return match.group(1) if regex.groups else match.group(0)

    return group_of


def _table_grouping(root: Path, table: Path):
    if not table.is_file():
        raise InputError(f"data.group_csv {table} does not exist")
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"path", "group"} <= set(reader.fieldnames or []):
            raise InputError(f"{table} must have the columns path,group; it has {', '.join(reader.fieldnames or [])}")
        groups = {os.path.normpath(root / row["path"]): row["group"] for row in reader}

    def group_of(video: Path, class_folder: Path) -> str:
        if not groups.get(os.path.normpath(video)):
            raise InputError(f"{table} names no group for {video.relative_to(root)}")
        return groups[os.path.normpath(video)]

    return group_of
