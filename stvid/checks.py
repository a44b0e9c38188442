"""Checks of plain data that is read back from a file: type, range and shape of every value.

point = fields({"x": number(), "name": text()}, optional={"tags": list_of(text())})
point({"x": 1.5, "name": None}, "point")      # InputError: point.name is null, must be text
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from stvid.errors import InputError

Check = Callable[[Any, str], None]  # the value, and its place for the message; raises InputError
SHOWN = 40  # characters of a wrong value


def number(low: float = -math.inf, high: float = math.inf, *, whole: bool = False) -> Check:
    """A finite number from `low` to `high`, both included; `whole`: without a fraction."""
    kind = "a whole number" if whole else "a number"
    bounds = f" from {low:g} to {high:g}" if high < math.inf else f", at least {low:g}" if low > -math.inf else ""

    def check(value: Any, place: str) -> None:
        is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        # not isfinite: a whole number may be too large for a float
        if not is_number or value != value or not low <= value <= high or abs(value) == math.inf:
            _refuse(value, place, f"{kind}{bounds}")

    return check


def text(*choices: str) -> Check:
    """A string; with `choices`, one of them."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, str) or (choices and value not in choices):
            _refuse(value, place, f"one of {', '.join(choices)}" if choices else "text")

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
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            _refuse(value, place, "a mapping with names as keys")
        for key, part in value.items():
            check(part, f"{place}.{key}")

    return check_dict


def fields(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """A mapping with these keys; other keys are not looked at."""

    def check(value: Any, place: str) -> None:
        dict_of(anything)(value, place)
        missing = [key for key in required if key not in value]
        if missing:
            raise InputError(f"{place} has no {', '.join(missing)}")
        for key, part in {**required, **(optional or {})}.items():
            if key in value:
                part(value[key], f"{place}.{key}")

    return check


def anything(value: Any, place: str) -> None:
    """Any value."""


def _refuse(value: object, place: str, expected: str) -> None:
    shown = "null" if value is None else repr(value)
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
    raise InputError(f"{place} is {shown}, must be {expected}")


def read_json(path: Path, check: Check, *, remedy: str) -> Any:
    """The content of a JSON file, checked.

    Args:
        path: the file.
        check: of the whole content.
        remedy: what to do about a damaged file, for the message.

    Raises:
        InputError: the file cannot be read, is no JSON in UTF-8, or `check` refuses its content.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
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
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            filled = [(line, cells) for line, cells in _numbered_rows(csv.reader(file)) if cells]
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


def _numbered_rows(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """The line where each row of a `csv.reader` starts, from 1, and its cells; an empty line has none."""
    first = 1
    for cells in reader:
        yield first, cells
        first = reader.line_num + 1
