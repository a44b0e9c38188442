"""Caches the features of a frozen encoder in an HDF5 file.

V views of one video   T frames   F features of a frame
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from stvid.files import replacing, writer_is_alive

log = logging.getLogger(__name__)
FORMAT_VERSION = 3  # of the files; another version starts a new cache
_PART_SUFFIX = ".part.h5"
_SAVE_EVERY = 30.0  # seconds
_MAX_PART_BYTES = 2**28  # of features in memory before they are written
_MAX_PARTS = 100  # all parts are open at the same time
_STALE_SECONDS = 3600.0  # a partial file older than this is left over from a killed process
_SPARE_BYTES = 2**20  # left free on the disk when files are merged


@dataclass(frozen=True, kw_only=True)
class CachedFeatures:
    """The cached features of one sample.

    Attributes:
        features_VTF: float32.
        label: class name; a flip may have changed the item's label.
    """

    features_VTF: np.ndarray
    label: str


class DamagedEntry(Exception):
    """An entry of a feature cache that cannot have been written by it, or has changed since."""


class FeatureCache:
    """An HDF5 file, and part files beside it that have not been merged into it yet; all of them are read.

    The file name is a hash of all settings that affect the features: another encoder, other weights or another
    preprocessing use another file, so features are never out of date. The keys of the samples identify the videos.

    A file is written completely before it gets its name, and never changes: other processes can read it at any time,
    and a killed process loses at most the samples of the last half minute.

    Each sample has a checksum over its features, label and key. A sample that does not match it, or is stored in
    another way than `writer` stores it, is missing: `key in cache` is False, and it can be added again. Nothing is read
    before its declared size is known to be that of the file.

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
        for file in self._open():
            with contextlib.suppress(DamagedEntry):
                if (entry := _read_entry(file, key)) is not None:
                    return entry
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

    def close(self) -> None:
        """Closes the files. The next access opens them again, together with new ones."""
        for file in self._files or ():
            file.close()
        self._files = None

    def _parts(self) -> list[Path]:
        """The part files, newest first: a sample that was added again replaces the older one."""
        parts = self.path.parent.glob(f"{self.path.stem}.*{_PART_SUFFIX}")
        return sorted(parts, key=lambda path: path.stat().st_mtime_ns, reverse=True)

    def _open(self) -> list[h5py.File]:
        if self._files is None:
            # open the main file last: it contains parts that are merged meanwhile
            files = [self._read(path) for path in (*self._parts(), self.path)]
            self._files = [file for file in files if file is not None]
        return self._files

    def _read(self, path: Path) -> h5py.File | None:
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
                if time.time() - path.stat().st_mtime > _STALE_SECONDS or not writer_is_alive(path):
                    path.unlink()


def _file_image(settings: str, samples: Mapping[str, CachedFeatures]) -> bytes:
    """A file with these samples, made in memory: HDF5 crashes the process if it meets a full disk."""
    with h5py.File(uuid.uuid4().hex, "w", driver="core", backing_store=False) as file:
        file.attrs["settings"] = settings
        for key, sample in samples.items():
            features_VTF = np.ascontiguousarray(sample.features_VTF, np.float32)
            entry = file.create_dataset(key, data=features_VTF, chunks=features_VTF.shape, fletcher32=True)
            entry.attrs["label"] = json.dumps(sample.label)  # folder names may not be UTF-8, HDF5 text must be
            entry.attrs["sha256"] = _checksum(key, sample.label, features_VTF)
        file.flush()
        return file.id.get_file_image()


def _read_entry(file: h5py.File, key: str) -> CachedFeatures | None:
    """One sample of a file; None if the file does not have it.

    Raises:
        DamagedEntry: it is not what `_file_image` writes.
    """
    try:
        if not isinstance(file.get(key, getlink=True), h5py.HardLink):  # none, or a link to another file
            return None
        entry = file[key]
        if not isinstance(entry, h5py.Dataset) or not _is_stored_here(entry):
            raise DamagedEntry(key)
        features_VTF, label, checksum = entry[()], json.loads(entry.attrs["label"]), entry.attrs["sha256"]
        is_whole = isinstance(label, str) and bool(checksum == _checksum(key, label, features_VTF))
    except OSError as error:
        if error.errno is not None:  # an error of the system, not a damaged file
            raise
        raise DamagedEntry(key) from error
    except (KeyError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise DamagedEntry(key) from error
    if not is_whole:
        raise DamagedEntry(key)
    return CachedFeatures(features_VTF=features_VTF, label=label)


def _is_stored_here(entry: h5py.Dataset) -> bool:
    """Whether an array lies in this file, uncompressed and in one piece, so that reading it takes no more memory."""
    return (
        entry.dtype == np.float32
        and entry.ndim == 3
        and entry.chunks == entry.shape == entry.maxshape
        and entry.fletcher32
        and entry.compression is None
        and not entry.is_virtual
        and entry.external is None
        and entry.id.get_storage_size() >= entry.nbytes
        and entry.nbytes <= entry.file.id.get_filesize()
    )


def _is_whole(file: h5py.File, key: str) -> bool:
    try:
        return _read_entry(file, key) is not None
    except DamagedEntry:
        return False


def _checksum(key: str, label: str, features_VTF: np.ndarray) -> str:
    """SHA-256 of a sample, 64 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps([key, label, features_VTF.shape]).encode())
    digest.update(np.ascontiguousarray(features_VTF).data)
    return digest.hexdigest()


def hash_text(text: str) -> str:
    """Hash of a text, 32 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]
