import math

import numpy as np
import pytest

from stvid.clip import ClipSpec
from stvid.data.sampling import (
    PLAYBACKS,
    check_playback,
    clip_indices,
    clip_span,
    earlier_frames,
    fastest,
    playback_speed,
    random_start,
    reorder_frames,
    resolve_num_frames,
    timeline,
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
    assert earlier_frames([18, 9], part, clip, video(), playback="reversed") == [19, 13]
    assert earlier_frames([3], part, ClipSpec(input="diff", diff_seconds=0.001), video()) == [2]
    assert earlier_frames([3, 9], part, ClipSpec(), video()) == []


def test_a_difference_is_a_time_where_frames_are_not_evenly_spaced():
    """The first ten frames come every tenth of a second, the others every fifth."""
    uneven = video(tuple(0.1 * i if i < 10 else 1 + 0.2 * (i - 10) for i in range(20)))
    for fps in (None, 5.0):
        clip = ClipSpec(input="diff", diff_seconds=0.2, fps=fps, frame_stride=None if fps else 1)
        assert earlier_frames([1, 6, 15], range(20), clip, uneven) == [0, 4, 14]
        assert earlier_frames([6, 15, 19], range(20), clip, uneven, playback="reversed") == [8, 16, 19]


def test_playbacks_reorder_the_frames_of_a_clip():
    rng = np.random.default_rng(0)
    assert reorder_frames([1, 2, 3], "normal", rng) == [1, 2, 3]
    assert reorder_frames([1, 2, 3], "reversed", rng) == [3, 2, 1]
    assert reorder_frames([1, 2, 3, 4], "frozen", rng) == [3, 3, 3, 3]
    assert sorted(reorder_frames(list(range(20)), "shuffled", rng)) == list(range(20))
    assert reorder_frames(list(range(20)), "shuffled", rng) != list(range(20))


def test_playbacks_change_the_speed_of_a_video():
    frames = {name: list(timeline(range(5), ClipSpec(), video(), speed=playback_speed(name))[0]) for name in PLAYBACKS}
    assert frames.pop("half_speed") == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert frames.pop("double_speed") == [0, 2, 4]
    assert all(others == [0, 1, 2, 3, 4] for others in frames.values())


def test_an_unknown_playback_is_an_error():
    with pytest.raises(ValueError, match="sideways"):
        check_playback("sideways")


def evenly(num_frames, fps=30.0, *, timed=False):
    times = tuple(i / fps for i in range(num_frames)) if timed else None
    options = {"height": 8, "width": 8, "codec": "h264", "timestamps": times}
    return VideoInfo(num_frames=num_frames, fps=fps, duration=num_frames / fps, **options)


def played(clip, info, speed):
    """Frames of the clip from the first one on, and the earlier frames of its difference images."""
    frames, fps = timeline(range(info.num_frames), clip, info, speed=speed)
    clip = resolve_num_frames(clip, len(frames), fps)
    selected = [frames[i] for i in clip_indices(len(frames), 0, clip, fps)]
    return selected, earlier_frames(selected, frames, clip, info, speed=speed)


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize(
    ("speed", "expected", "distance"),
    [
        (1.0, [0, 6, 12, 18, 24], 3),
        (2.0, [0, 12, 24, 36, 48], 6),
        (0.5, [0, 3, 6, 9, 12], 2),
        (0.8, [0, 4, 9, 14, 19], 2),
    ],
)
def test_speed_is_the_same_for_evenly_spaced_frames_with_and_without_times(timed, speed, expected, distance):
    clip = ClipSpec(num_frames=5, frame_stride=None, fps=5, input="diff", diff_seconds=0.1)
    selected, earlier = played(clip, evenly(120, timed=timed), speed)
    assert selected == expected
    if not timed:
        assert earlier == [max(frame - distance, 0) for frame in expected]


@pytest.mark.parametrize("rate", [{"frame_stride": 2}, {"frame_stride": None, "fps": 15}])
@pytest.mark.parametrize("speed", [0.5, 0.8, 1.25, 2.0])
def test_a_whole_video_is_whole_at_every_speed(rate, speed):
    selected, _ = played(ClipSpec(num_frames=None, **rate), evenly(100), speed)
    assert selected[0] == 0
    assert 98 - 2 * speed <= selected[-1] <= 99
    assert len(selected) == pytest.approx(50 / speed, abs=1)


def test_a_clip_that_must_fit_is_not_played_too_fast():
    clip = ClipSpec(num_frames=16, frame_stride=2, short="error")
    assert fastest(clip, 62, 30.0) == 2
    assert fastest(clip, 31, 30.0) == 1
    frames, _ = timeline(range(62), clip, evenly(62), speed=2.0)
    assert len(frames) == clip_span(clip, 30.0)
    assert fastest(ClipSpec(num_frames=16, frame_stride=2), 31, 30.0) == math.inf
