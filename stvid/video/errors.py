"""The one exception that means: this video cannot give its frames, and why."""

from __future__ import annotations

import os

MISSING = "missing"  # there is no such file
UNREADABLE = "unreadable"  # a file, but not one that can be opened or decoded
NO_VIDEO_STREAM = "no video stream"  # audio only, cover art, a container without tracks
EMPTY = "empty"  # zero bytes, or not one frame
TRUNCATED = "truncated"  # fewer frames than promised: the file or its decoding stops half way
TIMEOUT = "timeout"  # took longer than the limit

REASONS = (MISSING, UNREADABLE, NO_VIDEO_STREAM, EMPTY, TRUNCATED, TIMEOUT)


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
