"""Errors for the user: InputError (a mistake in what was asked) and VideoError (a video that cannot be read)."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

SHOWN = 30  # names in a message
MISSING = "missing"  # there is no such file
UNREADABLE = "unreadable"  # a file, but not one that can be opened or decoded
NO_VIDEO_STREAM = "no video stream"  # audio only, cover art, a container without tracks
EMPTY = "empty"  # zero bytes, or not one frame
TRUNCATED = "truncated"  # fewer frames than promised: the file or its decoding stops half way
TIMEOUT = "timeout"  # took longer than the limit
REASONS = (MISSING, UNREADABLE, NO_VIDEO_STREAM, EMPTY, TRUNCATED, TIMEOUT)


# file system errors that the user can fix
USER_ERRNOS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EEXIST, errno.EISDIR,
}  # fmt: skip


class InputError(ValueError):
    """A mistake of the user's. The message says what was asked, what was found, where, and what to do.

    The commands print it without a traceback and exit with code 2.
    """


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """Prints the user's mistakes as one message on stderr and exits with code 2; other errors keep their traceback."""
    try:
        yield
    except InputError as error:
        message = str(error)
    except OSError as error:
        if error.filename is None or error.errno not in USER_ERRNOS:
            raise
        message = f"cannot use {error.filename}: {error.strerror}"
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest of the known names, else a list of them.

    Args:
        name: what the user wrote.
        known: what would have been right.
    """
    known = sorted(str(k) for k in known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there is: {listing(known)}" if known else ""


def listing(names: Sequence[str]) -> str:
    """The names with commas between them, at most 30 of them: `a, b and 3 more`."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def train_command(*arguments: str) -> str:
    """The command line that trains with these arguments, quoted for a shell.

    It begins with `python train.py` (with the path that was typed) where this process was started like that. Any other
    process suggests `stvid train`: an installed package has no script to name.
    """
    # not sys.argv, which `stvid train` changes
    script = next((word for word in sys.orig_argv[1:] if Path(word).name == "train.py" and "=" not in word), None)
    return shlex.join([*(("stvid", "train") if script is None else ("python", script)), *arguments])


class VideoError(Exception):
    """A video that cannot be used.

    Args:
        path: the file, as the caller named it.
        reason: one of `REASONS`, for counting and for tables.
        detail: what was seen, for a person; may be empty.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str, detail: str = "") -> None:
        assert reason in REASONS, reason
        # The three arguments are the exception's `args`, from which pickle builds it again in another process.
        super().__init__(str(path), reason, detail)
        self.path = str(path)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" + (f" ({self.detail})" if self.detail else "")
