"""`data=ssv2`: Something-Something v2 with its official labels.

Goyal et al.: The "something something" video database for learning and evaluating visual common sense, ICCV 2017.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from stvid.data.layouts.discovery import (
    assemble,
    existing_folder,
    find_files,
    find_videos,
    index,
    nearest_files,
    read_lines,
    tell_absent,
)
from stvid.data.manifest import Item, Manifest
from stvid.errors import InputError, nearest

FILES = {"train": "train.json", "val": "validation.json", "labels": "labels.json", "answers": "test-answers.csv"}
PREFIX = "something-something-v2-"


def ssv2(*, root: str) -> Manifest:
    """`ID.webm` (or another extension) and the label files anywhere below the root.

    The label files are `train.json`, `validation.json` and `labels.json`, or the same with `something-something-v2-`
    before it. A video's class is its template without brackets; classes stand in the order of `labels.json`, where
    each has its index. Test videos are those of `test-answers.csv` (`id;class`); without it there is no test split.
    Listed videos that are absent are left out and told.

    Args:
        root: the folder.

    Raises:
        InputError: no such folder, a label file that is missing, stands there twice or has another form, a class that
            is not in `labels.json`, none of the videos of train or val.
    """
    root = existing_folder(root)
    files = _label_files(root)
    class_names = _class_names(files["labels"])
    listed = {split: _entries(files[split]) for split in ("train", "val")}
    if "answers" in files:
        listed["test"] = _answers(files["answers"])
    videos = index(find_videos(root), lambda path: path.stem, root=root)
    items = []
    for split, entries in listed.items():
        lists = files["answers" if split == "test" else split]
        for name, label in entries:
            if label not in class_names:
                raise InputError(f"{lists}, video {name}: unknown class {label!r}{nearest(label, class_names)}")
        absent = [name for name, _ in entries if name not in videos]
        tell_absent(absent, listed=len(entries), split=split, lists=lists, root=root)
        items += [Item(path=str(videos[name]), label=label, split=split) for name, label in entries if name in videos]
    how = "official splits" + ("" if "test" in listed else "; no test-answers.csv, so no test split")
    return assemble(root, items, how=how, class_names=class_names)


def _label_files(root: Path) -> dict[str, Path]:
    """What a file says -> the file, the one nearest to the root."""
    role_of = {prefix + name: role for role, name in FILES.items() for prefix in ("", PREFIX)}
    files = nearest_files([(role_of[path.name], path) for path in find_files(root, role_of.__contains__)], root=root)
    missing = [FILES[role] for role in ("train", "val", "labels") if role not in files]
    if missing:
        there = ", ".join(str(path.relative_to(root)) for path in files.values()) or "none of the label files"
        raise InputError(
            f"no {', '.join(missing)} (nor {PREFIX}{missing[0]}) anywhere below data.root {root}; there is {there}. "
            "Unpack the label files of Something-Something v2 there"
        )
    return files


def _read_json(path: Path, kind: type) -> list | dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(content, kind):
        raise InputError(f"{path} must hold a JSON {'list of videos' if kind is list else 'object class -> index'}")
    return content


def _without_brackets(template: str) -> str:
    return template.replace("[", "").replace("]", "").strip()


def _class_names(path: Path) -> list[str]:
    indices = _read_json(path, dict)
    try:
        names = [_without_brackets(name) for name in sorted(indices, key=lambda name: int(indices[name]))]
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: every class must have its index, a whole number: {error}") from error
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise InputError(f"{path}: the class {twice[0]!r} stands there twice")
    return names


def _entries(path: Path) -> list[tuple[str, str]]:
    """(id, class) of each video."""
    entries = []
    for number, entry in enumerate(_read_json(path, list)):
        if not isinstance(entry, dict) or not entry.get("id") or not entry.get("template"):
            raise InputError(f"{path}, entry {number}: must have an id and a template, is {entry}")
        entries.append((str(entry["id"]), _without_brackets(entry["template"])))
    if not entries:
        raise InputError(f"{path} lists no videos")
    return entries


def _answers(path: Path) -> list[tuple[str, str]]:
    answers = []
    for where, line in read_lines(path):
        name, found, label = line.partition(";")
        if not found:
            raise InputError(f"{where}: {line!r} is not ID;CLASS")
        answers.append((name.strip(), _without_brackets(label)))
    return answers
