"""Checks a data set for broken files, leaks, label conflicts, duplicates, odd files and shortcuts.

    report = check_videos(manifest, clip=clip, num_workers=4, cache=None)      # plain data

Every frame of every file is decoded. Nothing is written except the probe cache.
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
from stvid.data.content_checks import content_keys, find_duplicates, find_shortcuts
from stvid.data.dataset import item_frames
from stvid.data.group_proposals import propose_groups
from stvid.data.manifest import LEAK_KEYS, SPLITS, Item, Manifest, find_leaks, similar_classes
from stvid.errors import VideoError
from stvid.video.probe import probe_all
from stvid.video.shard_reader import find_damage
from stvid.video.types import MAX_PIXELS, VideoInfo

ODD_DURATION = 4  # factor by which an odd duration differs from the median
_MAX_EXAMPLES = 5  # paths per leak

Infos = Mapping[str, VideoInfo | VideoError]  # by path


class CheckedItem(NamedTuple):
    """One line of the manifest, the properties of its file, and the item's frames within the file."""

    item: Item
    info: VideoInfo | VideoError
    frames: range | VideoError


def check_videos(
    manifest: Manifest,
    *,
    clip: ClipSpec,
    num_workers: int,
    cache: Path | None,
    timeout: float = 60.0,
    max_pixels: int = MAX_PIXELS,
    progress: bool = True,
    known: Mapping[str, VideoError] | None = None,
) -> dict:
    """Decodes every frame of every file, and checks the manifest.

    Videos of tars were decoded when the tars were made; their bytes are compared with their checksums.

    Args:
        manifest: may be invalid; missing files, leaks and the like are reported.
        clip: the clip's geometry; determines which videos are short.
        num_workers: processes that decode; at least one, so that a crash or a hang affects only its own file.
        cache: file with the results of earlier calls; unchanged files are not decoded again.
        timeout: seconds without a new frame after which a file is given up.
        max_pixels: of a frame; larger ones are bad.
        progress: show progress bars.
        known: bad files of parts that are merged, by path. The parts have looked at all files: these are not decoded
            again, and no checksum is compared again. None: there are no parts.

    Returns:
        Plain data. num_files, num_items, num_bad; bad: path, reason (`errors.REASONS`) and detail of files that cannot
        be decoded and of items without frames; files: properties; duplicates: lists of paths; leaks: kind (file,
        content, group), name, splits, num_files, paths (a few); conflicts: labels, paths, start, end; class_counts:
        class -> split -> items; odd: short (on the clip's timeline), durations, median_duration, damaged, sizes, fps;
        shortcuts: see `find_shortcuts`; groups: see `propose_groups`; similar_classes: lists of class names that look
        the same; clip: settings that define which videos are short.
    """
    items = manifest.items
    paths = list(dict.fromkeys(item.path for item in items))
    todo = [path for path in paths if known is None or path not in known]
    probed = probe_files(
        todo,
        num_workers=num_workers,
        cache=cache,
        progress=progress,
        timeout=timeout,
        max_pixels=max_pixels,
        compare_checksums=known is None,
    )
    found = {**dict(zip(todo, probed, strict=True)), **(known or {})}
    infos = {path: found[path] for path in paths}
    rows = [CheckedItem(item, infos[item.path], _frames_or_error(item, infos[item.path])) for item in items]
    keys = content_keys([path for path in paths if isinstance(infos[path], VideoInfo)], progress=progress)
    bad = _bad(infos, rows)
    return {
        "num_files": len(paths),
        "num_items": len(items),
        "num_bad": len(bad),
        "clip": {name: getattr(clip, name) for name in ("num_frames", "frame_stride", "fps", "short")},
        "bad": bad,
        "files": _files(items, infos),
        "duplicates": find_duplicates(keys),
        "leaks": _leaks(items, keys),
        "conflicts": _conflicts(rows, keys),
        "class_counts": _class_counts(manifest),
        "odd": {"short": _short(rows, clip), **_odd_files(infos)},
        "shortcuts": _shortcuts(rows, keys),
        "groups": propose_groups(items, infos, num_workers=max(num_workers, 1), timeout=timeout, progress=progress),
        "similar_classes": similar_classes(manifest.class_names),
    }


def probe_files(
    paths: Sequence[str],
    *,
    num_workers: int,
    cache: Path | None,
    timeout: float = 60.0,
    max_pixels: int = MAX_PIXELS,
    progress: bool = True,
    compare_checksums: bool = True,
) -> list[VideoInfo | VideoError]:
    """Decodes every frame of files, and compares the bytes of videos in tars with their checksums.

    Args:
        paths: files.
        num_workers, cache, timeout, max_pixels, progress: see `check_videos`.
        compare_checksums: False: earlier calls have done so.

    Returns:
        For each path, its properties, or why it is bad.
    """
    probed = probe_all(
        paths, num_workers=max(num_workers, 1), cache=cache, progress=progress, timeout=timeout, max_pixels=max_pixels
    )
    if not compare_checksums:
        return probed
    return [find_damage(path) or result for path, result in zip(paths, probed, strict=True)]


def is_bad(report: dict) -> bool:
    """Whether the data set has errors: a bad file or item, a leak, a label conflict, or classes that look the same."""
    return any(report[key] for key in ("bad", "leaks", "conflicts", "similar_classes"))


def _frames_or_error(item: Item, info: VideoInfo | VideoError) -> range | VideoError:
    try:
        return item_frames(item, info)
    except VideoError as error:
        return error


def _bad(infos: Infos, rows: Sequence[CheckedItem]) -> list[dict]:
    """Files that cannot be decoded, then items without frames in good files."""
    files = [info for info in infos.values() if isinstance(info, VideoError)]
    empty = [row.frames for row in rows if isinstance(row.frames, VideoError) and isinstance(row.info, VideoInfo)]
    return [{"path": error.path, "reason": error.reason, "detail": error.detail} for error in files + empty]


def _files(items: Sequence[Item], infos: Infos) -> list[dict]:
    splits, labels = defaultdict(set), defaultdict(set)
    for item in items:
        splits[item.path].add(item.split)
        labels[item.path].add(item.label)
    properties = ("num_frames", "fps", "duration", "height", "width", "codec")
    return [
        {
            "path": path,
            "splits": sorted(splits[path], key=SPLITS.index),
            "labels": sorted(labels[path]),
            "ok": isinstance(info, VideoInfo),
            **{name: getattr(info, name, None) for name in properties},
        }
        for path, info in infos.items()
    ]


def _leaks(items: Sequence[Item], keys: Mapping[str, str]) -> list[dict]:
    """The same file, content or group in two splits; the same content only for different files."""
    leaks = []
    for kind, key in {**LEAK_KEYS, "content": lambda item: keys.get(item.path)}.items():
        for name, splits, members in find_leaks(items, key):
            paths = list(dict.fromkeys(item.path for item in members))
            if kind == "content":
                if len({os.path.realpath(path) for path in paths}) == 1:
                    continue
                name = paths[0]
            first_of_split = [next(item.path for item in members if item.split == split) for split in splits]
            examples = list(dict.fromkeys([*first_of_split, *paths]))[:_MAX_EXAMPLES]
            leaks.append({"kind": kind, "name": name, "splits": splits, "num_files": len(paths), "paths": examples})
    return leaks


def _conflicts(rows: Sequence[CheckedItem], keys: Mapping[str, str]) -> list[dict]:
    """The same frames with several labels, in one file or in files with the same content."""
    items_of: dict[tuple, list[Item]] = defaultdict(list)
    for item, _, frames in rows:
        span = frames if isinstance(frames, range) else (item.start, item.end)
        items_of[keys.get(item.path) or os.path.realpath(item.path), span].append(item)
    return [
        {
            "labels": sorted({item.label for item in members}),
            "paths": list(dict.fromkeys(item.path for item in members)),
            "start": members[0].start,
            "end": members[0].end,
        }
        for members in items_of.values()
        if len({item.label for item in members}) > 1
    ]


def _class_counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    counts = Counter((item.label, item.split) for item in manifest.items)
    return {name: {split: counts[name, split] for split in SPLITS} for name in manifest.class_names}


def _short(rows: Sequence[CheckedItem], clip: ClipSpec) -> list[dict]:
    """Items with fewer frames than a clip spans, both counted on the clip's timeline."""
    short = []
    for item, info, frames in rows:
        if isinstance(info, VideoInfo) and isinstance(frames, range):
            timeline, fps = sampling.timeline(frames, clip, info)
            span = sampling.clip_span(sampling.resolve_num_frames(clip, len(timeline), fps), fps)
            if len(timeline) < span:
                location = {"path": item.path, "start": item.start, "end": item.end}
                short.append({**location, "num_frames": len(timeline), "span": span})
    return short


def _odd_files(infos: Infos) -> dict:
    good = {path: info for path, info in infos.items() if isinstance(info, VideoInfo)}
    median_duration = median(info.duration for info in good.values()) if good else None
    return {
        "median_duration": median_duration,
        "durations": [
            {"path": path, "duration": info.duration}
            for path, info in good.items()
            if median_duration is not None
            and not median_duration / ODD_DURATION <= info.duration <= median_duration * ODD_DURATION
        ],
        "sizes": dict(Counter(f"{info.width}x{info.height}" for info in good.values()).most_common()),
        "damaged": [
            {"path": path, "num_damaged": info.num_damaged, "num_frames": info.num_frames}
            for path, info in good.items()
            if info.num_damaged
        ],
        "fps": dict(Counter(f"{round(info.fps, 2):g}" for info in good.values()).most_common()),
    }


def _shortcuts(rows: Sequence[CheckedItem], keys: Mapping[str, str]) -> list[dict]:
    """Shortcuts among the readable items. Copies and parts of one video form a group."""
    good = [
        (item, info, frames) for item, info, frames in rows if isinstance(info, VideoInfo) and isinstance(frames, range)
    ]
    return find_shortcuts(
        infos=[info for _, info, _ in good],
        lengths=[len(frames) for _, _, frames in good],
        labels=[item.label for item, _, _ in good],
        groups=[
            ("file", keys.get(item.path, item.path)) if item.group is None else ("group", item.group)
            for item, _, _ in good
        ],
    )
