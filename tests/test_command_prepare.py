"""`stvid check` and `stvid prepare` as a user types them."""

import json
import shutil

import pytest
from conftest import TINY, break_half_way, in_process, train_py

from stvid.cli import main


def command(*arguments):
    return in_process(["stvid", *map(str, arguments)], lambda: main(list(map(str, arguments))))


@pytest.fixture
def videos(video_folder, tmp_path):
    return shutil.copytree(video_folder, tmp_path / "my videos")


def test_check_of_a_good_folder_says_so_and_exits_with_0(videos, tmp_path):
    done = command("check", "data=folder", f"data.root={videos}", "clip.num_frames=4", "--json", tmp_path / "f.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16 videos: every frame decodes" in done.stdout
    report = json.loads((tmp_path / "f.json").read_text())
    assert {
        *("num_files", "num_bad", "bad", "duplicates", "leaks", "class_counts", "shortcuts"),
        *("num_items", "files", "conflicts", "odd"),
    } <= set(report)
    assert (report["num_files"], report["num_bad"], report["bad"]) == (16, 0, [])


def test_check_names_what_is_bad_and_exits_with_1(videos, tmp_path):
    (videos / "to_left" / "00.mp4").write_bytes(b"x" * 999)
    break_half_way(videos / "to_right" / "03.mp4")
    before = {path: path.read_bytes() for path in videos.rglob("*.mp4")}
    done = command("check", "--json", tmp_path / "f.json", "data=folder", f"data.root={videos}", "clip.num_frames=4")
    assert done.returncode == 1, done.stdout + done.stderr
    bad = {one["path"]: one["reason"] for one in json.loads((tmp_path / "f.json").read_text())["bad"]}
    assert bad == {
        str(videos / "to_left" / "00.mp4"): "unreadable",
        str(videos / "to_right" / "03.mp4"): "truncated",
    }
    assert all(f"{path.parent.name}/{path.name}" in done.stdout for path in map(type(videos), bad))
    assert before == {path: path.read_bytes() for path in videos.rglob("*.mp4")}, "check changes nothing"


def test_prepare_makes_a_copy_that_trains(videos, tmp_path):
    out = tmp_path / "small ones"
    done = command("prepare", "data=folder", "--out", out, f"data.root={videos}", "--short-side", "32", "--gop", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "times as fast" in done.stdout
    assert str(out / "manifest.csv") in done.stdout
    run = tmp_path / "run"
    overrides = ("data=manifest", f"data.path='{out / 'manifest.csv'}'", "trainer.max_epochs=1", f"hydra.run.dir={run}")
    trained = train_py(*overrides, *TINY)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    again = command("prepare", "data=folder", f"data.root={videos}", "--out", out, "--short-side", "32", "--gop", "4")
    assert again.returncode == 0
    assert "16 kept" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "data=folder"], "data.root must be given"),
        (["check", "data=folder", "data.root=nowhere"], "nowhere does not exist"),
        (["check", "data=foldr"], "data=foldr: there is no such choice; did you mean 'folder'?"),
        (["check", "data.rot=x"], "did you mean 'data.root'"),
        (["check", "data=folder", "data.root=x", "--jsn", "f"], "--jsn"),
        (["prepare", "data=folder", "data.root=x"], "--out"),
        (["prepare", "data=folder", "data.root={videos}", "--out", "o", "--gop", "0"], "gop (=0)"),
        (["prepare", "data=folder", "data.root={videos}", "--out", "{videos}/small"], "where the videos are"),
        (["evaluate", "{videos}", "extra=1"], "extra=1 does not exist"),
    ],
)
def test_mistakes_are_told_in_one_message(videos, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    done = command(*(text.format(videos=videos) for text in arguments))
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_a_command_with_one_line(videos, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("stvid.data.check.check_videos", interrupt)
    done = command("check", "data=folder", f"data.root={videos}")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
