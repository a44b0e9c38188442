"""Manifest: the videos of a data set with their labels and splits; reading, writing and validating it."""

from __future__ import annotations

import functools
import logging
import math
import os
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from stvid.checks import collection_paused
from stvid.data.splitting import make_splits
from stvid.data.tables import UTF8, Row, Table, check_utf8, csv_line, is_utf8, join_path, read_table
from stvid.errors import InputError, listing, map_inputs, nearest, raise_mistakes
from stvid.files import replacing
from stvid.video.shard_index import video_exists

log = logging.getLogger(__name__)
MAX_SECONDS = 10**9  # of a time in a video: 30 years
SPLITS = ("train", "val", "test")
NAME_GROUPS = "data.group_pattern or data.group_csv (data=folder, data=frames), or a column group (data=manifest)"
_SPLIT_WORDS = frozenset((*SPLITS, "training", "valid", "validation", "dev", "testing", "eval", "evaluation"))
COLUMNS = ("path", "label", "split", "start", "end", "group")


@dataclass(frozen=True, kw_only=True, slots=True)
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

    def with_paths(self, moved: Mapping[str, str]) -> Manifest:
        """The same items with other paths: old path -> new path; a path that is not in it stays."""
        items = tuple(replace(item, path=moved[item.path]) if item.path in moved else item for item in self.items)
        return replace(self, items=items)

    def select(self, split: str) -> tuple[Item, ...]:
        """The items of one split, in the manifest's order; may be empty."""
        return tuple(item for item in self.items if item.split == split)

    def write_csv(self, path: str | os.PathLike, *, sizes: Mapping[str, int] | None = None) -> None:
        """Writes `path,label,split,start,end,group` atomically; videos below the file's folder get relative paths.

        `sizes` (path of a video -> bytes) adds a column `bytes`, by which the videos are recognised after a move.

        `read_csv` returns the same items, also for file names that are not UTF-8. It returns the same classes if it
        gets the same `class_names`.
        """
        path = Path(path).absolute()
        folder = str(path.parent)
        with replacing(path) as partial, partial.open("w", newline="", **UTF8) as file:
            file.write(csv_line(COLUMNS if sizes is None else (*COLUMNS, "bytes")))
            for item in self.items:
                cells = [_name_below(folder, item.path), item.label, item.split, item.start, item.end, item.group]
                cells += [] if sizes is None else [sizes.get(item.path)]
                file.write(csv_line(["" if cell is None else str(cell) for cell in cells]))

    @classmethod
    @collection_paused()
    def read_csv(
        cls, path: str | os.PathLike, *, class_names: Sequence[str] | None = None, allow_new_classes: bool = False
    ) -> Manifest:
        """Reads a CSV table with a header; `path`, `label` and `split` are required, `start`, `end`, `group` optional.

        Args:
            path: the CSV file; relative video paths are relative to its folder. For its format see `read_table`.
            class_names: the order of the classes; required if the labels are numbers (label `i` is then
                `class_names[i]`). Without it, the classes are the sorted labels.
            allow_new_classes: append labels that are not in `class_names` as new classes instead of raising.

        Raises:
            InputError: not a usable table (see `read_table`), unknown split or class, invalid times, numeric labels
                without names, or text that is not UTF-8, except in names of files and classes that exist.
        """
        table = read_table(path, required=COLUMNS[:3], optional=COLUMNS[3:])
        return cls._from_table(table, class_names, allow_new_classes=allow_new_classes)

    @classmethod
    def _from_table(cls, table: Table, class_names: Sequence[str] | None, *, allow_new_classes: bool) -> Manifest:
        if not table.rows:
            raise InputError(f"{table.path} lists no videos: it has only a header line")
        class_of = _make_class_function(table, class_names, allow_new_classes=allow_new_classes)
        items = map_inputs(lambda row: _item(table, row, class_of, is_new=not class_names), table.rows)
        known = tuple(class_names or ())
        return cls(items=tuple(items), class_names=known + tuple(sorted({item.label for item in items} - set(known))))


_UNUSUAL = re.compile(r"//|/\.|/$")  # a path that pathlib would write in another way


def _name_below(folder: str, path: str) -> str:
    """The path of a video relative to a folder, with slashes, or as it is if it is not below the folder."""
    if os.sep == "/" and path.startswith("/") and path != folder and not _UNUSUAL.search(path):
        return path.removeprefix(f"{folder}/")  # the same, much faster
    video = Path(path)
    return video.relative_to(folder).as_posix() if video.is_relative_to(folder) else str(video)


def _item(table: Table, row: Row, class_of: Callable[[str], str], *, is_new: bool) -> Item:
    """The item of a row.

    Args:
        table: the table.
        row: one of its rows.
        class_of: label -> class name.
        is_new: the table is not one of a run, where names of videos that were deleted may have any bytes.

    Raises:
        InputError: with all mistakes in the row.
    """
    cells, mistakes = row.cells, []
    path, label = join_path(table.folder, cells["path"]), cells["label"]
    try:
        if is_new and not is_utf8(cells["path"]) and not os.path.lexists(path):
            check_utf8(cells["path"], "path")
        label = label and class_of(label)
    except InputError as error:
        mistakes.append(str(error))
    if not cells["path"] or not label:
        mistakes.append("path or label is empty")
    split = cells.get("split", SPLITS[0])
    if split not in SPLITS:
        mistakes.append(f"split is {split!r}, must be one of {', '.join(SPLITS)}")
    start, end = _seconds(cells.get("start")), _seconds(cells.get("end"))
    wrong = [
        name for name, time in (("start", start), ("end", end)) if time is not None and not 0 <= time <= MAX_SECONDS
    ]
    mistakes += [f"{name} is {cells[name]!r}, must be seconds, 0 or more, at most {MAX_SECONDS:,}" for name in wrong]
    if not wrong and end is not None and end <= (start or 0.0):
        mistakes.append(f"end (={end} s) must be after start (={start or 0.0} s)")
    if mistakes:
        raise InputError(f"{table.where(row)}: {'; '.join(mistakes)}")
    group = sys.intern(cells.get("group") or "") or None  # a group and a split have one text for all their items
    return Item(path=path, label=label, split=sys.intern(split), start=start, end=end, group=group)


def _seconds(cell: str | None) -> float | None:
    """NaN for a cell that is no number, None for an empty one."""
    try:
        return float(cell) if cell else None
    except ValueError:
        return math.nan


def are_numbers(labels: Iterable[str]) -> bool:
    """Whether all labels are numbers: `read_csv` reads them as indices into `class_names` unless they are names."""
    return all(label.isdecimal() for label in labels)  # isdecimal: "²" is a digit, but `int` cannot read it


def _make_class_function(
    table: Table, class_names: Sequence[str] | None, *, allow_new_classes: bool
) -> Callable[[str], str]:
    """Returns a function label -> class name, which raises InputError for a label that is unknown or not readable."""
    labels = set(table.rows.column("label"))
    numeric, known = are_numbers(labels), frozenset(class_names or ())
    if class_names is None and numeric:
        raise InputError(
            f"{table.path}: the labels are numbers ({', '.join(sorted(labels)[:5])} ...), without names. "
            "Name the classes in order: data.class_names=[first,second,...]"
        )
    names = tuple(class_names or ())
    are_indices = numeric and not labels <= known

    @functools.cache
    def class_of(label: str) -> str:
        if are_indices:
            if _index(label) >= len(names):
                raise InputError(f"label {label[:20]}, but data.class_names has {len(names)} names (from 0)")
            return names[_index(label)]
        if label not in known:
            check_utf8(label, "label")
            if not any(map(_is_visible, label)):
                raise InputError(f"label {label!a} (shown with escapes) is blank")
            if class_names is not None and not allow_new_classes:
                raise InputError(f"unknown class {label!r}{nearest(label, names)}")
        return label

    return class_of


def _index(label: str) -> int:
    """The value of a label that is a number; very long ones, which `int` refuses, are larger than any index."""
    return int(label) if len(label) <= 20 else 10**20


def validate(manifest: Manifest, *, allow_leaks: bool = False, allow_similar_classes: bool = False) -> Manifest:
    """Returns the manifest, or raises if it cannot be used for training and testing.

    Args:
        manifest: the manifest of a layout.
        allow_leaks: allow the same file or group in two splits.
        allow_similar_classes: allow class names that look the same, see `similar_classes`.

    Raises:
        InputError: with all that is wrong: no training or validation videos, fewer than two classes, no existing file,
            a class without training videos, class names that look the same, the same file or group in two splits.
    """
    mistakes = [] if allow_similar_classes else list(_similar_class_mistakes(manifest))
    if not manifest.select("train"):
        mistakes.append("the data set has no training videos: no item has split 'train'")
    if not manifest.select("val"):
        mistakes.append("the data set has no validation videos: no item has split 'val'")
    if len(manifest.class_names) < 2:
        mistakes.append(
            f"the data set has only one class, {manifest.class_names[0]!r}; a classifier needs at least two. All "
            f"{len(manifest.items)} videos have this label, the first: {manifest.items[0].path}. Check data.root or "
            "the label column"
        )
    if not any(video_exists(item.path) for item in manifest.items):
        mistakes.append(
            f"none of the {len(manifest.items)} videos exist, the first: {manifest.items[0].path}. "
            "Relative paths in a manifest are relative to its folder"
        )
    for split in SPLITS:
        labels = {item.label for item in manifest.select(split)}
        absent = [name for name in manifest.class_names if name not in labels]
        if absent and labels and split == "train":
            mistakes.append(f"split 'train' has no videos of: {listing(absent)}. Every class needs at least one")
        elif absent and labels:
            log.warning("split %r has no videos of: %s; it cannot measure these classes", split, listing(absent))
    if not allow_leaks:
        mistakes += _leak_mistakes(manifest)
    raise_mistakes(mistakes)
    return manifest


def check_flip_pairs(flip_pairs: object, class_names: Sequence[str] | None = None) -> None:
    """Raises InputError unless `augment.flip_pairs` are pairs of texts, and of class names if these are known."""
    if not isinstance(flip_pairs, list | tuple) or not all(map(_is_pair, flip_pairs)):
        raise InputError(f"augment.flip_pairs (={flip_pairs}) must be pairs of class names: [[first,second],...]")
    if class_names is not None:
        unknown = [name for pair in flip_pairs for name in pair if name not in class_names]
        raise_mistakes([f"augment.flip_pairs names the class {name!r}{nearest(name, class_names)}" for name in unknown])


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(name, str) for name in pair)


def similar_classes(class_names: Iterable[str]) -> list[list[str]]:
    """Lists of names that differ only in case, blanks, underscores, invisible characters or Unicode form.

    So `walk`, `Walk ` and `wa\u200blk` are similar, and `café` in its composed and decomposed form.
    """
    similar: dict[str, list[str]] = defaultdict(list)
    for name in class_names:
        # lower case can undo a normal form, so it is made twice
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        similar["".join(filter(_is_visible, folded)).replace("_", "") or name].append(name)
    return [names for names in similar.values() if len(names) > 1]


# letters and marks that show nothing: a joiner, fillers of Hangul, vowels of Khmer; selectors of a form
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {chr(c) for c in range(0xFE00, 0xFE10)}


def _is_visible(character: str) -> bool:
    return not (character.isspace() or character in _INVISIBLE or unicodedata.category(character) in ("Cf", "Cc"))


def _similar_class_mistakes(manifest: Manifest) -> Iterator[str]:
    similar = similar_classes(manifest.class_names)
    if not similar:
        return
    examples = [next(item.path for item in manifest.items if item.label == name) for name in similar[0]]
    names = listing([" and ".join(map(ascii, names)) for names in similar])
    yield (
        f"{len(similar)} class name(s) are written in several ways, which differ only in case, blanks, underscores or "
        f"Unicode form: {names} (shown with escapes). Videos of the first: {', '.join(examples)}. Write each class in "
        "one way, or, if they are different classes, set data.allow_similar_classes=true"
    )


def _leak_mistakes(manifest: Manifest) -> Iterator[str]:
    for kind, key in LEAK_KEYS.items():
        leaks = find_leaks(manifest.items, key)
        if leaks:
            name, splits, _ = leaks[0]
            yield (
                f"{len(leaks)} {kind}(s) are in more than one split, so the accuracy on held-out videos would be too "
                f"high; the first: {name} in {', '.join(splits)}. Correct the splits, or set data.allow_leaks=true"
            )


@functools.lru_cache(maxsize=2**12)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def _real_path(path: str) -> str:
    """`os.path.realpath`, which looks at every folder above each file; this one at those of a million files once."""
    folder, name = os.path.split(path)
    real = os.path.join(_real_folder(folder), name)
    return os.path.realpath(path) if name in ("", ".", "..") or os.path.islink(real) else real


# what must be in one split only
LEAK_KEYS: Mapping[str, Callable[[Item], str | None]] = {
    "file": lambda item: _real_path(item.path),
    "group": lambda item: item.group,
}


class Leak(NamedTuple):
    """A file, group or content that is in several splits."""

    name: str
    splits: list[str]  # sorted, at least two
    items: list[Item]


def find_leaks(items: Sequence[Item], key: Callable[[Item], str | None]) -> list[Leak]:
    """Every value of `key` with items in more than one split, in the items' order; items with key None are ignored."""
    names = list(map(key, items))
    split_of: dict[str, str] = {}
    leaking = {
        name
        for name, item in zip(names, items, strict=True)
        if name is not None and split_of.setdefault(name, item.split) != item.split
    }
    items_of: dict[str, list[Item]] = defaultdict(list)  # of these only: a million files are each in one split
    for name, item in zip(names, items, strict=True):
        if name in leaking:
            items_of[name].append(item)
    return [Leak(name, sorted({item.split for item in members}), members) for name, members in items_of.items()]


@collection_paused()
def read_manifest(
    *,
    path: str,
    class_names: Sequence[str] | None = None,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    seed: int = 0,
    fold: int | None = None,
    num_folds: int = 5,
) -> Manifest:
    """Reads a CSV table path,label,split[,start,end,group], times in seconds. See `Manifest.read_csv`.

    Without a column `split`, the split is made here: random, stratified by class and with whole groups. The parts of
    one file stay in one split.

    Args:
        path: the table; relative video paths are relative to its folder.
        class_names: the order of the classes; required if the labels are numbers.
        val_fraction: fraction of the videos for val, in (0, 1), if the split is made here.
        test_fraction: the same for test.
        seed: of the split.
        fold, num_folds: of a cross-validation, see `make_splits`.

    Raises:
        InputError: see `Manifest.read_csv`; too few videos or groups for a split; another column has names of splits;
            a fold of a table with splits.
    """
    table = read_table(Path(str(path)).expanduser(), required=COLUMNS[:2], optional=COLUMNS[2:])
    manifest = Manifest._from_table(table, class_names, allow_new_classes=False)
    if "split" in table.columns:
        if fold is not None:
            raise InputError(f"data.fold (={fold}) makes a cross-validation, but {table.path} has a column split")
        return manifest
    for name in table.columns:
        values = {cell.strip().lower() for cell in set(table.rows.column(name))}
        if name not in COLUMNS and len(values) > 1 and values <= _SPLIT_WORDS:
            raise InputError(
                f"{table.path}: column {name!r} has names of splits, but a column split is missing. Name it split "
                f"(its values: {', '.join(SPLITS)}), or remove it to have a split made"
            )
    items, done = make_splits(
        manifest.items,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        seed=seed,
        fold=fold,
        num_folds=num_folds,
    )
    sizes = ", ".join(f"{split} {sum(item.split == split for item in items)}" for split in SPLITS)
    log.info("%s: no column split, so %s (%s)", table.path, done, sizes)
    return replace(manifest, items=tuple(items))
