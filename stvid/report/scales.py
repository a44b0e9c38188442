"""Scales and axes of charts: positions of numbers, and the round numbers at the ticks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

LETTER_WIDTH = 0.6  # approximate ratio of letter width to font size; digits of common fonts have 0.5 to 0.6
MIN_LABEL_GAP = 14  # units between two labels of an axis


class Tick(NamedTuple):
    """A labelled position on an axis."""

    position: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Maps numbers to positions in a chart.

    Attributes:
        low, high: numbers at the ends, `low < high`; positive if the scale is logarithmic.
        start, end: positions of the ends in units of the chart. Vertical positions grow downwards, so for a vertical
            axis `start > end`.
        is_log: logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, number: float) -> float:
        """Position of a number."""
        low, high, number = (math.log(x) if self.is_log else x for x in (self.low, self.high, number))
        return round(self.start + (number - low) / (high - low) * (self.end - self.start), 1)

    def ticks(
        self, size: Callable[[str], float], *, text: Callable[[float], str] | None = None, whole: bool = False
    ) -> list[Tick]:
        """As many ticks at round numbers as the labels have space for.

        Args:
            size: length of a label along the axis, in units.
            text: formats a number; None: all numbers with the same number of decimals.
            whole: only integers.
        """
        choices = log_numbers(self.low, self.high) if self.is_log else round_numbers(self.low, self.high, whole=whole)
        for numbers in choices:
            labels = _equal_decimals(numbers) if text is None else map(text, numbers)
            ticks = [Tick(self(number), label) for number, label in zip(numbers, labels, strict=True)]
            if all(_do_not_overlap(a, b, size) for a, b in itertools.pairwise(ticks)):
                return ticks
        return []


def limits_around(numbers: Iterable[float], margin: float = 0.05, *, is_log: bool = False) -> dict:
    """`low`, `high` and `is_log` of a scale that contains the numbers, with a fraction of their range as margin."""
    values = [math.log(number) if is_log else number for number in numbers]
    low, high = min(values), max(values)
    extension = margin * (high - low)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # all equal: from half to double (log), or from 0 to double
        extension = math.log(2) if is_log else abs(high) or 1.0
    low, high = (math.exp(x) if is_log else x for x in (low - extension, high + extension))
    return {"low": low, "high": high, "is_log": is_log}


def round_numbers(low: float, high: float, *, whole: bool = False) -> Iterator[list[float]]:
    """Multiples of 1, 2 or 5 times a power of ten from low to high: first about a hundred, then fewer and fewer."""
    first = math.floor(math.log10(high - low)) - 2
    for exponent in itertools.count(max(first, 0) if whole else first):
        for step in (1, 2, 5):
            size = step * 10.0**exponent
            counts = range(math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9) + 1)
            if not counts:
                return
            yield [float(f"{count * step}e{exponent}") for count in counts]  # exact decimals: 3 * 0.1 gives 0.3


def log_numbers(low: float, high: float) -> Iterator[list[float]]:
    """The same for a logarithmic axis: multiples of powers of ten; then those of `round_numbers`."""
    decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    choices = [
        [float(f"{digit}e{n}") for n in decades for digit in digits] for digits in (range(1, 10), (1, 2, 5), (1,))
    ]
    choices += [[10.0**n for n in decades if n % every == 0] for every in range(2, len(decades))]
    inside = [[number for number in numbers if low <= number <= high] for numbers in choices]
    yield from (numbers for numbers in inside if len(numbers) > 1)
    yield from round_numbers(low, high)


def text_width(text: str, font_size: float) -> float:
    """Approximate width of a text, in units."""
    return LETTER_WIDTH * font_size * len(text)


def _equal_decimals(numbers: list[float]) -> list[str]:
    shortest = [f"{number:.10g}" for number in numbers]
    if any("e" in text for text in shortest):
        return [text.replace("e-0", "e-").replace("e+", "e") for text in shortest]
    digits = max(len(text.partition(".")[2]) for text in shortest)
    return [f"{number:.{digits}f}" for number in numbers]


def _do_not_overlap(a: Tick, b: Tick, size: Callable[[str], float]) -> bool:
    return abs(b.position - a.position) >= (size(a.label) + size(b.label)) / 2 + MIN_LABEL_GAP
