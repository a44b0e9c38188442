"""The private folder of uploads. Those of processes that were killed are deleted at the next start."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PREFIX = "stvid-uploads-"


class UploadFolder:
    """A folder below `TMPDIR` that only this user may read.

    The process holds a lock on it, which the system releases however the process ends (not on Windows, where folders
    of killed processes stay). A folder of this user without a lock is therefore left behind, and is deleted. The lock
    also protects a service in another container that shares `TMPDIR`, whose process numbers mean nothing here.

    Attributes:
        path: the folder.
    """

    def __init__(self) -> None:
        for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            _delete_if_left_behind(path)
        while True:
            self._folder = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
            self.path = Path(self._folder.name)
            self._lock = _lock(self.path, waits=True)
            if self.path.exists():  # no other start has deleted it before it had its lock
                break

    def delete(self) -> None:
        """Deletes the folder with all files in it."""
        self._folder.cleanup()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _delete_if_left_behind(path: Path) -> None:
    if (lock := _lock(path, waits=False)) is not None:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _lock(path: Path, *, waits: bool) -> int | None:
    """A descriptor with the lock of a folder; None: another process has it, no folder of this user, Windows."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_uid == os.getuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            return descriptor
    except OSError:  # another process has it, or this file system has no locks
        pass
    os.close(descriptor)
    return None
