"""Segments as subtitles: SubRip (.srt) and WebVTT (.vtt)."""

from __future__ import annotations

import html
import os
from collections.abc import Collection, Sequence

from stvid.deploy.segments import UNKNOWN, Segment
from stvid.files import replacing
from stvid.terminal import visible


def subtitles(segments: Sequence[Segment], *, kind: str, offset: float = 0.0, background: Collection[str] = ()) -> str:
    """The text of a subtitle file, with one line for each segment, such as `walking 93 %`.

    Unknown segments and those of `background` are left out.

    Args:
        segments: in order.
        kind: `srt` or `vtt`.
        offset: seconds on the file's own clock that players show as 0, see `playback.clock_start`.
        background: classes without subtitles.
    """
    shown = [segment for segment in segments if segment.label != UNKNOWN and segment.label not in background]
    blocks = ["WEBVTT\n"] if kind == "vtt" else []
    for number, segment in enumerate(shown, 1):
        times = " --> ".join(_time(seconds - offset, kind) for seconds in (segment.start, segment.end))
        text = html.escape(visible(segment.label), quote=False) if kind == "vtt" else visible(segment.label)
        blocks.append(f"{number}\n{times}\n{text} {segment.probability:.0%}\n")
    return "\n".join(blocks)


def write_subtitles(path: str | os.PathLike[str], text: str) -> None:
    """Writes subtitles in UTF-8, atomically."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def _time(seconds: float, kind: str) -> str:
    """`HH:MM:SS,mmm`; WebVTT has a point instead of the comma."""
    milliseconds = max(round(seconds * 1000), 0)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{',' if kind == 'srt' else '.'}{rest % 1000:03d}"
