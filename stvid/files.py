"""Files that are written completely or not at all: after a kill the old file is still there."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`; it replaces `path` when the block ends without an error."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def one_at_a_time(path: str | os.PathLike) -> Iterator[None]:
    """Lets one process at a time run the block, by a lock file beside `path`; a killed process releases the lock.

    Without permission to write beside `path` there is no lock, and no waiting.
    """
    path = Path(path)
    lock = FileLock(path.with_name(f".{path.name.lstrip('.')}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def write_json(path: str | os.PathLike, content: dict | list) -> None:
    """Writes indented JSON in UTF-8; file names that are not valid UTF-8 survive the round trip."""
    with replacing(path) as partial:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # a lone surrogate's escape is JSON's
