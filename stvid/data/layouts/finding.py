"""What lies below a folder: videos, folders of images, tables. Links are followed, hidden names left out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from stvid.errors import InputError
from stvid.video.images import EXTENSIONS as IMAGE_EXTENSIONS

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
