"""`stvid predict` on files, folders, patterns and tables: top classes, segments, and all files that it writes."""

import csv
import dataclasses
import errno
import json
import os
import re
import shutil
import signal

import av
import numpy as np
import pytest
from conftest import in_process, moving_square

import stvid
from stvid.cli import main
from stvid.commands import predict
from stvid.errors import UNREADABLE, VideoError
from stvid.files import replacing
from stvid.video.shard_index import find_member, read_index
from stvid.video.types import VideoInfo
from stvid.video.writer import write_video


def command(*arguments):
    return in_process(["stvid", *map(str, arguments)], lambda: main(list(map(str, arguments))))


def long_frames(parts=3, seed=5):
    """A square that crosses to the right, to the left, ...: 24 frames each."""
    return np.concatenate(
        [moving_square(to_right=i % 2 == 0, seed=seed, num_frames=24) for i in range(parts)]
    )  # fmt: skip


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """`a/long.mp4`, `b/long.mp4`, `b/short.mp4`, `broken.mp4`."""
    root = tmp_path_factory.mktemp("videos")
    for name in ("a", "b"):
        (root / name).mkdir()
        write_video(root / name / "long.mp4", long_frames(seed=ord(name)), fps=12)
    write_video(root / "b" / "short.mp4", moving_square(to_right=True, seed=1), fps=12)
    (root / "broken.mp4").write_bytes(b"nothing")
    return root


def predicted(run_folder, tmp_path, *words, code=0):
    done = command("predict", run_folder, *words, "--workers", 0, "--json", tmp_path / "p.json")
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, json.loads((tmp_path / "p.json").read_text())


def test_a_video_of_a_tar_is_predicted_as_its_file(run_folder, prepared, tmp_path):
    members = {name: find_member(prepared / "shards" / name) for name in read_index(prepared / "shards").members}
    name = next(name for name, member in members.items() if isinstance(member.info, VideoInfo))
    file, member = prepared / name.partition("/")[2], prepared / "shards" / name
    _, (one, other) = predicted(run_folder, tmp_path, file, member, "--segments")
    _, (annotated,) = predicted(run_folder, tmp_path, member, "--segments", "--out", tmp_path / "out.mp4")
    for key in ("top", "segments", "duration", "fps"):
        assert one[key] == other[key] == annotated[key]
    assert stvid.probe(tmp_path / "out.mp4").num_frames == stvid.probe(file).num_frames
    done = command("predict", run_folder, members[name].shard.path)
    assert done.returncode == 2
    assert f"{members[name].shard.path} is a tar, not a video" in done.stderr


def test_a_long_video_is_divided_by_itself_and_a_short_one_is_not(run_folder, videos, tmp_path):
    out, (a, b, short) = predicted(run_folder, tmp_path, videos / "a", videos / "b")
    assert "segments for 2 of 3 videos, because they are longer than 4 clips (--no-segments)" in out
    assert re.search(r"threshold 0\.5 \(the default; stvid evaluate RUN --calibrate fits one\)", out)
    assert "segments" not in short
    for entry in (a, b):
        assert (entry["duration"], entry["fps"]) == (6.0, 12.0)
        segments = entry["segments"]
        assert (segments[0]["start"], segments[-1]["end"]) == (0.0, 6.0)
        assert [one["end"] for one in segments[:-1]] == [one["start"] for one in segments[1:]]
    assert "start" in out
    assert "probability  class" in out


def test_segments_and_classes_are_those_of_the_library(run_folder, videos, tmp_path):
    path = videos / "a" / "long.mp4"
    _, (entry,) = predicted(run_folder, tmp_path, path, "--threshold", 0.7, "--hop", 0.25, "--min-duration", 0.4)
    recognizer = stvid.load(run_folder, device="cpu")
    expected = recognizer.segments(path, threshold=0.7, hop=0.25, min_duration=0.4)
    actual = [(one["start"], one["end"], one["class"]) for one in entry["segments"]]
    assert actual == [(round(one.start, 3), round(one.end, 3), one.label) for one in expected]
    top = recognizer.predict(path).top()
    assert [one["class"] for one in entry["top"]] == [name for name, _ in top]
    np.testing.assert_allclose([one["probability"] for one in entry["top"]], [p for _, p in top], atol=1e-5)


def test_no_segments_leaves_long_videos_whole(run_folder, videos, tmp_path):
    out, (entry,) = predicted(run_folder, tmp_path, videos / "a" / "long.mp4", "--no-segments")
    assert "segments" not in entry
    assert "segments" not in out


def test_segments_of_a_short_video_cover_it(run_folder, videos, tmp_path):
    _, (entry,) = predicted(run_folder, tmp_path, videos / "b" / "short.mp4", "--segments")
    assert (entry["segments"][0]["start"], entry["segments"][-1]["end"]) == (0.0, 1.0)


def test_patterns_and_tables_name_videos_each_once(run_folder, videos, tmp_path):
    table = tmp_path / "list.csv"
    table.write_text(f"path,note\n{videos}/b/short.mp4,x\n{videos}/absent.mp4,y\n")
    words = [f"{videos}/**/sh*.mp4", table, videos / "b" / "short.mp4"]
    out, (short, absent) = predicted(run_folder, tmp_path, *words, code=1)
    assert short["path"] == str(videos / "b" / "short.mp4")
    assert absent == {"path": str(videos / "absent.mp4"), "top": [], "error": "missing"}
    assert "could not be read: missing" in out


def test_a_broken_file_is_told_and_the_others_are_divided(run_folder, videos, tmp_path):
    out, entries = predicted(
        run_folder, tmp_path, videos / "broken.mp4", videos / "a", "--csv", tmp_path / "s.csv", code=1
    )
    assert [entry.get("error") for entry in entries] == ["unreadable", None]
    assert "could not be read: no video, or damaged" in out
    with (tmp_path / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], float(row["start"]), row["class"]) for row in rows] == [
        (entries[1]["path"], one["start"], one["class"]) for one in entries[1]["segments"]
    ]


def test_of_a_video_that_breaks_in_the_middle_the_beginning_is_told(run_folder, videos, tmp_path, monkeypatch):
    def probed(items, **options):
        return [dataclasses.replace(stvid.probe(item.path), num_frames=100) for item in items]

    monkeypatch.setattr(predict, "probe_items", probed)  # as if frames 72 to 99 could not be decoded
    out, (entry,) = predicted(run_folder, tmp_path, videos / "a" / "long.mp4", code=1)
    assert entry["error"] == "truncated"
    assert 5.5 < entry["segments"][-1]["end"] <= 6.0
    assert "could not be read after 0:05" in out or "could not be read after 0:06" in out


def test_subtitles_and_videos_of_a_folder_keep_its_structure(run_folder, videos, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(videos / name, tmp_path / "in" / name)
    words = ["--srt", tmp_path / "subs", "--vtt", tmp_path / "subs", "--out", tmp_path / "drawn"]
    _, entries = predicted(run_folder, tmp_path, tmp_path / "in", *words)
    assert len(entries) == 3
    for entry in entries:
        name = os.path.relpath(entry["path"], tmp_path / "in")[: -len(".mp4")]
        known = [one for one in entry["segments"] if one["class"] != "unknown"]
        assert (tmp_path / "subs" / f"{name}.srt").read_text().count("-->") == len(known)
        assert (tmp_path / "subs" / f"{name}.vtt").read_text().startswith("WEBVTT\n")
        with av.open(str(tmp_path / "drawn" / f"{name}.mp4")) as drawn, av.open(entry["path"]) as source:
            assert len(list(drawn.decode(video=0))) == len(list(source.decode(video=0)))


def test_background_classes_have_segments_and_no_subtitles(run_folder, videos, tmp_path):
    words = ["--srt", tmp_path / "s.srt", "--background", "to_left", "--threshold", 0.01]
    _, (entry,) = predicted(run_folder, tmp_path, videos / "a" / "long.mp4", *words)
    assert "to_left" not in (tmp_path / "s.srt").read_text()
    assert {one["class"] for one in entry["segments"]} <= {"to_left", "to_right"}


def test_resume_repeats_nothing_that_is_finished_and_unchanged(run_folder, videos, tmp_path, monkeypatch):
    shutil.copytree(videos, tmp_path / "in")
    seen = []
    probe_items = predict.probe_items
    monkeypatch.setattr(predict, "probe_items", lambda items, **o: seen.append(len(items)) or probe_items(items, **o))
    _, before = predicted(run_folder, tmp_path, tmp_path / "in", code=1)
    out, after = predicted(run_folder, tmp_path, tmp_path / "in", "--resume", code=1)
    assert seen == [4, 1]  # the broken file is tried again
    assert after == before
    assert "3 of 4 videos were finished before (--resume)" in out
    write_video(tmp_path / "in" / "b" / "short.mp4", moving_square(to_right=False, seed=3, num_frames=9), fps=12)
    predicted(run_folder, tmp_path, tmp_path / "in", "--resume", code=1)
    predicted(run_folder, tmp_path, tmp_path / "in", "--resume", "--top", 1, code=1)  # other settings
    assert seen == [4, 1, 2, 4]


def test_resume_of_a_finished_batch_does_nothing(run_folder, videos, tmp_path):
    _, before = predicted(run_folder, tmp_path, videos / "b", "--csv", tmp_path / "s.csv", "--srt", tmp_path / "subs")
    table = (tmp_path / "s.csv").read_text()
    words = ["--csv", tmp_path / "s.csv", "--srt", tmp_path / "subs", "--resume"]
    out, after = predicted(run_folder, tmp_path, videos / "b", *words)
    assert out == "2 of 2 videos were finished before (--resume)\n"
    assert (after, (tmp_path / "s.csv").read_text()) == (before, table)
    (tmp_path / "subs" / "long.srt").unlink()  # what is missing is made again
    out, _ = predicted(run_folder, tmp_path, videos / "b", *words)
    assert "1 of 2 videos were finished before" in out
    assert (tmp_path / "subs" / "long.srt").exists()


def test_resume_keeps_what_an_interrupted_batch_has_done_and_other_videos(
    run_folder, videos, tmp_path, monkeypatch, capsys
):
    predicted(run_folder, tmp_path, videos / "b" / "short.mp4")

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(predict, "segment_video", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict_in_pieces(run_folder, videos, tmp_path)
    assert "the same command with --resume goes on from there" in capsys.readouterr().out
    kept = json.loads((tmp_path / "p.json").read_text())
    assert [entry["path"] for entry in kept] == [str(videos / "b" / "short.mp4")]
    _, entries = predicted(run_folder, tmp_path, videos / "a", "--resume")
    assert [entry["path"] for entry in entries] == [str(videos / "b" / "short.mp4"), str(videos / "a" / "long.mp4")]


def test_an_interrupted_part_says_how_it_goes_on(run_folder, videos, tmp_path, monkeypatch, capsys):
    def interrupted(batch):
        batch.files.add({"path": str(videos / "a" / "long.mp4"), "top": []})
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(predict.Batch, "predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_in_pieces(run_folder, videos, tmp_path, "--shard", "1/1")
    assert "the same command with --shard 1/1 goes on from there" in capsys.readouterr().out


def predict_in_pieces(run_folder, videos, tmp_path, *more):
    from stvid.cli import _parse
    from stvid.commands.arguments import check_arguments

    words = ["predict", run_folder, videos / "a", "--json", tmp_path / "p.json", "--resume", "--workers", "0", *more]
    options = _parse(list(map(str, words)))
    check_arguments(options)
    predict.run(options)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--background", "to_leftt"], "--background to_leftt: the model has no such class; did you mean 'to_left'?"),
        (["--window", "0.01"], "window (=0.01) is shorter than a clip of this model"),
        (["--hop", "9"], "hop (=9) is longer than a window"),
        (["--resume"], "is damaged or was changed"),
    ],
)
def test_mistakes_that_only_the_model_shows_are_told_before_the_work(run_folder, videos, tmp_path, words, message):
    (tmp_path / "p.json").write_text('[{"path": 5}]')
    done = command(
        "predict",
        run_folder,
        videos / "broken.mp4",
        videos / "a",
        *words,
        "--workers",
        0,
        "--json",
        tmp_path / "p.json",
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert (tmp_path / "p.json").read_text() == '[{"path": 5}]'


@pytest.mark.parametrize(
    ("error", "code"),
    [(VideoError("v", UNREADABLE, "cannot be encoded"), 1), (OSError(errno.ENOSPC, "No space left on device"), 2)],
)
def test_segments_are_kept_if_the_video_with_them_cannot_be_written(
    run_folder, videos, tmp_path, monkeypatch, error, code
):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(predict, "annotate", fail)
    words = [videos / "a" / "long.mp4", "--out", tmp_path / "o.mp4"]
    _, (entry,) = predicted(run_folder, tmp_path, *words, code=code)
    assert entry["segments"][-1]["end"] == 6.0
    assert "error" in entry or "fingerprint" not in entry  # --resume tries it again


def test_an_existing_video_is_not_replaced_and_nothing_is_computed(run_folder, videos, tmp_path):
    (tmp_path / "mine.mp4").write_bytes(b"mine")
    words = [
        "predict",
        run_folder,
        videos / "a" / "long.mp4",
        "--out",
        tmp_path / "mine.mp4",
        "--json",
        tmp_path / "p.json",
    ]
    for more in ([], ["--resume"]):
        done = command(*words, *more, "--workers", 0)
        assert done.returncode == 2
        assert f"{tmp_path / 'mine.mp4'} exists already, and videos are never replaced" in done.stderr
    assert (tmp_path / "mine.mp4").read_bytes() == b"mine"
    assert not (tmp_path / "p.json").exists()


def test_resume_takes_over_the_video_of_an_earlier_call(run_folder, videos, tmp_path):
    words = [videos / "b" / "short.mp4", "--out", tmp_path / "o.mp4"]
    predicted(run_folder, tmp_path, *words)
    (tmp_path / "p.json").unlink()  # as if the call had been killed before it wrote the list
    before = os.stat(tmp_path / "o.mp4").st_ino
    _, (entry,) = predicted(run_folder, tmp_path, *words, "--resume")
    assert entry["segments"]
    assert os.stat(tmp_path / "o.mp4").st_ino == before
    predicted(run_folder, tmp_path, *words, "--resume", "--threshold", 0.9)  # other settings
    assert os.stat(tmp_path / "o.mp4").st_ino != before


def test_the_other_videos_go_on_if_the_output_of_one_cannot_be_written(run_folder, videos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("a file where a folder is needed")
    words = ["predict", run_folder, f"{videos}/*/*.mp4", "--out", out, "--srt", out, "--json", tmp_path / "p.json"]
    done = command(*words, "--workers", 0)
    assert done.returncode == 2
    for name in ("long.mp4", "long.srt"):
        assert f"{out / 'a' / name} cannot be written: {out / 'a'}: " in done.stderr
    assert {path.name for path in (out / "b").iterdir()} == {"long.mp4", "long.srt", "short.mp4", "short.srt"}
    entries = json.loads((tmp_path / "p.json").read_text())
    assert ["fingerprint" in entry for entry in entries] == [False, True, True]
    assert all(entry["segments"] for entry in entries)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM that a program can handle")
def test_sigterm_leaves_no_unfinished_file_and_keeps_what_was_done(run_folder, videos, tmp_path, monkeypatch):
    def terminated(path, file, **options):
        with replacing(file) as partial:
            partial.write_bytes(b"half of a video")
            if path.parent.name == "b":
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(predict, "annotate", terminated)
    words = ("predict", run_folder, videos / "a", videos / "b" / "short.mp4", "--workers", 0)
    done = command(*words, "--json", tmp_path / "p.json", "--out", tmp_path / "out")
    assert done.returncode == 143
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["long.mp4"]
    entries = json.loads((tmp_path / "p.json").read_text())
    assert ["fingerprint" in entry for entry in entries] == [True, False]  # --resume repeats the second one
