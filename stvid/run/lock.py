"""The lock of a run's or a sweep's folder: one process at a time trains in it."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import socket
from collections.abc import Iterator

from filelock import Timeout

from stvid.checks import fields, number, read_json, text
from stvid.errors import InputError
from stvid.files import system_lock, write_json
from stvid.run.folder import RunFolder, check_stays_inside

log = logging.getLogger(__name__)
HOLDER = fields({"host": text(), "pid": number(1, whole=True), "since": text()})


@contextlib.contextmanager
def locked_folder(folder: RunFolder) -> Iterator[None]:
    """Holds the lock of a run's or a sweep's folder; the system releases it when the process ends, however it ends.

    A file beside the lock says who holds it. On a file system without locks there is a warning instead.

    Raises:
        InputError: another process holds the lock; something in the folder leads out of it.
    """
    check_stays_inside(folder, trains=True)
    with contextlib.ExitStack() as stack:
        try:
            failure = stack.enter_context(system_lock(folder.lock, timeout=0))
        except Timeout:
            raise InputError(
                f"{folder.path} is in use: {_holder(folder)} trains in it. Wait until it has ended, stop it, or choose "
                "another folder"
            ) from None
        if failure is not None:
            log.warning("%s cannot be locked (%s); make sure that no other process trains in it", folder.path, failure)
            yield
            return
        with contextlib.suppress(OSError):
            since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
            write_json(folder.lock_holder, {"host": socket.gethostname(), "pid": os.getpid(), "since": since})
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # the disk may have become read-only, or the folder is gone
                folder.lock_holder.unlink()


def _holder(folder: RunFolder) -> str:
    """Who holds the lock, as far as it is known."""
    try:
        holder = read_json(folder.lock_holder, HOLDER, remedy="")
    except InputError:  # not written yet
        return "another process"
    return f"process {holder['pid']} on {holder['host']} (since {holder['since']})"
