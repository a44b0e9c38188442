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
    assemble,
    check_fold,
    existing_folder,
    find_lists,
    find_videos,
    index,
    read_lines,
    require_all,
    val_out_of_train,
)
from stvid.data.manifest import Item, Manifest
from stvid.errors import InputError

log = logging.getLogger(__name__)

SPLIT_OF_ID = {"0": None, "1": "train", "2": "test"}  # 0: the split does not use the video


def hmdb51(
    *, root: str, fold: int = 1, splits: str | None = None, val_fraction: float = 0.15, seed: int = 0
) -> Manifest:
    """`CLASS/SOURCE_CLASS_....avi` anywhere below the root, split by `CLASS_test_splitN.txt`.

    Val is taken out of the official train by whole groups: the clips of a class that have the same SOURCE in their
    name. Test is the official one; should a source stand in train and test both, its group is cut in two, with a
    warning, for the split is the protocol. Classes are sorted by name, as the data set numbers none.

    Args:
        root: the folder with the class folders, at any depth.
        fold: which of the three official splits, 1 to 3.
        splits: the folder with the split files; None looks for `testTrainMulti_7030_splits` in, below and beside the
            root.
        val_fraction: share of the training videos for val, in (0, 1).
        seed: of that choice.

    Raises:
        InputError: no such folder, fold or split files; a line in them that is none; listed videos that are absent.
    """
    root = existing_folder(root)
    check_fold(fold, 3)
    pattern = f"*_test_split{fold}.txt"
    lists = find_lists(
        root,
        splits,
        folders=["testTrainMulti_7030_splits", "test_train_splits/testTrainMulti_7030_splits"],
        files=[pattern],
        archive="test_train_splits.rar",
    )
    listed = [entry for file in sorted(lists.glob(pattern)) for entry in _listed(file, fold)]
    videos = index(find_videos(root), lambda video: f"{video.parent.name}/{video.stem}", root=root)
    absent = [f"{label}/{stem}" for label, stem, _ in listed if f"{label}/{stem}" not in videos]
    require_all(absent, listed=len(listed), found=len(videos), lists=lists, root=root)
    items = [
        Item(path=str(videos[f"{label}/{stem}"]), label=label, split=split, group=_group(label, stem))
        for label, stem, split in listed
    ]
    items = val_out_of_train(_cut_shared_groups(items, fold), val_fraction=val_fraction, seed=seed)
    how = f"official split {fold} of {lists}; val is {val_fraction:.0%} of train by source video, seed {seed}"
    return assemble(root, items, how=how)


def _listed(path: Path, fold: int) -> list[tuple[str, str, str]]:
    """(class, stem of the file's name, split) of each video that the split uses."""
    label = path.name.removesuffix(f"_test_split{fold}.txt")
    entries = []
    for where, line in read_lines(path):
        name, *rest = line.rsplit(None, 1)
        number = rest[0] if rest else ""
        if number not in SPLIT_OF_ID:
            raise InputError(f"{where}: {line!r} is not VIDEO.avi ID, the ID one of {', '.join(SPLIT_OF_ID)}")
        if SPLIT_OF_ID[number]:
            entries.append((label, Path(name).stem, SPLIT_OF_ID[number]))
    return entries


def _group(label: str, stem: str) -> str | None:
    source, found, _ = stem.rpartition(f"_{label}_")  # the last one: a source may have the class in its own name
    return f"{label} {source}" if found else None


def _cut_shared_groups(items: Sequence[Item], fold: int) -> list[Item]:
    splits = defaultdict(set)
    for item in items:
        splits[item.group].add(item.split)
    shared = {group for group, found in splits.items() if group is not None and len(found) > 1}
    if shared:
        log.warning(
            "%d source videos have clips in both train and test of the official split %d (%d clips, the first of %r): "
            "test is a little easier than videos never seen",
            *(len(shared), fold, sum(item.group in shared for item in items), min(shared)),
        )
    return [replace(item, group=f"{item.group} ({item.split})") if item.group in shared else item for item in items]
