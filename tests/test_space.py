"""What varies in a sweep, as Hydra's override grammar says it."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from stvid.errors import InputError
from stvid.sweep.space import Choice, Interval, covering_points, grid_points, read_space


def space_of(*overrides):
    return read_space(overrides, OverridesParser.create())


def test_lists_ranges_and_intervals_vary_and_the_last_override_of_a_key_wins():
    space = space_of(
        "a=1",
        "b=x,y",
        "lr=tag(log,interval(1e-5,1e-1))",
        "n=int(interval(2,8))",
        "r=range(0,1,0.25)",
        "+new=choice(1,none)",
        "b=p,q",
    )
    assert space.fixed == ("a=1",)
    assert space.varied == {
        "lr": Interval(low=1e-5, high=1e-1, log=True),
        "n": Interval(low=2, high=8, whole=True),
        "r": Choice(values=("0.0", "0.25", "0.5", "0.75"), ordered=True),
        "+new": Choice(values=("1", "none")),
        "b": Choice(values=("p", "q")),
    }


def test_a_grid_has_every_combination_and_the_last_key_varies_fastest():
    points = grid_points(space_of("a=1,2", "b=x,y,z", "c=7"))
    assert [(point["a"], point["b"]) for point in points] == [(a, b) for a in "12" for b in "xyz"]
    with pytest.raises(InputError, match="lr: a grid cannot list the values of an interval"):
        grid_points(space_of("lr=interval(0,1)"))


def test_covering_points_contain_every_value_and_both_ends():
    points = covering_points(space_of("a=1,2", "b=x,y,z", "lr=interval(0,1)"))
    assert len(points) == 1 + 1 + 2 + 1
    assert {key: {point[key] for point in points} for key in points[0]} == {
        "a": {"1", "2"},
        "b": {"x", "y", "z"},
        "lr": {"0.0", "1.0"},
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr=tag(exp,interval(1,2))", "unknown tag exp; the only tag is log"),
        ("lr=tag(log,interval(0,2))", "must start above 0"),
        ("lr=interval(2,1)", "starts above its end"),
        ("kind=shuffle(a,b)", r"shuffle\(\) is not supported"),
        ("kind=tag(log,choice(1,2))", "takes no tag"),
    ],
)
def test_what_the_search_space_does_not_support_is_an_input_error(override, message):
    with pytest.raises(InputError, match=message):
        space_of(override)
