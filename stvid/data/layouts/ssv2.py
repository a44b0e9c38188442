"""`data=ssv2`: Something-Something v2 with its official labels.

Goyal et al.: The "something something" video database for learning and evaluating visual common sense, ICCV 2017.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from stvid.data.layouts.discovery import (
    build_manifest,
    find_files,
    find_videos,
    index_videos,
    nearest_files,
    read_lines,
    resolve_folder,
    warn_missing,
)
from stvid.data.manifest import Item, Manifest
from stvid.errors import InputError, nearest

FILES = {"train": "train.json", "val": "validation.json", "labels": "labels.json", "answers": "test-answers.csv"}
PREFIX = "something-something-v2-"


def ssv2(*, root: str) -> Manifest:
    """`ID.webm` (or another extension) and the label files anywhere below the root.

    The label files are `train.json`, `validation.json` and `labels.json`, optionally with the prefix
    `something-something-v2-`. A video's class is its template without brackets; classes are in the order of
    `labels.json`. Test videos are those of `test-answers.csv` (`id;class`); without it there is no test split. Missing
    videos are left out with a warning.

    Args:
        root: the folder.

    Raises:
        InputError: no such folder, a missing, ambiguous or invalid label file, a class that is not in `labels.json`, no
            videos of train or val.
    """
    folder = resolve_folder(root)
    files = _find_label_files(folder)
    class_names = _class_names(files["labels"])
    listed = {split: _read_entries(files[split]) for split in ("train", "val")}
    if "answers" in files:
        listed["test"] = _read_answers(files["answers"])
    videos = index_videos(find_videos(folder), lambda path: path.stem, root=folder)
    items = []
    for split, entries in listed.items():
        lists = files["answers" if split == "test" else split]
        for name, label in entries:
            if label not in class_names:
                raise InputError(f"{lists}, video {name}: unknown class {label!r}{nearest(label, class_names)}")
        missing = [name for name, _ in entries if name not in videos]
        warn_missing(missing, num_listed=len(entries), split=split, lists=lists, root=folder)
        items += [Item(path=str(videos[name]), label=label, split=split) for name, label in entries if name in videos]
    split_source = "official splits" + ("" if "test" in listed else "; no test-answers.csv, so no test split")
    return build_manifest(folder, items, split_source=split_source, class_names=class_names)


def _find_label_files(root: Path) -> dict[str, Path]:
    """Role (a key of `FILES`) -> the file nearest to the root."""
    role_of = {prefix + name: role for role, name in FILES.items() for prefix in ("", PREFIX)}
    files = nearest_files([(role_of[path.name], path) for path in find_files(root, role_of.__contains__)], root=root)
    missing = [FILES[role] for role in ("train", "val", "labels") if role not in files]
    if missing:
        existing = ", ".join(str(path.relative_to(root)) for path in files.values()) or "none of the label files"
        raise InputError(
            f"no {', '.join(missing)} (nor {PREFIX}{missing[0]}) anywhere below data.root {root}; it has {existing}. "
            "Unpack the label files of Something-Something v2 there"
        )
    return files


def _read_json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(content, kind):
        raise InputError(f"{path} must contain a JSON {'list of videos' if kind is list else 'object class -> index'}")
    return content


def _without_brackets(template: str) -> str:
    return template.replace("[", "").replace("]", "").strip()


def _class_names(path: Path) -> list[str]:
    indices = _read_json(path, dict)
    try:
        names = [_without_brackets(name) for name in sorted(indices, key=lambda name: int(indices[name]))]
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: every class needs an index, a whole number: {error}") from error
    duplicates = [name for name, number in Counter(names).items() if number > 1]
    if duplicates:
        raise InputError(f"{path}: the class {duplicates[0]!r} is listed twice")
    return names


def _read_entries(path: Path) -> list[tuple[str, str]]:
    """(id, class) of each video."""
    entries = []
    for number, entry in enumerate(_read_json(path, list)):
        if not isinstance(entry, dict) or not entry.get("id") or not entry.get("template"):
            raise InputError(f"{path}, entry {number}: must have an id and a template, but is {entry}")
        entries.append((str(entry["id"]), _without_brackets(entry["template"])))
    if not entries:
        raise InputError(f"{path} lists no videos")
    return entries


def _read_answers(path: Path) -> list[tuple[str, str]]:
    answers = []
    for where, line in read_lines(path):
        name, separator, label = line.partition(";")
        if not separator:
            raise InputError(f"{where}: {line!r} is not ID;CLASS")
        answers.append((name.strip(), _without_brackets(label)))
    return answers
