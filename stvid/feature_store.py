"""Features that a frozen encoder gave, kept in an HDF5 file so that they are computed once.

V views of one video   T frames   F features of a frame
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

log = logging.getLogger(__name__)

FORMAT = 1  # of the file; another one begins anew


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
    """One HDF5 file; its name is a hash of all that its features depend on beside the videos.

    So another encoder, other weights or another preprocessing is another file, and never gives features that are out
    of date; the keys of the items do the same for the videos.

    Args:
        folder: where the file lies, or will.
        facts: what the features depend on, as plain data; it is kept in the file, for people.
    """

    def __init__(self, folder: Path, facts: Mapping):
        text = json.dumps({"format": FORMAT, **facts}, sort_keys=True)
        self.path = Path(folder) / f"{digest(text)}.h5"
        self.facts = text
        self._file: h5py.File | None = None
        self._unreadable = False  # told once, not for every item that is looked for

    def __contains__(self, key: str) -> bool:
        return (file := self._open()) is not None and key in file

    def __len__(self) -> int:
        return len(file) if (file := self._open()) is not None else 0

    def __getitem__(self, key: str) -> Stored:
        item = self._open()[key]
        return Stored(features_VTF=item[()], label=item.attrs["label"])

    @contextlib.contextmanager
    def adding(self) -> Iterator[Callable[[str, Stored], None]]:
        """Yields a function that adds an item. What was added counts when the block ends, by an error too.

        The file is replaced as a whole, with what others have added to it meanwhile: whoever reads it goes on with the
        one that was opened, a kill leaves it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        try:
            with h5py.File(partial, "w") as file:
                file.attrs["facts"] = self.facts

                def add(key: str, stored: Stored) -> None:
                    item = file.create_dataset(key, data=stored.features_VTF)
                    item.attrs["label"] = stored.label

                try:
                    yield add
                finally:
                    self.close()
                    if (there := self._open()) is not None:
                        for key in set(there) - set(file):
                            there.copy(key, file)
                    self.close()
                    file.close()
                    os.replace(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)

    def close(self) -> None:
        """Lets go of the file; it is opened again when it is needed."""
        if self._file is not None:
            self._file.close()
        self._file, self._unreadable = None, False

    def _open(self) -> h5py.File | None:
        if self._file is None and not self._unreadable and self.path.exists():
            try:
                self._file = h5py.File(self.path, "r")
            except OSError as error:
                if error.errno is not None:  # the system's, and not the file's own fault
                    raise
                self._unreadable = True
                log.warning("%s is no readable feature store and is begun anew: %s", self.path, error)
        return self._file


def digest(text: str) -> str:
    """32 hexadecimal digits that stand for the text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]
