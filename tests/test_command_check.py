"""`stvid check` as a user runs it, and its text, which is short if there is nothing wrong."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from conftest import break_half_way, in_process

from stvid.cli import main
from stvid.commands.check import check_text


def command(*arguments):
    return in_process(["stvid", *map(str, arguments)], lambda: main(list(map(str, arguments))))


@pytest.fixture
def videos(video_folder, tmp_path):
    return shutil.copytree(video_folder, tmp_path / "my videos")


def test_a_good_folder_exits_with_0(videos, tmp_path):
    done = command("check", "data=folder", f"data.root={videos}", "clip.num_frames=4", "--json", tmp_path / "f.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16 videos: every frame decodes" in done.stdout
    report = json.loads((tmp_path / "f.json").read_text())
    assert {
        *("num_files", "num_bad", "bad", "duplicates", "leaks", "class_counts", "shortcuts"),
        *("num_items", "files", "conflicts", "odd", "groups", "similar_classes"),
    } <= set(report)
    assert (report["num_files"], report["num_bad"], report["bad"]) == (16, 0, [])


def test_bad_videos_are_listed_and_exit_with_1(videos, tmp_path):
    (videos / "to_left" / "00.mp4").write_bytes(b"x" * 999)
    break_half_way(videos / "to_right" / "03.mp4")
    before = {path: path.read_bytes() for path in videos.rglob("*.mp4")}
    done = command("check", "--json", tmp_path / "f.json", "data=folder", f"data.root={videos}", "clip.num_frames=4")
    assert done.returncode == 1, done.stdout + done.stderr
    actual = {video["path"]: video["reason"] for video in json.loads((tmp_path / "f.json").read_text())["bad"]}
    assert actual == {
        str(videos / "to_left" / "00.mp4"): "unreadable",
        str(videos / "to_right" / "03.mp4"): "truncated",
    }
    assert all(f"{path.parent.name}/{path.name}" in done.stdout for path in map(type(videos), actual))
    assert before == {path: path.read_bytes() for path in videos.rglob("*.mp4")}, "check changes nothing"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=folder"], "data.root must be given"),
        (["data=folder", "data.root=nowhere"], "nowhere does not exist"),
        (["data=foldr"], "data=foldr: there is no such choice; did you mean 'folder'?"),
        (["data.rot=x"], "did you mean 'data.root'"),
        (["data=folder", "data.root=x", "--jsn", "f"], "--jsn"),
    ],
)
def test_a_wrong_override_or_option_is_one_message(tmp_path, monkeypatch, overrides, message):
    monkeypatch.chdir(tmp_path)
    done = command("check", *overrides)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_a_command_with_one_line(videos, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("stvid.commands.check.check_videos", interrupt)
    done = command("check", "data=folder", f"data.root={videos}")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def file(name: str, **details) -> dict:
    default = {"num_frames": 50, "fps": 25.0, "duration": 2.0, "height": 240, "width": 320, "codec": "h264"}
    return {"path": f"/videos/{name}", "splits": ["train"], "labels": ["run"], "ok": True, **default, **details}


def report(**changes) -> dict:
    """A report of two good videos, changed."""
    good = {
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
        "groups": {"num_unnamed": 0},
        "similar_classes": [],
    }
    return good | changes


def bad(*names: str, reason="missing", detail="") -> dict:
    videos = [{"path": f"/videos/{name}", "reason": reason, "detail": detail} for name in names]
    return {"num_bad": len(videos), "bad": videos}


def test_a_good_data_set_takes_a_few_lines():
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


def test_bad_videos_are_counted_by_reason_and_listed_with_details():
    missing, truncated = bad("run/a.mp4", "run/b.mp4"), bad("sit/c.mp4", reason="truncated", detail="30 of 75 frames")
    text = check_text(report(num_bad=3, bad=missing["bad"] + truncated["bad"]))
    assert text.startswith("2 videos: 3 cannot be used")
    assert re.search(r"^missing +2\ntruncated +1$", text, re.M)
    assert "truncated:\n  sit/c.mp4   (30 of 75 frames)\n" in text


def test_a_decoders_message_is_shown_without_number_and_path():
    text = check_text(report(**bad("a b.mp4", reason="unreadable", detail="[Errno 7] Invalid data: '/videos/a b.mp4'")))
    assert "  a b.mp4   (Invalid data)\n" in text


def test_a_long_list_ends_with_the_number_of_further_lines():
    text = check_text(report(**bad(*(f"{i:02d}.mp4" for i in range(30)))))
    assert "19.mp4" in text
    assert "20.mp4" not in text
    assert "  and 10 more: see --json" in text


def test_leaks_and_conflicts_are_listed_with_splits_labels_and_files():
    leak = {
        "kind": "group",
        "name": "anna",
        "splits": ["test", "train"],
        "num_files": 9,
        "paths": ["/videos/run/a.mp4"],
    }
    conflict = {"labels": ["run", "sit"], "paths": ["/videos/run/a.mp4"], "start": 1.0, "end": 2.5}
    text = check_text(report(leaks=[leak], conflicts=[conflict]))
    assert "  anna in test, train: run/a.mp4 and 8 more\n" in text
    assert "  run / sit: run/a.mp4 from 1 s to 2.5 s\n" in text
    assert "not found   copies, shortcuts\n" in text


@pytest.mark.parametrize(
    ("short", "explanation"),
    [("repeat_last", "frame is repeated"), ("wrap", "start again"), ("pad", "are shorter"), ("error", "refuses them")],
)
def test_the_policy_for_short_videos_is_explained(short, explanation):
    videos = [{"path": "/videos/run/a.mp4", "start": None, "end": None, "num_frames": 20, "span": 31}]
    clip = {"num_frames": 16, "frame_stride": 2, "fps": None, "short": short}
    text = check_text(report(clip=clip, odd=report()["odd"] | {"short": videos}))
    assert "shorter than one clip (16 frames, stride 2): 1 of 2 videos" in text
    assert explanation in text
    assert "  run/a.mp4   20 frames of 31\n" in text


def shortcut(*features: str, accuracy: float, suspicious: bool) -> dict:
    return {"features": list(features), "accuracy": accuracy, "chance": 0.17, "p_value": 0.0, "suspicious": suspicious}


def test_suspicious_shortcuts_are_listed_the_strongest_first():
    actual = [
        shortcut("aspect ratio", accuracy=0.39, suspicious=True),
        shortcut("codec", accuracy=0.2, suspicious=False),
        shortcut("size", "length", accuracy=0.53, suspicious=True),
    ]
    text = check_text(report(shortcuts=actual))
    pattern = (
        r"size and length together +53 % of the videos\n +aspect ratio alone +39 % of the videos\n +chance +17 %\n"
    )
    assert re.search(pattern, text)
    assert "codec" not in text
    assert "shortcuts" in check_text(report(shortcuts=actual[1:2])).splitlines()[1]


def test_unbalanced_and_absent_classes_have_a_hint():
    counts = {"run": {"train": 30, "val": 2, "test": 0}, "sit": {"train": 10, "val": 0, "test": 0}}
    text = check_text(report(class_counts=counts))
    assert "No videos in val: 'sit'." in text
    assert "'run' has 3.0 times as many videos as 'sit': data.balance=classes" in text
    counts["sit"]["train"] = 15
    assert "times" not in check_text(report(class_counts=counts))


def test_a_long_table_of_classes_shows_both_ends():
    counts = {f"class{i}": {"train": 100 - i, "val": 1, "test": 0} for i in range(80)}
    text = check_text(report(class_counts=counts))
    assert "class0 " in text
    assert "class79 " in text
    assert "... 70 more" in text
    assert len(text.splitlines()) < 30


def test_a_name_that_is_not_utf8_can_be_printed():
    text = check_text(report(**bad("b\udce9.mp4")))
    assert r"b\udce9.mp4" in text.encode("utf-8").decode()


def test_files_with_damaged_frames_are_listed():
    odd = report()["odd"] | {"damaged": [{"path": "/d/a.mp4", "num_damaged": 3, "num_frames": 60}]}
    text = check_text(report(odd=odd))
    assert "1 file with damaged frames" in text
    assert "3 frames of 60" in text


def test_without_groups_no_leaks_are_promised():
    pictures = {"num_compared": 2, "num_linked": 0}
    text = check_text(report(groups={"num_unnamed": 2, "names": None, "folders": None, "pictures": pictures}))
    assert "not found   copies in several splits, contradicting labels, copies, shortcuts\n" in text
    assert "clips of one recording may be in train and in test" in text
    assert "data.group_csv" in text


def test_similar_classes_are_listed():
    text = check_text(report(similar_classes=[["walk", "Walk "]]))
    assert "'walk' = 'Walk '" in text
    assert "data.allow_similar_classes=true" in text
