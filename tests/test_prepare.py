"""`prepare` makes a data set small: the same items in the same order, whatever happens on the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shlex
import shutil
import time
import traceback
from pathlib import Path

import pytest
from conftest import REAL_DATA
from hydra.core.override_parser.overrides_parser import OverridesParser
from numbered import write_video
from test_transcode import numbers, write_images

from stvid.clip import ClipSpec
from stvid.commands.prepare import prepare_text
from stvid.data.manifest import Item, Manifest
from stvid.data.prepare import prepare
from stvid.data.prepare_plan import check_output
from stvid.errors import InputError
from stvid.video.probe import probe

CLIP = ClipSpec(num_frames=4, frame_stride=2, size=32)
UT_INTERACTION = REAL_DATA / "ut_interaction"


def items_of(*paths: Path, **more) -> tuple[Item, ...]:
    return tuple(Item(path=str(path), label="wave", split="train", **more) for path in paths)


def manifest_of(items, class_names=("wave",)) -> Manifest:
    return Manifest(items=tuple(items), class_names=tuple(class_names))


def run(manifest, out, **settings) -> dict:
    settings = {"short_side": 48, "num_workers": 0, **settings}
    return prepare(manifest, out=out, clip=CLIP, progress=False, **settings)


def files_in(out: Path) -> dict[str, bytes]:
    """Every file below a folder but prepare.json, which tells how long it took."""
    paths = (path for path in out.rglob("*") if path.is_file() and path.name != "prepare.json")
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def videos(tmp_path) -> list[Path]:
    (tmp_path / "data/b").mkdir(parents=True)
    names = ("one.avi", "two.mp4", "b/three.mkv")
    return [write_video(tmp_path / "data" / name, num_frames=n) for n, name in enumerate(names, start=20)]


def test_items_keep_their_order_labels_splits_and_groups(tmp_path, videos):
    entry, two, three = map(str, videos)
    items = (
        Item(path=three, label="wave", split="train", group="anna"),
        Item(path=entry, label="clap", split="test"),
        Item(path=two, label="wave", split="val", group="ben"),
        Item(path=entry, label="wave", split="test"),
    )
    summary = run(manifest_of(items, ("clap", "wave")), tmp_path / "out")
    made = Manifest.read_csv(tmp_path / "out/manifest.csv")
    stored = [(item.label, item.split, item.group, item.start, item.end) for item in items]
    assert [(item.label, item.split, item.group, item.start, item.end) for item in made.items] == stored
    names = ["b/three.mp4", "one.mp4", "two.mp4", "one.mp4"]
    assert [Path(item.path) for item in made.items] == [tmp_path / "out/videos" / name for name in names]
    assert [numbers(item.path) for item in made.items] == [list(range(n)) for n in (22, 20, 21, 20)]
    assert {key: summary[key] for key in ("num_files", "num_made", "num_kept", "num_bad", "bad")} == {
        "num_files": 3,
        "num_made": 3,
        "num_kept": 0,
        "num_bad": 0,
        "bad": [],
    }
    assert summary["bytes_before"] == sum(path.stat().st_size for path in videos)
    assert summary["bytes_after"] == sum(len(content) for name, content in files_in(tmp_path / "out/videos").items())
    assert summary["clips_per_second_before"] > 0 < summary["clips_per_second_after"]
    assert json.loads((tmp_path / "out/prepare.json").read_text())["summary"] == summary
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.csv", "prepare.json", "videos"]


def test_a_part_becomes_a_file_of_its_own_frames(tmp_path, videos):
    items = (*items_of(videos[0], start=0.2, end=0.6), *items_of(videos[0]), *items_of(videos[0], start=0.4))
    run(manifest_of(items), tmp_path / "out")
    made = Manifest.read_csv(tmp_path / "out/manifest.csv").items
    assert [Path(item.path).name for item in made] == ["one_0.2-0.6.mp4", "one.mp4", "one_0.4-end.mp4"]
    assert [numbers(item.path) for item in made] == [list(range(5, 15)), list(range(20)), list(range(10, 20))]
    assert {(item.start, item.end) for item in made} == {(None, None)}


def test_names_never_collide_and_say_where_they_come_from(tmp_path, videos):
    names = (
        "a.avi",
        "a.mp4",
        "A.mkv",
        "a_2.mkv",
        "x y/ä (1), it's.mkv",
        "12:30.mkv",
        ".hidden.mkv",
        "n" * 240 + ".mkv",
    )
    for name in names:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(videos[0 if name.endswith("avi") else 1 if name.endswith("mp4") else 2], tmp_path / "set" / name)
    write_images(tmp_path / "set/frames.v1", 10)
    items = items_of(*(tmp_path / "set" / name for name in (*names, "frames.v1")))
    run(manifest_of(items), tmp_path / "out")
    displayed = [
        str(Path(item.path).relative_to(tmp_path / "out/videos"))
        for item in Manifest.read_csv(tmp_path / "out/manifest.csv").items
    ]
    assert displayed == [
        "a_3.mp4",
        "a_4.mp4",
        "A.mp4",
        "a_2.mp4",
        "x y/ä (1), it's.mp4",
        "12:30.mp4",
        ".hidden.mp4",
        "n" * 180 + ".mp4",
        "frames.v1.mp4",
    ]
    assert [len(numbers(tmp_path / "out/videos" / name)) for name in displayed] == [20, 21, *[22] * 6, 10]
    run(manifest_of(items[::-1]), tmp_path / "reversed")
    assert files_in(tmp_path / "out/videos") == files_in(tmp_path / "reversed/videos")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_cannot_be_read_keeps_its_row_and_is_listed(tmp_path, videos, num_workers):
    text, half = tmp_path / "data/text.mp4", tmp_path / "data/half.mkv"
    text.write_text("no video at all\n" * 100)
    whole = write_video(half, num_frames=60, size=(240, 320)).read_bytes()
    half.write_bytes(whole[: len(whole) // 2])
    items = (*items_of(videos[0], text, half, videos[1]), *items_of(videos[0], start=100.0, end=101.0))
    summary = run(manifest_of(items), tmp_path / "out", num_workers=num_workers)
    made = Manifest.read_csv(tmp_path / "out/manifest.csv").items
    assert [Path(item.path).name for item in made] == ["one.mp4", "text.mp4", "half.mkv", "two.mp4", "one.avi"]
    assert made[1].path == str(text)
    assert (made[4].path, made[4].start, made[4].end) == (str(videos[0]), 100.0, 101.0)
    listed = (tmp_path / "out/bad_videos.csv").read_text().splitlines()
    assert listed == ["path,reason", f"{text},unreadable", f"{half},truncated", f"{videos[0]},empty"]
    assert [bad["path"] for bad in summary["bad"]] == [str(text), str(half), str(videos[0])]
    assert (summary["num_files"], summary["num_made"], summary["num_bad"]) == (5, 2, 3)


def test_what_was_mended_is_listed_no_more(tmp_path, videos):
    good = videos[1].read_bytes()
    videos[1].write_bytes(good[:1000])
    assert run(manifest_of(items_of(*videos)), tmp_path / "out")["num_bad"] == 1
    videos[1].write_bytes(good)
    summary = run(manifest_of(items_of(*videos)), tmp_path / "out")
    assert (summary["num_made"], summary["num_kept"], summary["num_bad"]) == (1, 2, 0)
    assert not (tmp_path / "out/bad_videos.csv").exists()


def test_what_is_done_is_not_done_again(tmp_path, videos):
    manifest = manifest_of(items_of(*videos))
    run(manifest, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/videos").rglob("*.mp4")}
    assert run(manifest, tmp_path / "out")["num_kept"] == 3
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out/videos").rglob("*.mp4")} == before


def test_a_changed_source_is_made_anew_and_the_others_are_not(tmp_path, videos):
    manifest = manifest_of(items_of(*videos))
    run(manifest, tmp_path / "out")
    write_video(videos[1], num_frames=33)
    (tmp_path / "out/videos/one.mp4").write_bytes((tmp_path / "out/videos/one.mp4").read_bytes()[:500])
    summary = run(manifest, tmp_path / "out")
    assert (summary["num_made"], summary["num_kept"]) == (2, 1)
    assert [len(numbers(tmp_path / "out/videos" / name)) for name in ("one.mp4", "two.mp4")] == [20, 33]


def test_a_changed_image_is_noticed(tmp_path):
    folder = write_images(tmp_path / "data/frames", 5)
    manifest = manifest_of(items_of(folder))
    run(manifest, tmp_path / "out")
    shutil.copy(folder / "4.png", folder / "2.png")
    assert run(manifest, tmp_path / "out")["num_made"] == 1
    assert numbers(tmp_path / "out/videos/frames.mp4") == [0, 1, 4, 3, 4]


def test_uncompressed_copies_are_kept_and_are_other_files_than_compressed_ones(tmp_path, videos):
    items = (*items_of(*videos), *items_of(videos[0], start=0.2, end=0.6))
    assert run(manifest_of(items), tmp_path / "out", uncompressed=True)["num_made"] == 4
    names = {path.name for path in (tmp_path / "out/videos").rglob("*.*")}
    assert names == {"one.mkv", "two.mkv", "three.mkv", "one_0.2-0.6.mkv"}
    assert numbers(tmp_path / "out/videos/one_0.2-0.6.mkv") == list(range(5, 15))
    run(manifest_of(items), tmp_path / "compressed")
    tables = [(tmp_path / folder / "manifest.csv").read_text() for folder in ("out", "compressed")]
    assert tables[0] == tables[1].replace(".mp4", ".mkv")
    assert run(manifest_of(items), tmp_path / "out", uncompressed=True)["num_kept"] == 4
    for folder, uncompressed in (("out", False), ("compressed", True)):
        with pytest.raises(InputError, match="was prepared with uncompressed="):
            run(manifest_of(items), tmp_path / folder, uncompressed=uncompressed)


@pytest.mark.parametrize("setting", [{"short_side": 64}, {"gop": 4}, {"crf": 30}])
def test_other_settings_are_refused_and_nothing_is_touched(tmp_path, videos, setting):
    manifest = manifest_of(items_of(*videos))
    run(manifest, tmp_path / "out")
    before = files_in(tmp_path / "out")
    with pytest.raises(InputError, match=f"was prepared with {next(iter(setting))}="):
        run(manifest, tmp_path / "out", **setting)
    assert files_in(tmp_path / "out") == before


def test_videos_of_the_last_time_that_are_gone_are_told(tmp_path, videos, caplog):
    items = items_of(*videos)
    run(manifest_of(items), tmp_path / "out")
    run(manifest_of(items), tmp_path / "out")
    assert "last time" not in caplog.text
    run(manifest_of(items[1:]), tmp_path / "out")
    assert f"1 of the {len(items)} videos of the last time are not in the data set now" in caplog.text


def test_another_data_set_is_refused(tmp_path, videos):
    run(manifest_of(items_of(*videos)), tmp_path / "out")
    with pytest.raises(InputError, match="was prepared with sources="):
        run(manifest_of(items_of(videos[2])), tmp_path / "out")


@pytest.mark.parametrize("setting", [{"short_side": 8}, {"gop": 0}, {"crf": 52}])
def test_settings_out_of_range_are_named(tmp_path, videos, setting):
    with pytest.raises(InputError, match=next(iter(setting))):
        run(manifest_of(items_of(*videos)), tmp_path / "out", **setting)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_is_left_alone(tmp_path, videos):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="thesis.tex"):
        run(manifest_of(items_of(*videos)), tmp_path / "out")
    with pytest.raises(InputError, match="is a file"):
        run(manifest_of(items_of(*videos)), tmp_path / "out/thesis.tex")


def test_a_part_that_starts_while_another_begins_the_folder_goes_on(tmp_path, videos, monkeypatch):
    manifest, out, listed = manifest_of(items_of(*videos)), tmp_path / "out", Path.iterdir
    run(manifest, tmp_path / "other")
    out.mkdir()

    def another_part_begins(folder):
        shutil.copytree(tmp_path / "other", out, dirs_exist_ok=True)
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", another_part_begins)
    check_output(manifest, out, {"short_side": 48, "gop": 8, "crf": 23})


def test_originals_and_copies_are_kept_apart(tmp_path, videos):
    manifest = manifest_of(items_of(*videos))
    for out in (tmp_path / "data", tmp_path / "data/small", tmp_path / "data/b"):
        with pytest.raises(InputError, match="the folder of the videos"):
            run(manifest, out)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with pytest.raises(InputError, match="the folder of the videos"):
        run(manifest, tmp_path / "link/small")
    with pytest.raises(InputError, match="contains a video"):
        run(manifest, tmp_path)
    run(manifest, tmp_path / "out")
    with pytest.raises(InputError, match="contains a video"):
        run(Manifest.read_csv(tmp_path / "out/manifest.csv"), tmp_path / "out")


def call(source: Path, out: Path, num_workers: int, limit: int | None, reported: Path, begins) -> None:
    """`prepare` in a process of its own; where it fails, `told` is what it says."""
    multiprocessing.set_start_method("fork", force=True)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    begins.set()
    try:
        run(Manifest.read_csv(source), out, num_workers=num_workers, short_side=96, crf=1)
    except Exception:
        reported.write_text(traceback.format_exc())
        raise


def start(source: Path, out: Path, *, num_workers: int, limit: int | None = None):
    context = multiprocessing.get_context("forkserver")  # one that has imported everything, and computed nothing yet
    context.set_forkserver_preload(["stvid.data.prepare"])
    reported, begins = source.with_suffix(".told"), context.Event()
    process = context.Process(target=call, args=(source, out, num_workers, limit, reported, begins))
    process.start()
    begins.wait(timeout=300)
    return process


def finish(process) -> None:
    process.join(timeout=300)
    assert process.exitcode == 0


@pytest.fixture
def many(tmp_path) -> Path:
    """A manifest of ten videos, one of them in two parts, one of them bad."""
    (tmp_path / "data").mkdir()
    paths = [write_video(tmp_path / f"data/{n}.avi", codec="mpeg4", num_frames=100, bframes=2) for n in range(9)]
    (tmp_path / "data/bad.mp4").write_text("no video")
    items = (*items_of(tmp_path / "data/bad.mp4", *paths), *items_of(paths[3], end=1.0), *items_of(paths[3], start=2.0))
    manifest_of(items).write_csv(tmp_path / "source.csv")
    return tmp_path / "source.csv"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_killed_call_is_made_good_by_the_next(tmp_path, many, num_workers):
    whole = start(many, tmp_path / "whole", num_workers=num_workers)
    began = time.monotonic()
    finish(whole)
    seconds = time.monotonic() - began
    expected = files_in(tmp_path / "whole")
    assert len(expected) == 13  # 11 videos, the manifest, the list of bad ones
    rng = random.Random(num_workers)
    for attempt in range(2):
        out = tmp_path / f"killed{attempt}"
        for share in sorted(rng.random() for _ in range(2)):
            process = start(many, out, num_workers=num_workers)
            process.join(timeout=share * seconds)
            process.kill()  # its workers find out by themselves
            process.join()
        finish(start(many, out, num_workers=num_workers))
        assert files_in(out) == expected


def test_what_a_killed_call_left_half_written_is_removed(tmp_path, videos):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.prepare.json.17.partial").write_text("{")
    run(manifest_of(items_of(*videos)), tmp_path / "out")
    expected = files_in(tmp_path / "out")
    (tmp_path / "out/videos/b/.three.mp4.17.partial").write_bytes(b"half")
    (tmp_path / "out/.manifest.csv.17.partial").write_bytes(b"half")
    run(manifest_of(items_of(*videos)), tmp_path / "out")
    assert files_in(tmp_path / "out") == expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_full_disk_reaches_the_caller_and_nothing_half_written_stays(tmp_path, many, num_workers):
    process = start(many, tmp_path / "out", num_workers=num_workers, limit=30_000)
    process.join(timeout=300)
    assert process.exitcode == 1
    assert "OSError: [Errno 27]" in many.with_suffix(".told").read_text()
    assert not list((tmp_path / "out").rglob(".*"))
    assert not (tmp_path / "out/manifest.csv").exists()
    finish(start(many, tmp_path / "out", num_workers=num_workers))


@pytest.mark.parametrize("names", [("b", "a"), ("0", "1"), ("it's", 'a "b", c'), ("tür\\", "true")])
def test_the_command_trains_on_the_copy_with_the_same_order_of_classes(tmp_path, videos, names):
    items = [Item(path=str(videos[i]), label=name, split="train") for i, name in enumerate(names)]
    summary = run(manifest_of(items, names), tmp_path / "my = out")
    program, verb, *overrides = shlex.split(summary["command"])
    values = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(overrides)}
    read = {key: [str(x) for x in value] if isinstance(value, list) else str(value) for key, value in values.items()}
    assert (program, verb, read.pop("data")) == ("stvid", "train", "manifest")
    assert read == {"data.path": str(tmp_path / "my = out/manifest.csv"), "data.class_names": list(names)}
    made = Manifest.read_csv(read["data.path"], class_names=read["data.class_names"])
    assert (made.class_names, [item.label for item in made.items]) == (names, list(names))


def test_sorted_classes_need_no_naming(tmp_path, videos):
    summary = run(manifest_of(items_of(*videos)), tmp_path / "out")
    assert summary["command"] == f"stvid train data=manifest data.path={tmp_path}/out/manifest.csv"


def test_the_description_is_a_few_aligned_lines():
    summary = {
        "num_files": 120,
        "num_made": 100,
        "num_kept": 19,
        "num_bad": 1,
        "bad": [{"path": "/data/a.avi", "reason": "truncated", "detail": ""}],
        "bytes_before": 30_300_000,
        "bytes_after": 9_510_000,
        "clips_per_second_before": 126.0,
        "clips_per_second_after": 289.0,
        "command": "stvid train",
    }
    assert prepare_text(summary).splitlines() == [
        "videos        120 (100 made, 19 kept, 1 bad)",
        "bad           /data/a.avi: truncated",
        "size          30.3 MB -> 9.51 MB (3.19 times smaller)",
        "clips/second  126 -> 289 read by one process (2.29 times as fast)",
        "train on it   stvid train",
    ]


def test_a_data_set_without_readable_videos_is_summarised(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/bad.mp4").write_text("no video")
    summary = run(manifest_of(items_of(tmp_path / "data/bad.mp4")), tmp_path / "out")
    assert (summary["num_bad"], summary["bytes_after"], summary["clips_per_second_after"]) == (1, 0, None)
    assert len(prepare_text(summary).splitlines()) == 3


@pytest.mark.skipif(os.name != "posix", reason="names are bytes")
def test_names_that_are_not_utf8_work(tmp_path, videos):
    odd = Path(os.fsdecode(os.fsencode(tmp_path / "data") + b"/\xff\xfe.mkv"))
    videos[2].rename(odd)
    (odd.with_name("bad.mp4")).write_text("no video")
    summary = run(manifest_of(items_of(odd, odd.with_name("bad.mp4"))), tmp_path / "out", num_workers=1)
    made = Manifest.read_csv(tmp_path / "out/manifest.csv").items
    assert probe(made[0].path).num_frames == 22
    assert summary["num_made"] == 1


@pytest.mark.skipif(not UT_INTERACTION.exists(), reason="needs shared/data/ut_interaction")
def test_recordings_with_wrong_headers_keep_every_frame(tmp_path):
    paths = sorted(UT_INTERACTION.glob("*/*.avi"))[::30]
    run(manifest_of(items_of(*paths)), tmp_path / "out", num_workers=2)
    for path, item in zip(paths, Manifest.read_csv(tmp_path / "out/manifest.csv").items, strict=True):
        before, after = probe(path), probe(item.path)
        assert (after.num_frames, after.fps, after.random_access) == (before.num_frames, before.fps, True)
