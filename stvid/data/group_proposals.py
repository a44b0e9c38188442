"""Groups that a data set seems to have, though nobody has named them: by file names, folders, and similar pictures.

V videos   F frames   B bits of a hash
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import PurePath
from statistics import median

import imagehash
import numpy as np
from PIL import Image

from stvid.data.manifest import SPLITS, Item
from stvid.errors import VideoError
from stvid.progress import Bar
from stvid.video.reader import read_frames
from stvid.video.types import VideoInfo
from stvid.video.workers import map_files

_COUNTER = r"(?:c|clip|cut|chunk|part|pt|p|s|scene|seg|segment|shot|take|v)?[_\-. ]?\d+\)?(?:\.\w+)?$"
NAME_PATTERNS = (  # for `data.group_pattern`, the most specific first
    r"_g(\d+)_c\d+",  # v_Basketball_g01_c02.avi
    r"([^/]{11})_\d{6}_\d{6}",  # YouTube id, start and end
    rf"([^/]+?)(?:[_\-. ]+\(?|\(){_COUNTER}",  # name_001.mp4, name-part2.mp4, name (3).mp4
    r"([^/.]*[^\d/_\-. ])\d+(?:\.\w+)?$",  # name7.mp4
)
FOLDER_PATTERN = "^([^/]+)/"
_MIN_SHARED = 0.2  # share of the videos that must be in groups of several videos
_MIN_GROUPS = 3  # median over the classes: one group for each class is the name of the class, not a recording
POSITIONS = (0.1, 0.5, 0.9)  # of the compared frames in each video
HASH_SIZE = 8  # 64 bits: the coarse picture; finer hashes of blurred pictures have the same noise in common
MAX_DISTANCE = 10  # bits; of unrelated pictures about 32 differ, with a standard deviation of 4
_MIN_CONTRAST = 8.0  # standard deviation of the grey levels 0 to 255; the hash of an almost empty picture is noise
_VIDEOS_AT_ONCE = 256  # rows of the table of distances
MAX_VIDEOS = 5000  # the first ones, evenly spaced: all pairs are compared


def propose_groups(
    items: Sequence[Item],
    infos: Mapping[str, object],
    *,
    num_workers: int = 0,
    timeout: float = 60.0,
    progress: bool = True,
) -> dict:
    """Proposes groups for a data set in which some items have none.

    Args:
        items: of all splits.
        infos: path -> `VideoInfo`; files with other values are not compared.
        num_workers: processes that read the pictures; 0: this one.
        timeout: seconds without a new frame after which a file is not compared.
        progress: show a progress bar.

    Returns:
        `num_unnamed`: items without a group; if there is any also `names` and `folders` (see `groups_by_pattern`; None
        if there are no such groups) and `pictures` (see `groups_by_picture`). `names` and `folders` have `confirmed`:
        of how many `checked` groups with several videos two show a near-duplicate frame.
    """
    unnamed = [item for item in items if item.group is None]
    if not unnamed:
        return {"num_unnamed": 0}
    readable = {path: info for path, info in infos.items() if isinstance(info, VideoInfo)}
    paths = [path for path in dict.fromkeys(item.path for item in unnamed) if path in readable]
    compared = {path: readable[path] for path in paths[:: -(-len(paths) // MAX_VIDEOS) or 1]}
    hashes = hash_frames(compared, num_workers=num_workers, timeout=timeout, progress=progress)
    distances_VV = frame_distances(list(hashes.values()))
    names = next(filter(None, (groups_by_pattern(unnamed, pattern) for pattern in NAME_PATTERNS)), None)
    folders = groups_by_pattern(unnamed, FOLDER_PATTERN)
    for found in filter(None, (names, folders)):
        groups = found.pop("groups")
        _, group_V, counts = np.unique(
            np.array([groups[path] for path in hashes], dtype=object), return_inverse=True, return_counts=True
        )
        agree_V = ((distances_VV <= MAX_DISTANCE) & (group_V[:, None] == group_V)).any(axis=1)
        found["checked"] = int((counts > 1).sum())
        found["confirmed"] = len(set(group_V[agree_V].tolist()))
    pictures = groups_by_picture(unnamed, list(hashes), distances_VV)
    return {"num_unnamed": len(unnamed), "names": names, "folders": folders, "pictures": pictures}


def groups_by_pattern(items: Sequence[Item], pattern: str) -> dict | None:
    """Groups by a regular expression, as `data.group_pattern` makes them; None if they are no plausible recordings.

    Plausible: every name matches, most classes have several groups, and a fifth of the videos share one.

    Returns:
        `pattern`, `num_groups`, `num_leaks`: groups in several splits; `example`: a name and its group; `groups`: path
        -> group.
    """
    groups, of_class, splits = {}, defaultdict(set), defaultdict(set)
    for item in items:
        match = re.search(pattern, (name := _name_below_class(item)))
        if not match:
            return None
        groups[item.path] = match[1]
        of_class[item.label].add(match[1])
        splits[match[1]].add(item.split)
    counts = Counter(groups.values())
    num_shared = sum(count for count in counts.values() if count > 1)
    if num_shared < _MIN_SHARED * len(groups) or median(map(len, of_class.values())) < _MIN_GROUPS:
        return None
    return {
        "pattern": pattern,
        "num_groups": len(counts),
        "num_leaks": sum(len(of_group) > 1 for of_group in splits.values()),
        "example": [name, groups[items[-1].path]],
        "groups": groups,
    }


def _name_below_class(item: Item) -> str:
    """The path below the folder that is named like the class, or else the name of the file."""
    parts = PurePath(item.path).parts
    below = [index for index, part in enumerate(parts[:-1]) if part == item.label]
    return "/".join(parts[below[-1] + 1 :] if below else parts[-1:])


def hash_frames(
    infos: Mapping[str, VideoInfo], *, num_workers: int = 0, timeout: float = 60.0, progress: bool
) -> dict[str, np.ndarray]:
    """Path -> bool F x B: perceptual hashes of up to three frames; videos without a usable frame are left out.

    The hash (`imagehash.phash`) is the sign of the low spatial frequencies: other sizes, compression and small
    changes of a picture change few bits.
    """
    hashed = map_files(partial(_hash_video, infos=infos), list(infos), num_workers=num_workers, timeout=timeout)
    found = {}
    with Bar("comparing pictures", total=len(infos), unit="videos", shown=progress) as bar:
        for path, bits_FB in hashed:
            bar.advance()
            if not isinstance(bits_FB, VideoError) and len(bits_FB):
                found[path] = bits_FB
    return {path: found[path] for path in infos if path in found}  # workers finish in any order


def _hash_video(path: str, infos: Mapping[str, VideoInfo]) -> np.ndarray:
    numbers = sorted({int(position * infos[path].num_frames) for position in POSITIONS})
    frames = read_frames(path, numbers, info=infos[path], short_side=128)
    images = [Image.fromarray(frame.permute(1, 2, 0).numpy()).convert("L") for frame in frames]
    return np.array(
        [
            imagehash.phash(image, hash_size=HASH_SIZE).hash.ravel()
            for image in images
            if np.asarray(image, dtype=np.float32).std() >= _MIN_CONTRAST
        ]
    )


def frame_distances(hashes: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 V x V: different bits of the most similar frames of two videos; 255 between a video and itself.

    Args:
        hashes: of each video, bool F x B, at least one frame.
    """
    counts_V = np.array([len(bits_FB) for bits_FB in hashes], dtype=np.int64)
    distances_VV = np.full((len(hashes), len(hashes)), 255, np.uint8)
    if not hashes:
        return distances_VV
    signs_FB = np.concatenate(hashes).astype(np.float32) * 2 - 1
    starts_V = np.cumsum(counts_V) - counts_V
    for first in range(0, len(hashes), _VIDEOS_AT_ONCE):
        videos = slice(first, first + _VIDEOS_AT_ONCE)
        starts = starts_V[videos]
        rows_FB = signs_FB[starts[0] : starts[-1] + counts_V[videos][-1]]
        distances_FF = (signs_FB.shape[1] - rows_FB @ signs_FB.T) / 2
        nearest_FV = np.minimum.reduceat(distances_FF, starts_V, axis=1)
        distances_VV[videos] = np.minimum.reduceat(nearest_FV, starts - starts[0], axis=0)
    np.fill_diagonal(distances_VV, 255)
    return distances_VV


def groups_by_picture(items: Sequence[Item], compared: Sequence[str], distances_VV: np.ndarray) -> dict:
    """Groups of videos that are linked by near-duplicate frames, with at most `MAX_DISTANCE` different bits.

    Returns:
        `num_compared`: videos; `num_linked`: those with a near-duplicate; `seen`: held-out split -> [videos with a
        near-duplicate in train, compared videos]; `num_groups` and `largest` (videos) of the linked videos; `examples`:
        the closest pairs across splits, with their distance in bits of 64; `groups`: path -> number of its group, for
        linked videos.
    """
    split_of = {item.path: item.split for item in items}
    split_V = np.array([SPLITS.index(split_of[path]) for path in compared], np.int8)
    linked_VV = distances_VV <= MAX_DISTANCE
    groups = {path: int(number) for path, number in zip(compared, _components(linked_VV), strict=True) if number}
    counts = Counter(groups.values())
    seen = {}
    for split in ("val", "test"):
        if (is_held_out_V := split_V == SPLITS.index(split)).any():
            is_known = linked_VV[is_held_out_V][:, split_V == SPLITS.index("train")].any(axis=1)
            seen[split] = [int(is_known.sum()), int(is_held_out_V.sum())]
    across_VV = split_V[:, None] != split_V
    closest = islice(_closest_pairs(np.where(across_VV, distances_VV, 255)), 5)
    return {
        "num_compared": len(compared),
        "num_linked": len(groups),
        "seen": seen,
        "num_groups": len(counts),
        "largest": max(counts.values(), default=0),
        "examples": [[compared[a], compared[b], distance] for a, b, distance in closest],
        "groups": groups,
    }


def _closest_pairs(distances_VV: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Yields each pair of near-duplicates a < b with its distance, the closest first."""
    for distance in range(MAX_DISTANCE + 1):
        is_found_VV = distances_VV == distance
        for a in np.flatnonzero(is_found_VV.any(axis=1)):
            for b in np.flatnonzero(is_found_VV[a]):
                if a < b:
                    yield int(a), int(b), distance


def _components(linked_VV: np.ndarray) -> np.ndarray:
    """Number of each node's connected component, from 1; 0: a node without links. Reads each row of the matrix once."""
    component_V = np.zeros(len(linked_VV), np.int64)
    number = 0
    for start in np.flatnonzero(linked_VV.any(axis=1)):
        if component_V[start]:
            continue
        number += 1
        todo = np.array([start])
        while len(todo):
            component_V[todo] = number
            todo = np.flatnonzero(linked_VV[todo].any(axis=0) & (component_V == 0))
    return component_V
