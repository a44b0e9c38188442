"""What varies in a sweep, read from Hydra's override grammar.

optimizer.lr=1e-3,3e-3                         a list
model=glob(*d_18)                              every choice of a group that fits
model.num_layers=range(1,4)                    1, 2, 3
model.dropout=interval(0,0.7)                  anything between
optimizer.lr=tag(log,interval(1e-5,1e-2))      anything between, every order of magnitude alike
clip.num_frames=int(interval(8,32))            a whole number, both ends among them
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from stvid.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of several values, as an override would write them; `ordered` where they are a range of numbers."""

    values: tuple[str, ...]
    ordered: bool = False

    def __str__(self) -> str:
        return ", ".join(self.values)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number from `low` to `high`, both included; a whole one, or drawn on a logarithmic scale."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __str__(self) -> str:
        whole, log = "whole numbers " if self.whole else "", ", logarithmic" if self.log else ""
        return f"{whole}{self.low:g} to {self.high:g}{log}"


@dataclass(frozen=True, kw_only=True)
class Space:
    """Overrides that every trial has, and what varies: override key -> its values."""

    fixed: tuple[str, ...]
    varied: dict[str, Choice | Interval]


def read_space(overrides: Sequence[str], parser: OverridesParser) -> Space:
    """Tells what varies from what does not. Where a key is given twice, the last one counts.

    Raises:
        InputError: an empty list or interval, or a tag that means nothing here.
    """
    fixed: dict[str, str] = {}
    varied: dict[str, Choice | Interval] = {}
    for override in parser.parse_overrides(list(overrides)):
        key = override.get_key_element()
        fixed.pop(key, None), varied.pop(key, None)
        if not override.is_sweep_override():
            fixed[key] = override.input_line
        elif override.is_interval_sweep():
            varied[key] = _interval(override)
        else:
            varied[key] = _choice(override)
    return Space(fixed=tuple(fixed.values()), varied=varied)


def grid(space: Space) -> list[dict[str, str]]:
    """Every combination, the last key varying fastest.

    Raises:
        InputError: an interval, which has no end of values.
    """
    for key, dimension in space.varied.items():
        if isinstance(dimension, Interval):
            raise InputError(
                f"{key}: an interval cannot be run through by a grid. "
                f"List its values ({key}=A,B or range()), or draw from it: sweep=random, sweep=optuna"
            )
    lists = [dimension.values for dimension in space.varied.values()]
    return [dict(zip(space.varied, values, strict=True)) for values in itertools.product(*lists)]


def samples(space: Space) -> list[dict[str, str]]:
    """Few combinations in which every listed value occurs, and each end of an interval."""
    ends = {key: _ends(dimension) for key, dimension in space.varied.items()}
    first = {key: values[0] for key, values in ends.items()}
    return [first] + [{**first, key: value} for key, values in ends.items() for value in values[1:]]


def _ends(dimension: Choice | Interval) -> tuple[str, ...]:
    return dimension.values if isinstance(dimension, Choice) else (str(dimension.low), str(dimension.high))


def _choice(override: Override) -> Choice:
    sweep = override.value()
    if getattr(sweep, "shuffle", False):
        raise InputError(f"{override.input_line}: shuffle() is not taken; sweep=random draws in an order of its own")
    if getattr(sweep, "tags", None):
        raise InputError(f"{override.input_line}: a tag has no meaning on a list or a range; tag(log,interval(A,B))")
    values = tuple(dict.fromkeys(override.sweep_string_iterator()))
    if not values:
        raise InputError(f"{override.input_line}: no value to choose from")
    return Choice(values=values, ordered=override.is_range_sweep())


def _interval(override: Override) -> Interval:
    sweep = override.value()
    assert isinstance(sweep, IntervalSweep)
    log = "log" in sweep.tags
    if sweep.tags - {"log"}:
        unknown = ", ".join(sorted(sweep.tags - {"log"}))
        raise InputError(f"{override.input_line}: unknown tag {unknown}; there is: log")
    if sweep.start > sweep.end:
        raise InputError(f"{override.input_line}: the interval's ends are the wrong way round")
    if log and sweep.start <= 0:
        raise InputError(f"{override.input_line}: a logarithmic scale starts above 0")
    return Interval(low=sweep.start, high=sweep.end, log=log, whole=isinstance(sweep.start, int))
