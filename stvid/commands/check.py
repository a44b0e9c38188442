"""`stvid check`: decodes every video of a data set and prints what is wrong with it."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from stvid.data.check import check_videos, is_bad
from stvid.data.loading import probe_cache
from stvid.data.manifest import SPLITS
from stvid.errors import REASONS
from stvid.files import write_json
from stvid.run.config import compose_data_set

MOST = 20  # paths under one heading
MOST_CLASSES = 30  # rows of the table; of more classes, only both ends are shown
UNBALANCED = 2  # times as many training videos in the largest class as in the smallest
_SHORT = {
    "repeat_last": "their last frame stands still (clip.short=repeat_last)",
    "wrap": "their frames are repeated in order (clip.short=wrap)",
    "pad": "their clips are shorter (clip.short=pad)",
    "error": "training will refuse them (clip.short=error)",
}
Shown = Callable[[str], str]  # how a path is written


def check_text(report: dict) -> str:
    """The report of `check_videos` for a person: headline, then what is wrong, then what is worth a look.

    A data set in which all is well takes a few lines and a table of its classes. Paths are written as below the
    folder that all have in common.
    """
    root = _root([file["path"] for file in report["files"]])

    def shown(path: str) -> str:
        return os.path.relpath(path, root) if root else path

    sections = [
        _headline(report, root),
        _bad(report, shown),
        _leaks(report, shown),
        _conflicts(report, shown),
        _duplicates(report, shown),
        _classes(report["class_counts"]),
        _damaged(report["odd"]["damaged"], shown),
        _short(report, shown),
        _durations(report["odd"], shown),
        _shortcuts(report["shortcuts"]),
    ]
    text = "\n\n".join("\n".join(lines) for lines in sections if lines)
    return text.encode("utf-8", "backslashreplace").decode()  # names that are not UTF-8 can be printed too


def _root(paths: Sequence[str]) -> str | None:
    try:
        common = os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # no files, or on several drives
        return None
    return common if common != Path(common).anchor else None


def _headline(report: dict, root: str | None) -> list[str]:
    files, items, odd = report["num_files"], report["num_items"], report["odd"]
    what = f"{_count(files, 'file')}, {_count(items, 'labelled video')}" if items != files else _count(files, "video")
    lines = [f"{what}: {report['num_bad']} cannot be used" if report["num_bad"] else f"{what}: every frame decodes"]
    names = {"leaks": "leaks", "conflicts": "contradicting labels", "duplicates": "copies", "shortcuts": "shortcuts"}
    absent = [name for key, name in names.items() if not any(_is_found(one) for one in report[key])]
    if absent:
        lines.append(f"not found   {', '.join(absent)}")
    if root:
        lines.append(f"folder      {root}")
    for key, title, unit in (("sizes", "pixels", ""), ("fps", "frame rate", " frames/s")):
        if odd[key]:
            lines.append(f"{title:<10}  {_most_common(odd[key], unit)}")
    durations = [file["duration"] for file in report["files"] if file["ok"]]
    if durations:
        low, high = min(durations), max(durations)
        span = f"{low:.3g} s" if low == high else f"{low:.3g} to {high:.3g} s, median {odd['median_duration']:.3g} s"
        lines.append(f"duration    {span}")
    return lines


def _is_found(one: dict | list) -> bool:
    return not isinstance(one, dict) or one.get("suspicious", True)


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("s" if number != 1 else "")


def _most_common(counts: dict[str, int], unit: str) -> str:
    if len(counts) == 1:
        return next(iter(counts)) + unit
    few = ", ".join(f"{value}{unit} ({_count(number, 'file')})" for value, number in list(counts.items())[:3])
    return few if len(counts) <= 3 else f"{len(counts)} different; most often {few}"


def _listed(lines: Iterable[str], *, most: int = MOST) -> list[str]:
    lines = list(lines)
    more = [f"and {len(lines) - most} more: see --json"] if len(lines) > most else []
    return [f"  {line}" for line in lines[:most] + more]


def _bad(report: dict, shown: Shown) -> list[str]:
    if not report["bad"]:
        return []
    counts = Counter(one["reason"] for one in report["bad"])
    width = max(len(reason) for reason in counts)
    lines = [f"{'problem':<{width}}  videos", *(f"{r:<{width}}  {counts[r]:>6}" for r in REASONS if counts[r])]
    for reason in REASONS:
        if counts[reason]:
            found = [one for one in report["bad"] if one["reason"] == reason]
            lines += ["", f"{reason}:", *_listed(_with_detail(one, shown) for one in found)]
    return [
        *lines,
        "",
        "Mend them or take them out of the data set. Training leaves them out and says so, up to data.max_bad of all;",
        "in an evaluation they count as wrong.",
    ]


def _with_detail(one: dict, shown: Shown) -> str:
    detail = re.sub(r"\[Errno \d+\] |: '.*'$", "", " ".join(one["detail"].split()))  # the path is there already
    return shown(one["path"]) + (f"   ({detail})" if detail else "")


def _leaks(report: dict, shown: Shown) -> list[str]:
    lines = []
    for kind in ("file", "content", "group"):
        leaks = [leak for leak in report["leaks"] if leak["kind"] == kind]
        if leaks:
            what = {"file": "the same file", "content": "copies of the same video", "group": "the same group"}[kind]
            lines += [f"leaks: {what} in more than one split ({len(leaks)})"]
            lines += _listed(
                f"{leak['name'] + ' in ' if kind == 'group' else ''}{', '.join(leak['splits'])}: "
                f"{_few(leak['paths'], leak['num_files'], shown)}"
                for leak in leaks
            )
    return [*lines, "Numbers on held-out videos would be too good. Keep each in one split."] if lines else []


def _few(paths: Sequence[str], total: int, shown: Shown, most: int = 3) -> str:
    names = [shown(path) for path in paths[:most]]
    return ", ".join(names) + (f" and {total - len(names)} more" if total > len(names) else "")


def _conflicts(report: dict, shown: Shown) -> list[str]:
    if not report["conflicts"]:
        return []

    def line(one: dict) -> str:
        part = "" if one["start"] is None and one["end"] is None else f" from {one['start'] or 0:g} s"
        part += "" if one["end"] is None else f" to {one['end']:g} s"
        return f"{' / '.join(one['labels'])}: {_few(one['paths'], len(one['paths']), shown)}{part}"

    return [
        f"the same video under several labels ({len(report['conflicts'])})",
        *_listed(line(one) for one in report["conflicts"]),
        "A model knows one label a video: keep the right one, or give each its part of the file (start, end).",
    ]


def _duplicates(report: dict, shown: Shown) -> list[str]:
    if not report["duplicates"]:
        return []
    return [
        f"copies of the same video under several names ({len(report['duplicates'])})",
        *_listed(" = ".join(shown(path) for path in paths) for paths in report["duplicates"]),
        "Each copy counts once more in training and in every number. Keep one.",
    ]


def _classes(counts: dict[str, dict[str, int]]) -> list[str]:
    if not counts:
        return []
    splits = [split for split in SPLITS if any(one[split] for one in counts.values())]
    rows = [(name, [str(one[split]) for split in splits]) for name, one in counts.items()]
    if len(rows) > MOST_CLASSES:
        rows = sorted(rows, key=lambda row: -counts[row[0]]["train"])
        rows = [*rows[:5], (f"... {len(rows) - 10} more", [""] * len(splits)), *rows[-5:]]
    rows.append(("all", [str(sum(one[split] for one in counts.values())) for split in splits]))
    width = max(len("class"), *(len(name) for name, _ in rows))
    lines = [
        f"{name:<{width}}" + "".join(f"  {cell:>6}" for cell in cells) for name, cells in [("class", splits), *rows]
    ]
    for split in splits:
        absent = [repr(name) for name, one in counts.items() if not one[split]]
        if absent:
            refused = " Training refuses that." if split == "train" else ""
            lines.append(f"No videos in {split}: {', '.join(absent[:MOST])}.{refused}")
    train = {name: one["train"] for name, one in counts.items()}
    largest, smallest = max(train, key=train.get), min(train, key=train.get)
    if train[largest] > UNBALANCED * train[smallest] > 0:
        lines.append(
            f"In train, {largest!r} has {train[largest] / train[smallest]:.1f} times as many videos as {smallest!r}: "
            "data.balance=classes draws every class equally often."
        )
    return [line.rstrip() for line in lines]


def _short(report: dict, shown: Shown) -> list[str]:
    short, clip = report["odd"]["short"], report["clip"]
    if not short:
        return []
    rate = f"stride {clip['frame_stride']}" if clip["fps"] is None else f"{clip['fps']:g} a second"
    lines = sorted(short, key=lambda one: one["num_frames"] - one["span"])
    return [
        f"shorter than one clip ({clip['num_frames']} frames, {rate}): {len(short)} of "
        f"{_count(report['num_items'], 'video')}; {_SHORT[clip['short']]}",
        *_listed((f"{shown(one['path'])}   {one['num_frames']} frames of {one['span']}" for one in lines), most=5),
        "A smaller clip.num_frames or clip.frame_stride makes them fit.",
    ]


def _damaged(damaged: Sequence[dict], shown: Shown) -> list[str]:
    if not damaged:
        return []
    return [
        f"{_count(len(damaged), 'file')} with damage that the decoder conceals; what it makes up is no fact",
        *_listed(f"{shown(one['path'])}   {one['num_damaged']} frames of {one['num_frames']}" for one in damaged),
    ]


def _durations(odd: dict, shown: Shown) -> list[str]:
    if not odd["durations"]:
        return []
    found = sorted(odd["durations"], key=lambda one: -one["duration"])
    return [
        f"{_count(len(found), 'file')} of odd duration: over 4 times from the median, {odd['median_duration']:.3g} s",
        *_listed((f"{shown(one['path'])}   {one['duration']:.3g} s" for one in found), most=5),
    ]


def _shortcuts(shortcuts: Sequence[dict]) -> list[str]:
    found = sorted((one for one in shortcuts if one["suspicious"]), key=lambda one: -one["accuracy"])
    if not found:
        return []
    names = [" and ".join(one["features"]) + (" together" if len(one["features"]) > 1 else " alone") for one in found]
    width = max(map(len, names))

    def row(name: str, share: float, words: str = "") -> str:
        return f"  {name:<{width}}  {100 * share:>3.0f} %{words}"

    return [
        "shortcuts: the class is predicted without a look at the pictures, from similar files of other groups, by",
        *(row(name, one["accuracy"], " of the videos") for name, one in zip(names, found, strict=True)),
        row("chance", found[0]["chance"]),
        "A model may learn the camera, or the way the videos were cut, instead of the action. Compare it with these",
        "numbers, not with chance, and test it on videos from elsewhere; better, record and cut all classes alike.",
    ]


def run(options: argparse.Namespace) -> None:
    manifest, clip, workers, timeout = compose_data_set(options.overrides)
    report = check_videos(
        manifest,
        clip=clip,
        num_workers=workers,
        cache=probe_cache(manifest),
        timeout=timeout,
        progress=sys.stderr.isatty(),
    )
    if options.json:
        write_json(options.json, report)
    print(check_text(report))
    if is_bad(report):
        raise SystemExit(1)
