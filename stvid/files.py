"""Atomic writes, so that a kill leaves either the old file or the new one; and locks between processes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path

from filelock import FileLock, Timeout

from stvid.disks import WRITE_ERRNOS, disk_text, full_disk_error

log = logging.getLogger(__name__)


@contextlib.contextmanager
def replacing(path: str | os.PathLike, *, overwrite: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which replaces `path` if the block ends without an error.

    Args:
        path: the file.
        overwrite: replace a file that exists when the block ends. If not, the new file is written beside it, under a
            name with a number, and a warning says so.

    Raises:
        OSError: the file cannot be written. Its `filename` is `path`, which errors of a write do not know by
            themselves; a full disk is always an OSError, whatever the library that writes makes of it. Other errors,
            such as those of a network, stay as they are.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{_machine()}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path if overwrite else _new_file(path))
    except Exception as error:
        if (full := full_disk_error(error)) is not None:
            raise OSError(full.errno, full.strerror, str(path)) from error
        if isinstance(error, OSError):
            is_write = error.filename is None and error.errno in WRITE_ERRNOS
            if is_write or error.filename == str(partial):
                with contextlib.suppress(AttributeError):  # PyAV's errors have a fixed one
                    error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):  # a read-only disk says so even if there is no such file
            partial.unlink()


def _new_file(path: Path) -> Path:
    """Makes an empty file: `path`, or if that exists, the first of `NAME-2.mp4`, `NAME-3.mp4`, ... that does not."""
    for number in itertools.count(1):
        new = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        if os.path.lexists(new):  # on Windows, opening a folder is another error
            continue
        with contextlib.suppress(FileExistsError):  # another program was faster
            new.open("x").close()
            break
    if new != path:
        log.warning("%s has appeared meanwhile and is not replaced; the new file is %s", path, new)
    return new


def writer_is_dead(partial: Path) -> bool:
    """Whether the process that wrote a temporary file of `replacing` is known to have ended.

    That of another machine or container is not known: its number may be that of another process here.
    """
    machine, number = partial.name.split(".")[-3:-1]
    if machine != _machine() or not number.isascii() or not number.isdigit() or not hasattr(os, "killpg"):
        return False  # without killpg this is Windows, where os.kill would end the process
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False


@functools.cache
def _machine() -> str:
    """8 hexadecimal digits for the host, and the container on it, within which process numbers are unique."""
    try:
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:  # not Linux
        namespace = ""
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def file_in_the_way(folder: str | os.PathLike) -> Path | None:
    """The file because of which a folder cannot be made: it has the folder's name, or that of a folder above it."""
    path = Path(folder).absolute()
    return next((part for part in (path, *path.parents) if part.exists() and not part.is_dir()), None)


def is_special(path: str | os.PathLike) -> bool:
    """Whether a path is a device, a pipe or a name of the system such as /dev/stdout, which no file may replace."""
    path = Path(path).absolute()
    return path.parent == Path("/dev") or (path.exists() and not path.is_file() and not path.is_dir())


def why_not_writable(folder: str | os.PathLike) -> str | None:
    """Why no file can be written into a folder, which need not exist yet; None if it can be written."""
    existing = Path(folder).absolute()
    while not existing.is_dir() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"stvid")
    except OSError as error:
        return f"{error.strerror}" + ("" if full_disk_error(error) is None else f" ({disk_text(existing)})")
    return None


class LogFile(logging.FileHandler):
    """A log file. On a full or read-only disk it loses lines, which are on the screen, and says so once.

    It does not write to another file behind a link, or to a pipe; `check_stays_inside` tells the user of one.
    """

    has_failed = False

    def _open(self) -> TextIOWrapper:
        path = Path(self.baseFilename)
        if path.is_symlink() or (path.exists() and not path.is_file()):
            return open(os.devnull, "a", encoding=self.encoding)
        return super()._open()

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.has_failed:
            self.has_failed = True
            print(f"{self.baseFilename} lacks lines: {error.strerror}", file=sys.stderr)


@contextlib.contextmanager
def file_lock(path: str | os.PathLike) -> Iterator[None]:
    """Runs the block in one process at a time, with a lock file beside `path`. A killed process releases the lock.

    Without permission to write beside `path`, or on a file system without locks, there is no lock.
    """
    path = Path(path)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    with system_lock(path.with_name(f".{path.name.lstrip('.')}.lock")):
        yield


@contextlib.contextmanager
def system_lock(path: str | os.PathLike, *, timeout: float = -1) -> Iterator[str | None]:
    """Holds the lock of a lock file; yields None, or why the file system gives no lock.

    Args:
        path: the lock file; it stays.
        timeout: seconds to wait for another process; -1: as long as it takes.

    Raises:
        filelock.Timeout: another process holds the lock.
    """
    lock = FileLock(path)
    failure: str | None = None
    try:
        if os.path.islink(path):  # older versions of filelock would make its target empty
            raise OSError(f"{path} is a link")
        lock.acquire(timeout=timeout)
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        failure = str(error)
    # not within `except`: each error of the block would have that of the lock as its context
    try:
        yield failure
    finally:
        lock.release()


def write_json(path: str | os.PathLike, content: dict | list) -> None:
    """Writes indented JSON in UTF-8. Names with bytes that are not UTF-8 are the same after reading."""
    with replacing(path) as partial:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # writes lone surrogates as JSON escapes
