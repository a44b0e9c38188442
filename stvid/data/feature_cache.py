"""Caches the features of a frozen encoder in an HDF5 file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import h5py

from stvid.data.feature_entries import CachedFeatures, DamagedEntry, EntryHead, read_entry, read_head, write_entry
from stvid.errors import InputError
from stvid.files import replacing, writer_is_dead

T = TypeVar("T")
log = logging.getLogger(__name__)
FORMAT_VERSION = 4  # of the files; another version starts a new cache
_PART_SUFFIX = ".part.h5"
_SAVE_EVERY = 30.0  # seconds
_MAX_PART_BYTES = 2**28  # of features in memory before they are written
_MAX_PARTS = 100  # all parts are open at the same time
_STALE_SECONDS = 3600.0  # a partial file older than this is left over from a killed process
_SPARE_BYTES = 2**20  # left free on the disk when files are merged


class FeatureCache:
    """An HDF5 file, and part files beside it that have not been merged into it yet; all of them are read.

    The file name is a hash of all settings that affect the features: another encoder, other weights or another
    preprocessing use another file, so features are never out of date. The keys of the samples identify the videos.

    A file is written completely before it gets its name, and never changes: other processes can read it at any time,
    and a killed process loses at most the samples of the last half minute.

    Each sample is stored with its key, label, shape and a checksum (CRC-32) over these and the features; every read
    checks them. A sample that does not match, or is stored in another way than `writer` stores it, is missing: `key in
    cache` is False, and it can be added again. Nothing is read before its declared size is known to be that of the
    file.

    Args:
        folder: folder of the files, created if missing; it holds nothing else.
        settings: all settings that affect the features, as plain data; also written to the files, for information.
    """

    def __init__(self, folder: Path, settings: Mapping):
        self.settings = json.dumps({"format": FORMAT_VERSION, **settings}, sort_keys=True)
        self.path = Path(folder) / f"{hash_text(self.settings)}.h5"
        self._files: list[h5py.File] | None = None

    def __contains__(self, key: str) -> bool:
        return self.find(key) is not None

    def __len__(self) -> int:
        return len({key for file in self._open() for key in file})

    def __getitem__(self, key: str) -> CachedFeatures:
        entry = self.find(key)
        if entry is None:
            raise KeyError(key)
        return entry

    def find(self, key: str) -> CachedFeatures | None:
        """The sample of the first file that has it undamaged; None if there is none."""
        return self._first(read_entry, key)

    def find_head(self, key: str) -> EntryHead | None:
        """Shape and label of a sample, without reading and checking its features; None if there is none."""
        return self._first(read_head, key)

    def _first(self, read: Callable[[h5py.File, str], T | None], key: str) -> T | None:
        for file in self._open():
            with contextlib.suppress(DamagedEntry):
                if (found := read(file, key)) is not None:
                    return found
        return None

    @contextlib.contextmanager
    def writer(self) -> Iterator[Callable[[str, CachedFeatures], None]]:
        """Yields a function that adds a sample. Added samples are kept after an error.

        Every half minute the new samples are written as a new part file. The parts are merged at the end, or when there
        are many, so that a large file is not rewritten again and again.
        """
        self._remove_stale_partials()
        pending: dict[str, CachedFeatures] = {}
        num_bytes, last_write = 0, time.monotonic()

        def add(key: str, sample: CachedFeatures) -> None:
            nonlocal num_bytes, last_write
            pending[key] = sample
            num_bytes += sample.features_VTF.nbytes
            if time.monotonic() - last_write >= _SAVE_EVERY or num_bytes >= _MAX_PART_BYTES:
                self._write_part(pending)
                pending.clear()
                if len(self._parts()) >= _MAX_PARTS:
                    self._merge()
                num_bytes, last_write = 0, time.monotonic()

        try:
            yield add
        finally:
            self._write_part(pending)
            self.close()
        self._merge()

    def adopt(self, files: Sequence[Path]) -> None:
        """Takes over the files of caches with the same settings, on the same disk; the caller holds the lock."""
        for file in files:
            if file.is_file():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, self.path.with_name(f"{self.path.stem}.{uuid.uuid4().hex}{_PART_SUFFIX}"))
        self._merge()

    def close(self) -> None:
        """Closes the files. The next access opens them again, together with new ones."""
        for file in self._files or ():
            file.close()
        self._files = None

    def _parts(self) -> list[Path]:
        """The part files, newest first: a sample that was added again replaces the older one."""
        found = self.path.parent.glob(f"{self.path.stem}.*{_PART_SUFFIX}")
        parts = [path for path in found if path.is_file()]  # not a link that leads nowhere, nor a pipe
        return sorted(parts, key=lambda path: path.stat().st_mtime_ns, reverse=True)

    def _open(self) -> list[h5py.File]:
        if self._files is None:
            # open the main file last: it contains parts that are merged meanwhile
            files = [self._read(path) for path in (*self._parts(), self.path)]
            self._files = [file for file in files if file is not None]
        return self._files

    def _read(self, path: Path) -> h5py.File | None:
        if path.is_dir():
            raise InputError(f"{path} is a folder, where the cache of features has its file. Move it away")
        if not path.is_file():  # a pipe would never end; writing replaces it
            return None
        try:
            return h5py.File(path, "r")
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno is not None:  # an error of the system, not a damaged file
                raise
            log.warning("%s is not a readable feature cache and is replaced: %s", path, error)
            return None

    def _write_part(self, samples: Mapping[str, CachedFeatures]) -> None:
        if not samples:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        name = f"{self.path.stem}.{uuid.uuid4().hex}{_PART_SUFFIX}"
        with replacing(self.path.with_name(name)) as partial:
            partial.write_bytes(_file_image(self.settings, samples))

    def _merge(self) -> None:
        """Merges all files into one. Windows refuses while another process reads one of them; a later call succeeds."""
        self.close()
        parts = self._parts()
        if not parts or not self._has_space(parts):
            return
        with contextlib.suppress(PermissionError):
            with replacing(self.path) as partial:
                with h5py.File(partial, "w") as merged:
                    merged.attrs["settings"] = self.settings
                    for file in self._open():
                        for key in file:
                            if key not in merged and _is_whole(file, key):
                                file.copy(key, merged)
                self.close()
            for part in parts:
                part.unlink(missing_ok=True)

    def _has_space(self, parts: Sequence[Path]) -> bool:
        """Whether the disk has space for one more copy of all files. Parts can be read without being merged.

        HDF5 crashes the process when the disk is full.
        """
        num_bytes = sum(path.stat().st_size for path in (*parts, self.path) if path.exists())
        return shutil.disk_usage(self.path.parent).free > num_bytes + _SPARE_BYTES

    def _remove_stale_partials(self) -> None:
        """Removes partial files of processes that are gone, and of other machines if they are old."""
        for path in self.path.parent.glob(".*.partial"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS or writer_is_dead(path):
                    path.unlink()


def _file_image(settings: str, samples: Mapping[str, CachedFeatures]) -> bytes:
    """A file with these samples, made in memory: HDF5 crashes the process if it meets a full disk."""
    with h5py.File(uuid.uuid4().hex, "w", driver="core", backing_store=False) as file:
        file.attrs["settings"] = settings
        for key, sample in samples.items():
            write_entry(file, key, sample)
        file.flush()
        return file.id.get_file_image()


def _is_whole(file: h5py.File, key: str) -> bool:
    try:
        return read_entry(file, key) is not None
    except DamagedEntry:
        return False


def hash_text(text: str) -> str:
    """Hash of a text, 32 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]
