"""A folder of tar files that are fetched from a URL when they are first read; it stays below a limit.

A file in the user's cache has the folder, its URL and the limit. It is not in the folder: tars and index are data, and
only the user may choose a server. If a new tar does not fit, the one that was not used for longest is removed. fsspec,
which comes with Lightning, reads http(s), s3, gs, ...; some of them need a package of their own.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

from stvid.checks import fields, number, read_json, text
from stvid.disks import full_disk_error
from stvid.errors import InputError
from stvid.files import file_lock, replacing, write_json, writer_is_dead

log = logging.getLogger(__name__)
T = TypeVar("T")

SHARD_NAME = re.compile(r"(train|val|test)-[0-9]{6}\.tar")
FETCHED = ".fetched"  # a file that marks a folder whose tars may be removed: all of them have been fetched
LOCK = "shards"  # of a folder: one process fetches, the others wait for it
WAITS = (0.5, 2.0)  # seconds before the second and the third attempt to fetch a file
_PARTIAL_TARS = ".*.tar.*.partial"  # of `replacing`, in processes that fetch or were killed
_ABANDONED = 86_400  # seconds without a change, after which a partial tar is no longer fetched by anybody
_CHUNK = 2**22
_SOURCE = fields({"folder": text(), "url": text(), "max_bytes": number(0)})


def is_url(root: str) -> bool:
    return "://" in root


def cache_limit(folder: str | os.PathLike[str]) -> float | None:
    """Bytes of tars that are kept in a folder; None if its tars are not fetched from a URL."""
    return _read_source(Path(folder))["max_bytes"] if has_source(folder) else None


def check_url(url: str) -> None:
    """Raises InputError for a URL that fsspec cannot open, or that chains several file systems."""
    import fsspec

    if "::" in url:
        raise InputError(f"{url} names several file systems; name one, such as s3://BUCKET/FOLDER")
    try:
        fsspec.get_filesystem_class(url.split("://")[0])
    except (ValueError, ImportError) as error:
        raise InputError(f"{url} cannot be read: {error}") from error


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stvid" / "shards"


def _digits(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


def default_folder(url: str) -> Path:
    """The folder for the tars of a URL, in the user's cache."""
    return _cache_home() / _digits(url.rstrip("/"))


def source_file(folder: str | os.PathLike[str]) -> Path:
    """The file with the URL of a folder, if it has one."""
    return _cache_home() / f"{_digits(os.path.abspath(folder))}.json"


def has_source(folder: str | os.PathLike[str]) -> bool:
    """Whether the tars of a folder are fetched from a URL."""
    return source_file(folder).exists()


def fetch_index(url: str, folder: Path, *, name: str, max_bytes: float) -> None:
    """Prepares the folder for the tars of a URL: gets the index. Tars of another index are removed.

    A folder whose URL is not known is accepted if it is empty, or has been filled from this index: it may be older than
    the user's cache.

    Raises:
        InputError: the index cannot be read; the folder belongs to another URL, or has other files.
    """
    url = url.rstrip("/")
    check_url(url)
    content = _download(url, name)
    folder.mkdir(parents=True, exist_ok=True)
    source_file(folder).parent.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / LOCK):
        if has_source(folder):
            known = _read_source(folder)["url"]
            if known != url:
                raise InputError(f"{folder} holds the tars of {known}, not of {url}. Name another data.cache")
        elif others := _other_files(folder, name, content):
            raise InputError(f"{folder} contains other files, such as {others[0]}. Name an empty folder as data.cache")
        (folder / FETCHED).touch()
        _remove_dead_partials(folder)
        index = folder / name
        if not index.exists() or index.read_bytes() != content:
            for tar in folder.glob("[!.]*.tar"):
                tar.unlink(missing_ok=True)
            with replacing(index) as partial:
                partial.write_bytes(content)
        write_json(source_file(folder), {"folder": os.path.abspath(folder), "url": url, "max_bytes": max_bytes})


def _other_files(folder: Path, index_name: str, index: bytes) -> list[str]:
    """Names of the files that are not hidden; of a folder that was filled from this index, neither index nor tars."""
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    file = folder / index_name
    if (folder / FETCHED).exists() and file.is_file() and file.read_bytes() == index:
        paths = [path for path in paths if path != file and not (SHARD_NAME.fullmatch(path.name) and path.is_file())]
    return [path.name for path in paths]


def fetch_shard(folder: str, name: str, *, num_bytes: int) -> IO[bytes]:
    """Opens a tar of the folder; fetches it if it is missing or has another size. An open tar may be removed.

    Raises:
        InputError: it cannot be fetched, or has another size than the index says.
    """
    path = Path(folder) / name
    with contextlib.suppress(OSError):
        if path.stat().st_size == num_bytes:
            return path.open("rb", buffering=0)
    with file_lock(path.with_name(LOCK)):
        if not path.is_file() or path.stat().st_size != num_bytes:
            source = _read_source(Path(folder))
            path.unlink(missing_ok=True)
            _make_room(Path(folder), source["max_bytes"] - num_bytes)
            with replacing(path) as partial:
                _fetch(source["url"], name, partial, num_bytes=num_bytes)
        return path.open("rb", buffering=0)


def mark_used(path: str) -> None:
    """So that `_make_room` keeps the tar longer than others."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _read_source(folder: Path) -> dict:
    file = source_file(folder)
    return read_json(file, _SOURCE, remedy=f"Remove {file}; the next training with data.root=URL writes it again")


def _make_room(folder: Path, max_bytes: float) -> None:
    """Removes tars until all files have at most so many bytes; those that other machines fetch now are counted."""
    _remove_dead_partials(folder)
    tars = sorted((tar.stat().st_mtime_ns, tar.stat().st_size, tar) for tar in folder.glob("[!.]*.tar"))
    total = sum(size for _, size, _ in tars) + sum(map(_size, folder.glob(_PARTIAL_TARS)))
    for _, size, tar in tars:
        if total <= max_bytes:
            return
        with contextlib.suppress(OSError):  # Windows keeps a file that is open
            tar.unlink()
            total -= size


def _remove_dead_partials(folder: Path) -> None:
    """Of another machine or container it is not known whether a process has ended: there, the age decides."""
    for partial in folder.glob(_PARTIAL_TARS):
        with contextlib.suppress(OSError):  # it has become a tar meanwhile
            if writer_is_dead(partial) or time.time() - partial.stat().st_mtime > _ABANDONED:
                partial.unlink()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it has become a tar meanwhile
        return 0


def _with_attempts(read: Callable[[], T], url: str) -> T:
    """The result of `read`. If it fails, it is called again after each of `WAITS`; then its last error is raised."""
    for attempt, wait in enumerate(WAITS, start=1):
        try:
            return read()
        except Exception as error:  # each file system has errors of its own
            if isinstance(error, ImportError) or full_disk_error(error) is not None:
                raise
            problem = str(error) or type(error).__name__
            log.warning("%s: %s (attempt %d of %d)", url, problem, attempt, len(WAITS) + 1)
        time.sleep(wait)
    return read()


def _download(url: str, name: str) -> bytes:
    import fsspec

    def read() -> bytes:
        with fsspec.open(f"{url}/{name}", "rb") as file:
            return file.read()

    try:
        return _with_attempts(read, f"{url}/{name}")
    except ImportError as error:
        raise InputError(f"{url} cannot be read: {error}") from error
    except Exception as error:  # each file system has errors of its own
        raise InputError(
            f"{url}/{name} cannot be read: {error or type(error).__name__}. data.root must be the folder shards/ that "
            "stvid prepare ... --tar-size has made"
        ) from error


def _fetch(url: str, name: str, target: Path, *, num_bytes: int) -> None:
    import fsspec

    def read() -> None:
        with fsspec.open(f"{url}/{name}", "rb") as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, _CHUNK)
        size = target.stat().st_size
        if size != num_bytes:
            raise ValueError(f"it has {size:,} bytes, the index says {num_bytes:,}")

    try:
        _with_attempts(read, f"{url}/{name}")
    except Exception as error:  # each file system has errors of its own
        if full_disk_error(error) is not None:
            raise
        raise InputError(
            f"{url}/{name} could not be fetched in {len(WAITS) + 1} attempts: {str(error) or type(error).__name__}. If "
            "it is there and complete, resume the run; a data set that was changed needs its new index, and a new run"
        ) from error
