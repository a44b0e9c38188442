"""Checks of plain data that is read back from a file: type, range and shape of every value.

point = fields({"x": number(), "name": text()}, optional={"tags": list_of(text())})
point({"x": 1.5, "name": None}, "point")      # InputError: point.name is null, must be text
"""

from __future__ import annotations

import contextlib
import csv
import errno
import gc
import io
import json
import math
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from stvid.errors import InputError

Check = Callable[[Any, str], None]  # the value, and its place for the message; raises InputError
SHOWN = 40  # characters of a wrong value
MAX_WHOLE = 2**63  # a whole number has no more digits than other programs can read
MAX_JSON_BYTES = 2**26  # of a file; its content takes many times as much memory
MAX_LINE = 2**26  # characters of a line in a CSV table


def number(low: float = -math.inf, high: float = math.inf, *, whole: bool = False) -> Check:
    """A finite number from `low` to `high`, both included; `whole`: without a fraction."""
    kind = "a whole number" if whole else "a number"
    bounds = f" from {low:g} to {high:g}" if high < math.inf else f", at least {low:g}" if low > -math.inf else ""

    def check(value: Any, place: str) -> None:
        is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        # not isfinite: a whole number may be too large for a float
        is_large = is_number and (abs(value) == math.inf or (isinstance(value, int) and abs(value) > MAX_WHOLE))
        if not is_number or is_large or value != value or not low <= value <= high:
            _refuse(value, place, f"{kind}{bounds}")

    return check


def text(*choices: str) -> Check:
    """A string; with `choices`, one of them."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, str) or (choices and value not in choices):
            _refuse(value, place, f"one of {', '.join(choices)}" if choices else "text")
        try:
            value.encode("utf-8", "surrogateescape")  # file names may have bytes that are not UTF-8
        except UnicodeEncodeError:
            _refuse(ascii(value), place, "text of Unicode characters")

    return check


def flag(value: Any, place: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        _refuse(value, place, "true or false")


def maybe(check: Check) -> Check:
    """What `check` accepts, or null."""
    return lambda value, place: None if value is None else check(value, place)


def list_of(check: Check, *, length: int | None = None, unique: bool = False) -> Check:
    """A list of what `check` accepts, of this length (None: any); `unique`: no value twice."""

    def check_list(value: Any, place: str) -> None:
        if not isinstance(value, list | tuple) or (length is not None and len(value) != length):
            _refuse(value, place, "a list" if length is None else f"a list of {length}")
        for i, part in enumerate(value):
            check(part, f"{place}[{i}]")
        if unique and len(set(value)) < len(value):
            _refuse(value, place, "a list without a value twice")

    return check_list


def dict_of(check: Check) -> Check:
    """A mapping from text to what `check` accepts."""

    def check_dict(value: Any, place: str) -> None:
        _check_mapping(value, place)
        for key, part in value.items():
            check(part, f"{place}.{key}")

    return check_dict


def fields(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """A mapping with these keys; other keys are not looked at."""

    checks = {**required, **(optional or {})}

    def check(value: Any, place: str) -> None:
        _check_mapping(value, place)
        if missing := [key for key in required if key not in value]:
            raise InputError(f"{place} has no {', '.join(missing)}")
        for key, part in checks.items():
            if key in value:
                part(value[key], f"{place}.{key}")

    return check


def _check_mapping(value: Any, place: str) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        _refuse(value, place, "a mapping with names as keys")


def anything(value: Any, place: str) -> None:
    """Any value."""


def _refuse(value: object, place: str, expected: str) -> None:
    shown = "null" if value is None else repr(value)
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
    raise InputError(f"{place} is {shown}, must be {expected}")


def open_regular(path: str | os.PathLike) -> IO[bytes]:
    """Opens a file for reading, as bytes.

    Raises:
        OSError: it cannot be read, or is no regular file: a pipe would never end, nor would a device like /dev/zero.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return open(path, "rb")


def read_file(path: str | os.PathLike, *, max_bytes: int) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: see `open_regular`; it has more than `max_bytes`.
    """
    with open_regular(path) as file:
        content = file.read(max_bytes + 1) if os.fstat(file.fileno()).st_size <= max_bytes else None
    if content is None or len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"it has more than {max_bytes:,} bytes", str(path))
    return content


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!a} is there twice")
    return content


def parse_json(text: str | bytes) -> Any:
    """The content of a JSON text in which no key is there twice.

    Raises:
        ValueError: no JSON, a key that is there twice, bytes that are not UTF-8.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text if isinstance(text, str) else text.decode("utf-8"), object_pairs_hook=_distinct_keys)


def read_json(path: Path, check: Check, *, remedy: str) -> Any:
    """The content of a JSON file, checked.

    Args:
        path: the file.
        check: of the whole content.
        remedy: what to do about a damaged file, for the message.

    Raises:
        InputError: the file cannot be read, has more than 64 MiB, is no JSON in UTF-8, or `check` refuses its content.
    """
    try:
        content = parse_json(read_file(path, max_bytes=MAX_JSON_BYTES))
        check(content, path.name)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except InputError as error:
        raise InputError(f"{path} is damaged or was changed: {error}. {remedy}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, no JSON, a number of thousands of digits, nested deeply
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{path} is damaged, it is no JSON: {reason}. {remedy}") from error
    return content


def read_csv(path: Path, *, required: Collection[str], remedy: str) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV table with a header: the line where each starts, from 1, and column -> cell.

    File names that are not UTF-8 are the same after reading.

    Args:
        path: the file.
        required: columns that it must have.
        remedy: what to do about a damaged file, for the message.

    Raises:
        InputError: the file cannot be read or is no CSV table; a column is missing or there twice; a row has fewer or
            more cells than the header.
    """
    try:
        with io.TextIOWrapper(open_regular(path), newline="", encoding="utf-8", errors="surrogateescape") as file:
            filled = [(line, cells) for line, cells in _numbered_rows(csv.reader(_lines(file))) if cells]
        (_, header), *rows = filled or [(1, [])]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except csv.Error as error:
        raise InputError(f"{path} is damaged, it is no CSV table: {error}. {remedy}") from error
    missing = [name for name in required if name not in header]
    if missing:
        raise InputError(f"{path} has no column {missing[0]}. {remedy}")
    if len(set(header)) < len(header):
        raise InputError(f"{path} has two columns of one name. {remedy}")
    for line, cells in rows:
        if len(cells) != len(header):
            raise InputError(f"{path}, line {line} is damaged: {len(cells)} cells, not {len(header)}. {remedy}")
    return [(line, dict(zip(header, cells, strict=True))) for line, cells in rows]


def _lines(file: IO[str]) -> Iterator[str]:
    """The lines of a file. Raises csv.Error for a very long one, before there is no memory left for it."""
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise csv.Error(f"a line has more than {MAX_LINE:,} characters")
        yield line


def _numbered_rows(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """The line where each row of a `csv.reader` starts, from 1, and its cells; an empty line has none."""
    first = 1
    for cells in reader:
        yield first, cells
        first = reader.line_num + 1


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Around reading what makes millions of objects that stay: each collection of garbage would look at all of them.

    Not around anything that decodes: the objects of PyAV wait for a collection.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
