"""Which group a video of a class folder belongs to, told by its path or by a table."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable
from pathlib import Path

from stvid.errors import InputError

GroupOf = Callable[[Path, Path], str | None]  # (video, its class folder) -> group


def grouping(root: Path, *, pattern: str | None, table: str | None) -> GroupOf:
    """How groups are told.

    Args:
        root: the data set's folder.
        pattern: regular expression searched in each video's path below its class folder; its first parenthesis
            (or the whole match) names the group.
        table: CSV `path,group`, paths relative to the root.

    Raises:
        InputError: both are given, or one that cannot be read; the function itself, for a video without a group.
    """
    if pattern and table:
        raise InputError("data.group_pattern and data.group_csv both name groups; give one of them")
    if pattern:
        return _by_pattern(pattern)
    if table:
        return _by_table(root, Path(table).expanduser())
    return lambda video, class_folder: None


def _by_pattern(pattern: str) -> GroupOf:
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise InputError(f"data.group_pattern {pattern!r} is not a regular expression: {error}") from error

    def group_of(video: Path, class_folder: Path) -> str:
        below = video.relative_to(class_folder).as_posix()
        match = regex.search(below)
        group = match and match.group(1 if regex.groups else 0)
        if not group:
            raise InputError(f"data.group_pattern {pattern!r} matches nothing in {below!r} ({video})")
        return group

    return group_of


def _by_table(root: Path, table: Path) -> GroupOf:
    if not table.is_file():
        raise InputError(f"data.group_csv {table} does not exist")
    groups: dict[str, str] = {}
    with table.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file, restval="")
        if not {"path", "group"} <= set(reader.fieldnames or []):
            raise InputError(f"{table} must have the columns path,group; it has {', '.join(reader.fieldnames or [])}")
        for row in reader:
            known = groups.setdefault(os.path.normpath(root / row["path"]), row["group"])
            if known != row["group"]:
                raise InputError(f"{table} names two groups for {row['path']}: {known!r} and {row['group']!r}")

    def group_of(video: Path, class_folder: Path) -> str:
        if not groups.get(os.path.normpath(video)):
            raise InputError(f"{table} names no group for {video.relative_to(root)}")
        return groups[os.path.normpath(video)]

    return group_of
