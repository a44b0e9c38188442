"""`data=kinetics`: Kinetics-400, -600 and -700, by their tables or as class folders.

Kay et al.: The Kinetics Human Action Video Dataset, 2017.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from stvid.data.layouts.class_folders import VIDEO_FILES, labelled, split_folders
from stvid.data.layouts.discovery import (
    assemble,
    existing_folder,
    find_files,
    find_videos,
    index,
    nearest_files,
    tell_absent,
)
from stvid.data.manifest import Item, Manifest
from stvid.errors import InputError

TABLE = re.compile(r"(?:.+[-_])?(train|val|valid|validate|validation|test)\.csv", re.IGNORECASE)
COLUMNS = ("youtube_id", "time_start", "time_end")  # and label, which tables for a test set may lack
TEXT = {"encoding": "utf-8-sig", "errors": "surrogateescape"}
CLIP = re.compile(r"([\w-]{11})(?:_\d{6}_\d{6})?", re.ASCII)  # an id has 11 characters, `_` and `-` among them


def kinetics(*, root: str) -> Manifest:
    """Tables `train.csv`, `val.csv` [, `test.csv`] and videos anywhere below the root, or `train/CLASS/`, `val/CLASS/`.

    A table is known by the end of its name (`kinetics-400_train.csv`, `validate.csv`) and its columns `label,
    youtube_id,time_start,time_end`. `ID_000010_000020.mp4` is a trimmed clip, `ID.mp4` a whole video of which the
    item takes the seconds that the table says. Rows without a file or a label are left out and told, for some videos
    are always gone. A clip below a folder `replacement...` is taken before its namesake elsewhere. Of several tables of
    one split the one nearest to the root counts. Without tables, the class folders below `train/`, `val/` and `test/`
    count. Groups are the YouTube ids; classes are sorted.

    Args:
        root: the folder.

    Raises:
        InputError: no such folder, neither form, no train or val in it, two tables or two folders of one split, a row
            without times, none of the videos of train or val.
    """
    root = existing_folder(root)
    tables, others = _tables(root)
    if tables:
        return _from_tables(root, tables)
    found = split_folders(root)
    if not {"train", "val"} <= set(found):
        seen = f"It has the folders {', '.join(found)}. " if found else ""
        seen += f"{others[0]} lacks the columns {','.join(COLUMNS)}. " if others else ""
        raise InputError(
            f"no tables train.csv and val.csv anywhere below data.root {root}, and no train/CLASS/ and val/CLASS/ "
            f"folders in it. {seen}Put the tables (label,{','.join(COLUMNS)},split) there"
        )
    items = [item for split, path in found.items() for item in labelled(path, split, VIDEO_FILES, _id_of)]
    return assemble(root, items, how=f"splits from the folders {', '.join(path.name for path in found.values())}")


def _id_of(video: Path, class_folder: Path) -> str | None:
    clip = CLIP.fullmatch(video.stem)
    return clip[1] if clip else None


def _tables(root: Path) -> tuple[dict[str, Path], list[Path]]:
    """Split -> its table, the one nearest to the root, and what has only the name of a table."""
    tables, others = [], []
    for path in find_files(root, lambda name: bool(TABLE.fullmatch(name))):
        split = TABLE.fullmatch(path.name)[1].lower()
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
            shown = ", ".join(map(str, tables.values()))
            raise InputError(f"no table of {split} below data.root {root}: there is {shown}, but no {split}.csv")
    videos = sorted(find_videos(root), key=lambda path: "replacement" not in str(path.relative_to(root)).lower())
    by_stem = index(videos, lambda path: path.stem, root=root)
    items, how = [], []
    for split in ("train", "val", "test"):
        if split in tables:
            found, unlabelled = _read(root, tables[split], split, by_stem)
            items += found
            how.append(
                str(tables[split].relative_to(root))
                + (f" ({unlabelled} rows without a label left out)" if unlabelled else "")
            )
    return assemble(root, items, how=f"splits from {', '.join(how)}")


def _read(root: Path, table: Path, split: str, videos: dict[str, Path]) -> tuple[list[Item], int]:
    """The items of one table, and how many of its rows have no label."""
    with table.open(newline="", **TEXT) as file:
        rows = list(csv.DictReader(file))
    items, absent, unlabelled = [], [], 0
    for number, row in enumerate(rows, start=2):
        if not row.get("label"):
            unlabelled += 1
            continue
        name, start, end = _times(row, f"{table}, line {number}")
        clip = f"{name}_{int(start):06d}_{int(end):06d}"
        video = videos.get(clip) or videos.get(name)
        if video is None:
            absent.append(clip)
            continue
        span = {} if clip in videos else {"start": start, "end": end}
        items.append(Item(path=str(video), label=row["label"], split=split, group=name, **span))
    tell_absent(absent, listed=len(rows) - unlabelled, split=split, lists=table, root=root)
    if not items and split != "test":
        raise InputError(f"{table} lists no labelled videos for {split}")
    return items, unlabelled


def _times(row: dict[str, str], where: str) -> tuple[str, float, float]:
    try:
        name, start, end = row["youtube_id"], float(row["time_start"]), float(row["time_end"])
    except (TypeError, ValueError):
        name, start, end = row["youtube_id"], 0.0, 0.0
    if not name or not 0 <= start < end < float("inf"):
        raise InputError(f"{where}: youtube_id, time_start and time_end must be an id and two times in seconds")
    return name, start, end
