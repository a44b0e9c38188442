"""`data=kinetics`: Kinetics-400, -600 and -700, with their tables or as class folders.

Kay et al.: The Kinetics Human Action Video Dataset, 2017.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

from stvid.data.layouts.class_folders import VIDEO_FILES, find_items
from stvid.data.layouts.discovery import (
    build_manifest,
    find_files,
    find_videos,
    index_videos,
    nearest_files,
    resolve_folder,
    warn_missing,
)
from stvid.data.layouts.split_folders import find_split_folders
from stvid.data.manifest import Item, Manifest
from stvid.data.tables import read_table
from stvid.errors import InputError

TABLE = re.compile(r"(?:.+[-_])?(train|val|valid|validate|validation|test)\.csv", re.IGNORECASE)
COLUMNS = ("youtube_id", "time_start", "time_end")  # and label, which test tables may lack
TEXT: dict[str, Any] = {"encoding": "utf-8-sig", "errors": "surrogateescape"}
CLIP = re.compile(r"([\w-]{11})(?:_\d{6}_\d{6})?", re.ASCII)  # an id has 11 characters, including `_` and `-`


def kinetics(*, root: str) -> Manifest:
    """Tables `train.csv`, `val.csv` [, `test.csv`] and videos anywhere below the root, or `train/CLASS/`, `val/CLASS/`.

    A table is recognised by the end of its name (`kinetics-400_train.csv`, `validate.csv`) and its columns `label,
    youtube_id,time_start,time_end`. `ID_000010_000020.mp4` is a trimmed clip; `ID.mp4` is a whole video, of which the
    item is the part given in the table. Rows without a file or a label are left out and logged, since some videos are
    always unavailable. Clips in a folder `replacement...` have priority over clips of the same name. Of several tables
    of one split the one nearest to the root is used. Without tables, the class folders below `train/`, `val/` and
    `test/` are used. Groups are the YouTube ids; classes are sorted.

    Args:
        root: the folder.

    Raises:
        InputError: no such folder, neither tables nor folders, no train or val, two tables or two folders of one split,
            a row without times, no videos of train or val.
    """
    folder = resolve_folder(root)
    tables, others = _find_tables(folder)
    if tables:
        return _from_tables(folder, tables)
    folders = find_split_folders(folder)
    if not {"train", "val"} <= set(folders):
        hint = f"It has the folders {', '.join(folders)}. " if folders else ""
        hint += f"{others[0]} lacks the columns {','.join(COLUMNS)}. " if others else ""
        raise InputError(
            f"no tables train.csv and val.csv anywhere below data.root {folder}, and no train/CLASS/ and val/CLASS/ "
            f"folders in it. {hint}Put the tables (label,{','.join(COLUMNS)},split) there"
        )
    items = [item for split, path in folders.items() for item in find_items(path, split, VIDEO_FILES, _youtube_id)]
    names = ", ".join(path.name for path in folders.values())
    return build_manifest(folder, items, split_source=f"splits from the folders {names}")


def _youtube_id(video: Path, class_folder: Path) -> str | None:
    clip = CLIP.fullmatch(video.stem)
    return clip[1] if clip else None


def _find_tables(root: Path) -> tuple[dict[str, Path], list[Path]]:
    """Split -> the table nearest to the root; and files that have only the name of a table."""
    tables, others = [], []
    for path in find_files(root, lambda name: bool(TABLE.fullmatch(name))):
        split = TABLE.sub(r"\1", path.name).lower()
        split = split if split in ("train", "test") else "val"
        with path.open(newline="", **TEXT) as file:
            header = next(csv.reader(file), [])
        if set(COLUMNS) <= set(header):
            tables.append((split, path))
        else:
            others.append(path)
    return nearest_files(tables, root=root), others


def _from_tables(root: Path, tables: dict[str, Path]) -> Manifest:
    for split in ("train", "val"):
        if split not in tables:
            existing = ", ".join(map(str, tables.values()))
            raise InputError(f"no table of {split} below data.root {root}: it has {existing}, but no {split}.csv")
    videos = sorted(find_videos(root), key=lambda path: "replacement" not in str(path.relative_to(root)).lower())
    by_stem = index_videos(videos, lambda path: path.stem, root=root)
    items, sources = [], []
    for split in ("train", "val", "test"):
        if split in tables:
            split_items, num_unlabelled = _read_table(root, tables[split], split, by_stem)
            items += split_items
            note = f" ({num_unlabelled} rows without a label left out)" if num_unlabelled else ""
            sources.append(f"{tables[split].relative_to(root)}{note}")
    return build_manifest(root, items, split_source=f"splits from {', '.join(sources)}")


def _read_table(root: Path, table: Path, split: str, videos: dict[str, Path]) -> tuple[list[Item], int]:
    """The items of one table, and the number of rows without a label."""
    rows = read_table(table, required=COLUMNS, optional=("label",)).rows
    items, missing, num_unlabelled = [], [], 0
    for line, row in rows:
        if not row.get("label"):
            num_unlabelled += 1
            continue
        name, start, end = _parse_times(row, f"{table}, line {line}")
        clip = f"{name}_{int(start):06d}_{int(end):06d}"
        video = videos.get(clip) or videos.get(name)
        if video is None:
            missing.append(clip)
            continue
        span = {} if clip in videos else {"start": start, "end": end}
        items.append(Item(path=str(video), label=row["label"], split=split, group=name, **span))
    warn_missing(missing, num_listed=len(rows) - num_unlabelled, split=split, lists=table, root=root)
    if not items and split != "test":
        raise InputError(f"{table} lists no labelled videos for {split}")
    return items, num_unlabelled


def _parse_times(row: dict[str, str], where: str) -> tuple[str, float, float]:
    try:
        name, start, end = row["youtube_id"], float(row["time_start"]), float(row["time_end"])
    except (TypeError, ValueError):
        name, start, end = row["youtube_id"], 0.0, 0.0
    if not name or not 0 <= start < end < float("inf"):
        raise InputError(f"{where}: youtube_id, time_start and time_end must be an id and two times in seconds")
    return name, start, end
