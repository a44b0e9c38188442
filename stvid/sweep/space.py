"""The search space of a sweep, read from Hydra's override grammar.

optimizer.lr=1e-3,3e-3                         a list
model=glob(*d_18)                              every choice of a group that matches
model.num_layers=range(1,4)                    1, 2, 3
model.dropout=interval(0,0.7)                  any number between
optimizer.lr=tag(log,interval(1e-5,1e-2))      any number between, on a logarithmic scale
clip.num_frames=int(interval(8,32))            any whole number between, both ends included
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
    """One of several values, written as in an override; `ordered` for a range of numbers."""

    values: tuple[str, ...]
    ordered: bool = False

    def contains(self, value: str) -> bool:
        """Whether a value, written as in an override, is one of these."""
        return value in self.values

    def __str__(self) -> str:
        return ", ".join(self.values)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number from `low` to `high`, both included; `log`: on a logarithmic scale; `whole`: whole numbers only."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def contains(self, value: str) -> bool:
        """Whether a value, written as in an override, is a number of this interval."""
        try:
            return self.low <= (int(value) if self.whole else float(value)) <= self.high
        except ValueError:
            return False

    def __str__(self) -> str:
        whole, log = "whole numbers " if self.whole else "", ", logarithmic" if self.log else ""
        return f"{whole}{self.low:g} to {self.high:g}{log}"


@dataclass(frozen=True, kw_only=True)
class Space:
    """Overrides that all trials share, and override key -> values for each key that varies."""

    fixed: tuple[str, ...]
    varied: dict[str, Choice | Interval]


def read_space(overrides: Sequence[str], parser: OverridesParser) -> Space:
    """Separates keys with several values from keys with one. The last override of a key wins.

    Raises:
        InputError: an empty list, an interval without numbers, or an unknown tag.
    """
    fixed: dict[str, str] = {}
    varied: dict[str, Choice | Interval] = {}
    for override in parser.parse_overrides(list(overrides)):
        key = override.get_key_element()
        fixed.pop(key, None), varied.pop(key, None)
        if not override.is_sweep_override():
            fixed[key] = str(override.input_line)
        elif override.is_interval_sweep():
            varied[key] = _interval(override)
        else:
            varied[key] = _choice(override)
    return Space(fixed=tuple(fixed.values()), varied=varied)


def grid_points(space: Space) -> list[dict[str, str]]:
    """Every combination; the last key varies fastest.

    Raises:
        InputError: an interval, which cannot be listed.
    """
    for key, dimension in space.varied.items():
        if isinstance(dimension, Interval):
            raise InputError(
                f"{key}: a grid cannot list the values of an interval. "
                f"List them ({key}=A,B or range()), or draw from the interval: sweep=random, sweep=optuna"
            )
    lists = [_listed_values(dimension) for dimension in space.varied.values()]
    return [dict(zip(space.varied, values, strict=True)) for values in itertools.product(*lists)]


def covering_points(space: Space) -> list[dict[str, str]]:
    """A few combinations that contain every listed value and both ends of every interval."""
    values_of = {key: _listed_values(dimension) for key, dimension in space.varied.items()}
    first = {key: values[0] for key, values in values_of.items()}
    return [first] + [{**first, key: value} for key, values in values_of.items() for value in values[1:]]


def _listed_values(dimension: Choice | Interval) -> tuple[str, ...]:
    return dimension.values if isinstance(dimension, Choice) else (str(dimension.low), str(dimension.high))


def _choice(override: Override) -> Choice:
    sweep = override.value()
    if getattr(sweep, "shuffle", False):
        raise InputError(f"{override.input_line}: shuffle() is not supported; sweep=random draws in random order")
    if getattr(sweep, "tags", None):
        raise InputError(f"{override.input_line}: a list or range takes no tag; use tag(log,interval(A,B))")
    values = tuple(dict.fromkeys(override.sweep_string_iterator()))
    if not values:
        raise InputError(f"{override.input_line}: no value to choose from")
    return Choice(values=values, ordered=override.is_range_sweep())


def _interval(override: Override) -> Interval:
    sweep = override.value()
    assert isinstance(sweep, IntervalSweep)
    assert sweep.start is not None
    assert sweep.end is not None
    log = "log" in sweep.tags
    if sweep.tags - {"log"}:
        unknown = ", ".join(sorted(sweep.tags - {"log"}))
        raise InputError(f"{override.input_line}: unknown tag {unknown}; the only tag is log")
    if sweep.start > sweep.end:
        raise InputError(f"{override.input_line}: the interval starts above its end")
    if log and sweep.start <= 0:
        raise InputError(f"{override.input_line}: a logarithmic interval must start above 0")
    return Interval(low=sweep.start, high=sweep.end, log=log, whole=isinstance(sweep.start, int))
