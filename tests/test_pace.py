"""The frames that a model gets of a live source are evenly spaced in time, also where frames are lost."""

from itertools import pairwise

import pytest

from stvid.deploy.pace import MAX_GAP, Pace


def given(pace, times, *, cost=0.0):
    """How often each frame is given to a model that needs `cost` seconds for one."""
    counts = []
    for seconds in times:
        count = pace.repetitions(seconds)
        counts.append(count)
        pace.measure(cost * (count or 1), count or 1)
    return counts


def test_every_frame_of_a_steady_source_is_given_once():
    assert given(Pace(30), [i / 30 for i in range(5000)]) == [1] * 5000


def test_frames_that_arrive_unevenly_are_given_once():
    times = [i / 25 + (0.015 if i % 3 else 0.0) for i in range(300)]
    assert given(Pace(25), times) == [1] * 300


def test_a_lost_frame_is_replaced_by_the_next_one():
    times = [i / 25 for i in range(200) if i not in (100, 150, 151)]
    counts = given(Pace(25), times, cost=0.001)
    assert counts[100] == 2
    assert counts[149] == 3
    assert sum(counts) == 200


def test_nothing_is_repeated_before_the_speed_of_the_model_is_known():
    assert given(Pace(25), [0.0, 0.04, 0.2, 0.24]) == [1, 1, 1, 1]


def test_repetitions_take_no_long_time():
    """20 frames are lost. At 30 ms each, the model does not make up for them: it would lose others meanwhile."""
    times = [i / 25 for i in range(200) if not 100 <= i < 120]
    assert given(Pace(25), times, cost=0.03) == [1] * 180
    assert given(Pace(25), times, cost=0.001)[100] == 21


def test_a_source_that_is_faster_than_it_states_is_thinned():
    counts = given(Pace(25), [i / 50 for i in range(1000)])
    assert set(counts) == {0, 1}
    assert sum(counts) == pytest.approx(500, abs=1)
    assert max(sum(counts[i : i + 2]) for i in range(2, 998)) == 1  # evenly


def test_a_source_that_is_slower_than_it_states_is_repeated():
    counts = given(Pace(30), [i / 10 for i in range(300)], cost=0.001)
    assert counts[120:] == [3] * 180


def test_the_model_starts_anew_after_a_long_gap():
    counts = given(Pace(25), [0.0, 0.04, 0.08, 0.08 + MAX_GAP + 0.1, 2.24])
    assert counts == [1, 1, 1, None, 1]
    assert None not in given(Pace(0.2), [5.0 * i for i in range(10)])  # a frame every 5 s is no gap


@pytest.mark.parametrize("factor", [1.3, 2.0, 5.0])
def test_a_slow_model_gets_evenly_spaced_frames_that_it_can_manage(factor):
    """The newest frame is taken whenever the model is free; it needs `factor` times the time between two frames."""
    pace, now, taken, changes = Pace(25), 0.0, [], 0
    while now < 60:
        frame = int(now * 25 + 1e-9)
        count = pace.repetitions(frame / 25)
        assert count in (0, 1)
        cost = count * factor / 25
        changes += pace.measure(cost, count)
        if count:
            taken.append(frame)
        now = max(now + cost, (frame + 1) / 25)
    assert changes == 1
    assert pace.slowdown == pytest.approx(1.1 * factor, rel=0.01)
    gaps = [b - a for a, b in pairwise(taken[100:])]
    assert max(gaps) - min(gaps) <= 1
    assert sum(gaps) / len(gaps) == pytest.approx(1.1 * factor, rel=0.05)


def test_a_model_that_becomes_fast_again_gets_every_frame():
    pace = Pace(25)
    given(pace, [i / 25 for i in range(100)], cost=0.1)
    assert pace.slowdown == pytest.approx(2.75)
    counts = given(pace, [4 + i / 25 for i in range(300)], cost=0.01)
    assert pace.slowdown == 1.0
    assert counts[200:] == [1] * 100


def test_the_load_is_measured_over_whole_periods():
    """A window every 9 frames takes as long as 8 of them."""
    pace = Pace(25, period=9)
    for i in range(300):
        pace.repetitions(i / 25)
        assert not pace.measure(8 / 25 if i % 9 == 8 else 0.0, 1)
        assert pace.load in (None, pytest.approx(8 / 9))
    assert pace.load is not None
