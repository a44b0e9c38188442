"""Folders of class-folder layouts: which are splits, whether the classes are one level deeper, what is left out."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from stvid.data.layouts.discovery import find_files, subfolders
from stvid.errors import InputError, listing

log = logging.getLogger(__name__)
SPLIT_WORDS = {
    "train": ("train", "training", "trn", "tr"),
    "val": ("val", "valid", "validation", "validate", "validating", "dev", "devel", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "held_?out", "hold_?out"),
}
# what surrounds the split in a name such as videos_train, train-256p, TestSet or val_split
_FILLER = r"(?:videos?|vids?|clips?|(?:raw)?frames?|images?|imgs?|rgb|data(?:set)?|set|splits?|files?|\d+p?|\d+x\d+)"
_SPLITS = "|".join(f"(?P<{split}>{'|'.join(words)})" for split, words in SPLIT_WORDS.items())
_SPLIT_NAME = re.compile(rf"(?:{_FILLER}_)*(?:{_FILLER})?(?:{_SPLITS})(?:_?{_FILLER})?(?:_{_FILLER})*")
# files that lie beside videos in many data sets; other types may be videos that are not read
_USUAL_FILES = frozenset(
    f".{name}"
    for name in (
        *("bib", "bz2", "cfg", "csv", "gz", "htm", "html", "ini", "jpeg", "jpg", "json", "jsonl", "log", "md", "npy"),
        *("npz", "parquet", "pdf", "pickle", "pkl", "png", "py", "rar", "rst", "sh", "srt", "tar", "tgz", "tsv"),
        *("txt", "vtt", "wav", "xls", "xlsx", "xml", "yaml", "yml", "zip", "7z", "mp3", "m4a", "aac", "mat", "db"),
    )
)

Videos = Mapping[Path, Sequence[Path]]  # class folder -> its videos, at least one


def split_of(name: str) -> str | None:
    """The split that a folder's name says, such as `val` for `Validation`, `videos_val` or `dev-set`; else None."""
    match = _SPLIT_NAME.fullmatch(re.sub(r"[\W_]+", "_", name.lower()).strip("_"))
    return match and match.lastgroup


def find_split_folders(root: Path) -> dict[str, Path]:
    """Split -> folder, for the folders below the root that have the name of a split and contain folders.

    Raises:
        InputError: two folders of one split, such as `val/` and `validation/`, or `train/` and `Train/`.
    """
    return _unique_splits(entry for entry in subfolders(root) if split_of(entry.name) and subfolders(entry))


def _unique_splits(entries: Iterable[Path]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for entry in entries:
        split = split_of(entry.name)
        if split is None:
            continue
        if split in folders and not entry.samefile(folders[split]):  # one may be a link to the other
            raise InputError(
                f"two folders for the split {split!r}: {folders[split]} and {entry}. Move the videos of one into the "
                "other, or rename one of them"
            )
        folders.setdefault(split, entry)
    return {split: folders[split] for split in SPLIT_WORDS if split in folders}


def check_split_folders(root: Path, folders: Mapping[str, Path], others: Videos) -> None:
    """Checks folders that have names of splits against the folders beside them.

    Args:
        root: the data set's folder.
        folders: the result of `find_split_folders`.
        others: the other folders with videos.

    Raises:
        InputError: no folder is for training, or it is not clear whether a folder is a split or a class.
    """
    splits = listing([path.name for path in folders.values()])
    if others and len(folders) == 1:
        (path,) = folders.values()
        raise InputError(
            f"{path} has the name of a split and holds folders, but {listing([other.name for other in others])} beside "
            "it hold videos too: splits or classes? Rename it, move the others away, or list the videos in a table "
            "(data=manifest)"
        )
    if "train" not in folders:
        raise InputError(
            f"data.root {root} has folders of splits ({splits}), but none for training. Add a folder train/ with the "
            "class folders"
        )
    for path, videos in others.items():
        log.warning("%s is no split, its %d videos are not used: the splits are %s", path, len(videos), splits)


def splits_below_classes(root: Path, videos: Videos) -> dict[Path, dict[str, Path]]:
    """Class folder -> split -> folder if every video lies in a folder of a split below its class; else empty.

    Raises:
        InputError: only a part of the classes or videos has such folders, or none is for training.
    """
    names = {folder: _names_below(folder, of_class) for folder, of_class in videos.items()}
    splits = {folder: {split_of(name) for name in below} - {None} for folder, below in names.items()}
    if not any(splits.values()):
        return {}
    if all(names.values()) and all(name and split_of(name) for below in names.values() for name in below):
        if not any("train" in of_class for of_class in splits.values()):
            raise InputError(f"data.root {root} has folders of splits below the classes, but none for training")
        return {folder: _unique_splits(folder / name for name in sorted(below)) for folder, below in names.items()}
    for folder, of_class in splits.items():
        if "train" in of_class and len(of_class) > 1:
            odd = next(f for f, below in names.items() if not all(name and split_of(name) for name in below))
            raise InputError(
                f"{folder} has folders of splits ({listing(sorted(filter(split_of, names[folder])))}), but not all "
                f"videos in {odd} are in such folders. Use CLASS/SPLIT/VIDEO or SPLIT/CLASS/VIDEO for all videos"
            )
    return {}


def _names_below(folder: Path, videos: Iterable[Path]) -> set[str]:
    """Names of the folders directly below a class folder that hold videos; "" stands for the class folder itself."""
    below = (video.relative_to(folder).parts for video in videos)
    return {parts[0] if len(parts) > 1 else "" for parts in below}


def check_single_class(root: Path, videos: Videos) -> None:
    """Raises InputError if a root has one folder with videos, which holds only folders: they look like the classes."""
    if len(videos) > 1:
        return
    (top,) = folder, *_ = videos
    while len(below := _names_below(folder, videos[top])) == 1 and "" not in below:
        folder /= below.pop()
    if "" not in below:
        raise InputError(
            f"{root} holds only one folder with videos, {top.name}, so there would be one class. The folders "
            f"{listing(sorted(below))} below {folder} look like classes or splits: move them to {root}, or, if it is "
            f"the data set's folder, name theirs: data.root={folder}"
        )


def check_siblings(root: Path, videos: Videos) -> None:
    """Raises InputError if several folders hold the same folders: they look like a level above the classes."""
    names = {folder: _names_below(folder, of_class) for folder, of_class in videos.items()}
    for first, second in combinations([folder for folder, below in names.items() if "" not in below], 2):
        common = names[first] & names[second]
        if len(common) > 1 and 2 * len(common) >= len(names[first] | names[second]):
            raise InputError(
                f"{first.name} and {second.name} below {root} hold the same folders ({listing(sorted(common))}), so "
                "they do not look like classes. If the lower folders are the classes, name the folder above them: "
                f"data.root={first}; or rename the upper folders to train, val and test. If the lower folders are "
                "persons, cameras or recordings, name them as groups, which stay in one split: "
                "\"data.group_pattern='^([^/]+)/'\""
            )


def log_unused_files(root: Path, extensions: Iterable[str]) -> None:
    """Logs how many files below a root do not have one of the extensions, by their own extension."""
    known = frozenset(extensions)
    unused = find_files(root, lambda name: not name.startswith(".") and _extension(name) not in known)
    if unused:
        counts = Counter(_extension(path.name) or "(no extension)" for path in unused)
        first = min(unused, key=lambda path: (_extension(path.name) in _USUAL_FILES, path))
        level = logging.INFO if set(counts) <= _USUAL_FILES | {"(no extension)"} else logging.WARNING
        names = listing([f"{count} {extension}" for extension, count in counts.most_common()])
        log.log(level, "%d other files below %s are not used: %s; the first: %s", len(unused), root, names, first)


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()
