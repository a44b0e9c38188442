"""`stvid check`: decodes every video of a data set and prints what is wrong with it."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from stvid.commands.check_groups import groups_section
from stvid.commands.check_parts import check_part, merge_checks
from stvid.commands.part_options import find_parts, part_text
from stvid.data.check import check_videos, is_bad
from stvid.data.loading import probe_cache
from stvid.data.manifest import SPLITS
from stvid.errors import REASONS, VideoError, listing
from stvid.files import write_json
from stvid.run.data_set import compose_data_set
from stvid.terminal import aligned, show, visible

MAX_LINES = 20  # paths in one section
MAX_CLASSES = 30  # rows of the table; a longer table shows both ends
UNBALANCED = 2  # ratio of the training videos of the largest and the smallest class, above which there is a hint
SHORT_POLICIES = {
    "repeat_last": "their last frame is repeated (clip.short=repeat_last)",
    "wrap": "they start again from the first frame (clip.short=wrap)",
    "pad": "their clips are shorter (clip.short=pad)",
    "error": "training refuses them (clip.short=error)",
}
LEAK_KINDS = {"file": "the same file", "content": "copies of the same video", "group": "the same group"}
SECTIONS = {
    "leaks": "leaks",
    "conflicts": "contradicting labels",
    "duplicates": "copies",
    "shortcuts": "shortcuts",
}
Shorten = Callable[[str], str]  # path -> path as it is printed


def run(options: argparse.Namespace) -> None:
    manifest, clip, workers, limits = compose_data_set(options.overrides, options.data_set)
    cache = probe_cache(manifest)
    known: Mapping[str, VideoError] | None = None
    parts = find_parts(options, manifest)
    if parts is not None and options.part is not None:
        check_part(parts, options.part, manifest, cache=cache, num_workers=workers, limits=limits)
        show(part_text(options))
        return
    if parts is not None:
        cache, known = merge_checks(parts, manifest, cache)
    report = check_videos(
        manifest,
        clip=clip,
        num_workers=workers,
        cache=cache,
        **limits,
        progress=sys.stderr.isatty(),
        known=known,
    )
    if options.json:
        write_json(options.json, report)
    show(check_text(report))
    if parts is not None:
        parts.remove()
    if is_bad(report):
        raise SystemExit(1)


def check_text(report: dict) -> str:
    """The report of `check_videos` as text: a summary, then errors, then warnings.

    A data set without problems takes a few lines and a table of its classes. Paths are relative to the folder that
    all files have in common.
    """
    root = _common_folder([file["path"] for file in report["files"]])

    def shorten(path: str) -> str:
        return visible(os.path.relpath(path, root) if root else path)

    sections = [
        _summary(report, root),
        _bad_videos(report["bad"], shorten),
        _leaks(report["leaks"], shorten),
        groups_section(report["groups"], shorten),
        _similar_classes(report["similar_classes"]),
        _conflicts(report["conflicts"], shorten),
        _duplicates(report["duplicates"], shorten),
        _classes(report["class_counts"]),
        _damaged_videos(report["odd"]["damaged"], shorten),
        _short_videos(report, shorten),
        _unusual_durations(report["odd"], shorten),
        _shortcuts(report["shortcuts"]),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _common_folder(paths: Sequence[str]) -> str | None:
    try:
        common = os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # no files, or on several drives
        return None
    return common if common != Path(common).anchor else None


def _summary(report: dict, root: str | None) -> list[str]:
    num_files, num_items, odd = report["num_files"], report["num_items"], report["odd"]
    size = _count(num_files, "video")
    if num_items != num_files:
        size = f"{_count(num_files, 'file')}, {_count(num_items, 'labelled video')}"
    lines = [f"{size}: {report['num_bad']} cannot be used" if report["num_bad"] else f"{size}: every frame decodes"]
    titles = SECTIONS | ({"leaks": "copies in several splits"} if report["groups"]["num_unnamed"] else {})
    not_found = [title for key, title in titles.items() if not _has_findings(report[key])]
    if not_found:
        lines.append(f"not found   {', '.join(not_found)}")
    if root:
        lines.append(f"folder      {visible(root)}")
    if odd["sizes"]:
        lines.append(f"pixels      {_most_common(odd['sizes'], '')}")
    if odd["fps"]:
        lines.append(f"frame rate  {_most_common(odd['fps'], ' frames/s')}")
    durations = [file["duration"] for file in report["files"] if file["ok"]]
    if durations:
        low, high = min(durations), max(durations)
        extent = f"{low:.3g} s" if low == high else f"{low:.3g} to {high:.3g} s, median {odd['median_duration']:.3g} s"
        lines.append(f"duration    {extent}")
    return lines


def _has_findings(findings: Sequence[dict | list]) -> bool:
    """Whether there is any; a shortcut counts only if it is suspicious."""
    return any(not isinstance(finding, dict) or finding.get("suspicious", True) for finding in findings)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


def _most_common(counts: Mapping[str, int], unit: str) -> str:
    """The values with their numbers of files, at most three of them; `counts` has the most frequent first."""
    if len(counts) == 1:
        return next(iter(counts)) + unit
    first = ", ".join(f"{value}{unit} ({_count(number, 'file')})" for value, number in list(counts.items())[:3])
    return first if len(counts) <= 3 else f"{len(counts)} different; most often {first}"


def _indented(lines: Iterable[str], *, limit: int = MAX_LINES) -> list[str]:
    lines = list(lines)
    more = [f"and {len(lines) - limit} more: see --json"] if len(lines) > limit else []
    return [f"  {line}" for line in lines[:limit] + more]


def _first_paths(paths: Sequence[str], total: int, shorten: Shorten, limit: int = 3) -> str:
    names = [shorten(path) for path in paths[:limit]]
    return ", ".join(names) + (f" and {total - len(names)} more" if total > len(names) else "")


def _bad_videos(bad: Sequence[dict], shorten: Shorten) -> list[str]:
    if not bad:
        return []
    counts = Counter(video["reason"] for video in bad)
    reasons = [reason for reason in REASONS if counts[reason]]
    width = max(map(len, reasons))
    lines = [f"{'problem':<{width}}  videos", *(f"{reason:<{width}}  {counts[reason]:>6}" for reason in reasons)]
    for reason in reasons:
        videos = [video for video in bad if video["reason"] == reason]
        lines += ["", f"{reason}:", *_indented(_path_and_detail(video, shorten) for video in videos)]
    return [
        *lines,
        "",
        "Repair them or remove them from the data set. Training leaves them out and names them, if their share is not",
        "above data.max_bad. In an evaluation they count as wrong.",
    ]


def _path_and_detail(video: dict, shorten: Shorten) -> str:
    detail = re.sub(r"\[Errno \d+\] |: '.*'$", "", " ".join(video["detail"].split()))  # without the path
    return shorten(video["path"]) + (f"   ({visible(detail)})" if detail else "")


def _leaks(leaks: Sequence[dict], shorten: Shorten) -> list[str]:
    lines = []
    for kind, title in LEAK_KINDS.items():
        of_kind = [leak for leak in leaks if leak["kind"] == kind]
        if of_kind:
            lines.append(f"leaks: {title} in more than one split ({len(of_kind)})")
            lines += _indented(_leak_line(leak, shorten) for leak in of_kind)
    return [*lines, "They make results on held-out videos too good. Keep each in one split."] if lines else []


def _leak_line(leak: dict, shorten: Shorten) -> str:
    splits = ", ".join(leak["splits"])
    title = f"{visible(leak['name'])} in {splits}" if leak["kind"] == "group" else splits
    return f"{title}: {_first_paths(leak['paths'], leak['num_files'], shorten)}"


def _similar_classes(similar: Sequence[Sequence[str]]) -> list[str]:
    if not similar:
        return []
    return [
        "classes that differ only in case, blanks, underscores or Unicode form; training refuses them",
        *_indented(" = ".join(map(ascii, names)) for names in similar),
        "Write each class in one way, or, if they are different classes, set data.allow_similar_classes=true.",
    ]


def _conflicts(conflicts: Sequence[dict], shorten: Shorten) -> list[str]:
    if not conflicts:
        return []
    return [
        f"the same video with several labels ({len(conflicts)})",
        *_indented(_conflict_line(conflict, shorten) for conflict in conflicts),
        "A video has one label: keep the right one, or give each label its part of the file (start, end).",
    ]


def _conflict_line(conflict: dict, shorten: Shorten) -> str:
    start, end = conflict["start"], conflict["end"]
    part = "" if start is None and end is None else f" from {start or 0:g} s"
    part += "" if end is None else f" to {end:g} s"
    paths = conflict["paths"]
    return f"{' / '.join(map(visible, conflict['labels']))}: {_first_paths(paths, len(paths), shorten)}{part}"


def _duplicates(duplicates: Sequence[Sequence[str]], shorten: Shorten) -> list[str]:
    if not duplicates:
        return []
    return [
        f"copies of the same video with several names ({len(duplicates)})",
        *_indented(" = ".join(shorten(path) for path in paths) for paths in duplicates),
        "Training and every result count each copy as another video. Keep one.",
    ]


def _classes(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The table of videos by class and split, and hints about classes with few videos or none."""
    if not counts:
        return []
    splits = [split for split in SPLITS if any(of_class[split] for of_class in counts.values())]
    lines = _class_table(counts, splits)
    for split in splits:
        absent = [repr(name) for name, of_class in counts.items() if not of_class[split]]
        if absent:
            hint = " Training refuses that." if split == "train" else ""
            lines.append(f"No videos in {split}: {listing(absent)}.{hint}")
    train = {name: of_class["train"] for name, of_class in counts.items()}
    largest, smallest = max(train, key=lambda name: train[name]), min(train, key=lambda name: train[name])
    if train[largest] > UNBALANCED * train[smallest] > 0:
        lines.append(
            f"In train, {largest!r} has {train[largest] / train[smallest]:.1f} times as many videos as {smallest!r}: "
            "data.balance=classes samples every class equally often."
        )
    return lines


def _class_table(counts: Mapping[str, Mapping[str, int]], splits: Sequence[str]) -> list[str]:
    rows = [(name, [str(of_class[split]) for split in splits]) for name, of_class in counts.items()]
    if len(rows) > MAX_CLASSES:
        rows.sort(key=lambda row: -counts[row[0]]["train"])
        rows = [*rows[:5], (f"... {len(rows) - 10} more", [""] * len(splits)), *rows[-5:]]
    totals = [str(sum(of_class[split] for of_class in counts.values())) for split in splits]
    rows = [("class", list(splits)), *rows, ("all", totals)]
    return aligned([(name, *(f"{cell:>6}" for cell in cells)) for name, cells in rows], left=1).split("\n")


def _short_videos(report: dict, shorten: Shorten) -> list[str]:
    short, clip = report["odd"]["short"], report["clip"]
    if not short:
        return []
    rate = f"stride {clip['frame_stride']}" if clip["fps"] is None else f"{clip['fps']:g} frames/s"
    videos = sorted(short, key=lambda video: video["num_frames"] - video["span"])
    lines = (f"{shorten(video['path'])}   {video['num_frames']} frames of {video['span']}" for video in videos)
    return [
        f"shorter than one clip ({clip['num_frames']} frames, {rate}): {len(short)} of "
        f"{_count(report['num_items'], 'video')}; {SHORT_POLICIES[clip['short']]}",
        *_indented(lines, limit=5),
        "A smaller clip.num_frames or clip.frame_stride makes them fit.",
    ]


def _damaged_videos(damaged: Sequence[dict], shorten: Shorten) -> list[str]:
    if not damaged:
        return []
    lines = (f"{shorten(video['path'])}   {video['num_damaged']} frames of {video['num_frames']}" for video in damaged)
    return [
        f"{_count(len(damaged), 'file')} with damaged frames; the decoder fills them with guesses",
        *_indented(lines),
    ]


def _unusual_durations(odd: dict, shorten: Shorten) -> list[str]:
    if not odd["durations"]:
        return []
    videos = sorted(odd["durations"], key=lambda video: -video["duration"])
    return [
        f"{_count(len(videos), 'file')} with an unusual duration: more than 4 times longer or shorter than the median, "
        f"{odd['median_duration']:.3g} s",
        *_indented((f"{shorten(video['path'])}   {video['duration']:.3g} s" for video in videos), limit=5),
    ]


def _shortcuts(shortcuts: Sequence[dict]) -> list[str]:
    suspicious = [shortcut for shortcut in shortcuts if shortcut["suspicious"]]
    if not suspicious:
        return []
    suspicious.sort(key=lambda shortcut: -shortcut["accuracy"])
    names = [
        " and ".join(shortcut["features"]) + (" together" if len(shortcut["features"]) > 1 else " alone")
        for shortcut in suspicious
    ]
    width = max(map(len, names))

    def row(name: str, share: float, unit: str = "") -> str:
        return f"  {name:<{width}}  {100 * share:>3.0f} %{unit}"

    return [
        "shortcuts: these properties of the files predict the class without the pictures, from files of other groups",
        *(row(name, found["accuracy"], " of the videos") for name, found in zip(names, suspicious, strict=True)),
        row("chance", suspicious[0]["chance"]),
        "A model may learn the camera or the way the videos were cut instead of the action. Compare its accuracy with",
        "these numbers, not with chance. Test it on videos from elsewhere; better, record and cut all classes alike.",
    ]
