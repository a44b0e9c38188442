"""`annotate` draws what the segments say, at their times, and leaves the rest of the picture alone."""

from __future__ import annotations

import numpy as np
import pytest
from numbered import decoded, write_video
from test_completeness import remux

from stvid.deploy.annotate import GREY, PALETTE, Overlay, Timeline, annotate, class_colours
from stvid.deploy.segments import UNKNOWN, Segment
from stvid.deploy.windows import Window
from stvid.video.probe import probe

NAMES = ["boxing", "running", "walking"]
SIZES = [(1, 1), (16, 16), (16, 300), (63, 64), (80, 106), (240, 320), (720, 405), (2160, 3840)]


def segments_of(*parts):
    """Segments from (end, label), the first from 0."""
    starts = [0, *(end for end, _ in parts)]
    return [
        Segment(start=start, end=end, label=label, probability=0.8)
        for start, (end, label) in zip(starts, parts, strict=False)
    ]


def share_of_bar(frame, colour) -> float:
    """Length of the bar of a colour, as a share of the bar with its rest."""
    filled, rest = ((frame == c).all(-1).sum(axis=1) for c in (colour, (90, 90, 90)))
    row = (filled + rest).argmax()
    return filled[row] / (filled[row] + rest[row])


@pytest.mark.parametrize("size", SIZES)
def test_every_size_gets_a_panel_and_keeps_its_other_pixels(size):
    colours = class_colours([*NAMES, "a name that is much too long for a small picture " * 50])
    overlay, frame = Overlay(*size, colours=colours), np.full((*size, 3), 200, np.uint8)
    for label in colours:
        drawn = overlay.draw(np.full_like(frame, 200), label, 1.0)
        rows, columns = np.nonzero((drawn != frame).any(-1))
        assert rows.size or size == (1, 1)
        if min(size) >= 64:
            assert rows.max() < size[0] / 2
            assert columns.max() < size[1]
            assert rows.min() > 0
            assert columns.min() > 0


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 1.0])
def test_the_bar_is_as_long_as_the_probability(probability):
    overlay = Overlay(480, 640, colours=class_colours(NAMES))
    frame = overlay.draw(np.zeros((480, 640, 3), np.uint8), "running", probability)
    assert share_of_bar(frame, PALETTE[1]) == pytest.approx(probability, abs=0.01)


@pytest.mark.parametrize(
    "label", ["", " ", "ходьба", "走る", "يمشي", "👋🏽", "a\nb\x1b[31m\u202e", "\ud800", "x" * 10_000]
)
def test_any_name_can_be_drawn(label):
    overlay = Overlay(240, 320, colours=class_colours([label]))
    frame = overlay.draw(np.zeros((240, 320, 3), np.uint8), label, 0.5)
    assert share_of_bar(frame, PALETTE[0]) == pytest.approx(0.5, abs=0.01)
    Timeline(240, 320, segments=segments_of((1, label)), colours=class_colours([label])).draw(frame, 0.5)


def test_letters_of_other_alphabets_are_not_all_the_same_box():
    overlay = Overlay(240, 320, colours=class_colours(["ж", "ш", "λ"]))
    pictures = [overlay.draw(np.zeros((240, 320, 3), np.uint8), label, 0.0).tobytes() for label in ("ж", "ш", "λ")]
    assert len(set(pictures)) == 3


def test_a_long_name_ends_with_an_ellipsis_and_leaves_room_for_the_number():
    long, longer = "walking " * 30, "walking " * 60
    overlay = Overlay(240, 320, colours=class_colours([long, longer]))
    first, second = (overlay.draw(np.zeros((240, 320, 3), np.uint8), label, 1.0) for label in (long, longer))
    assert np.array_equal(first[:22], second[:22]), "both are cut at the same letter"


def test_a_view_of_channels_first_memory_can_be_drawn_on():
    frames = [np.full((240, 320, 3), 50, np.uint8), np.full((3, 240, 320), 50, np.uint8).transpose(1, 2, 0)]
    for frame in frames:
        Overlay(240, 320, colours=class_colours(NAMES)).draw(frame, "boxing", 0.7)
    assert np.array_equal(*frames)


def test_colours_are_distinct_and_unknown_is_grey():
    colours = class_colours([*"abcdefg", UNKNOWN])
    assert len(set(colours.values())) == 8
    assert colours[UNKNOWN] == GREY
    assert set(class_colours("abcdefghi").values()) == {GREY, *PALETTE}
    assert class_colours("abc", background={"a"}) == {UNKNOWN: GREY, "a": GREY, "b": PALETTE[0], "c": PALETTE[1]}


def test_the_timeline_shows_each_segment_where_it_is_and_the_time():
    segments = segments_of((25, "boxing"), (50, UNKNOWN), (100, "walking"))
    colours = class_colours(NAMES)
    timeline = Timeline(100, 200, segments=segments, colours=colours)
    frame = timeline.draw(np.zeros((100, 200, 3), np.uint8), 75)
    bottom = frame[-1]
    assert [tuple(bottom[x]) for x in (0, 49, 50, 99, 100, 199)] == [
        *(2 * [colours["boxing"]] + 2 * [GREY] + 2 * [colours["walking"]])
    ]
    assert tuple(bottom[150]) == (255, 255, 255)
    assert not frame[:90].any()
    for seconds in (-1, 0, 100, 101):  # rounded times may lie outside
        timeline.draw(frame, seconds)


def test_a_segment_shorter_than_a_pixel_is_still_seen():
    segments = segments_of((500, "boxing"), (500.01, "running"), (1000, "boxing"))
    frame = Timeline(100, 200, segments=segments, colours=class_colours(NAMES)).draw(
        np.zeros((100, 200, 3), np.uint8), 0
    )
    assert (frame[-1] == PALETTE[1]).all(-1).sum() == 1


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """A video of 20 frames whose first is due at 1 s, with sound, and its annotated copy."""
    folder = tmp_path_factory.mktemp("annotated")
    silent = write_video(folder / "silent.mkv", num_frames=20, size=(192, 256), times=range(1000, 1800, 40))
    source, target = remux(silent, folder / "source.mkv", sound="aac"), folder / "annotated.mp4"
    info = probe(source)
    segments = [
        Segment(start=1.0, end=1.4, label="walking", probability=0.9),
        Segment(start=1.4, end=1.8, label=UNKNOWN, probability=0.3),
    ]
    windows = [
        Window(start=1.0, end=1.2, probabilities_K=np.array([0.0, 0.0, 1.0], np.float32)),
        Window(start=1.4, end=1.6, probabilities_K=np.array([0.4, 0.1, 0.5], np.float32)),
        Window(start=1.6, end=1.8, probabilities_K=np.array([0.5, 0.25, 0.25], np.float32)),
    ]
    annotate(source, target, segments=segments, class_names=NAMES, info=info, windows=windows)
    return np.stack(decoded(source)).astype(float), np.stack(decoded(target)).astype(float), target


def test_only_panel_and_timeline_differ_from_the_source(annotated):
    before, after, _ = annotated
    difference = np.abs(after - before).mean(axis=(0, 3))
    assert difference[50:-16].mean() < 2
    assert difference[5:40, 5:100].mean() > 20
    assert difference[-6:].mean() > 20


def test_the_label_changes_with_the_segment_and_the_bar_follows_the_windows(annotated):
    _, after, _ = annotated
    walking = np.abs(after - PALETTE[0]).max(-1) < 40  # the first of the classes that occur
    grey = np.abs(after - GREY).max(-1) < 12
    bars = walking[:, :50].sum(axis=2).max(axis=1), grey[:, :50].sum(axis=2).max(axis=1)
    assert (bars[0][:10] > 40).all()
    assert (bars[0][10:] < 10).all()
    assert (bars[1][10:] > 20).all()
    assert bars[0][2] > bars[0][9], "the probability falls from 1 at 1.1 s to 0.5 at 1.5 s"


def test_frames_and_sound_are_all_there(annotated):
    before, after, target = annotated
    assert len(after) == len(before) == probe(target).num_frames
    assert probe(target).start == pytest.approx(1.0)


def test_without_windows_the_probability_is_that_of_the_segment(tmp_path):
    source = write_video(tmp_path / "video.mp4", num_frames=3, size=(192, 256))
    segments = [Segment(start=0.0, end=0.12, label="boxing", probability=0.25)]
    annotate(source, tmp_path / "out.mp4", segments=segments, class_names=NAMES, info=probe(source))
    frame = decoded(tmp_path / "out.mp4")[0].astype(float)[:50]
    filled = (np.abs(frame - PALETTE[0]).max(-1) < 60).sum(axis=1).max()
    rest = (np.abs(frame - 90).max(-1) < 20).sum(axis=1).max()
    assert filled / (filled + rest) == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize("width", [64, 80, 100, 320])
def test_the_panel_of_a_long_name_ends_inside_the_frame(width):
    overlay = Overlay(80, width, colours={"a_long_name_of_a_class": (255, 0, 0)})
    drawn_HWC = overlay.draw(np.full((80, width, 3), 200, np.uint8), "a_long_name_of_a_class", 1.0)
    assert (drawn_HWC[:, -overlay.margin :] == 200).all()
