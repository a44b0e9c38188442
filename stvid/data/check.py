"""What is wrong or suspicious about a data set.

    report = check_videos(manifest, clip=clip, num_workers=4, cache=None)      # plain data
    print(describe(report))                                                    # see check_page

Every frame of every file is decoded; nothing is changed, moved or written but the cache.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from stvid.clip import ClipSpec
from stvid.data import sampling
from stvid.data.content_checks import content_keys, duplicates, find_shortcuts
from stvid.data.dataset import item_frames
from stvid.data.manifest import LEAK_KEYS, SPLITS, Item, Manifest, find_leaks
from stvid.errors import VideoError
from stvid.video.probe import probe_all
from stvid.video.types import VideoInfo

ODD_DURATION = 4  # times longer or shorter than the median
_FEW = 5  # paths that stand for all

Infos = Mapping[str, VideoInfo | VideoError]  # by path


class Checked(NamedTuple):
    """One line of the manifest, the facts of its file, and its frames within it."""

    item: Item
    info: VideoInfo | VideoError
    part: range | VideoError


def check_videos(
    manifest: Manifest,
    *,
    clip: ClipSpec,
    num_workers: int,
    cache: Path | None,
    timeout: float = 60.0,
    progress: bool = True,
) -> dict:
    """Decodes every frame of every file, and looks at what the manifest says of them.

    Args:
        manifest: need not be valid; missing files, leaks and the like are what this is for.
        clip: what a model will see at once; decides which videos are short.
        num_workers: processes that decode; at least one is used, so that a crash or a hang ends one file and no more.
        cache: JSON file with what earlier calls found; a file in it that has not changed is not decoded again.
        timeout: seconds that one file may take, and one more for each megabyte it has.
        progress: show bars.

    Returns:
        Plain data. num_files, num_items, num_bad; bad: path, reason (`errors.REASONS`), detail, of files and of parts
        without frames; files: the facts of each; duplicates: lists of paths; leaks: kind (file, content, group), name,
        splits, num_files, paths (a few); conflicts: labels, paths, start, end; class_counts: class -> split -> items;
        odd: short (on the clip's timeline), durations, median_duration, damaged, sizes, fps; shortcuts: see
        `find_shortcuts`; clip: what short videos were compared with.
    """
    items = manifest.items
    paths = list(dict.fromkeys(item.path for item in items))
    found = probe_all(paths, num_workers=max(num_workers, 1), cache=cache, progress=progress, timeout=timeout)
    infos = dict(zip(paths, found, strict=True))
    rows = [Checked(item, infos[item.path], _part(item, infos[item.path])) for item in items]
    keys = content_keys([path for path in paths if isinstance(infos[path], VideoInfo)], progress=progress)
    bad = _bad(infos, rows)
    return {
        "num_files": len(paths),
        "num_items": len(items),
        "num_bad": len(bad),
        "clip": {name: getattr(clip, name) for name in ("num_frames", "frame_stride", "fps", "short")},
        "bad": bad,
        "files": _files(items, infos),
        "duplicates": duplicates(keys),
        "leaks": _leaks(items, keys),
        "conflicts": _conflicts(rows, keys),
        "class_counts": _class_counts(manifest),
        "odd": {"short": _short(rows, clip), **_odd_files(infos)},
        "shortcuts": _shortcuts(rows, keys),
    }


def is_bad(report: dict) -> bool:
    """Whether something must be mended: a file or part without its frames, a leak, or a conflict of labels."""
    return bool(report["bad"] or report["leaks"] or report["conflicts"])


def _part(item: Item, info: VideoInfo | VideoError) -> range | VideoError:
    try:
        return item_frames(item, info)
    except VideoError as error:
        return error


def _bad(infos: Infos, rows: Sequence[Checked]) -> list[dict]:
    """Files that cannot be decoded, then parts of good files that hold no frames."""
    files = [info for info in infos.values() if isinstance(info, VideoError)]
    empty = [row.part for row in rows if isinstance(row.part, VideoError) and isinstance(row.info, VideoInfo)]
    return [{"path": error.path, "reason": error.reason, "detail": error.detail} for error in files + empty]


def _files(items: Sequence[Item], infos: Infos) -> list[dict]:
    splits, labels = defaultdict(set), defaultdict(set)
    for item in items:
        splits[item.path].add(item.split)
        labels[item.path].add(item.label)
    facts = ("num_frames", "fps", "duration", "height", "width", "codec")
    return [
        {
            "path": path,
            "splits": sorted(splits[path], key=SPLITS.index),
            "labels": sorted(labels[path]),
            "ok": isinstance(info, VideoInfo),
            **{name: getattr(info, name, None) for name in facts},
        }
        for path, info in infos.items()
    ]


def _leaks(items: Sequence[Item], keys: Mapping[str, str]) -> list[dict]:
    """The same file, content or group in two splits; the same content only where it is not one file's."""
    leaks = []
    for kind, key in {**LEAK_KEYS, "content": lambda item: keys.get(item.path)}.items():
        for name, splits, found in find_leaks(items, key):
            paths = list(dict.fromkeys(item.path for item in found))
            if kind == "content":
                if len({os.path.realpath(path) for path in paths}) == 1:
                    continue
                name = paths[0]
            first = {split: next(item.path for item in found if item.split == split) for split in splits}
            few = list(dict.fromkeys([*first.values(), *paths]))[:_FEW]
            leaks.append({"kind": kind, "name": name, "splits": splits, "num_files": len(paths), "paths": few})
    return leaks


def _conflicts(rows: Sequence[Checked], keys: Mapping[str, str]) -> list[dict]:
    """The same frames under several labels: of one file, or of files with the same content."""
    together: dict[tuple, list[Item]] = defaultdict(list)
    for item, _, part in rows:
        frames = part if isinstance(part, range) else (item.start, item.end)
        together[keys.get(item.path) or os.path.realpath(item.path), frames].append(item)
    return [
        {
            "labels": sorted({item.label for item in found}),
            "paths": list(dict.fromkeys(item.path for item in found)),
            "start": found[0].start,
            "end": found[0].end,
        }
        for found in together.values()
        if len({item.label for item in found}) > 1
    ]


def _class_counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    counts = Counter((item.label, item.split) for item in manifest.items)
    return {name: {split: counts[name, split] for split in SPLITS} for name in manifest.class_names}


def _short(rows: Sequence[Checked], clip: ClipSpec) -> list[dict]:
    """Items with fewer frames than a clip spans, both counted on the clip's timeline."""
    short = []
    for item, info, part in rows:
        if isinstance(part, range):
            frames, fps = sampling.timeline(part, clip, info)
            span = sampling.span(sampling.resolve_num_frames(clip, len(frames), fps), fps)
            if len(frames) < span:
                where = {"path": item.path, "start": item.start, "end": item.end}
                short.append({**where, "num_frames": len(frames), "span": span})
    return short


def _odd_files(infos: Infos) -> dict:
    good = {path: info for path, info in infos.items() if isinstance(info, VideoInfo)}
    middle = median(info.duration for info in good.values()) if good else None
    return {
        "median_duration": middle,
        "durations": [
            {"path": path, "duration": info.duration}
            for path, info in good.items()
            if not middle / ODD_DURATION <= info.duration <= middle * ODD_DURATION
        ],
        "sizes": dict(Counter(f"{info.width}x{info.height}" for info in good.values()).most_common()),
        "damaged": [
            {"path": path, "num_damaged": info.num_damaged, "num_frames": info.num_frames}
            for path, info in good.items()
            if info.num_damaged
        ],
        "fps": dict(Counter(f"{round(info.fps, 2):g}" for info in good.values()).most_common()),
    }


def _shortcuts(rows: Sequence[Checked], keys: Mapping[str, str]) -> list[dict]:
    """Of what can be read; copies of a video, and parts of one, do not vote for each other."""
    good = [row for row in rows if isinstance(row.part, range)]
    return find_shortcuts(
        infos=[row.info for row in good],
        lengths=[len(row.part) for row in good],
        labels=[row.item.label for row in good],
        groups=[
            ("file", keys.get(item.path, item.path)) if item.group is None else ("group", item.group)
            for item, _, _ in good
        ],
    )
