"""Parts of every layout: finds videos and official lists below a folder, and builds the manifest."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from stvid.data.manifest import SPLITS, Item, Manifest
from stvid.data.tables import read_text
from stvid.errors import InputError
from stvid.video.types import IMAGE_EXTENSIONS

log = logging.getLogger(__name__)
VIDEO_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("3g2", "3gp", "asf", "avi", "divx", "f4v", "flv", "gif", "m1v", "m2ts", "m2v", "m4v", "mjpeg", "mkv"),
        *("mov", "mp4", "mpe", "mpeg", "mpg", "mts", "ogv", "qt", "ts", "vob", "webm", "wmv"),
    )
)
# of operating systems and storage servers: trash, previews, copies of attributes
_SYSTEM_FOLDERS = frozenset(
    ("__macosx", "$recycle.bin", "system volume information", "lost+found", "@eadir", "@recycle", "#recycle")
)


def resolve_folder(path: str | os.PathLike, *, key: str = "data.root") -> Path:
    """The absolute path of an existing folder.

    Args:
        path: the folder; a leading `~` is the home folder.
        key: config key of the path, for the message.

    Raises:
        InputError: the folder does not exist.
    """
    folder = Path(str(path)).expanduser().absolute()
    if not folder.is_dir():
        raise InputError(f"{key} {folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    return folder


def subfolders(folder: Path) -> list[Path]:
    """The folders directly in a folder, sorted by name, without hidden ones and those of the system."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and _is_wanted(entry.name))


def _is_wanted(folder_name: str) -> bool:
    return not folder_name.startswith(".") and folder_name.lower() not in _SYSTEM_FOLDERS


def find_files(folder: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """Files at any depth whose name is wanted, sorted."""
    return sorted(Path(parent, name) for parent, names in _walk(folder) for name in names if wanted(name))


def find_videos(folder: Path) -> list[Path]:
    """Video files at any depth, sorted."""
    return find_files(folder, _is_video_name)


def find_frame_folders(folder: Path) -> list[Path]:
    """Folders at any depth below `folder` that directly contain an image, sorted."""
    return sorted(
        Path(parent) for parent, names in _walk(folder) if Path(parent) != folder and any(map(_is_image_name, names))
    )


def is_video(path: Path) -> bool:
    """Whether a path is a file with a video extension."""
    return path.is_file() and _is_video_name(path.name)


def is_frame_folder(path: Path) -> bool:
    """Whether a path is a folder that directly contains an image."""
    return path.is_dir() and any(_is_image_name(entry.name) for entry in path.iterdir() if entry.is_file())


def _is_video_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS and not name.startswith(".")


def _is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS and not name.startswith(".")


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields (folder, names of its files) at any depth; each folder once, even if links form a cycle."""
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        folders[:] = sorted(filter(_is_wanted, folders))
        yield parent, names


def build_manifest(
    root: Path, items: Iterable[Item], *, split_source: str, class_names: Sequence[str] | None = None
) -> Manifest:
    """Builds the manifest, and logs the folder, the source of the splits, and the number of videos per split.

    Args:
        root: the data set's folder.
        items: in any order.
        split_source: where the splits come from, for the log.
        class_names: the data set's own order; classes without videos are removed. Without it, the sorted labels.
    """
    items = sorted(items, key=lambda item: (SPLITS.index(item.split), item.path, item.start or 0.0))
    labels = {item.label for item in items}
    names = sorted(labels) if class_names is None else [name for name in class_names if name in labels]
    counts = Counter(item.split for item in items)
    sizes = ", ".join(f"{split} {counts[split]}" for split in SPLITS if counts[split])
    log.info("%s: %s (%d classes; %s)", root, split_source, len(names), sizes or "no videos")
    return Manifest(items=tuple(items), class_names=tuple(names))


def check_fold(fold: int, last: int) -> None:
    """Raises InputError unless the fold is one of 1 to `last`."""
    if not 1 <= fold <= last:
        raise InputError(f"data.fold (={fold}) must be one of 1 to {last}")


def find_lists(root: Path, splits: str | None, *, folders: Sequence[str], files: Sequence[str], archive: str) -> Path:
    """Finds the folder with the official lists of a data set.

    Args:
        root: the data set's folder.
        splits: the folder (`data.splits`), or None to search in, below and beside the root.
        folders: names of the lists' folder when unpacked.
        files: patterns; the folder must contain a file for each.
        archive: name of the published archive, for the message.

    Raises:
        InputError: there is no such folder.
    """
    if splits is None:
        bases = [root, *subfolders(root), root.parent]
        candidates = [root, *(base / name for base in bases for name in folders), root.parent]
    else:
        given = resolve_folder(splits, key="data.splits")
        candidates = [given, *(given / name for name in folders)]
    missing_in = {
        folder: [name for name in files if not any(folder.glob(name))] for folder in candidates if folder.is_dir()
    }
    for folder, missing in missing_in.items():
        if not missing:
            return folder
    best, missing = min(missing_in.items(), key=lambda pair: len(pair[1]))
    where = f"in, below or beside data.root {root}" if splits is None else f"in data.splits {candidates[0]}"
    hint = f" ({best} has some of them, but no {', '.join(missing)})" if len(missing) < len(files) else ""
    raise InputError(
        f"the official lists {', '.join(files)} are not {where}{hint}. Unpack {archive} to {root / folders[0]}, or "
        "name their folder: data.splits=DIR"
    )


def nearest_files(candidates: Iterable[tuple[str, Path]], *, root: Path) -> dict[str, Path]:
    """Role -> file; of several candidates, the one with the fewest folders between it and the root.

    Args:
        candidates: (role, file). Files that are not used are logged.
        root: the data set's folder, for messages.

    Raises:
        InputError: two files of one role have equal distance and different content.
    """
    files: dict[str, Path] = {}
    for role, path in sorted(candidates, key=lambda pair: (len(pair[1].parts), pair[1])):
        used = files.setdefault(role, path)
        if used == path or used.read_bytes() == path.read_bytes():
            continue
        if len(used.parts) == len(path.parts):
            raise InputError(
                f"two different files for {role!r} below data.root {root}: {used} and {path}. Remove or rename one of "
                "them, or set data.root to a folder with only one"
            )
        log.warning("%s is not used, because %s is nearer to the root", path, used)
    return files


def read_lines(path: Path) -> list[tuple[str, str]]:
    """(location for messages, text) of each nonempty line; file names that are not UTF-8 are preserved."""
    lines = re.split("\r\n|\r|\n", read_text(path))
    return [(f"{path}, line {number}", line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def index_videos(videos: Iterable[Path], key: Callable[[Path], str], *, root: Path) -> dict[str, Path]:
    """Key -> video; of several videos with one key the first is used, with a warning."""
    videos_by_key: dict[str, Path] = {}
    duplicates = []
    for video in videos:
        if videos_by_key.setdefault(key(video), video) != video:
            duplicates.append(video)
    if duplicates:
        log.warning(
            "%d videos below %s have the same name as another and are not used; the first: %s, because of %s",
            *(len(duplicates), root, duplicates[0], videos_by_key[key(duplicates[0])]),
        )
    return videos_by_key


def check_all_present(missing: Sequence[str], *, num_listed: int, num_videos: int, lists: Path, root: Path) -> None:
    """Raises InputError if videos of the official lists are missing."""
    if missing:
        raise InputError(
            f"{len(missing)} of the {num_listed} videos in {lists} are not below data.root {root}, the first: "
            f"{missing[0]}; it contains {num_videos} videos. Unpack the whole data set, or list your videos "
            "in a table (data=manifest)"
        )


def warn_missing(missing: Sequence[str], *, num_listed: int, split: str, lists: Path, root: Path) -> None:
    """Warns of listed videos that are missing, which is usual for videos downloaded one by one.

    Raises:
        InputError: all of them are missing, and the split is not `test`.
    """
    if not missing:
        return
    message = f"{len(missing)} of the {num_listed} videos that {lists} lists for {split} are not below {root}"
    if len(missing) == num_listed and split != "test":
        raise InputError(f"{message}: all of them. The first: {missing[0]}. Is data.root the folder with the videos?")
    log.warning("%s and are left out, the first: %s", message, missing[0])
