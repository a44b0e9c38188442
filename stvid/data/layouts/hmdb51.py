"""`data=hmdb51`: HMDB51 with its official splits.

Kuehne, Jhuang, Garrote, Poggio, Serre: HMDB: A Large Video Database for Human Motion Recognition, ICCV 2011.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stvid.data.layouts.discovery import (
    build_manifest,
    check_all_present,
    check_fold,
    find_lists,
    find_videos,
    index_videos,
    read_lines,
    resolve_folder,
)
from stvid.data.manifest import Item, Manifest
from stvid.data.splitting import take_val_from_train
from stvid.errors import InputError

log = logging.getLogger(__name__)

SPLIT_OF_ID = {"0": None, "1": "train", "2": "test"}  # 0: not used in this split


def hmdb51(
    *, root: str, fold: int = 1, splits: str | None = None, val_fraction: float = 0.15, seed: int = 0
) -> Manifest:
    """`CLASS/SOURCE_CLASS_....avi` anywhere below the root, split by `CLASS_test_splitN.txt`.

    Val is taken from the official train split by whole groups: clips of a class with the same SOURCE in their name.
    Test is the official split. If a source is in both train and test, its group is divided, with a warning: the
    official split has priority. Classes are sorted by name.

    Args:
        root: a folder that contains the class folders, at any depth.
        fold: which of the three official splits, 1 to 3.
        splits: the folder with the split files; None searches for `testTrainMulti_7030_splits` in, below and beside the
            root.
        val_fraction: fraction of the training videos for val, in (0, 1).
        seed: of the choice of val.

    Raises:
        InputError: no such folder, fold or split files; an invalid line in them; missing videos.
    """
    folder = resolve_folder(root)
    check_fold(fold, 3)
    pattern = f"*_test_split{fold}.txt"
    lists = find_lists(
        folder,
        splits,
        folders=["testTrainMulti_7030_splits", "test_train_splits/testTrainMulti_7030_splits"],
        files=[pattern],
        archive="test_train_splits.rar",
    )
    listed = [entry for file in sorted(lists.glob(pattern)) for entry in _read_split_file(file, fold)]
    videos = index_videos(find_videos(folder), lambda video: f"{video.parent.name}/{video.stem}", root=folder)
    missing = [f"{label}/{stem}" for label, stem, _ in listed if f"{label}/{stem}" not in videos]
    check_all_present(missing, num_listed=len(listed), num_videos=len(videos), lists=lists, root=folder)
    items = [
        Item(path=str(videos[f"{label}/{stem}"]), label=label, split=split, group=_group(label, stem))
        for label, stem, split in listed
    ]
    items = take_val_from_train(_divide_shared_groups(items, fold), val_fraction=val_fraction, seed=seed)
    split_source = f"official split {fold} of {lists}; val is {val_fraction:.0%} of train by source video, seed {seed}"
    return build_manifest(folder, items, split_source=split_source)


def _read_split_file(path: Path, fold: int) -> list[tuple[str, str, str]]:
    """(class, stem of the file name, split) of each video of the split."""
    label = path.name.removesuffix(f"_test_split{fold}.txt")
    entries = []
    for where, line in read_lines(path):
        name, *rest = line.rsplit(None, 1)
        number = rest[0] if rest else ""
        if number not in SPLIT_OF_ID:
            raise InputError(f"{where}: {line!r} is not VIDEO.avi ID with an ID of {', '.join(SPLIT_OF_ID)}")
        if split := SPLIT_OF_ID[number]:
            entries.append((label, Path(name).stem, split))
    return entries


def _group(label: str, stem: str) -> str | None:
    source, separator, _ = stem.rpartition(f"_{label}_")  # the last one: a source name may contain the class
    return f"{label} {source}" if separator else None


def _divide_shared_groups(items: Sequence[Item], fold: int) -> list[Item]:
    splits = defaultdict(set)
    for item in items:
        splits[item.group].add(item.split)
    shared = {group for group, group_splits in splits.items() if group is not None and len(group_splits) > 1}
    if shared:
        log.warning(
            "%d source videos have clips in both train and test of the official split %d (%d clips, the first of %r): "
            "test accuracy may be slightly too high",
            *(len(shared), fold, sum(item.group in shared for item in items), min(shared)),
        )
    return [replace(item, group=f"{item.group} ({item.split})") if item.group in shared else item for item in items]
