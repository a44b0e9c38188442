"""Features that a frozen encoder gave, kept in HDF5 files so that they are computed once.

V views of one video   T frames   F features of a frame
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from stvid.files import replacing

log = logging.getLogger(__name__)

FORMAT = 2  # of the files; another one begins anew
_PART = ".part.h5"  # the end of a part's name
_SAVE_EVERY = 30.0  # seconds
_PART_BYTES = 2**28  # held in memory until they are written
_MOST_PARTS = 100  # all of them are open at once
_STALE = 3600.0  # seconds after which a file that is being written is nobody's


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What is kept of one item.

    Attributes:
        features_VTF: float32.
        label: its class, which a mirror image may have changed.
    """

    features_VTF: np.ndarray
    label: str


class FeatureStore:
    """An HDF5 file, and beside it the parts that have been added and not yet merged into it; all of them are read.

    The name is a hash of all that the features depend on beside the videos. So another encoder, other weights or
    another preprocessing is another file, and never gives features that are out of date; the keys of the items do the
    same for the videos.

    A file is complete when it gets its name, and never changes: others can read it at any time, and a killed process
    loses what it added in the last half minute.

    Args:
        folder: where the files lie, or will; nothing else is kept in it.
        facts: what the features depend on, as plain data; it is kept in the files, for people.
    """

    def __init__(self, folder: Path, facts: Mapping):
        text = json.dumps({"format": FORMAT, **facts}, sort_keys=True)
        self.path = Path(folder) / f"{digest(text)}.h5"
        self.facts = text
        self._files: list[h5py.File] | None = None

    def __contains__(self, key: str) -> bool:
        return any(key in file for file in self._open())

    def __len__(self) -> int:
        return len({key for file in self._open() for key in file})

    def __getitem__(self, key: str) -> Stored:
        for file in self._open():
            if key in file:
                return Stored(features_VTF=file[key][()], label=json.loads(file[key].attrs["label"]))
        raise KeyError(key)

    @contextlib.contextmanager
    def adding(self) -> Iterator[Callable[[str, Stored], None]]:
        """Yields a function that adds an item. What was added stays, after an error too.

        Items are written together twice a minute, as one more part. The parts become one file at the end, or when there
        are many, so that a large store is not written again and again.
        """
        self._remove_stale_partials()
        pending: dict[str, Stored] = {}
        num_bytes, written = 0, time.monotonic()

        def add(key: str, stored: Stored) -> None:
            nonlocal num_bytes, written
            pending[key] = stored
            num_bytes += stored.features_VTF.nbytes
            if time.monotonic() - written >= _SAVE_EVERY or num_bytes >= _PART_BYTES:
                self._write_part(pending)
                pending.clear()
                if len(self._parts()) >= _MOST_PARTS:
                    self._merge()
                num_bytes, written = 0, time.monotonic()

        try:
            yield add
        finally:
            self._write_part(pending)
            self.close()
        self._merge()

    def close(self) -> None:
        """Lets go of the files. They are opened again when they are needed, and with them those that are new."""
        for file in self._files or ():
            file.close()
        self._files = None

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}.*{_PART}"))

    def _open(self) -> list[h5py.File]:
        if self._files is None:
            # the main file last: a part that is merged and removed meanwhile is in it
            files = [self._read(path) for path in (*self._parts(), self.path)]
            self._files = [file for file in files if file is not None]
        return self._files

    def _read(self, path: Path) -> h5py.File | None:
        try:
            return h5py.File(path, "r")
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno is not None:  # the system's, and not the file's own fault
                raise
            log.warning("%s is no readable feature store and is begun anew: %s", path, error)
            return None

    def _write_part(self, items: Mapping[str, Stored]) -> None:
        if not items:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        name = f"{self.path.stem}.{uuid.uuid4().hex}{_PART}"
        with replacing(self.path.with_name(name)) as partial, h5py.File(partial, "w") as file:
            file.attrs["facts"] = self.facts
            for key, stored in items.items():
                item = file.create_dataset(key, data=stored.features_VTF)
                item.attrs["label"] = json.dumps(stored.label)  # a folder's name need not be UTF-8, HDF5's text must

    def _merge(self) -> None:
        """Makes one file of all. Where Windows does not let go of one that another process reads, a later call does."""
        self.close()
        parts = self._parts()
        if not parts:
            return
        with contextlib.suppress(PermissionError):
            with replacing(self.path) as partial:
                with h5py.File(partial, "w") as merged:
                    merged.attrs["facts"] = self.facts
                    for file in self._open():
                        for key in file:
                            if key not in merged:
                                file.copy(key, merged)
                self.close()
            for part in parts:
                part.unlink(missing_ok=True)

    def _remove_stale_partials(self) -> None:
        """Removes what killed processes have left half-written; a living one needs a minute at most."""
        for path in self.path.parent.glob(".*.partial"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE:
                    path.unlink()


def digest(text: str) -> str:
    """32 hexadecimal digits that stand for the text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]
