import numpy as np
import pytest

from stvid.clip import ClipSpec
from stvid.data.sampling import (
    at_speed,
    change_speed,
    check_playback,
    clip_indices,
    clip_span,
    earlier_frames,
    random_start,
    reorder_frames,
    resolve_num_frames,
    uniform_starts,
)
from stvid.video.types import VideoInfo


def test_a_stride_is_counted_in_frames():
    clip = ClipSpec(num_frames=4, frame_stride=3)
    assert clip_indices(100, 5, clip, 25.0) == [5, 8, 11, 14]
    assert clip_span(clip, 25.0) == 10


@pytest.mark.parametrize(("video_fps", "expected"), [(30.0, [0, 3, 6, 9]), (25.0, [0, 2, 5, 7]), (5.0, [0, 0, 1, 1])])
def test_fps_takes_the_same_moments_whatever_the_video_rate(video_fps, expected):
    clip = ClipSpec(num_frames=4, frame_stride=None, fps=10)
    assert clip_indices(100, 0, clip, video_fps) == expected
    assert clip_span(clip, video_fps) == expected[-1] + 1


@pytest.mark.parametrize(
    ("short", "expected"),
    [("repeat_last", [1, 3, 4, 4, 4]), ("wrap", [1, 3, 1, 3, 1]), ("pad", [1, 3])],
)
def test_a_short_video_follows_the_named_policy(short, expected):
    assert clip_indices(5, 1, ClipSpec(num_frames=5, frame_stride=2, short=short), 25.0) == expected


def test_wrap_repeats_the_frames_that_the_stride_takes():
    wrap = ClipSpec(num_frames=6, frame_stride=2, short="wrap")
    assert clip_indices(5, 0, wrap, 25.0) == [0, 2, 4, 0, 2, 4]
    assert clip_indices(1, 0, wrap, 25.0) == [0] * 6
    assert clip_indices(11, 0, wrap, 25.0) == [0, 2, 4, 6, 8, 10]
    per_second = ClipSpec(num_frames=6, frame_stride=None, fps=10, short="wrap")
    assert clip_indices(7, 0, per_second, 25.0) == [0, 2, 5, 0, 2, 5]


def test_a_frame_that_is_repeated_keeps_its_difference():
    clip = ClipSpec(num_frames=6, frame_stride=2, short="wrap", input="diff", diff_seconds=0.05)
    frames = clip_indices(5, 0, clip, 20.0)
    assert earlier_frames(frames, range(5), clip, video()) == [0, 1, 3, 0, 1, 3]


def test_a_short_video_is_an_error_where_asked():
    with pytest.raises(IndexError, match="frame 9, the video has 5"):
        clip_indices(5, 1, ClipSpec(num_frames=5, frame_stride=2, short="error"), 25.0)


def test_views_lie_in_the_middle_of_equal_shares_of_the_video():
    assert uniform_starts(100, 20, 1) == [40]
    assert uniform_starts(100, 20, 2) == [20, 60]
    assert uniform_starts(100, 20, 5) == [8, 24, 40, 56, 72]
    assert uniform_starts(10, 20, 2) == [0, 0]


def test_random_starts_reach_every_place_where_the_clip_fits_and_no_other():
    rng = np.random.default_rng(0)
    assert {random_start(12, 10, rng) for _ in range(200)} == {0, 1, 2}
    assert random_start(5, 10, rng) == 0


def test_a_whole_video_is_as_many_frames_as_the_stride_leaves():
    clip = ClipSpec(num_frames=None, frame_stride=3)
    assert [resolve_num_frames(clip, n, 25.0).num_frames for n in (1, 3, 4, 40)] == [1, 1, 2, 14]
    assert clip_indices(40, 0, resolve_num_frames(clip, 40, 25.0), 25.0) == list(range(0, 40, 3))
    assert resolve_num_frames(ClipSpec(num_frames=None, frame_stride=None, fps=10), 40, 25.0).num_frames == 16
    assert resolve_num_frames(ClipSpec(num_frames=8), 40, 25.0).num_frames == 8


def video(timestamps=None):
    return VideoInfo(num_frames=20, fps=20.0, duration=1.0, height=8, width=8, codec="x", timestamps=timestamps)


def test_a_difference_needs_the_frame_that_was_shown_before():
    clip, part = ClipSpec(input="diff", diff_seconds=0.2), range(20)
    assert earlier_frames([3, 9], part, clip, video()) == [0, 5]
    assert earlier_frames([3, 9], range(2, 12), clip, video()) == [2, 5]
    assert earlier_frames([18, 9], part, clip, video(), "reversed") == [19, 13]
    assert earlier_frames([3], part, ClipSpec(input="diff", diff_seconds=0.001), video()) == [2]
    assert earlier_frames([3, 9], part, ClipSpec(), video()) == []


def test_a_difference_is_a_time_where_frames_are_not_evenly_spaced():
    """The first ten frames come every tenth of a second, the others every fifth."""
    uneven = video(tuple(0.1 * i if i < 10 else 1 + 0.2 * (i - 10) for i in range(20)))
    for fps in (None, 5.0):
        clip = ClipSpec(input="diff", diff_seconds=0.2, fps=fps, frame_stride=None if fps else 1)
        assert earlier_frames([1, 6, 15], range(20), clip, uneven) == [0, 4, 14]
        assert earlier_frames([6, 15, 19], range(20), clip, uneven, "reversed") == [8, 16, 19]


def test_playbacks_reorder_the_frames_of_a_clip():
    rng = np.random.default_rng(0)
    assert reorder_frames([1, 2, 3], "normal", rng) == [1, 2, 3]
    assert reorder_frames([1, 2, 3], "reversed", rng) == [3, 2, 1]
    assert reorder_frames([1, 2, 3, 4], "frozen", rng) == [3, 3, 3, 3]
    assert sorted(reorder_frames(list(range(20)), "shuffled", rng)) == list(range(20))
    assert reorder_frames(list(range(20)), "shuffled", rng) != list(range(20))


def test_playbacks_change_the_speed_of_a_video():
    assert change_speed(range(5), "half_speed") == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert list(change_speed(range(5), "double_speed")) == [0, 2, 4]
    assert change_speed(range(5), "shuffled") == range(5)


def test_an_unknown_playback_is_an_error():
    with pytest.raises(ValueError, match="sideways"):
        check_playback("sideways")


@pytest.mark.parametrize("rate", [{"frame_stride": 2}, {"frame_stride": None, "fps": 12.5}])
@pytest.mark.parametrize(
    ("speed", "expected"), [(2.0, [3, 7, 11, 15]), (0.5, [3, 4, 5, 6]), (0.75, [3, 4, 6, 7]), (20.0, [3, 5, 7, 9])]
)
def test_a_clip_at_another_speed_takes_frames_further_apart(rate, speed, expected):
    clip = at_speed(ClipSpec(num_frames=4, **rate), speed, 30, 25.0)
    assert clip_indices(30, 3, clip, 25.0) == expected, "a speed at which the clip does not fit is not used"
