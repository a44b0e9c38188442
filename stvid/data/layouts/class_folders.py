"""One folder per class, with or without train/ val/ test/ above: what `folder`, `frames` and `kinetics` share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stvid.data.layouts.assembling import assemble, val_out_of_train
from stvid.data.layouts.finding import VIDEO_EXTENSIONS, existing_folder, find_videos, is_video, subfolders
from stvid.data.layouts.grouping import GroupOf, grouping
from stvid.data.manifest import Item, Manifest
from stvid.data.splitting import split_items
from stvid.errors import InputError

log = logging.getLogger(__name__)

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


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
