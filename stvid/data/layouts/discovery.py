"""Finds videos, image folders, tables and official lists below a folder, and assembles manifests from them."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from stvid.data.manifest import SPLITS, Item, Manifest
from stvid.data.splitting import split_items
from stvid.errors import InputError
from stvid.video.decoding import IMAGE_EXTENSIONS

log = logging.getLogger(__name__)
VIDEO_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("3gp", "asf", "avi", "divx", "flv", "gif", "m2ts", "m2v", "m4v", "mjpeg", "mkv"),
        *("mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts", "vob", "webm", "wmv"),
    )
)


def existing_folder(path: str | os.PathLike, *, key: str = "data.root") -> Path:
    """The folder a user named, as an absolute path.

    Args:
        path: what was given; a leading `~` is the home folder.
        key: the config key it was given under.

    Raises:
        InputError: it is no folder.
    """
    folder = Path(str(path)).expanduser().absolute()
    if not folder.is_dir():
        raise InputError(f"{key} {folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    return folder


def subfolders(folder: Path) -> list[Path]:
    """The folders directly in a folder, by name."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def find_files(folder: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """Files at any depth whose name is wanted, in a fixed order."""
    return sorted(Path(parent, name) for parent, names in _walk(folder) for name in names if wanted(name))


def find_videos(folder: Path) -> list[Path]:
    """Video files at any depth, in a fixed order."""
    return find_files(folder, _is_video_name)


def find_frame_folders(folder: Path) -> list[Path]:
    """Folders at any depth below `folder` that directly hold an image, in a fixed order."""
    return sorted(
        Path(parent) for parent, names in _walk(folder) if Path(parent) != folder and any(map(_is_image_name, names))
    )


def is_video(path: Path) -> bool:
    """Whether a path is a video file, by its name."""
    return path.is_file() and _is_video_name(path.name)


def is_frame_folder(path: Path) -> bool:
    """Whether a path is a folder that directly holds an image."""
    return path.is_dir() and any(_is_image_name(entry.name) for entry in path.iterdir() if entry.is_file())


def _is_video_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS and not name.startswith(".")


def _is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS and not name.startswith(".")


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of its files) at any depth, each folder once even where links lead in a circle."""
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in seen:  # a link back to where we have been
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield parent, names


def val_out_of_train(items: Iterable[Item], *, val_fraction: float, seed: int) -> list[Item]:
    """Takes whole groups out of train for val, stratified by class; the other splits stay as they are.

    Args:
        items: of all splits.
        val_fraction: share of the training videos, in (0, 1).
        seed: of the choice.

    Raises:
        InputError: a share outside (0, 1), or too few videos or groups of a class.
    """
    items = list(items)
    train = [item for item in items if item.split == "train"]
    shares = {"train": 1 - val_fraction, "val": val_fraction}
    return [item for item in items if item.split != "train"] + [*split_items(train, fractions=shares, seed=seed)]


def assemble(root: Path, items: Iterable[Item], *, how: str, class_names: Sequence[str] | None = None) -> Manifest:
    """The manifest, after one line in the log: where, how, and how many videos each split has.

    Args:
        root: the data set's folder.
        items: in any order.
        how: where the splits come from, for the log.
        class_names: the data set's own order; those without videos are left out. Without it, the sorted labels.
    """
    items = sorted(items, key=lambda item: (SPLITS.index(item.split), item.path, item.start or 0.0))
    labels = {item.label for item in items}
    names = sorted(labels) if class_names is None else [name for name in class_names if name in labels]
    counts = Counter(item.split for item in items)
    shown = ", ".join(f"{split} {counts[split]}" for split in SPLITS if counts[split])
    log.info("%s: %s (%d classes; %s)", root, how, len(names), shown or "no videos")
    return Manifest(items=tuple(items), class_names=tuple(names))


def check_fold(fold: int, last: int) -> None:
    """Raises InputError for a fold that is not one of 1 to `last`."""
    if not 1 <= fold <= last:
        raise InputError(f"data.fold (={fold}) must be one of 1 to {last}")


def find_lists(root: Path, splits: str | None, *, folders: Sequence[str], files: Sequence[str], archive: str) -> Path:
    """The folder that holds a data set's official lists.

    Args:
        root: the data set's folder.
        splits: the folder the user named (`data.splits`), or None to look at, below and beside the root.
        folders: what the lists' folder is called, as unpacked.
        files: patterns; the folder has a file for each of them.
        archive: what the lists are published as, for the message.

    Raises:
        InputError: there is no such folder.
    """
    if splits is None:
        bases = [root, *subfolders(root), root.parent]
        looked = [root, *(base / name for base in bases for name in folders), root.parent]
    else:
        given = existing_folder(splits, key="data.splits")
        looked = [given, *(given / name for name in folders)]
    lacking = {folder: [name for name in files if not any(folder.glob(name))] for folder in looked if folder.is_dir()}
    for folder, missing in lacking.items():
        if not missing:
            return folder
    nearest, missing = min(lacking.items(), key=lambda pair: len(pair[1]))
    where = f"in, below or beside data.root {root}" if splits is None else f"in data.splits {looked[0]}"
    partly = f" ({nearest} has some of them, but no {', '.join(missing)})" if len(missing) < len(files) else ""
    raise InputError(
        f"the official lists {', '.join(files)} are not {where}{partly}. Unpack {archive} so that "
        f"{root / folders[0]} holds them, or name their folder: data.splits=DIR"
    )


def nearest_files(found: Iterable[tuple[str, Path]], *, root: Path) -> dict[str, Path]:
    """Role -> its file: of several the one with the fewest folders between it and the root.

    Args:
        found: (role, file) of all candidates. The log names the files that are not used.
        root: the data set's folder, for messages.

    Raises:
        InputError: two files of one role lie equally near and differ.
    """
    files: dict[str, Path] = {}
    for role, path in sorted(found, key=lambda pair: (len(pair[1].parts), pair[1])):
        used = files.setdefault(role, path)
        if used == path or used.read_bytes() == path.read_bytes():
            continue
        if len(used.parts) == len(path.parts):
            raise InputError(
                f"two files for {role!r} below data.root {root}, which differ: {used} and {path}. Remove or rename "
                "the one that is not meant, or let data.root be a folder with one of them"
            )
        log.warning("%s is not used, since %s is nearer to the root", path, used)
    return files


def read_lines(path: Path) -> list[tuple[str, str]]:
    """(place for a message, text) of each line that is not empty; odd bytes in file names come back as they were."""
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    return [(f"{path}, line {number}", line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def index(videos: Iterable[Path], key: Callable[[Path], str], *, root: Path) -> dict[str, Path]:
    """Key -> video; where several videos have one key the first is taken, and the log says so."""
    found: dict[str, Path] = {}
    again = []
    for video in videos:
        if found.setdefault(key(video), video) != video:
            again.append(video)
    if again:
        log.warning(
            "%d videos below %s have the name of another and are left out; the first: %s, since there is %s",
            *(len(again), root, again[0], found[key(again[0])]),
        )
    return found


def require_all(absent: Sequence[str], *, listed: int, found: int, lists: Path, root: Path) -> None:
    """Raises InputError where videos that the official lists name are not there."""
    if absent:
        raise InputError(
            f"{len(absent)} of the {listed} videos that {lists} names are not below data.root {root}, the first: "
            f"{absent[0]}; it holds {found} videos. Unpack all of it there, or list what you have in a table "
            "(data=manifest)"
        )


def tell_absent(absent: Sequence[str], *, listed: int, split: str, lists: Path, root: Path) -> None:
    """Warns of listed videos that are not there, as is usual where each was downloaded for itself.

    Raises:
        InputError: none of them is there, and the split is not `test`.
    """
    if not absent:
        return
    told = f"{len(absent)} of the {listed} videos that {lists} lists for {split} are not below {root}"
    if len(absent) == listed and split != "test":
        raise InputError(f"{told}: all of them. The first: {absent[0]}. Is data.root the folder with the videos?")
    log.warning("%s and are left out, the first: %s", told, absent[0])
