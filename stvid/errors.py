"""Errors for the user: InputError (wrong input) and VideoError (a video that cannot be read)."""

from __future__ import annotations

import contextlib
import difflib
import errno
import logging
import os
import re
import select
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType

MAX_NAMES = 30  # in a message
MISSING = "missing"  # the file does not exist
UNREADABLE = "unreadable"  # the file cannot be opened or decoded
NO_VIDEO_STREAM = "no video stream"  # audio only, cover art, a container without tracks
EMPTY = "empty"  # zero bytes, or not one frame
TRUNCATED = "truncated"  # fewer frames than the container promises: the file or its decoding ends early
CHANGED = "changed"  # another file than the one that was probed
TIMEOUT = "timeout"  # no new frame for longer than the limit
REASONS = (MISSING, UNREADABLE, NO_VIDEO_STREAM, EMPTY, TRUNCATED, CHANGED, TIMEOUT)
# file system errors that the user can fix
FULL_ERRNOS = frozenset((errno.ENOSPC, errno.EDQUOT))
USER_ERRNOS = FULL_ERRNOS | {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR,
}  # fmt: skip
SHARED_MEMORY = Path("/dev/shm")


class InputError(ValueError):
    """Wrong input of the user. The message says what was asked, what was found, where, and what to do.

    The commands print it without a traceback and exit with code 2.
    """


def raise_mistakes(messages: Sequence[str]) -> None:
    """Raises one InputError for all messages, if there are any."""
    if len(messages) == 1:
        raise InputError(messages[0])
    if messages:
        raise InputError("\n  ".join([f"{len(messages)} mistakes:", *messages]))


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """Ends the program without a traceback for what is no bug; other errors keep their traceback.

    Exit codes: 2 after an error that the user can fix, whose message is printed on stderr; 130 after Ctrl-C; 1 if the
    reader of the output closed it, as `head` does.
    """
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return
    except InputError as error:
        message = str(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        if not _is_output_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
        raise SystemExit(1) from None
    except (OSError, RuntimeError) as error:
        found = system_error_text(error)
        if found is None:
            raise
        message = found
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _is_output_closed() -> bool:
    """Whether stdout is a pipe that nobody reads any more: other pipes and sockets may break too."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # Windows has no poll; a captured output has no file
        return hasattr(sys.stdout, "fileno")


class ConsoleHandler(logging.StreamHandler):
    """Log lines on the screen. If the reader closed the output, logging fails like `print`, without a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            raise
        super().handleError(record)


def exit_on_interrupt() -> None:
    """Ctrl-C ends the program at once, until `interrupt_normally`: for the time of imports.

    There is nothing to save yet, and some libraries turn a KeyboardInterrupt while they are imported into an error of
    their own. A program in the background may ignore Ctrl-C, and goes on doing so.
    """
    _replace_handler(signal.default_int_handler, _leave)


def interrupt_normally() -> None:
    """Ctrl-C raises KeyboardInterrupt again."""
    _replace_handler(_leave, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


def _replace_handler(old: object, new: Callable) -> None:
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is old:
        signal.signal(signal.SIGINT, new)


def system_error_text(error: OSError | RuntimeError) -> str | None:
    """The message for an error of the machine that the user can fix; None for other errors.

    These are files that cannot be used, full disks, too little shared memory, and data loading workers that died.
    """
    full = full_disk_error(error)
    if full is not None and ("shared memory" in str(error) or "DataLoader worker" in str(error)):
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
            if os.strerror(number) in str(seen):
                return OSError(number, os.strerror(number))
        seen = seen.__cause__ or seen.__context__
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


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest of the known names, else a list of them.

    Args:
        name: the name that the user gave.
        known: the names that exist.
    """
    known = sorted(map(str, known))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there is: {listing(known)}" if known else ""


def listing(names: Sequence[str]) -> str:
    """The names with commas between them, at most 30 of them: `a, b and 3 more`."""
    return ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")


def train_command(*arguments: str) -> str:
    """The shell command that trains with these arguments.

    It is `python train.py`, with the path that the user typed, if this process was started like that. Else it is
    `stvid train`: an installed package has no script.
    """
    # not sys.argv, which `stvid train` changes
    script = next((text for text in sys.orig_argv[1:] if Path(text).name == "train.py" and "=" not in text), None)
    return shlex.join([*(("stvid", "train") if script is None else ("python", script)), *arguments])


class VideoError(Exception):
    """A video that cannot be used.

    Args:
        path: the file, as the caller named it.
        reason: one of `REASONS`, for counts and tables.
        detail: a message of the decoder or the system; may be empty.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str, detail: str = "") -> None:
        assert reason in REASONS, reason
        # these are the exception's `args`, from which pickle rebuilds it in another process
        super().__init__(str(path), reason, detail)
        self.path = str(path)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" + (f" ({self.detail})" if self.detail else "")
