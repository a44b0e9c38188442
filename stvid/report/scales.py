"""From numbers to places in a chart, and the round numbers that its axes name."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

LETTER_WIDTH = 0.6  # width of a letter over the size of the font, about; digits of common fonts have 0.5 to 0.6
MIN_LABEL_GAP = 14  # units between the labels of an axis, at least


class Tick(NamedTuple):
    """A number that an axis names: where it stands, and how it is written."""

    place: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Scale:
    """An axis of a chart; called with a number, it says where that stands.

    Attributes:
        low, high: numbers at its ends, `low < high`; above 0 where it is logarithmic.
        start, end: places of the ends, in units of the picture. Downwards they grow, so a vertical axis starts at the
            greater one.
        is_log: logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, number: float) -> float:
        low, high, number = (math.log(x) if self.is_log else x for x in (self.low, self.high, number))
        return round(self.start + (number - low) / (high - low) * (self.end - self.start), 1)

    def ticks(
        self, size: Callable[[str], float], *, text: Callable[[float], str] | None = None, whole: bool = False
    ) -> list[Tick]:
        """Round numbers on the axis, as many as have room for their labels.

        Args:
            size: how many units a label takes along the axis.
            text: how a number is written; None: all with the same number of decimals.
            whole: only whole numbers.
        """
        choices = log_numbers(self.low, self.high) if self.is_log else round_numbers(self.low, self.high, whole=whole)
        for numbers in choices:
            labels = _equal_decimals(numbers) if text is None else map(text, numbers)
            ticks = [Tick(self(number), label) for number, label in zip(numbers, labels, strict=True)]
            if all(_do_not_overlap(a, b, size) for a, b in itertools.pairwise(ticks)):
                return ticks
        return []


def limits_around(numbers: Iterable[float], margin: float = 0.05, *, is_log: bool = False) -> dict:
    """`low`, `high` and `is_log` of a scale that holds the numbers, with a share of their range left at both ends."""
    found = [math.log(number) if is_log else number for number in numbers]
    low, high = min(found), max(found)
    room = margin * (high - low)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # all alike: half to twice, or as far as to 0
        room = math.log(2) if is_log else abs(high) or 1.0
    low, high = (math.exp(x) if is_log else x for x in (low - room, high + room))
    return {"low": low, "high": high, "is_log": is_log}


def round_numbers(low: float, high: float, *, whole: bool = False) -> Iterator[list[float]]:
    """The multiples of 1, 2 or 5 times a power of ten from low to high: first about a hundred, in the end a few."""
    first = math.floor(math.log10(high - low)) - 2
    for exponent in itertools.count(max(first, 0) if whole else first):
        for step in (1, 2, 5):
            size = step * 10.0**exponent
            counts = range(math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9) + 1)
            if not counts:
                return
            yield [float(f"{count * step}e{exponent}") for count in counts]  # so that three times 0.1 is 0.3


def log_numbers(low: float, high: float) -> Iterator[list[float]]:
    """Likewise for a logarithmic axis: multiples of powers of ten; if there is hardly one, `round_numbers`."""
    decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    choices = [
        [float(f"{digit}e{n}") for n in decades for digit in digits] for digits in (range(1, 10), (1, 2, 5), (1,))
    ]
    choices += [[10.0**n for n in decades if n % every == 0] for every in range(2, len(decades))]
    inside = [[number for number in numbers if low <= number <= high] for numbers in choices]
    yield from (numbers for numbers in inside if len(numbers) > 1)
    yield from round_numbers(low, high)


def text_width(text: str, font: float) -> float:
    """About how wide a text is, in units."""
    return LETTER_WIDTH * font * len(text)


def _equal_decimals(numbers: list[float]) -> list[str]:
    plain = [f"{number:.10g}" for number in numbers]
    if any("e" in text for text in plain):
        return [text.replace("e-0", "e-").replace("e+", "e") for text in plain]
    digits = max(len(text.partition(".")[2]) for text in plain)
    return [f"{number:.{digits}f}" for number in numbers]


def _do_not_overlap(a: Tick, b: Tick, size: Callable[[str], float]) -> bool:
    return abs(b.place - a.place) >= (size(a.label) + size(b.label)) / 2 + MIN_LABEL_GAP
