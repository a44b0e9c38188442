"""`data=folder` and `data=frames`: one folder per class, optionally within or above train/, val/ and test/."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stvid.data.layouts.discovery import (
    VIDEO_EXTENSIONS,
    build_manifest,
    find_frame_folders,
    find_videos,
    is_frame_folder,
    is_video,
    resolve_folder,
    subfolders,
)
from stvid.data.layouts.split_folders import (
    Videos,
    check_siblings,
    check_single_class,
    check_split_folders,
    find_split_folders,
    log_unused_files,
    split_of,
    splits_below_classes,
)
from stvid.data.manifest import Item, Manifest
from stvid.data.splitting import make_splits, take_val_from_train
from stvid.data.tables import read_table
from stvid.errors import InputError, listing, map_inputs
from stvid.video.types import IMAGE_EXTENSIONS

log = logging.getLogger(__name__)
GroupOf = Callable[[Path, Path], str | None]  # (video, its class folder) -> group


@dataclass(frozen=True, kw_only=True)
class MediaKind:
    """A kind of video: a file or a folder of images.

    Attributes:
        name: plural name for messages.
        find: finds the videos at any depth below a folder.
        matches: whether a path is such a video.
        extensions: those of the files that are read.
    """

    name: str
    find: Callable[[Path], list[Path]]
    matches: Callable[[Path], bool]
    extensions: frozenset[str]

    @property
    def expected(self) -> str:
        """Expected path below the folder of classes, for messages."""
        place = "CLASS/.../VIDEO" if self.extensions is VIDEO_EXTENSIONS else "CLASS/.../VIDEO/IMAGE"
        return f"{place}, with one of the extensions {' '.join(sorted(self.extensions))}"


VIDEO_FILES = MediaKind(
    name="videos",
    find=find_videos,
    matches=is_video,
    extensions=VIDEO_EXTENSIONS,
)


def from_class_folders(
    root: str | Path,
    media: MediaKind,
    *,
    val_fraction: float,
    test_fraction: float,
    group_pattern: str | None,
    group_csv: str | None,
    seed: int,
    fold: int | None,
    num_folds: int,
) -> Manifest:
    """The manifest of a tree of class folders; arguments and errors: see `folder` and `frames`."""
    root = resolve_folder(root)
    group_of = make_group_function(root, pattern=group_pattern, table=group_csv)
    has_groups = bool(group_pattern or group_csv)
    folders = find_split_folders(root)
    if folders:
        others = {
            path: found for path in subfolders(root) if path not in folders.values() and (found := media.find(path))
        }
        check_split_folders(root, folders, others)
        items = [item for split, path in folders.items() for item in find_items(path, split, media, group_of)]
        names = [path.name for path in folders.values()]
    else:
        videos = find_class_videos(root, media)
        check_single_class(root, videos)
        below = splits_below_classes(root, videos)
        if not below and not has_groups:  # groups say what the folders below the classes are
            check_siblings(root, videos)
        items = _items_in_splits(videos, below, group_of) or _items(videos, "train", group_of)
        names = sorted({path.name for splits in below.values() for path in splits.values()})
    log_unused_files(root, media.extensions)
    if not names:
        parted, done = make_splits(
            items,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=seed,
            fold=fold,
            num_folds=num_folds,
        )
        by_group = " by group" if has_groups else ""
        return build_manifest(root, parted, split_source=f"no train/ folder, so {done}{by_group}")
    if fold is not None:
        raise InputError(
            f"data.fold (={fold}) makes a cross-validation, but {root} has splits: the folders {', '.join(names)}. "
            "Leave data.fold out, or name a folder of classes without splits"
        )
    split_source = f"splits from the folders {', '.join(names)}{'' if folders else ' below the classes'}"
    if not any(item.split == "val" for item in items):
        items = take_val_from_train(items, val_fraction=val_fraction, seed=seed)
        split_source += f"; val is {val_fraction:.0%} of train, seed {seed}"
    return build_manifest(root, items, split_source=split_source)


def find_items(folder: Path, split: str, media: MediaKind, group_of: GroupOf) -> list[Item]:
    """Every video below the class folders in `folder`, as items of one split.

    Raises:
        InputError: there is none, or the classes are one level deeper.
    """
    videos = find_class_videos(folder, media)
    if split == "train":
        check_single_class(folder, videos)
    return _items(videos, split, group_of)


def find_class_videos(folder: Path, media: MediaKind) -> dict[Path, list[Path]]:
    """Class folder -> its videos, for the folders in `folder` that contain any; the rest is logged.

    Raises:
        InputError: there is none, or the folders have names of splits, but no classes below them.
    """
    videos = {path: media.find(path) for path in subfolders(folder)}
    for path, found in videos.items():
        if not found:
            log.warning("%s contains no %s and is not used as a class", path, media.name)
    videos = {path: found for path, found in videos.items() if found}
    loose = [entry for entry in folder.iterdir() if media.matches(entry)]
    if not videos:
        hint = f"; {len(loose)} {media.name} are directly in it, without a class" if loose else ""
        raise InputError(
            f"no {media.name} found in class folders below {folder}{hint}. Expected {folder}/{media.expected}"
        )
    if len(videos) > 1 and all(split_of(path.name) for path in videos):
        raise InputError(
            f"{listing([path.name for path in videos])} below {folder} have names of splits, but no class folders: the "
            f"{media.name} are directly in them. Put them into SPLIT/CLASS/, or list them in a table (data=manifest)"
        )
    if loose:
        log.warning("%d %s directly in %s have no class and are not used", len(loose), media.name, folder)
    return videos


def _items(videos: Videos, split: str, group_of: GroupOf) -> list[Item]:
    return map_inputs(
        lambda pair: Item(path=str(pair[1]), label=pair[0].name, split=split, group=group_of(pair[1], pair[0])),
        [(folder, video) for folder, of_class in videos.items() for video in of_class],
    )


def _items_in_splits(videos: Videos, below: Mapping[Path, Mapping[str, Path]], group_of: GroupOf) -> list[Item]:
    """Items of `CLASS/SPLIT/.../VIDEO`; `below`: see `splits_below_classes`."""
    return [
        Item(path=str(video), label=folder.name, split=split, group=group_of(video, path))
        for folder, splits in below.items()
        for split, path in splits.items()
        for video in videos[folder]
        if video.is_relative_to(path)
    ]


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
    fold: int | None = None,
    num_folds: int = 5,
) -> Manifest:
    """Class folders of video files: `root/CLASS/.../VIDEO`.

    Folders `train/` (and `val/`, `test/`, or other usual names of splits, see `split_of`) below the root are the splits
    and contain the class folders; or each class folder contains them. A missing `val/` is taken from train. Otherwise a
    random split is made, stratified by class and with whole groups.
    The log says which splits were used.

    Args:
        root: the folder.
        val_fraction: fraction of the videos for val, in (0, 1), if the split is made here.
        test_fraction: the same for test.
        group_pattern: regular expression searched in each video's path below its class folder; its first
            parenthesis (or the whole match) names the group.
        group_csv: table `path,group`, paths relative to the root.
        seed: of the split.
        fold: of a cross-validation, from 1 to `num_folds`, held out for test (`test_fraction` is then not used), if the
            splits are made here; the folds have whole groups, and their sizes and classes are balanced. None: no
            cross-validation.
        num_folds: at least 2.

    Raises:
        InputError: no such folder, two folders of one split (`val/` and `validation/`), splits without train, folders
            that look like a level above the classes, no videos, a video without a group despite a pattern or table,
            too few videos for a split.
    """
    return from_class_folders(
        root,
        VIDEO_FILES,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        group_pattern=group_pattern,
        group_csv=group_csv,
        seed=seed,
        fold=fold,
        num_folds=num_folds,
    )


FRAME_FOLDERS = MediaKind(
    name="folders of images",
    find=find_frame_folders,
    matches=is_frame_folder,
    extensions=IMAGE_EXTENSIONS,
)


def frames(
    *,
    root: str,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    group_pattern: str | None = None,
    group_csv: str | None = None,
    seed: int = 0,
    fold: int | None = None,
    num_folds: int = 5,
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
        fold: of a cross-validation, from 1 to `num_folds`, held out for test (`test_fraction` is then not used), if the
            splits are made here; the folds have whole groups, and their sizes and classes are balanced. None: no
            cross-validation.
        num_folds: at least 2.

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
        fold=fold,
        num_folds=num_folds,
    )
