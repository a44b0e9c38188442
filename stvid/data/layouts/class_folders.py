"""`data=folder` and `data=frames`: one folder per class, with or without train/, val/ and test/ above."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stvid.data.layouts.discovery import (
    IMAGE_EXTENSIONS,
    VIDEO_EXTENSIONS,
    assemble,
    existing_folder,
    find_frame_folders,
    find_videos,
    is_frame_folder,
    is_video,
    subfolders,
    val_out_of_train,
)
from stvid.data.manifest import Item, Manifest
from stvid.data.splitting import split_items
from stvid.errors import InputError

log = logging.getLogger(__name__)
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
GroupOf = Callable[[Path, Path], str | None]  # (video, its class folder) -> group


@dataclass(frozen=True, kw_only=True)
class MediaKind:
    """What counts as a video.

    Attributes:
        name: what messages call them.
        find: those at any depth below a folder.
        is_one: whether a path itself is one.
        expected: where they should lie below the folder of classes.
    """

    name: str
    find: Callable[[Path], list[Path]]
    is_one: Callable[[Path], bool]
    expected: str


VIDEO_FILES = MediaKind(
    name="videos",
    find=find_videos,
    is_one=is_video,
    expected=f"CLASS/.../VIDEO, with one of the extensions {' '.join(sorted(VIDEO_EXTENSIONS))}",
)


def from_class_folders(
    root: str,
    sought: MediaKind,
    *,
    val_fraction: float,
    test_fraction: float,
    group_pattern: str | None,
    group_csv: str | None,
    seed: int,
) -> Manifest:
    """The manifest of a tree of class folders; arguments and errors as `folder` and `frames` tell them."""
    root = existing_folder(root)
    group_of = grouping(root, pattern=group_pattern, table=group_csv)
    found = split_folders(root)
    if "train" in found:
        items = [item for split, path in found.items() for item in labelled(path, split, sought, group_of)]
        how = f"splits from the folders {', '.join(path.name for path in found.values())}"
        if "val" not in found:
            items = val_out_of_train(items, val_fraction=val_fraction, seed=seed)
            how += f"; val is {val_fraction:.0%} of train, seed {seed}"
    else:
        shares = {"train": 1 - val_fraction - test_fraction, "val": val_fraction, "test": test_fraction}
        items = split_items(labelled(root, "train", sought, group_of), fractions=shares, seed=seed)
        by = " by group" if group_pattern or group_csv else ""
        how = f"no train/ folder, so a stratified split was made{by}, seed {seed}"
    return assemble(root, items, how=how)


def split_folders(root: Path) -> dict[str, Path]:
    """Split -> its folder, for the `train`, `val`, `test` below the root that hold folders themselves.

    Raises:
        InputError: two folders of one split, such as `val/` and `validation/`, or `train/` and `Train/`.
    """
    found: dict[str, Path] = {}
    for entry in subfolders(root):
        split = SPLIT_FOLDERS.get(entry.name.lower())
        if split is None or not subfolders(entry):
            continue
        if split in found and not entry.samefile(found[split]):  # one may be a link to the other
            raise InputError(
                f"two folders for the split {split!r}: {found[split]} and {entry}. Only one can be used: move the "
                "videos of one into the other, or rename the folder that is not wanted"
            )
        found.setdefault(split, entry)
    return found


def labelled(folder: Path, split: str, sought: MediaKind, group_of: GroupOf) -> list[Item]:
    """Every video below the class folders in `folder`, as items of one split.

    Raises:
        InputError: there is none.
    """
    items = []
    for class_folder in subfolders(folder):
        videos = sought.find(class_folder)
        if not videos:
            log.warning("%s holds no %s and is not taken for a class", class_folder, sought.name)
        items += [
            Item(path=str(video), label=class_folder.name, split=split, group=group_of(video, class_folder))
            for video in videos
        ]
    loose = [entry for entry in folder.iterdir() if sought.is_one(entry)]
    if not items:
        lie = f"{len(loose)} {sought.name} lie in it directly, without a class"
        raise InputError(
            f"no {sought.name} found in class folders below {folder}: {lie if loose else 'it holds none'}. "
            f"Expected {folder}/{sought.expected}"
        )
    if loose:
        log.warning("%d %s lie directly in %s, without a class, and are left out", len(loose), sought.name, folder)
    return items


def grouping(root: Path, *, pattern: str | None, table: str | None) -> GroupOf:
    """How groups are told.

    Args:
        root: the data set's folder.
        pattern: regular expression searched in each video's path below its class folder; its first parenthesis
            (or the whole match) names the group.
        table: CSV `path,group`, paths relative to the root.

    Raises:
        InputError: both are given, or one that cannot be read; the function itself, for a video without a group.
    """
    if pattern and table:
        raise InputError("data.group_pattern and data.group_csv both name groups; give one of them")
    if pattern:
        return _by_pattern(pattern)
    if table:
        return _by_table(root, Path(table).expanduser())
    return lambda video, class_folder: None


def _by_pattern(pattern: str) -> GroupOf:
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise InputError(f"data.group_pattern {pattern!r} is not a regular expression: {error}") from error

    def group_of(video: Path, class_folder: Path) -> str:
        below = video.relative_to(class_folder).as_posix()
        match = regex.search(below)
        group = match and match.group(1 if regex.groups else 0)
        if not group:
            raise InputError(f"data.group_pattern {pattern!r} matches nothing in {below!r} ({video})")
        return group

    return group_of


def _by_table(root: Path, table: Path) -> GroupOf:
    if not table.is_file():
        raise InputError(f"data.group_csv {table} does not exist")
    groups: dict[str, str] = {}
    with table.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file, restval="")
        if not {"path", "group"} <= set(reader.fieldnames or []):
            raise InputError(f"{table} must have the columns path,group; it has {', '.join(reader.fieldnames or [])}")
        for row in reader:
            known = groups.setdefault(os.path.normpath(root / row["path"]), row["group"])
            if known != row["group"]:
                raise InputError(f"{table} names two groups for {row['path']}: {known!r} and {row['group']!r}")

    def group_of(video: Path, class_folder: Path) -> str:
        if not groups.get(os.path.normpath(video)):
            raise InputError(f"{table} names no group for {video.relative_to(root)}")
        return groups[os.path.normpath(video)]

    return group_of


def folder(
    *,
    root: str,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    group_pattern: str | None = None,
    group_csv: str | None = None,
    seed: int = 0,
) -> Manifest:
    """`root/CLASS/.../VIDEO`.

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
        InputError: no such folder, two folders of one split (`val/` and `validation/`), no videos, a pattern or table
            that leaves a video without a group, too few videos for a split.
    """
    return from_class_folders(
        root,
        VIDEO_FILES,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        group_pattern=group_pattern,
        group_csv=group_csv,
        seed=seed,
    )


FRAME_FOLDERS = MediaKind(
    name="folders of images",
    find=find_frame_folders,
    is_one=is_frame_folder,
    expected=f"CLASS/.../VIDEO/IMAGE, with one of the extensions {' '.join(sorted(IMAGE_EXTENSIONS))}",
)


def frames(
    *,
    root: str,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    group_pattern: str | None = None,
    group_csv: str | None = None,
    seed: int = 0,
) -> Manifest:
    """`root/CLASS/.../VIDEO/IMAGE`: every folder that directly holds an image, below its class folder, is a video.

    An item's path is the folder. Splits are found or made as by `folder`.

    Args:
        root: the folder of classes, or of `train/` (and `val/`, `test/`) with classes below them.
        val_fraction: share of the videos for val, in (0, 1), where the split is made here.
        test_fraction: the same for test.
        group_pattern: regular expression searched in the path of each video's folder below its class folder; its
            first parenthesis (or the whole match) names the group.
        group_csv: table `path,group`, paths of the videos' folders relative to the root.
        seed: of the split.

    Raises:
        InputError: no such folder, two folders of one split (`val/` and `validation/`), no folder of images below a
            class, a pattern or table that leaves a video without a group, too few videos for a split.
    """
    return from_class_folders(
        root,
        FRAME_FOLDERS,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        group_pattern=group_pattern,
        group_csv=group_csv,
        seed=seed,
    )
