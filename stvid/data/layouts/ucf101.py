"""`data=ucf101`: UCF101 with its official lists.

Soomro, Zamir, Shah: UCF101: A Dataset of 101 Human Action Classes From Videos in The Wild, 2012.
"""

from __future__ import annotations

import re
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
from stvid.errors import InputError, nearest

GROUP = re.compile(r"_g(\d+)_c\d+$")


def ucf101(
    *, root: str, fold: int = 1, splits: str | None = None, val_fraction: float = 0.15, seed: int = 0
) -> Manifest:
    """`CLASS/v_CLASS_gXX_cYY.avi` anywhere below the root, split by `trainlist0N.txt` and `testlist0N.txt`.

    Val is taken from the official train split by whole groups (a class's `gXX`: the clips of one source video). Test is
    the official split. Classes are in the order of `classInd.txt`. Files may have another extension after transcoding.

    Args:
        root: `UCF-101/`, or a folder that contains it.
        fold: which of the three official splits, 1 to 3.
        splits: the folder with the lists; None searches for `ucfTrainTestlist` in, below and beside the root.
        val_fraction: fraction of the training videos for val, in (0, 1).
        seed: of the choice of val.

    Raises:
        InputError: no such folder, fold or lists; an invalid line in a list; missing videos.
    """
    folder = resolve_folder(root)
    check_fold(fold, 3)
    names = {"train": f"trainlist{fold:02d}.txt", "test": f"testlist{fold:02d}.txt"}
    lists = find_lists(
        folder,
        splits,
        folders=["ucfTrainTestlist"],
        files=[*names.values(), "classInd.txt"],
        archive="UCF101TrainTestSplits-RecognitionTask.zip",
    )
    class_names = _class_names(lists / "classInd.txt")
    listed = [(name, split) for split, file in names.items() for name in _read_list(lists / file, class_names)]
    videos = index_videos(find_videos(folder), lambda video: _key(video.parent.name, video.stem), root=folder)
    keys = [_key(*name.split("/")) for name, _ in listed]
    missing = [name for (name, _), key in zip(listed, keys, strict=True) if key not in videos]
    check_all_present(missing, num_listed=len(listed), num_videos=len(videos), lists=lists, root=folder)
    items = [_item(videos[key], name, split) for (name, split), key in zip(listed, keys, strict=True)]
    items = take_val_from_train(items, val_fraction=val_fraction, seed=seed)
    split_source = f"official split {fold} of {lists}; val is {val_fraction:.0%} of train by group, seed {seed}"
    return build_manifest(folder, items, split_source=split_source, class_names=class_names)


def _key(label: str, stem: str) -> str:
    return f"{label}/{stem}".casefold()  # HandstandPushups is also written HandStandPushups


def _class_names(path: Path) -> list[str]:
    names: dict[int, str] = {}
    for where, line in read_lines(path):
        number, _, name = line.partition(" ")
        if not number.isdecimal() or not name.strip():
            raise InputError(f"{where}: {line!r} is not NUMBER CLASS")
        if int(number) in names:
            raise InputError(f"{where}: {line!r}, but class {number} already is {names[int(number)]!r}")
        names[int(number)] = name.strip()
    return [names[number] for number in sorted(names)]


def _read_list(path: Path, class_names: list[str]) -> list[str]:
    """`CLASS/STEM` of each line; the class number in training lists is redundant."""
    names = []
    for where, line in read_lines(path):
        label, slash, file = line.split()[0].partition("/")
        if not slash or not file:
            raise InputError(f"{where}: {line!r} is not CLASS/VIDEO.avi [NUMBER]")
        if label not in class_names:
            raise InputError(f"{where}: classInd.txt has no class {label!r}{nearest(label, class_names)}")
        names.append(f"{label}/{Path(file).stem}")
    return names


def _item(video: Path, name: str, split: str) -> Item:
    label, _, stem = name.partition("/")
    group = GROUP.search(stem)
    return Item(path=str(video), label=label, split=split, group=f"{label} g{group[1]}" if group else None)
