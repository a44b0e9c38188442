"""What a user is told: the exception for wrong input, and the commands that messages suggest."""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

SHOWN = 30  # names in a message


class InputError(ValueError):
    """A mistake of the user's. The message says what was asked, what was found, where, and what to do.

    The commands print it without a traceback and exit with code 2.
    """


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
