"""How the features of one sample are stored in an HDF5 file, and how damage is found.

V views of one video   T frames   F features of a frame
"""

from __future__ import annotations

import contextlib
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import h5py
import numpy as np


@dataclass(frozen=True, kw_only=True)
class CachedFeatures:
    """The cached features of one sample.

    Attributes:
        features_VTF: float32.
        label: class name; a flip may have changed the item's label.
    """

    features_VTF: np.ndarray
    label: str


class EntryHead(NamedTuple):
    """What is stored beside the features of one sample."""

    shape: tuple[int, int, int]  # V, T, F
    label: str


class DamagedEntry(Exception):
    """An entry of a feature cache that cannot have been written by it, or has changed since."""


def write_entry(file: h5py.File, key: str, sample: CachedFeatures) -> None:
    """Adds a sample: an array in one piece, and beside it its key, shape, label and checksum."""
    features_VTF = np.ascontiguousarray(sample.features_VTF, np.float32)
    head = [key, features_VTF.shape, sample.label]
    entry = file.create_dataset(key, data=features_VTF)
    entry.attrs["head"] = np.bytes_(_as_json([*head, _checksum(head, features_VTF)]))


def read_entry(file: h5py.File, key: str) -> CachedFeatures | None:
    """One sample of a file; None if the file does not have it.

    Raises:
        DamagedEntry: it is not what `write_entry` writes.
    """
    with _damage_as_damaged_entry(key):
        if (entry := _open_entry(file, key)) is None:
            return None
        head, checksum = _parse_head(entry, key)
        features_VTF = np.empty(head.shape, np.float32)
        entry.read(h5py.h5s.ALL, h5py.h5s.ALL, features_VTF, h5py.h5t.IEEE_F32LE)
        if checksum != _checksum([key, *head], features_VTF):
            raise DamagedEntry(key)
    return CachedFeatures(features_VTF=features_VTF, label=head.label)


def read_head(file: h5py.File, key: str) -> EntryHead | None:
    """The same without the features; raises DamagedEntry for another array or head."""
    with _damage_as_damaged_entry(key):
        entry = _open_entry(file, key)
        return None if entry is None else _parse_head(entry, key)[0]


@contextlib.contextmanager
def _damage_as_damaged_entry(key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # an error of the system, not a damaged file
            raise
        raise DamagedEntry(key) from error
    except (KeyError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise DamagedEntry(key) from error


def _open_entry(file: h5py.File, key: str) -> h5py.h5d.DatasetID | None:
    """The array of a sample, by h5py's low-level functions: the others take several times as long.

    None if there is none, or a link to another file. Raises DamagedEntry unless the array lies in this file,
    uncompressed and in one piece, so that reading it takes no more memory.
    """
    name = key.encode()
    try:
        link = file.id.links.get_info(name)
    except KeyError:
        return None
    if link.type != h5py.h5l.TYPE_HARD:
        return None
    entry = h5py.h5d.open(file.id, name)
    stored, num_bytes = entry.get_create_plist(), entry.get_storage_size()
    start = entry.get_offset() if stored.get_layout() == h5py.h5d.CONTIGUOUS else None
    if (
        entry.get_type() != h5py.h5t.IEEE_F32LE
        or stored.get_nfilters()
        or stored.get_external_count()
        or start is None
        or start + num_bytes > file.id.get_filesize()
    ):
        raise DamagedEntry(key)
    return entry


def _parse_head(entry: h5py.h5d.DatasetID, key: str) -> tuple[EntryHead, int]:
    """What is stored beside an array, and the checksum; raises DamagedEntry if it is that of another array."""
    attribute, shape = h5py.h5a.open(entry, b"head"), entry.shape
    kind = attribute.get_type()
    if kind.get_class() != h5py.h5t.STRING or kind.is_variable_str() or attribute.get_storage_size() != kind.get_size():
        raise DamagedEntry(key)
    text = np.empty((), f"S{kind.get_size()}")
    attribute.read(text)
    found_key, found_shape, label, checksum = json.loads(text.tobytes())
    is_own = found_key == key and isinstance(label, str) and isinstance(checksum, int)
    if not is_own or tuple(found_shape) != shape or entry.get_storage_size() != 4 * math.prod(shape) or len(shape) != 3:
        raise DamagedEntry(key)
    return EntryHead(shape, label), checksum


def _as_json(content: Sequence) -> bytes:
    """ASCII: folder names may not be UTF-8."""
    return json.dumps(content).encode()


def _checksum(head: Sequence, features_VTF: np.ndarray) -> int:
    """CRC-32 of a sample. It finds damage; it is no protection from somebody who may write the file."""
    return zlib.crc32(features_VTF.data, zlib.crc32(_as_json(head)))
