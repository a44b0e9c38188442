"""The folder of the built-in data set: nothing is rendered into a folder that holds anything of others."""

from __future__ import annotations

import re
from pathlib import Path

from stvid.data.layouts.discovery import find_videos, is_video
from stvid.data.manifest import SPLITS
from stvid.errors import InputError, listing

MARKER = ".stvid_actions"  # file in a folder that was made for rendered videos


def check_root(root: Path) -> None:
    """Raises InputError if a folder holds anything that was not rendered: it is somebody's own, perhaps a data set."""
    if not root.exists():
        return
    own = "For videos of your own: data=folder data.root=DIR, or a table: data=manifest data.path=FILE.csv"
    if not root.is_dir():
        raise InputError(f"data.root {root} is a file, not a folder for the built-in data set (data=actions). {own}")
    others = sorted(entry for entry in root.iterdir() if not _is_rendered(entry))
    if (root / MARKER).exists():  # then only what may be a data set is wrong
        others = [entry for entry in others if is_video(entry) or (entry.is_dir() and find_videos(entry))]
    if others:
        raise InputError(
            f"data.root {root} holds {listing([entry.name for entry in others])}, but the built-in data set "
            "(data=actions, the default) is rendered only into a folder of its own. Nothing was written. For the "
            f"videos in it: data=folder data.root={root}"
        )


def _is_rendered(entry: Path) -> bool:
    """Whether an entry of the root is a rendered data set, perhaps an unfinished one, or a hidden file beside it."""
    if entry.name.startswith(".stvid") or entry.name in (".DS_Store", ".gitignore", ".gitkeep"):
        return True
    if not re.fullmatch("[0-9a-f]{12}", entry.name) or not entry.is_dir():
        return False
    return {path.name for path in entry.iterdir() if path.name[0] != "."} <= {*SPLITS, "manifest.csv"}
