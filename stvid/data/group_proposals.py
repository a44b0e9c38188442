"""Groups that a data set seems to have, though nobody has named them: by file names, folders, and similar pictures."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from statistics import median

import imagehash
import numpy as np
from PIL import Image

from stvid.data.manifest import Item
from stvid.errors import VideoError
from stvid.progress import Bar
from stvid.video.reader import read_frames
from stvid.video.types import VideoInfo

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
MAX_VIDEOS = 5000  # the first ones, evenly spaced: all pairs are compared


def propose_groups(items: Sequence[Item], infos: Mapping[str, object], *, progress: bool = True) -> dict:
    """Proposes groups for a data set in which some items have none.

    Args:
        items: of all splits.
        infos: path -> `VideoInfo`; files with other values are not compared.
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
    hashes = hash_frames(paths[:: -(-len(paths) // MAX_VIDEOS) or 1], readable, progress=progress)
    pairs = near_duplicates(hashes)
    names = next(filter(None, (groups_by_pattern(unnamed, pattern) for pattern in NAME_PATTERNS)), None)
    folders = groups_by_pattern(unnamed, FOLDER_PATTERN)
    for found in filter(None, (names, folders)):
        groups = found.pop("groups")
        similar = {groups[a] for a, b in pairs if groups[a] == groups[b]}
        counts = Counter(groups[path] for path in hashes)
        found["checked"] = sum(count > 1 for count in counts.values())
        found["confirmed"] = len(similar)
    pictures = groups_by_picture(unnamed, list(hashes), pairs)
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


def hash_frames(paths: Sequence[str], infos: Mapping[str, VideoInfo], *, progress: bool) -> dict[str, np.ndarray]:
    """Path -> bool F x 64: perceptual hashes of up to three frames; videos without a usable frame are left out.

    The hash (`imagehash.phash`) is the sign of the low spatial frequencies: other sizes, compression and small
    changes of a picture change few bits.
    """
    hashes = {}
    with Bar("comparing pictures", total=len(paths), unit="videos", shown=progress) as bar:
        for path in paths:
            bar.advance()
            numbers = sorted({int(position * infos[path].num_frames) for position in POSITIONS})
            try:
                frames = read_frames(path, numbers, info=infos[path], short_side=128)
            except VideoError:
                continue
            images = [Image.fromarray(frame.permute(1, 2, 0).numpy()).convert("L") for frame in frames]
            bits = [
                imagehash.phash(image, hash_size=HASH_SIZE).hash.ravel()
                for image in images
                if np.asarray(image, dtype=np.float32).std() >= _MIN_CONTRAST
            ]
            if bits:
                hashes[path] = np.array(bits)
    return hashes


def near_duplicates(hashes: Mapping[str, np.ndarray]) -> dict[tuple[str, str], int]:
    """Pairs of videos, in the order of `hashes`, with a frame of at most `MAX_DISTANCE` different bits -> the bits."""
    if not hashes:
        return {}
    paths = list(hashes)
    owners_F = np.repeat(np.arange(len(paths)), [len(bits) for bits in hashes.values()])
    signs_FB = np.concatenate(list(hashes.values())).astype(np.float32) * 2 - 1
    pairs: dict[tuple[str, str], int] = {}
    for first in range(0, len(signs_FB), 1024):
        distances = (signs_FB.shape[1] - signs_FB[first : first + 1024] @ signs_FB.T) / 2
        for row, column in np.argwhere(distances <= MAX_DISTANCE):
            a, b = owners_F[first + row], owners_F[column]
            if a < b:
                pair, bits = (paths[a], paths[b]), int(distances[row, column])
                pairs[pair] = min(pairs.get(pair, bits), bits)
    return pairs


def groups_by_picture(items: Sequence[Item], compared: Sequence[str], pairs: Mapping[tuple[str, str], int]) -> dict:
    """Groups of videos that are linked by near-duplicate frames.

    Returns:
        `num_compared`: videos; `num_linked`: those with a near-duplicate; `seen`: held-out split -> [videos with a
        near-duplicate in train, compared videos]; `num_groups` and `largest` (videos) of the linked videos; `examples`:
        the closest pairs across splits, with their distance in bits of 64; `groups`: path -> number of its group, for
        linked videos.
    """
    split_of = {item.path: item.split for item in items}
    neighbours = defaultdict(set)
    for a, b in pairs:
        neighbours[a].add(b)
        neighbours[b].add(a)
    groups = _components(neighbours)
    counts = Counter(groups.values())
    seen = {}
    for split in ("val", "test"):
        held_out = [path for path in compared if split_of[path] == split]
        if held_out:
            known = [any(split_of[other] == "train" for other in neighbours[path]) for path in held_out]
            seen[split] = [sum(known), len(held_out)]
    across = sorted((distance, *pair) for pair, distance in pairs.items() if len({split_of[path] for path in pair}) > 1)
    return {
        "num_compared": len(compared),
        "num_linked": len(groups),
        "seen": seen,
        "num_groups": len(counts),
        "largest": max(counts.values(), default=0),
        "examples": [[a, b, distance] for distance, a, b in across[:5]],
        "groups": groups,
    }


def _components(neighbours: Mapping[str, set[str]]) -> dict[str, int]:
    """Node -> number of its connected component, from 1."""
    component: dict[str, int] = {}
    number = 0
    for start in neighbours:
        todo = [start]
        number += start not in component
        while todo:
            node = todo.pop()
            if node not in component:
                component[node] = number
                todo += neighbours[node]
    return component
