"""`data=folder` and `data=frames`: one folder per class, optionally within train/, val/ and test/."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stvid.data.layouts.discovery import (
    IMAGE_EXTENSIONS,
    VIDEO_EXTENSIONS,
    build_manifest,
    find_frame_folders,
    find_videos,
    is_frame_folder,
    is_video,
    resolve_folder,
    subfolders,
)
from stvid.data.manifest import Item, Manifest
from stvid.data.splitting import split_items, take_val_from_train
from stvid.data.tables import read_table
from stvid.errors import InputError

log = logging.getLogger(__name__)
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
GroupOf = Callable[[Path, Path], str | None]  # (video, its class folder) -> group


@dataclass(frozen=True, kw_only=True)
class MediaKind:
    """A kind of video: a file or a folder of images.

    Attributes:
        name: plural name for messages.
        find: finds the videos at any depth below a folder.
        matches: whether a path is such a video.
        expected: expected path below the folder of classes, for messages.
    """

    name: str
    find: Callable[[Path], list[Path]]
    matches: Callable[[Path], bool]
    expected: str


VIDEO_FILES = MediaKind(
    name="videos",
    find=find_videos,
    matches=is_video,
    expected=f"CLASS/.../VIDEO, with one of the extensions {' '.join(sorted(VIDEO_EXTENSIONS))}",
)


def from_class_folders(
    root: str,
    media: MediaKind,
    *,
    val_fraction: float,
    test_fraction: float,
    group_pattern: str | None,
    group_csv: str | None,
    seed: int,
) -> Manifest:
    """The manifest of a tree of class folders; arguments and errors: see `folder` and `frames`."""
    root = resolve_folder(root)
    group_of = make_group_function(root, pattern=group_pattern, table=group_csv)
    folders = find_split_folders(root)
    if "train" in folders:
        items = [item for split, path in folders.items() for item in find_items(path, split, media, group_of)]
        split_source = f"splits from the folders {', '.join(path.name for path in folders.values())}"
        if "val" not in folders:
            items = take_val_from_train(items, val_fraction=val_fraction, seed=seed)
            split_source += f"; val is {val_fraction:.0%} of train, seed {seed}"
    else:
        fractions = {"train": 1 - val_fraction - test_fraction, "val": val_fraction, "test": test_fraction}
        items = split_items(find_items(root, "train", media, group_of), fractions=fractions, seed=seed)
        by_group = " by group" if group_pattern or group_csv else ""
        split_source = f"no train/ folder, so a stratified split was made{by_group}, seed {seed}"
    return build_manifest(root, items, split_source=split_source)


def find_split_folders(root: Path) -> dict[str, Path]:
    """Split -> folder, for the `train`, `val` and `test` folders below the root that contain folders.

    Raises:
        InputError: two folders of one split, such as `val/` and `validation/`, or `train/` and `Train/`.
    """
    folders: dict[str, Path] = {}
    for entry in subfolders(root):
        split = SPLIT_FOLDERS.get(entry.name.lower())
        if split is None or not subfolders(entry):
            continue
        if split in folders and not entry.samefile(folders[split]):  # one may be a link to the other
            raise InputError(
                f"two folders for the split {split!r}: {folders[split]} and {entry}. Move the videos of one into the "
                "other, or rename one of them"
            )
        folders.setdefault(split, entry)
    return folders


def find_items(folder: Path, split: str, media: MediaKind, group_of: GroupOf) -> list[Item]:
    """Every video below the class folders in `folder`, as items of one split.

    Raises:
        InputError: there is none.
    """
    items = []
    for class_folder in subfolders(folder):
        videos = media.find(class_folder)
        if not videos:
            log.warning("%s contains no %s and is not used as a class", class_folder, media.name)
        items += [
            Item(path=str(video), label=class_folder.name, split=split, group=group_of(video, class_folder))
            for video in videos
        ]
    loose = [entry for entry in folder.iterdir() if media.matches(entry)]
    if not items:
        hint = f"; {len(loose)} {media.name} are directly in it, without a class" if loose else ""
        raise InputError(
            f"no {media.name} found in class folders below {folder}{hint}. Expected {folder}/{media.expected}"
        )
    if loose:
        log.warning("%d %s directly in %s have no class and are not used", len(loose), media.name, folder)
    return items


def make_group_function(root: Path, *, pattern: str | None, table: str | None) -> GroupOf:
    """Returns a function (video, class folder) -> group, which raises InputError for a video without a group.

    Args:
        root: the data set's folder.
        pattern: regular expression searched in each video's path below its class folder; its first parenthesis
            (or the whole match) names the group.
        table: CSV `path,group`, paths relative to the root.

    Raises:
        InputError: both are given, an invalid pattern, or an invalid table.
    """
    if pattern and table:
        raise InputError("data.group_pattern and data.group_csv both define groups; set only one of them")
    if pattern:
        return _group_by_pattern(pattern)
    if table:
        return _group_by_table(root, Path(table).expanduser())
    return lambda video, class_folder: None


def _group_by_pattern(pattern: str) -> GroupOf:
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise InputError(f"data.group_pattern {pattern!r} is not a regular expression: {error}") from error

    def group_of(video: Path, class_folder: Path) -> str:
        name = video.relative_to(class_folder).as_posix()
        match = regex.search(name)
        group = match and match.group(1 if regex.groups else 0)
        if not group:
            raise InputError(f"data.group_pattern {pattern!r} matches nothing in {name!r} ({video})")
        return group

    return group_of


def _group_by_table(root: Path, table: Path) -> GroupOf:
    if not table.is_file():
        raise InputError(f"data.group_csv {table} does not exist")
    groups: dict[str, str] = {}
    for row in (listed := read_table(table, required=("path", "group"))).rows:
        path, name = row.cells["path"], row.cells["group"]
        group = groups.setdefault(os.path.normpath(root / path), name)
        if group != name:
            raise InputError(f"{listed.where(row)}: two groups for {path}: {group!r} and {name!r}")

    def group_of(video: Path, class_folder: Path) -> str:
        if not groups.get(os.path.normpath(video)):
            raise InputError(f"{table} has no group for {video.relative_to(root)}")
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
    """Class folders of video files: `root/CLASS/.../VIDEO`.

    Folders `train/` (and `val/`, `test/`) below the root are the splits and contain the class folders; a missing
    `val/` is taken from train. Otherwise a random split is made, stratified by class and with whole groups.
    The log says which splits were used.

    Args:
        root: the folder.
        val_fraction: fraction of the videos for val, in (0, 1), if the split is made here.
        test_fraction: the same for test.
        group_pattern: regular expression searched in each video's path below its class folder; its first
            parenthesis (or the whole match) names the group.
        group_csv: table `path,group`, paths relative to the root.
        seed: of the split.

    Raises:
        InputError: no such folder, two folders of one split (`val/` and `validation/`), no videos, a video without a
            group despite a pattern or table, too few videos for a split.
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
    matches=is_frame_folder,
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
    """Class folders of image folders: `root/CLASS/.../VIDEO/IMAGE`.

    Every folder that directly contains an image is a video; an item's path is that folder. Splits are found or made as
    in `folder`.

    Args:
        root: the folder of the classes, or of `train/` (and `val/`, `test/`) with classes below them.
        val_fraction: fraction of the videos for val, in (0, 1), if the split is made here.
        test_fraction: the same for test.
        group_pattern: regular expression searched in the path of each video's folder below its class folder; its
            first parenthesis (or the whole match) names the group.
        group_csv: table `path,group`, paths of the videos' folders relative to the root.
        seed: of the split.

    Raises:
        InputError: no such folder, two folders of one split (`val/` and `validation/`), no folder of images below a
            class, a video without a group despite a pattern or table, too few videos for a split.
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
