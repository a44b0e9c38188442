"""Atomic writes, so that a kill leaves either the old file or the new one; and locks between processes."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which replaces `path` if the block ends without an error."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def file_lock(path: str | os.PathLike) -> Iterator[None]:
    """Runs the block in one process at a time, with a lock file beside `path`. A killed process releases the lock.

    Without permission to write beside `path` there is no lock.
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
    """Writes indented JSON in UTF-8. Names with bytes that are not UTF-8 are the same after reading."""
    with replacing(path) as partial:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # writes lone surrogates as JSON escapes
