"""The one exception that means: the user's input is wrong, and here is what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

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
