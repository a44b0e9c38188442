import numpy as np
import pytest

from stvid.data.sampling import at_speed, check_playback, rearranged


def test_orders_of_time():
    rng = np.random.default_rng(0)
    assert rearranged([1, 2, 3], "normal", rng) == [1, 2, 3]
    assert rearranged([1, 2, 3], "reversed", rng) == [3, 2, 1]
    assert rearranged([1, 2, 3, 4], "frozen", rng) == [3, 3, 3, 3]
    assert sorted(rearranged(list(range(20)), "shuffled", rng)) == list(range(20))
    assert rearranged(list(range(20)), "shuffled", rng) != list(range(20))


def test_speeds():
    assert at_speed(range(5), "half_speed") == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert list(at_speed(range(5), "double_speed")) == [0, 2, 4]
    assert at_speed(range(5), "shuffled") == range(5)


def test_an_unknown_way_to_play_is_named():
    with pytest.raises(ValueError, match="sideways"):
        check_playback("sideways")
