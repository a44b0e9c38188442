"""`stvid prepare` as a user runs it."""

import shutil

import pytest
from conftest import TINY, in_process, train_py

from stvid.cli import main


def command(*arguments):
    return in_process(["stvid", *map(str, arguments)], lambda: main(list(map(str, arguments))))


@pytest.fixture
def videos(video_folder, tmp_path):
    return shutil.copytree(video_folder, tmp_path / "my videos")


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
    ("arguments", "message"),
    [
        ([], "--out"),
        (["--out", "o", "--gop", "0"], "gop (=0)"),
        (["--out", "{videos}/small"], "the folder of the videos"),
    ],
)
def test_a_wrong_option_is_one_message(videos, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = command("prepare", "data=folder", f"data.root={videos}", *(text.format(videos=videos) for text in arguments))
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
