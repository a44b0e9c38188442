"""Files that are written whole or not at all: a kill leaves the old one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path beside `path` to write to; it takes the place of `path` when the block ends without an error."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def one_at_a_time(path: str | os.PathLike) -> Iterator[None]:
    """Of all processes that want to write a file, one after the other goes through the block; a kill lets go of it.

    Where nothing can be written beside `path`, there is nothing to wait for.
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
    """Readable JSON, in UTF-8; file names that are not come back from it as they were."""
    with replacing(path) as partial:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # a lone surrogate's escape is JSON's
