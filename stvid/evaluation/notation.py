"""How numbers, times and names are written, in a terminal and on a page."""

from __future__ import annotations

NBSP = "\u00a0"  # between a number and its unit, where no line may break
NOTHING = "–"


def percent(share: float | None) -> str:
    """`86.5 %` of a fraction."""
    return NOTHING if share is None else f"{100 * share:.1f}{NBSP}%"


def interval(bounds: tuple[float, float] | list[float]) -> str:
    """`81.1 to 90.5 %`."""
    low, high = bounds
    return f"{100 * low:.1f} to {100 * high:.1f}{NBSP}%"


def change(difference: float) -> str:
    """Percentage points with their sign."""
    points = f"{abs(100 * difference):.1f}"
    return f"{'±' if points == '0.0' else '+' if difference > 0 else '−'}{points}"


def decimal(number: float | None) -> str:
    """Three decimals."""
    return NOTHING if number is None else f"{number:.3f}"


def count(number: int, what: str) -> str:
    """`1 video`, `1,200 videos`."""
    plural = what if number == 1 else f"{what}{'es' if what.endswith('s') else 's'}"
    return f"{number:,} {plural}"


def duration(seconds: float) -> str:
    """`4.5 s`, `45 s`, `3 min 20 s`, `2 h 5 min`."""
    seconds = round(seconds) if seconds >= 10 else round(seconds, 1)
    if seconds < 60:
        return f"{seconds:g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def p_value(value: float) -> str:
    """Of a test, for a table: `0.0123` or `< 0.0001`."""
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


def p_equals(value: float) -> str:
    """Likewise for a sentence: `p = 0.0123` or `p < 0.0001`."""
    text = p_value(value)
    return f"p {text if text.startswith('<') else f'= {text}'}".replace(" ", NBSP)


def part(start: float | None, end: float | None) -> str:
    """Which part of a file a video is, to stand behind its name; nothing for a whole one."""
    if start is None and end is None:
        return ""
    return f", {start or 0:g} s to {'the end' if end is None else f'{end:g} s'}"


def protocol_value(key: str, value: object) -> str:
    """A value of a result's `protocol`: `16`, `64 × 64`, `all` frames of a video; a dash where it has none."""
    if value is None:
        return {"num_frames": "all", "temperature": "one for each fold"}.get(key, NOTHING)
    if isinstance(value, list):
        return " × ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def printable(text: str) -> str:
    """Text that can be written as UTF-8: bytes of a file name that are none stay to be seen, as `\\udc..`."""
    return text.encode("utf-8", "backslashreplace").decode()
