"""Tick labels of an axis and their positions."""

import itertools
import math
import random

import pytest

from stvid.report.scales import Scale, limits_around, log_numbers, round_numbers, text_width


def labels(low, high, *, length=200, **more):
    """Tick labels of a horizontal axis."""
    is_log = more.pop("is_log", False)
    scale = Scale(low=low, high=high, start=0, end=length, is_log=is_log)
    return [tick.label for tick in scale.ticks(lambda text: text_width(text, 10), **more)]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, ["0", "20", "40", "60", "80", "100"]),
        (0.47, 2.03, ["0.5", "1.0", "1.5", "2.0"]),
        (-0.0001, 0.0031, ["0.000", "0.001", "0.002", "0.003"]),
        (-1e-6, 2.1e-5, ["0", "5e-6", "1e-5", "1.5e-5", "2e-5"]),
        (0.3, 0.31, ["0.300", "0.305", "0.310"]),
        (1234, 1241, ["1234", "1236", "1238", "1240"]),
        (-5, 5, ["-4", "-2", "0", "2", "4"]),
    ],
)
def test_ticks_are_round_numbers_with_equal_decimals(low, high, expected):
    assert labels(low, high) == expected


@pytest.mark.parametrize(
    ("high", "expected"), [(1, ["0", "1"]), (2.5, ["0", "1", "2"]), (30, ["0", "5", "10", "15", "20", "25", "30"])]
)
def test_counts_have_integer_ticks(high, expected):
    assert labels(0, high, whole=True) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.5, 200, ["1", "10", "100"]),
        (15, 60, ["20", "30", "40", "50", "60"]),
        (15, 90, ["20", "50"]),
        (12, 15.5, ["12", "13", "14", "15"]),  # no multiple of ten: as on any axis
        (1e3, 1e15, ["1e3", "1e6", "1e9", "1e12", "1e15"]),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_multiples_of_powers_of_ten(low, high, expected):
    text = (lambda number: f"{number:.0e}".replace("e+0", "e").replace("e+", "e")) if high > 1e9 else None
    assert labels(low, high, is_log=True, text=text) == expected


@pytest.mark.parametrize("is_log", [False, True])
def test_every_axis_has_at_least_two_ticks_inside_it_without_overlap(is_log):
    rng = random.Random(0)
    for _ in range(500):
        size = 10 ** rng.uniform(-6, 12)
        actual = [size * 10 ** rng.uniform(0, rng.choice((0.001, 0.3, 5))) for _ in range(3)]
        scale = Scale(**limits_around(actual, is_log=is_log), start=30, end=330)
        ticks = scale.ticks(lambda text: 30)
        assert len({tick.label for tick in ticks}) == len(ticks) >= 2
        for a, b in itertools.pairwise(ticks):
            assert b.position - a.position > 30
        for tick in ticks:
            assert 30 <= tick.position <= 330
            assert tick.position == pytest.approx(scale(float(tick.label)), abs=0.11), "the label matches the position"


def test_round_numbers_are_multiples_of_one_two_or_five():
    for numbers in itertools.islice(round_numbers(0.13, 17.4), 6):
        steps = {round(b - a, 9) for a, b in itertools.pairwise(numbers)}
        (step,) = steps
        assert f"{step:e}"[0] in "125"
        assert float(f"{step:e}"[:8]) in (1, 2, 5)
        assert all(abs(number / step - round(number / step)) < 1e-9 for number in numbers)
        assert numbers[0] - step < 0.13 <= numbers[0]
        assert numbers[-1] <= 17.4 < numbers[-1] + step
    assert 0.3 in next(round_numbers(0, 1))  # and not 0.30000000000000004


def test_the_number_of_ticks_decreases():
    for choices in (itertools.islice(round_numbers(0, 7), 9), itertools.islice(log_numbers(1, 1e7), 4)):
        lengths = [len(numbers) for numbers in choices]
        assert lengths == sorted(lengths, reverse=True)


def test_positions_of_the_ends_and_the_middle():
    straight = Scale(low=10, high=1000, start=200, end=20)
    assert (straight(10), straight(505), straight(1000)) == (200, 110, 20)
    logarithmic = Scale(low=10, high=1000, start=200, end=20, is_log=True)
    assert (logarithmic(10), logarithmic(100), logarithmic(1000)) == (200, 110, 20)


def test_limits_have_a_margin():
    assert limits_around([3, 1, 2], 0.1) == {"low": pytest.approx(0.8), "high": pytest.approx(3.2), "is_log": False}
    actual = limits_around([100, 1], 0.5, is_log=True)
    assert (actual["low"], actual["high"]) == (pytest.approx(0.1), pytest.approx(1000))


@pytest.mark.parametrize(("number", "expected"), [(0, (-1, 1)), (0.5, (0, 1)), (-2, (-4, 0))])
def test_limits_around_equal_numbers_have_a_margin(number, expected):
    actual = limits_around([number, number])
    assert (actual["low"], actual["high"]) == expected
    assert limits_around([8.0, 8.0], is_log=True) == {
        "low": pytest.approx(4),
        "high": pytest.approx(16),
        "is_log": True,
    }
    assert math.isfinite(Scale(**actual, start=0, end=100)(number))
