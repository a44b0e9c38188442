"""`stvid prepare` as a user runs it."""

import re
import shlex
import shutil

import pytest
from conftest import TINY, in_process, train_py

from stvid.cli import main
from stvid.commands.prepare import prepare_text


def command(*arguments):
    return in_process(["stvid", *map(str, arguments)], lambda: main(list(map(str, arguments))))


@pytest.fixture
def videos(video_folder, tmp_path):
    return shutil.copytree(video_folder, tmp_path / "my videos")


@pytest.mark.parametrize("options", [("--gop", "4"), ("--uncompressed",)])
def test_prepare_makes_a_copy_that_trains(videos, tmp_path, options):
    out = tmp_path / "small ones"
    words = ("prepare", "data=folder", "--out", out, f"data.root={videos}", "--short-side", "32", *options)
    done = command(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "times as fast" in done.stdout
    assert str(out / "manifest.csv") in done.stdout
    run = tmp_path / "run"
    overrides = ("data=manifest", f"data.path='{out / 'manifest.csv'}'", "trainer.max_epochs=1", f"hydra.run.dir={run}")
    trained = train_py(*overrides, *TINY)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    again = command(*words)
    assert again.returncode == 0
    assert "16 kept" in again.stdout


def test_the_tars_that_it_packs_are_named_with_the_command_that_trains_on_them(videos, tmp_path):
    out = tmp_path / "small ones"
    words = ("prepare", str(videos), "--out", out, "--short-side", "32", "--tar-size", "10kB")
    done = command(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    num_tars = len(list((out / "shards").glob("*.tar")))
    assert re.search(rf"tars +{num_tars} \({num_tars} made, 0 kept\), \d+(\.\d)? kB", done.stdout)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("on the tars ")]
    assert shlex.split(line)[3:] == ["stvid", "train", "data=shards", f"data.root='{out / 'shards'}'"]
    assert f"tars          {num_tars} (0 made, {num_tars} kept)" in command(*words).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out"),
        (["--out", "o", "--gop", "0"], "gop (=0)"),
        (["--out", "{videos}/small"], "the folder of the videos"),
        (["--out", "o", "--tar-size", "1XB"], "--tar-size (=1XB) must be a size of at least 1kB, such as 500MB or 1GB"),
        (["--out", "o", "--tar-size", "10"], "--tar-size (=10)"),
    ],
)
def test_a_wrong_option_is_one_message(videos, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = command("prepare", "data=folder", f"data.root={videos}", *(text.format(videos=videos) for text in arguments))
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_copy_of_tars_is_made_again_if_they_were_remade_with_other_videos(prepared, videos, tmp_path):
    tars = shutil.copytree(prepared / "shards", tmp_path / "tars")
    words = ("prepare", "data=shards", f"data.root={tars}", "--out", tmp_path / "copy", "--short-side", "32")
    done = command(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(16 made, 0 kept, 0 bad)" in done.stdout
    assert re.search(r"size +\d\S* kB -> ", done.stdout)
    assert "(0 made, 16 kept, 0 bad)" in command(*words).stdout
    remade = tmp_path / "remade"
    done = command("prepare", str(videos), "--out", remade, "--short-side", "40", "--crf", "40", "--tar-size", "8kB")
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(tars)
    shutil.copytree(remade / "shards", tars)
    done = command(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(16 made, 0 kept, 0 bad)" in done.stdout


def test_a_size_of_sources_that_is_not_known_is_left_out():
    summary = {"num_files": 1, "num_made": 0, "num_kept": 1, "num_bad": 0, "bad": [], "command": "stvid train"}
    speeds = {"clips_per_second_before": None, "clips_per_second_after": None}
    assert "size" not in prepare_text({**summary, **speeds, "bytes_before": 0, "bytes_after": 10})
