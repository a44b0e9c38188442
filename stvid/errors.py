"""Errors for the user: InputError (wrong input) and VideoError (a video that cannot be read)."""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from stvid.terminal import visible

T = TypeVar("T")
R = TypeVar("R")
MAX_NAMES = 30  # in a message
MISSING = "missing"  # the file does not exist
UNREADABLE = "unreadable"  # the file cannot be opened or decoded
NO_VIDEO_STREAM = "no video stream"  # audio only, cover art, a container without tracks
EMPTY = "empty"  # zero bytes, or not one frame
TRUNCATED = "truncated"  # fewer frames than the container promises: the file or its decoding ends early
CHANGED = "changed"  # another file than the one that was probed
TIMEOUT = "timeout"  # no new frame for longer than the limit
REASONS = (MISSING, UNREADABLE, NO_VIDEO_STREAM, EMPTY, TRUNCATED, CHANGED, TIMEOUT)


class InputError(ValueError):
    """Wrong input of the user. The message says what was asked, what was found, where, and what to do.

    The commands print it without a traceback and exit with code 2.
    """


def raise_mistakes(messages: Sequence[str]) -> None:
    """Raises one InputError for all messages, if there are any; of more than 30 it shows the first."""
    if len(messages) == 1:
        raise InputError(messages[0])
    if messages:
        more = [f"and {len(messages) - MAX_NAMES} more"] if len(messages) > MAX_NAMES else []
        raise InputError("\n  ".join([f"{len(messages)} mistakes:", *messages[:MAX_NAMES], *more]))


def map_inputs(function: Callable[[T], R], inputs: Iterable[T]) -> list[R]:
    """The results of a function for all inputs. Raises one InputError for all inputs that it raises one for."""
    results, messages = [], []
    for value in inputs:
        try:
            results.append(function(value))
        except InputError as error:
            messages.append(str(error))
    raise_mistakes(messages)
    return results


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
    """The names with commas between them, at most 30: `a, b and 3 more`. Hidden characters are escaped."""
    return ", ".join(map(visible, names[:MAX_NAMES])) + (
        f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    )


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
        return visible(f"{self.path}: {self.reason}" + (f" ({self.detail})" if self.detail else ""))
