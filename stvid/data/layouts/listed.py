"""Official lists and the files they name: what the layouts of published data sets share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from stvid.data.layouts.finding import existing_folder, subfolders
from stvid.errors import InputError

log = logging.getLogger(__name__)


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
