"""Videos of a run that were moved: finds them below another folder; `resume` also changes the run's `manifest.csv`."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from stvid.data.layouts.discovery import find_files, find_frame_folders, resolve_folder
from stvid.data.tables import UTF8, Table, csv_line, read_table
from stvid.errors import InputError
from stvid.files import replacing
from stvid.run.folder import RunFolder, display_path
from stvid.video.shard_index import video_exists, video_size
from stvid.video.types import VideoInfo, file_size

log = logging.getLogger("stvid")
_NUM_BYTES = re.compile(r"[0-9]{1,18}")
_MAX_SAMPLE = 200  # videos that determine which part of the old paths is replaced


def video_sizes(paths: Sequence[str], infos: Mapping[str, object]) -> dict[str, int]:
    """Path -> bytes, for the files and folders of images that exist.

    Args:
        paths: of the videos.
        infos: path -> `VideoInfo`, of the videos that were probed; only the others are looked up.
    """
    sizes = {}
    for path in dict.fromkeys(paths):
        info = infos.get(path)
        known = info.num_bytes if isinstance(info, VideoInfo) else None
        with contextlib.suppress(OSError):
            sizes[path] = video_size(path) if known is None else known
    return sizes


def relocate_run(folder: RunFolder, root: str | os.PathLike, *, splits: Collection[str], option: str) -> None:
    """Changes the paths in the `manifest.csv` of a run to the same videos below another folder.

    For the arguments and errors see `find_run_videos`.
    """
    changed = find_run_videos(folder, root, splits=splits, option=option)
    if not changed:
        return
    table, base = _read_table(folder), folder.path.absolute()
    with replacing(folder.manifest_csv) as partial, partial.open("w", newline="", **UTF8) as file:
        file.write(csv_line(table.columns))
        for path, row in zip(_paths(folder, table), table.rows, strict=True):
            new = Path(changed.get(path, path))
            name = new.relative_to(base).as_posix() if new.is_relative_to(base) else str(new)
            file.write(csv_line([name if column == "path" else row.cells[column] for column in table.columns]))


def find_run_videos(
    folder: RunFolder, root: str | os.PathLike, *, splits: Collection[str], option: str
) -> dict[str, str]:
    """Old absolute path -> new path, of the videos of a run that are now below another folder. Writes nothing.

    A video is the same if it has the same path below the folder and the size that the run has recorded; else if it is
    the only file, or folder of images, with the same name, parent's name and size. A video that is still at its old
    place stays there.

    Args:
        folder: the run's folder.
        root: where the videos are now: the data set's folder, or one above it.
        splits: the splits that are needed; other splits may be missing.
        option: name of the option that gave the root, for messages.

    Raises:
        InputError: no such folder; it has none of the videos; a needed video is missing or has another size.
    """
    root = resolve_folder(root, key=option)
    table = _read_table(folder)
    paths = _paths(folder, table)
    sizes = {
        path: int(row.cells["bytes"]) if _NUM_BYTES.fullmatch(row.cells.get("bytes", "")) else None
        for path, row in zip(paths, table.rows, strict=True)
    }
    needed = {path for path, row in zip(paths, table.rows, strict=True) if row.cells["split"] in splits}
    # a video without a size did not exist when the run began, unless the run is of a version that recorded none
    is_recorded = any(size is not None for size in sizes.values())
    sizes = {path: size for path, size in sizes.items() if size is not None or not is_recorded}
    moved = find_moved(sizes, root)
    _check_found(folder, root, sizes, moved, needed)
    changed = {path: new for path, new in moved.items() if path != new}
    if changed:
        log.info(
            "%s: %d of %d videos are now read from %s (%s)",
            *(display_path(folder.manifest_csv), len(changed), len(sizes), root),
            "same names and sizes" if is_recorded else "same names; the run has not recorded their sizes",
        )
    return changed


def _read_table(folder: RunFolder) -> Table:
    table = read_table(folder.manifest_csv, required=("path", "split"), optional=("bytes",))
    if not table.rows:
        raise InputError(f"{table.path} is damaged or was changed: it lists no videos")
    return table


def _paths(folder: RunFolder, table: Table) -> list[str]:
    """The absolute path of each row."""
    base = folder.path.absolute()
    return [str((base / row.cells["path"]).absolute()) for row in table.rows]


def find_moved(sizes: Mapping[str, int | None], root: Path) -> dict[str, str]:
    """Old path -> path below another folder, for the videos that are there.

    Args:
        sizes: old absolute path -> bytes; None: unknown, so any size is accepted.
        root: the other folder.
    """
    dropped = _dropped_parts(list(sizes), root)
    moved, rest = {}, []
    for path, size in sizes.items():
        candidate = str(root.joinpath(*Path(path).parts[dropped:]))
        if dropped < len(Path(path).parts) and _has_size(candidate, size):
            moved[path] = candidate
        else:
            rest.append(path)
    others = defaultdict(list)
    if any(sizes[path] is not None for path in rest):
        names = {Path(path).name for path in rest}
        image_folders = (found for found in find_frame_folders(root) if found.name in names)
        for found in (*find_files(root, names.__contains__), *image_folders):
            others[_key(found, file_size(found))].append(str(found))
    wanted = Counter(_key(path, sizes[path]) for path in rest)
    for path in rest:
        key = _key(path, sizes[path])
        if wanted[key] == len(others[key]) == 1:
            moved[path] = others[key][0]
    return moved


def _key(path: str | Path, size: int | None) -> tuple[str, str, int | None]:
    """Names of the video and of its folder, on which the random clips of a video depend, and its size."""
    return Path(path).parent.name, Path(path).name, size


def _dropped_parts(paths: Sequence[str], root: Path) -> int:
    """Number of leading parts of the old paths for which most of the rest exists below the root."""
    sample = [Path(path).parts for path in paths[:: max(len(paths) // _MAX_SAMPLE, 1)]]
    found = Counter(
        {
            dropped: sum(video_exists(root.joinpath(*parts[dropped:])) for parts in sample if dropped < len(parts))
            for dropped in range(1, max(map(len, sample)))
        }
    )
    return max(found, key=lambda dropped: (found[dropped], -dropped))


def _has_size(path: str, size: int | None) -> bool:
    try:
        found = video_size(path)
    except OSError:
        return False
    return size is None or found == size


def _check_found(
    folder: RunFolder, root: Path, sizes: Mapping[str, int | None], moved: Mapping[str, str], needed: Collection[str]
) -> None:
    stay = {path for path in sizes if path not in moved and _has_size(path, sizes[path])}
    missing = [path for path in sizes if path in needed and path not in moved and path not in stay]
    counts = (
        f"of the {len(sizes)} videos of {folder.path}, {len(moved)} are below {root}, {len(stay)} at their old place"
    )
    if missing:
        raise InputError(
            f"{counts}, and {len(missing)} that are needed are in neither place with the same size; the first: "
            f"{missing[0]}. Put them below {root}, with the folders that they had"
        )
    if not moved:
        raise InputError(f"{counts}; the first: {next(iter(sizes))}. Name the folder that holds them now")
