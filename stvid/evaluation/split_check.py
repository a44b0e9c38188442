"""Whether the videos of a split can be evaluated, told from the table that lists them. Imports no torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from stvid.data.manifest import COLUMNS, SPLITS
from stvid.data.tables import read_table
from stvid.errors import InputError
from stvid.exits import logs_printed_with_error
from stvid.run.folder import RunFolder, display_path
from stvid.run.relocation import find_run_videos
from stvid.video.shard_index import video_exists


def check_table(folder: RunFolder, split: str, *, manifest: str | None, data_root: str | None) -> None:
    """Raises InputError if the table of an evaluation cannot be read, and for the errors of `check_split`.

    Args:
        folder: the run's.
        split: the split to evaluate.
        manifest: a table to use instead of the run's own.
        data_root: where the videos of the run are now.
    """
    path = table_path(folder, manifest)
    table, moved = read_table(path, required=COLUMNS[:3], optional=COLUMNS[3:]), {}
    videos = [(row.cells["split"], str((path.parent / row.cells["path"]).absolute())) for row in table.rows]
    if data_root and not manifest:
        with logs_printed_with_error():
            moved = find_run_videos(folder, data_root, splits={split}, option="--data-root")
    videos = [(name, moved.get(video, video)) for name, video in videos]
    check_split(videos, split, table=path, moved_hint=None if manifest else moved_hint(folder, split))


def table_path(folder: RunFolder, manifest: str | Path | None) -> Path:
    """The table that lists the videos of a run. Raises InputError if it does not exist."""
    path = Path(manifest).expanduser() if manifest else folder.manifest_csv
    if not path.is_file():
        raise InputError(f"{path} does not exist: it lists the videos of each split. Name one with --manifest FILE.csv")
    return path


def moved_hint(folder: RunFolder, split: str) -> str:
    """What to do if the videos of a run were moved."""
    command = shlex.join(["stvid", "evaluate", str(display_path(folder.path)), "--split", split])
    return f"Moved? Go on with {command} --data-root NEW_FOLDER"


def check_split(videos: Iterable[tuple[str, str]], split: str, *, table: Path, moved_hint: str | None) -> list[str]:
    """The videos of a split that do not exist.

    Args:
        videos: split and path of all videos.
        split: the split to evaluate.
        table: the file that lists them, for messages.
        moved_hint: the end of the message.

    Raises:
        InputError: the split has no videos, or none of them exists.
    """
    videos = list(videos)
    paths = [path for name, path in videos if name == split]
    if not paths:
        filled = ", ".join(name for name in SPLITS if any(name == other for other, _ in videos)) or "none"
        raise InputError(f"--split {split}: {table} has no videos in it; splits with videos: {filled}")
    missing = [path for path in paths if not video_exists(path)]
    if len(missing) == len(paths):
        end = f" {moved_hint}" if moved_hint else ""
        raise InputError(f"none of the {len(paths)} videos of {table} exists, the first: {missing[0]}.{end}")
    return missing
