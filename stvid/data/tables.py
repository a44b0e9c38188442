"""CSV tables: reading one with the line of each row, and writing cells so that they are read back unchanged."""

from __future__ import annotations

import codecs
import csv
import functools
import io
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

from stvid.checks import read_file
from stvid.errors import InputError, raise_mistakes


class _Encoding(TypedDict):
    encoding: str
    errors: str


UTF8: _Encoding = {
    "encoding": "utf-8",
    "errors": "surrogateescape",
}  # file names that are not UTF-8 survive a round trip
_ENCODINGS = {  # byte order mark -> encoding; the marks of UTF-32 begin with those of UTF-16
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
MAX_BYTES = 2**29  # of a table
_OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_CHUNK = 2**20  # characters
_NEEDS_QUOTES = re.compile(r'[",\r\n]|\A\s|\s\Z')
_ONE_NEEDS_QUOTES = re.compile(r'[",\r\n]|(?:\A|\0)\s|\s(?:\Z|\0)')  # of cells with NUL bytes between them


class Row(NamedTuple):
    """One row: the number of its first line in the file, from 1, and column -> cell. A missing cell is empty."""

    line: int
    cells: dict[str, str]


class Rows:
    """The rows of a table; each is made when it is needed, so that a table of a million rows stays small.

    Args:
        columns: their names.
        cells: line and cells of each row, which may have fewer cells than there are columns.
    """

    def __init__(self, columns: Sequence[str], cells: Sequence[tuple[int, Sequence[str]]]):
        self._columns, self._cells = columns, cells

    def __len__(self) -> int:
        return len(self._cells)

    def __iter__(self) -> Iterator[Row]:
        empty = [""] * len(self._columns)
        for line, cells in self._cells:
            given = cells if len(cells) >= len(empty) else (*cells, *empty)
            yield Row(line, dict(zip(self._columns, given, strict=False)))

    def column(self, name: str) -> Iterator[str]:
        """The cells of a column; of two with one name the last, as in the rows."""
        place = len(self._columns) - 1 - self._columns[::-1].index(name)
        return (cells[place] if place < len(cells) else "" for _, cells in self._cells)


@dataclass(frozen=True)
class Table:
    """A CSV table; `columns` are the names of the header, in lower case and without blanks at the ends."""

    path: Path
    columns: list[str]
    rows: Rows

    @functools.cached_property
    def folder(self) -> str:
        """The folder of the file, to which the paths in the table are relative."""
        return str(self.path.parent)

    def where(self, row: Row) -> str:
        """The place of a row, for messages."""
        return f"{self.path}, line {row.line}"


def read_table(path: str | os.PathLike, *, required: Sequence[str], optional: Collection[str] = ()) -> Table:
    """Reads a CSV table with a header. Rows without any text are skipped; other columns are kept unchecked.

    Spaces after a comma are ignored, spaces within quotes are not. The text is UTF-8, or UTF-16 or UTF-32 with a byte
    order mark. Bytes that are not UTF-8 are kept as surrogates, since file names may contain them.

    Args:
        path: the file.
        required: columns that must exist.
        optional: columns that may exist; like the required ones, each at most once.

    Raises:
        InputError: no such file, a column is missing or exists twice, a row has more cells than columns, NUL
            bytes, unclosed quotes, or columns that are not separated by commas.
    """
    path = Path(path).absolute()
    if not path.is_file():
        raise InputError(f"{path} is a folder, not a CSV file" if path.is_dir() else f"{path} does not exist")
    lines = csv.reader(_lines(read_text(path)), skipinitialspace=True, strict=True)
    rows: list[tuple[int, Sequence[str]]] = []
    first = 1  # line where the next row starts
    try:
        for cells in lines:
            if any(cells):
                rows.append((first, cells))
            first = lines.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {first}: not CSV: {error}. A quote inside quotes is written twice") from error
    columns = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    raise_mistakes(list(_wrong_columns(path, columns, required, optional)))
    raise_mistakes(
        [
            f"{path}, line {line}: {len(cells)} cells, but the table has {len(columns)} columns. Put quotes around a "
            "cell that contains a comma"
            for line, cells in rows
            if any(cells[len(columns) :])
        ]
    )
    return Table(path=path, columns=columns, rows=Rows(columns, rows[1:]))


def _lines(text: str) -> Iterator[str]:
    """The lines of a text with their ends, as a file opened with `newline=""` has them.

    The text is copied in pieces, which end at a line feed.
    """
    start = 0
    while start < len(text):
        end = text.find("\n", start + _CHUNK) + 1 or len(text)
        yield from io.StringIO(text[start:end], newline="")
        start = end


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, or UTF-16 or UTF-32 with a byte order mark. Other bytes become surrogates.

    Raises:
        InputError: NUL bytes, or a damaged file; a file that cannot be read, or of more than 512 MiB.
    """
    try:
        content = read_file(path, max_bytes=MAX_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    encoding = next((name for mark, name in _ENCODINGS.items() if content.startswith(mark)), None)
    try:
        text = content.decode(encoding or "utf-8", "surrogateescape" if encoding in (None, "utf-8-sig") else "strict")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} starts like {encoding} text, but is damaged: {error}. {_CONVERT}") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{path}, line {line}: a NUL byte, which UTF-8 text does not have. {_CONVERT}")
    return text


_CONVERT = "Save it as UTF-8 (from UTF-16: iconv -f UTF-16 -t UTF-8 OLD > NEW)"


def _wrong_columns(path: Path, columns: list[str], required: Sequence[str], optional: Collection[str]) -> Iterator[str]:
    duplicates = [name for name in (*required, *optional) if columns.count(name) > 1]
    for name in duplicates:
        count = {2: "two"}.get(columns.count(name), str(columns.count(name)))
        yield f"{path} has {count} columns named {name}. Remove or rename {'one' if count == 'two' else 'all but one'}"
    missing = [name for name in required if name not in columns]
    if not missing:
        return
    for delimiter, name in _OTHER_DELIMITERS.items():
        if any(delimiter in column for column in columns):
            yield f"{path}: the columns are separated by {name}. Separate them by commas"
            return
    options = f"[,{','.join(optional)}]" if optional else ""
    yield (
        f"{path} has the columns {', '.join(columns) or '(none)'}; missing: {', '.join(missing)}. "
        f"The first line must be {','.join(required)}{options}"
    )


def check_utf8(cell: str, column: str) -> None:
    """Raises InputError if a cell has bytes that are not UTF-8."""
    if not is_utf8(cell):
        raise InputError(
            f"{column} {cell!r} is not UTF-8 text. Convert the table, for example from Latin-1: "
            "iconv -f LATIN1 -t UTF-8 OLD.csv > NEW.csv"
        )


def is_utf8(text: str) -> bool:
    """Whether a text that was read with `UTF8` has only bytes that are UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def join_path(folder: str, name: str) -> str:
    """`str((Path(folder) / name).absolute())` for an absolute folder, without objects for names in usual form."""
    inside = f"/{name}/" if name[:1] != "/" else f"{name}/"
    if os.sep != "/" or "//" in inside or "/./" in inside:
        return str((Path(folder) / name).absolute())
    return name if name[:1] == "/" else f"{folder.rstrip('/')}/{name}"


def csv_line(cells: Sequence[str]) -> str:
    """A row of a table. Cells that start or end with a space are quoted, which `csv.writer` does not do."""
    if not _ONE_NEEDS_QUOTES.search("\0".join(cells)):
        return ",".join(cells) + "\r\n"
    quoted = ['"' + cell.replace('"', '""') + '"' if _NEEDS_QUOTES.search(cell) else cell for cell in cells]
    return ",".join(quoted) + "\r\n"
