"""Errors of the machine that a user can fix, in words: full disks, files without permission, workers that died."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from pathlib import Path

FULL_ERRNOS = frozenset((errno.ENOSPC, errno.EDQUOT))
# others, such as a file that exists already, may be a mistake of ours
USER_ERRNOS = FULL_ERRNOS | {errno.EACCES, errno.EPERM, errno.EROFS}
WRITE_ERRNOS = FULL_ERRNOS | {errno.EROFS, errno.EIO, errno.EFBIG}  # of a disk, whose errors have no file name
SHARED_MEMORY = Path("/dev/shm")


def system_error_text(error: OSError | RuntimeError) -> str | None:
    """The message for an error of the machine that the user can fix; None for other errors.

    These are files that cannot be used, full disks, too little shared memory, and data loading workers that died.
    """
    full = full_disk_error(error)
    if full is not None and re.search(r"shared memory|</torch_\d", str(error)):  # torch's files in shared memory
        return _shared_memory_text()
    if full is not None:
        return _full_disk_text(full)
    if isinstance(error, OSError):
        if error.filename is None or error.errno not in USER_ERRNOS:
            return None
        return f"cannot use {os.fsdecode(error.filename)}: {error.strerror}"
    if "DataLoader worker" not in str(error):
        return None
    if "Bus error" in str(error):
        return _shared_memory_text()
    worker = re.search(
        r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (is killed by signal: [^.]+|exited unexpectedly)", str(error)
    )
    if worker is None:
        return None
    how = worker[2].replace("is killed", "was killed").replace("exited unexpectedly", "was killed, or crashed")
    return (
        f"a worker process that reads videos (process {worker[1]}) {how}. Often the machine had too little memory, and "
        "its system ended the process: use fewer workers (data.num_workers, --workers; 0 reads in the main process) or "
        "a smaller data.batch_size"
    )


def full_disk_error(error: BaseException) -> OSError | None:
    """The error of a full disk, or of a used up quota, that caused an error; None if there is none.

    Libraries hide it: torch and HDF5 raise a RuntimeError, with or without the cause.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL_ERRNOS:
            return seen
        for number in FULL_ERRNOS:
            text = os.strerror(number)
            match = re.search(rf"{re.escape(text)}(?:: '([^'\n]+)')?", str(seen))
            if match and not text.startswith("Unknown"):  # on some systems a number has no text of its own
                return OSError(number, text, match[1]) if match[1] else OSError(number, text)
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return None


def _full_disk_text(error: OSError) -> str:
    if error.filename is None:  # an output of the program, or a file of another library
        folders = {os.getcwd(), tempfile.gettempdir(), str(SHARED_MEMORY)}
        disks = ", ".join(disk_text(Path(folder)) for folder in sorted(folders) if os.path.isdir(folder))
        return f"cannot write: {error.strerror}. {disks}. Free some space, or write to another disk"
    path = Path(os.fsdecode(error.filename))
    return (
        f"cannot write {path}: {error.strerror}. {disk_text(path)}, less than the file needs. Free some space there, "
        "or name a folder on another disk"
    )


def disk_text(path: Path) -> str:
    """Mount point and free space of the disk on which a file lies, or would lie."""
    folder = path.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    free, mount = shutil.disk_usage(folder).free, folder.resolve()
    while not os.path.ismount(mount) and mount != mount.parent:
        mount = mount.parent
    if hasattr(os, "statvfs") and (status := os.statvfs(folder)).f_files and not status.f_favail:
        return f"The disk at {mount} has {free:,} bytes free, but no room for another file (inodes)"
    return f"The disk at {mount} has {free:,} bytes free"


def _shared_memory_text() -> str:
    size = f" of {shutil.disk_usage(SHARED_MEMORY).total / 2**20:,.0f} MiB" if SHARED_MEMORY.is_dir() else ""
    return (
        f"{SHARED_MEMORY}{size} is too small: worker processes pass their batches through this shared memory. Make it "
        "larger (docker run --shm-size=2g), or use fewer workers (data.num_workers=0, --workers 0) or a smaller "
        "data.batch_size"
    )
