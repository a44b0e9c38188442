"""Text for a terminal or a log: control characters made visible, and tables that fit the width.

Names (of classes, files, groups, runs) are data from strangers. A terminal obeys the control characters in them: they
can move the cursor, hide text or reverse its direction. Files (CSV, JSON) keep the names as they are.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import shutil
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from typing import TextIO

MAX_WIDTH = 120  # columns of a table; also where the width is unknown
MIN_NAME, MIN_TEXT = 12, 8  # columns that the first and every other shortened column keep
HIDDEN = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}  # Unicode categories without a visible character
BLANK = set(map(chr, (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x3164, 0xFFA0)))
SHOWN_MARKS = set(map(chr, (*range(0x0600, 0x0606), 0x06DD, 0x070F, 0x0890, 0x0891, 0x08E2)))  # Arabic, of category Cf
NON_JOINER, JOINER = "\u200c", "\u200d"


def visible(text: object, *, keep: str = "") -> str:
    """The text with characters that are invisible or control a terminal as escapes: `\\x1b`, `\\n`, `\\u202e`.

    Letters of all scripts, combining marks and emoji stay as they are, also joined emoji, and joiners between letters
    of scripts that are written with them (Arabic to Sinhala).

    Args:
        text: a name or a message; other objects are converted with `str`.
        keep: characters that stay, such as the line breaks of a message with several lines.
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character if character in keep or not _is_hidden(text, i) else _escape(character)
        for i, character in enumerate(text)
    )


def visible_lines(text: object) -> str:
    """`visible` for a text of several lines: its line breaks and tabs stay."""
    return visible(text, keep="\n\t")


def _is_hidden(text: str, i: int) -> bool:
    character = text[i]
    if character in BLANK:
        return True
    if unicodedata.category(character) not in HIDDEN or character in SHOWN_MARKS:
        return False
    if character not in (NON_JOINER, JOINER) or not 0 < i < len(text) - 1:
        return True
    before, after = text[i - 1], text[i + 1]
    is_script = all("\u0600" <= neighbour <= "\u0dff" for neighbour in (before, after))
    is_emoji = (
        character == JOINER
        and unicodedata.category(after) == "So"
        and (unicodedata.category(before) in ("So", "Sk") or before == "\ufe0f")
    )
    return not (is_script or is_emoji)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def show(text: object = "", *, file: TextIO | None = None, flush: bool = False) -> None:
    """Prints a text of several lines; control characters are escaped, see `visible_lines`."""
    print(visible_lines(text), file=file, flush=flush)


def clock(seconds: float, *, digits: int) -> str:
    """`1:02:03.4`, hours only if there are any; a negative time has a minus sign.

    Args:
        seconds: the time.
        digits: after the point, at least 1.
    """
    unit = 10**digits
    minutes, rest = divmod(round(abs(seconds) * unit), 60 * unit)
    hours = f"{minutes // 60}:" if minutes >= 60 else ""
    text = f"{hours}{minutes % 60:0{2 if hours else 1}d}:{rest // unit:02d}.{rest % unit:0{digits}d}"
    return f"-{text}" if seconds < 0 else text


class LogFormatter(logging.Formatter):
    """Formats log records; control characters are escaped, and line breaks in arguments too.

    A message may have several lines, but an argument (`log.info("... %s", name)`) is a name.
    """

    def format(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)  # other handlers get the original
        if isinstance(record.args, tuple):
            record.args = tuple(map(_escaped_argument, record.args))
        return visible_lines(super().format(record))


def _escaped_argument(argument: object) -> object:
    """Numbers stay, for formats such as `%.3f`; so does text without hidden characters."""
    if isinstance(argument, int | float):
        return argument
    text = str(argument)
    escaped = visible(text)
    return argument if escaped == text else escaped


def _cells(text: str) -> int:
    """Columns of a text in a terminal: 2 for a Chinese character, 0 for a combining mark."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # slow to import

    return cell_len(text)


def table_width() -> int:
    """Columns for a table: those of the terminal (or of `COLUMNS`), at most 120; 120 without a terminal."""
    return min(shutil.get_terminal_size(fallback=(MAX_WIDTH, 24)).columns, MAX_WIDTH)


def shorten(text: str, columns: int, *, at_end: bool = False) -> str:
    """A text that is too long keeps its end, because paths and runs differ there: `…/runs/5`.

    Args:
        text: one line.
        columns: of the result, from 1.
        at_end: cut the end and keep the start.
    """
    if _cells(text) <= columns:
        return text
    while text and _cells(text) > columns - 1:
        text = text[:-1] if at_end else text[1:]
    return f"{text}…" if at_end else f"…{text}"


def aligned(rows: Sequence[Sequence[str]], *, left: int, text: bool = False, drop: Sequence[str] = ()) -> str:
    """Rows as text in columns that fit the terminal, see `table_width`.

    If the table is too wide, the columns in `drop` are left out one after the other while the rest does not fit, even
    with shortened names; then the text columns are shortened, the widest first.

    Args:
        rows: cells; the first row is the header.
        left: number of columns that are left-aligned; the others (numbers) are right-aligned and never shortened.
        text: the last column is text too: left-aligned, and shortened at its end.
        drop: headers of columns that may be left out, the least important first; the last line names them.
    """
    rows = [[visible(cell) for cell in row] for row in rows]
    dropped: list[str] = []

    def text_columns() -> list[int]:
        return [*range(left), *([len(rows[0]) - 1] if text else [])]

    for name in map(visible, drop):
        if _total(_minima(rows, text_columns())) <= table_width():
            break
        if name in rows[0]:
            i = rows[0].index(name)
            rows, dropped = [[*row[:i], *row[i + 1 :]] for row in rows], [*dropped, name]
            left -= i < left
    widths, minima = _widths(rows), _minima(rows, text_columns())
    while _total(widths) > table_width():
        shrinkable = [i for i in text_columns() if widths[i] > minima[i]]
        if not shrinkable:
            break
        widths[max(shrinkable, key=lambda i: widths[i])] -= 1
    lines = []
    for row in rows:
        cells = []
        for i, (cell, columns) in enumerate(zip(row, widths, strict=True)):
            if i in text_columns():
                cell = shorten(cell, columns, at_end=i >= left)
            padding = " " * (columns - _cells(cell))
            cells.append(cell + padding if i in text_columns() else padding + cell)
        lines.append("  ".join(cells).rstrip())
    if dropped:
        lines.append(shorten(f"(no space for: {', '.join(reversed(dropped))})", table_width(), at_end=True))
    return "\n".join(lines)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(_cells, column)) for column in zip(*rows, strict=True)]


def _minima(rows: Sequence[Sequence[str]], text_columns: Sequence[int]) -> list[int]:
    """Columns that each column keeps when it is shortened."""
    return [
        min(size, MIN_TEXT if i else MIN_NAME) if i in text_columns else size for i, size in enumerate(_widths(rows))
    ]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without log lines, warnings and stderr: for torch's exporters, whose reports fill a screen."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
