"""The page says what was found so that a person can act on it, and is short where nothing was."""

from __future__ import annotations

import re

import pytest

from stvid.commands.check import check_text


def file(name: str, **facts) -> dict:
    default = {"num_frames": 50, "fps": 25.0, "duration": 2.0, "height": 240, "width": 320, "codec": "h264"}
    return {"path": f"/videos/{name}", "splits": ["train"], "labels": ["run"], "ok": True, **default, **facts}


def report(**changes) -> dict:
    """Of two videos without fault."""
    sound = {
        "num_files": 2,
        "num_items": 2,
        "num_bad": 0,
        "clip": {"num_frames": 16, "frame_stride": 2, "fps": None, "short": "repeat_last"},
        "bad": [],
        "files": [file("run/a.mp4"), file("sit/b.mp4")],
        "duplicates": [],
        "leaks": [],
        "conflicts": [],
        "class_counts": {"run": {"train": 1, "val": 0, "test": 0}, "sit": {"train": 1, "val": 0, "test": 0}},
        "odd": {
            "short": [],
            "durations": [],
            "median_duration": 2.0,
            "damaged": [],
            "sizes": {"320x240": 2},
            "fps": {"25": 2},
        },
        "shortcuts": [],
    }
    return sound | changes


def bad(*names: str, reason="missing", detail="") -> dict:
    found = [{"path": f"/videos/{name}", "reason": reason, "detail": detail} for name in names]
    return {"num_bad": len(found), "bad": found}


def test_a_sound_data_set_takes_a_few_lines():
    assert check_text(report()) == (
        "2 videos: every frame decodes\n"
        "not found   leaks, contradicting labels, copies, shortcuts\n"
        "folder      /videos\n"
        "pixels      320x240\n"
        "frame rate  25 frames/s\n"
        "duration    2 s\n"
        "\n"
        "class   train\n"
        "run         1\n"
        "sit         1\n"
        "all         2"
    )


def test_problems_are_counted_by_reason_and_named_with_what_was_seen():
    one, two = bad("run/a.mp4", "run/b.mp4"), bad("sit/c.mp4", reason="truncated", detail="30 of 75 frames")
    page = check_text(report(num_bad=3, bad=one["bad"] + two["bad"]))
    assert page.startswith("2 videos: 3 cannot be used")
    assert re.search(r"^missing +2\ntruncated +1$", page, re.M)
    assert "truncated:\n  sit/c.mp4   (30 of 75 frames)\n" in page


def test_a_decoders_words_are_shown_without_number_and_path():
    page = check_text(report(**bad("a b.mp4", reason="unreadable", detail="[Errno 7] Invalid data: '/videos/a b.mp4'")))
    assert "  a b.mp4   (Invalid data)\n" in page


def test_long_lists_are_cut():
    page = check_text(report(**bad(*(f"{i:02d}.mp4" for i in range(30)))))
    assert "19.mp4" in page
    assert "20.mp4" not in page
    assert "  and 10 more: see --json" in page


def test_leaks_and_conflicts_name_splits_labels_and_files():
    leak = {
        "kind": "group",
        "name": "anna",
        "splits": ["test", "train"],
        "num_files": 9,
        "paths": ["/videos/run/a.mp4"],
    }
    conflict = {"labels": ["run", "sit"], "paths": ["/videos/run/a.mp4"], "start": 1.0, "end": 2.5}
    page = check_text(report(leaks=[leak], conflicts=[conflict]))
    assert "  anna in test, train: run/a.mp4 and 8 more\n" in page
    assert "  run / sit: run/a.mp4 from 1 s to 2.5 s\n" in page
    assert "not found   copies, shortcuts\n" in page


@pytest.mark.parametrize(
    ("short", "words"),
    [
        ("repeat_last", "stands still"),
        ("wrap", "repeated in order"),
        ("pad", "are shorter"),
        ("error", "will refuse them"),
    ],
)
def test_what_becomes_of_short_videos_is_told(short, words):
    found = [{"path": "/videos/run/a.mp4", "start": None, "end": None, "num_frames": 20, "span": 31}]
    clip = {"num_frames": 16, "frame_stride": 2, "fps": None, "short": short}
    page = check_text(report(clip=clip, odd=report()["odd"] | {"short": found}))
    assert "shorter than one clip (16 frames, stride 2): 1 of 2 videos" in page
    assert words in page
    assert "  run/a.mp4   20 frames of 31\n" in page


def shortcut(*features: str, accuracy: float, suspicious: bool) -> dict:
    return {"features": list(features), "accuracy": accuracy, "chance": 0.17, "p_value": 0.0, "suspicious": suspicious}


def test_shortcuts_are_told_in_words_the_strongest_first_and_only_suspicious_ones():
    found = [
        shortcut("aspect ratio", accuracy=0.39, suspicious=True),
        shortcut("codec", accuracy=0.2, suspicious=False),
        shortcut("size", "length", accuracy=0.53, suspicious=True),
    ]
    page = check_text(report(shortcuts=found))
    pattern = (
        r"size and length together +53 % of the videos\n +aspect ratio alone +39 % of the videos\n +chance +17 %\n"
    )
    assert re.search(pattern, page)
    assert "codec" not in page
    assert "shortcuts" in check_text(report(shortcuts=found[1:2])).splitlines()[1]


def test_uneven_and_absent_classes_are_told():
    counts = {"run": {"train": 30, "val": 2, "test": 0}, "sit": {"train": 10, "val": 0, "test": 0}}
    page = check_text(report(class_counts=counts))
    assert "No videos in val: 'sit'." in page
    assert "'run' has 3.0 times as many videos as 'sit': data.balance=classes" in page
    counts["sit"]["train"] = 15
    assert "times" not in check_text(report(class_counts=counts))


def test_many_classes_are_shown_by_both_ends():
    counts = {f"class{i}": {"train": 100 - i, "val": 1, "test": 0} for i in range(80)}
    page = check_text(report(class_counts=counts))
    assert "class0 " in page
    assert "class79 " in page
    assert "... 70 more" in page
    assert len(page.splitlines()) < 30


def test_a_name_that_is_not_utf8_can_be_printed():
    page = check_text(report(**bad("b\udce9.mp4")))
    assert r"b\udce9.mp4" in page.encode("utf-8").decode()


def test_files_with_concealed_damage_are_named():
    odd = report()["odd"] | {"damaged": [{"path": "/d/a.mp4", "num_damaged": 3, "num_frames": 60}]}
    page = check_text(report(odd=odd))
    assert "1 file with damage that the decoder conceals" in page
    assert "3 frames of 60" in page
