"""Manifest: the videos of a data set with their labels and splits; reading, writing and validating it."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stvid.errors import InputError, listing, nearest
from stvid.files import replacing

log = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")
COLUMNS = ("path", "label", "split", "start", "end", "group")
_TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names that are not UTF-8 survive a round trip
_NEEDS_QUOTES = re.compile(r'[",\r\n]|\A\s|\s\Z')


@dataclass(frozen=True, kw_only=True)
class Item:
    """One labelled video, or the part of it between `start` and `end`.

    Attributes:
        path: absolute path of the file.
        label: class name.
        split: `train`, `val` or `test`.
        start: start time in seconds, inclusive; None: the beginning of the file.
        end: end time in seconds, exclusive; None: the end of the file.
        group: items of one group (a person, a scene, a source video) stay in one split; None if unknown.
    """

    path: str
    label: str
    split: str
    start: float | None = None
    end: float | None = None
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Items in a fixed order, and the class names in the order of the model's outputs."""

    items: tuple[Item, ...]
    class_names: tuple[str, ...]

    def select(self, split: str) -> tuple[Item, ...]:
        """The items of one split, in the manifest's order; may be empty."""
        return tuple(item for item in self.items if item.split == split)

    def write_csv(self, path: str | os.PathLike) -> None:
        """Writes `path,label,split,start,end,group` atomically; videos below the file's folder get relative paths.

        `read_csv` returns the same items, also for file names that are not UTF-8. It returns the same classes if it
        gets the same `class_names`.
        """
        path = Path(path).absolute()
        with replacing(path) as partial, partial.open("w", newline="", **_TEXT) as file:
            file.write(_csv_line(COLUMNS))
            for item in self.items:
                video = Path(item.path)
                name = video.relative_to(path.parent).as_posix() if video.is_relative_to(path.parent) else video
                cells = (name, item.label, item.split, item.start, item.end, item.group)
                file.write(_csv_line(["" if cell is None else str(cell) for cell in cells]))

    @classmethod
    def read_csv(
        cls, path: str | os.PathLike, *, class_names: Sequence[str] | None = None, allow_new_classes: bool = False
    ) -> Manifest:
        """Reads a CSV table with a header; `path`, `label` and `split` are required, `start`, `end`, `group` optional.

        Spaces after a comma are ignored, spaces within quotes are not.

        Args:
            path: the CSV file; relative video paths are relative to its folder.
            class_names: the order of the classes; required if the labels are numbers (label `i` is then
                `class_names[i]`). Without it, the classes are the sorted labels.
            allow_new_classes: append labels that are not in `class_names` as new classes instead of raising.

        Raises:
            InputError: file or column missing, a duplicate column, unknown split or class, invalid times, or numeric
                labels without names.
        """
        path = Path(path).absolute()
        rows = _read_rows(path)
        labels = [row["label"] for row in rows]
        labels = _class_labels(labels, class_names, where=str(path), allow_new_classes=allow_new_classes)
        items = tuple(
            _item(row, label, where=f"{path}, line {number}", folder=path.parent)
            for number, (row, label) in enumerate(zip(rows, labels, strict=True), start=2)
        )
        known = tuple(class_names or ())
        return cls(items=items, class_names=known + tuple(sorted(set(labels) - set(known))))


def _csv_line(cells: Sequence[str]) -> str:
    """A row of a table. Cells that start or end with a space are quoted, which `csv.writer` does not do."""
    quoted = ['"' + cell.replace('"', '""') + '"' if _NEEDS_QUOTES.search(cell) else cell for cell in cells]
    return ",".join(quoted) + "\r\n"


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise InputError(f"manifest {path} does not exist")
    try:
        with path.open(newline="", **{**_TEXT, "encoding": "utf-8-sig"}) as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            header = reader.fieldnames or []
            rows = [{key: value or "" for key, value in row.items() if key} for row in reader]
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV file: {error}") from error
    duplicates = [column for column in COLUMNS if header.count(column) > 1]
    if duplicates:
        raise InputError(f"{path} has two columns named {duplicates[0]}. Remove or rename one of them")
    missing = [column for column in COLUMNS[:3] if column not in header]
    if missing:
        raise InputError(
            f"{path} has the columns {', '.join(header) or '(none)'}; missing: {', '.join(missing)}. "
            "The first line must be path,label,split[,start,end,group]"
        )
    if not rows:
        raise InputError(f"{path} lists no videos: it has only a header line")
    return rows


def are_numbers(labels: Iterable[str]) -> bool:
    """Whether all labels are numbers: `read_csv` reads them as indices into `class_names` unless they are names."""
    return all(label.isdecimal() for label in labels)  # isdecimal: "²" is a digit, but `int` cannot read it


def _class_labels(
    labels: list[str], class_names: Sequence[str] | None, *, where: str, allow_new_classes: bool
) -> list[str]:
    """Labels as class names, checked against `class_names` if given."""
    numeric = are_numbers(labels)
    if class_names is None:
        if numeric:
            raise InputError(
                f"{where}: the labels are numbers ({', '.join(sorted(set(labels))[:5])} ...), without names. "
                "Name the classes in order: data.class_names=[first,second,...]"
            )
        return labels
    if numeric and not set(labels) <= set(class_names):
        too_large = [label for label in labels if int(label) >= len(class_names)]
        if too_large:
            raise InputError(
                f"{where}: label {too_large[0]}, but data.class_names has {len(class_names)} names (from 0)"
            )
        return [class_names[int(label)] for label in labels]
    for number, label in enumerate(labels, start=2):
        if label not in class_names and not allow_new_classes:
            raise InputError(f"{where}, line {number}: unknown class {label!r}{nearest(label, class_names)}")
    return labels


def _item(row: dict[str, str], label: str, *, where: str, folder: Path) -> Item:
    if not row["path"] or not label:
        raise InputError(f"{where}: path or label is empty")
    if row["split"] not in SPLITS:
        raise InputError(f"{where}: split is {row['split']!r}, must be one of {', '.join(SPLITS)}")
    start, end = (_seconds(row.get(name, ""), name, where) for name in ("start", "end"))
    if end is not None and end <= (start or 0.0):
        raise InputError(f"{where}: end (={end} s) must be after start (={start or 0.0} s)")
    return Item(
        path=str((folder / row["path"]).absolute()),
        label=label,
        split=row["split"],
        start=start,
        end=end,
        group=row.get("group") or None,
    )


def _seconds(cell: str, name: str, where: str) -> float | None:
    if not cell:
        return None
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < float("inf"):
        raise InputError(f"{where}: {name} is {cell!r}, must be seconds, 0 or more")
    return value


def validate(manifest: Manifest, *, allow_leaks: bool = False) -> Manifest:
    """Returns the manifest, or raises if it cannot be used for training and testing.

    Args:
        manifest: the manifest of a layout.
        allow_leaks: allow the same file or group in two splits.

    Raises:
        InputError: no training videos, fewer than two classes, no existing file, a class without training videos, or
            the same file or group in two splits.
    """
    if not manifest.select("train"):
        raise InputError("the data set has no training videos: no item has split 'train'")
    if len(manifest.class_names) < 2:
        raise InputError(
            f"the data set has only one class, {manifest.class_names[0]!r}; a classifier needs at least two. All "
            f"{len(manifest.items)} videos have this label, the first: {manifest.items[0].path}. Check data.root or "
            "the label column"
        )
    if not any(os.path.exists(item.path) for item in manifest.items):
        raise InputError(
            f"none of the {len(manifest.items)} videos exist, the first: {manifest.items[0].path}. "
            "Relative paths in a manifest are relative to its folder"
        )
    for split in SPLITS:
        labels = {item.label for item in manifest.select(split)}
        absent = [name for name in manifest.class_names if name not in labels]
        if absent and split == "train":
            raise InputError(f"split 'train' has no videos of: {listing(absent)}. Every class needs at least one")
        if absent and labels:
            log.warning("split %r has no videos of: %s; it cannot measure these classes", split, listing(absent))
    if not allow_leaks:
        _check_leaks(manifest)
    return manifest


def _check_leaks(manifest: Manifest) -> None:
    for kind, key in LEAK_KEYS.items():
        leaks = find_leaks(manifest.items, key)
        if leaks:
            name, splits, _ = leaks[0]
            raise InputError(
                f"{len(leaks)} {kind}(s) are in more than one split, so the accuracy on held-out videos would be too "
                f"high; the first: {name} in {', '.join(splits)}. Correct the splits, or set data.allow_leaks=true"
            )


# what must be in one split only
LEAK_KEYS: Mapping[str, Callable[[Item], str | None]] = {
    "file": lambda item: os.path.realpath(item.path),
    "group": lambda item: item.group,
}


class Leak(NamedTuple):
    """A file, group or content that is in several splits."""

    name: str
    splits: list[str]  # sorted, at least two
    items: list[Item]


def find_leaks(items: Sequence[Item], key: Callable[[Item], str | None]) -> list[Leak]:
    """Every value of `key` with items in more than one split, in the items' order; items with key None are ignored."""
    items_of: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        name = key(item)
        if name is not None:
            items_of[name].append(item)
    leaks = (Leak(name, sorted({item.split for item in members}), members) for name, members in items_of.items())
    return [leak for leak in leaks if len(leak.splits) > 1]


def read_manifest(*, path: str, class_names: Sequence[str] | None = None) -> Manifest:
    """Reads a CSV table path,label,split[,start,end,group], times in seconds. See `Manifest.read_csv`.

    Args:
        path: the table; relative video paths are relative to its folder.
        class_names: the order of the classes; required if the labels are numbers.

    Raises:
        InputError: see `Manifest.read_csv`.
    """
    return Manifest.read_csv(Path(str(path)).expanduser(), class_names=class_names)
