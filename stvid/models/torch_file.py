"""Reads files that `torch.save` wrote: tensors and plain data only, and no more memory than the file is large."""

from __future__ import annotations

import pickle
import pickletools
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import torch

from stvid.errors import InputError

DAMAGED = (  # errors of zipfile and of torch.load for files that are truncated, damaged, or something else
    zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, struct.error, RuntimeError, ValueError, EOFError,
    LookupError, TypeError, AttributeError, AssertionError, NotImplementedError, RecursionError, OverflowError,
    MemoryError,
)  # fmt: skip


def read_torch_file(path: Path) -> object:
    """The content of a file of `torch.save`, with its tensors on the CPU. No code of the file is run.

    Every byte is compared with the checksums of the file, so a damaged tensor is never returned. The tensors are views
    of the mapped file: copy what must outlive it, or a file that is written to in place.

    Args:
        path: the file; only the format since PyTorch 1.6, an uncompressed zip archive.

    Raises:
        InputError: the file cannot be read; it is truncated, damaged, of another kind, compressed, or holds more than
            tensors and plain data.
    """
    try:
        check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, for files that are no pickles
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is no readable checkpoint: {reason}. Use another copy of it") from error


def check_archive(path: Path) -> None:
    """Reads a zip archive once and compares it with its checksums.

    Raises:
        InputError: the file is no zip archive, is compressed, claims more bytes than it has, is damaged, or makes more
            than tensors and plain data.
        OSError: the file cannot be read.
    """
    if not zipfile.is_zipfile(path):
        path.open("rb").close()  # raises OSError for a folder, or without permission
        raise InputError(f"{path} is no readable checkpoint: truncated, or another kind of file")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        # torch.save never compresses: larger contents than the file can only be a trap
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
            raise InputError(f"{path} is no readable checkpoint: it is compressed, which PyTorch never does")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise InputError(f"{path} is no readable checkpoint: it claims more bytes than it has")
        if len({entry.filename for entry in entries}) < len(entries):
            raise InputError(f"{path} is no readable checkpoint: it has two parts of one name")
        if damaged := archive.testzip():
            raise InputError(f"{path} is damaged: the checksum of {damaged} is wrong. Use another copy of it")
        for entry in entries:
            if entry.filename.lower().endswith("data.pkl"):
                _check_pickle(archive.read(entry), path)


def _check_pickle(content: bytes, path: Path) -> None:
    """Raises InputError for a `bytearray`, which a few bytes of a pickle make as large as they like."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("STACK_GLOBAL", "INST") or (opcode.name == "GLOBAL" and str(argument).endswith("bytearray")):
            raise InputError(f"{path} is no readable checkpoint: it holds more than tensors and plain data")
