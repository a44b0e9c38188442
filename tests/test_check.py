"""`check_videos` says which files are broken, twice there, torn between splits, or odd; and changes none of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import REAL_DATA, make_folder, moving_square
from PIL import Image

from stvid.clip import ClipSpec
from stvid.commands.check import check_text
from stvid.data.check import check_videos, is_bad
from stvid.data.manifest import Item, Manifest
from stvid.errors import EMPTY, MISSING, UNREADABLE
from stvid.video import probe as probe_module
from stvid.video.writer import write_video

CLASSES = ("to_left", "to_right")
CLIP = ClipSpec(num_frames=4, frame_stride=2)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("originals") / "squares", videos=4)


@pytest.fixture
def squares(originals, tmp_path) -> Path:
    """`squares/{to_left,to_right}/0{0,1,2,3}.mp4`, a copy that may be damaged."""
    return Path(shutil.copytree(originals, tmp_path / "squares"))


def manifest_of(root: Path, *more: Item) -> Manifest:
    """The last video of each class is for val, the others are for train."""
    items = [
        Item(path=str(path), label=path.parent.name, split="val" if path.stem == "03" else "train")
        for path in sorted(root.glob("*/*.mp4"))
    ]
    return Manifest(items=(*items, *more), class_names=CLASSES)


def check(manifest: Manifest, *, clip=CLIP, num_workers=1, cache=None, **options) -> dict:
    report = check_videos(manifest, clip=clip, num_workers=num_workers, cache=cache, progress=False, **options)
    assert json.loads(json.dumps(report)) == report
    return report


def replaced(manifest: Manifest, path: Path, **changes) -> Manifest:
    items = tuple(replace(item, **changes) if item.path == str(path) else item for item in manifest.items)
    return replace(manifest, items=items)


def other_video(path: Path, *, num_frames=12, size=48, fps=12.0) -> Path:
    frames = moving_square(to_right=True, seed=num_frames + size, num_frames=num_frames, size=size)
    write_video(path, frames, fps=fps)
    return path


def test_a_sound_data_set_has_nothing_to_tell(squares):
    data = manifest_of(squares)
    report = check(replace(data, items=tuple(replace(item, group=item.path) for item in data.items)))
    assert (report["num_files"], report["num_items"], report["num_bad"]) == (8, 8, 0)
    assert not any(report[key] for key in ("bad", "duplicates", "leaks", "conflicts"))
    assert not is_bad(report)
    assert report["class_counts"] == {name: {"train": 3, "val": 1, "test": 0} for name in CLASSES}
    page = check_text(report)
    assert page.startswith("8 videos: every frame decodes\nnot found   leaks, contradicting labels, copies, shortcuts")
    assert len(page.splitlines()) <= 12


def test_the_report_has_the_properties_of_each_file(squares):
    report = check(manifest_of(squares))
    assert report["files"][3] == {
        "path": str(squares / "to_left" / "03.mp4"),
        "splits": ["val"],
        "labels": ["to_left"],
        "ok": True,
        "num_frames": 12,
        "fps": 12.0,
        "duration": 1.0,
        "height": 48,
        "width": 48,
        "codec": "h264",
    }


def test_every_kind_of_broken_file_is_named_with_its_reason(squares):
    data = manifest_of(squares)
    left = squares / "to_left"
    (left / "00.mp4").write_bytes((left / "00.mp4").read_bytes()[:800])
    (left / "01.mp4").write_text("not a video")
    (left / "02.mp4").write_bytes(b"")
    (left / "03.mp4").unlink()
    report = check(data)
    reasons = {Path(entry["path"]).stem: entry["reason"] for entry in report["bad"]}
    assert reasons == {"00": UNREADABLE, "01": UNREADABLE, "02": EMPTY, "03": MISSING}
    assert report["num_bad"] == 4
    assert is_bad(report)
    assert [file["ok"] for file in report["files"]] == [False] * 4 + [True] * 4
    assert report["files"][0]["num_frames"] is None
    page = check_text(report)
    assert page.startswith("8 videos: 4 cannot be used")
    assert all(f"to_left/{stem}.mp4" in page for stem in reasons)


def test_a_file_that_breaks_half_way_is_found_though_its_header_is_whole(squares, tmp_path):
    path = other_video(tmp_path / "long.mp4", num_frames=60)
    content = bytearray(path.read_bytes())
    begin = content.index(b"mdat") + 4
    content[begin + 2000 : begin + 2600] = bytes(600)
    path.write_bytes(content)
    report = check(manifest_of(squares, Item(path=str(path), label="to_right", split="train")))
    assert [entry["path"] for entry in report["bad"]] == [str(path)]


def test_a_file_that_crashes_its_decoder_costs_only_itself(squares, monkeypatch):
    def crash(name, **options):
        if name.endswith("to_right/01.mp4"):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(name, **options)

    real = probe_module.probe
    monkeypatch.setattr(probe_module, "probe", crash)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("fork", force=True)  # only a forked process knows of `crash`
    try:
        report = check(manifest_of(squares), num_workers=0)
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert [(Path(entry["path"]).name, entry["reason"]) for entry in report["bad"]] == [("01.mp4", UNREADABLE)]


def test_a_part_outside_of_its_file_is_bad_and_the_file_is_not(squares):
    path = squares / "to_left" / "00.mp4"
    report = check(replaced(manifest_of(squares), path, start=5.0, end=6.0))
    assert [(entry["path"], entry["reason"]) for entry in report["bad"]] == [(str(path), EMPTY)]
    assert report["files"][0]["ok"]
    assert is_bad(report)


def test_a_copy_in_another_split_is_a_leak_and_under_another_label_a_conflict(squares):
    shutil.copy(squares / "to_left" / "00.mp4", squares / "to_right" / "03.mp4")
    report = check(manifest_of(squares))
    paths = [str(squares / name) for name in ("to_left/00.mp4", "to_right/03.mp4")]
    assert [(leak["kind"], leak["splits"], leak["paths"]) for leak in report["leaks"]] == [
        ("content", ["train", "val"], paths)
    ]
    assert [(entry["labels"], entry["paths"]) for entry in report["conflicts"]] == [(list(CLASSES), paths)]
    assert report["duplicates"] == [paths]
    assert is_bad(report)
    page = check_text(report)
    assert "train, val: to_left/00.mp4, to_right/03.mp4" in page
    assert "to_left / to_right: to_left/00.mp4, to_right/03.mp4" in page


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_is_no_copy_but_leaks_and_contradicts_as_one(squares, link):
    link(squares / "to_left" / "00.mp4", squares / "to_left" / "link.mp4")
    report = check(manifest_of(squares))
    assert not any(report[key] for key in ("duplicates", "leaks", "conflicts"))
    data = replaced(manifest_of(squares), squares / "to_left" / "link.mp4", split="val", label="to_right")
    report = check(data)
    assert report["duplicates"] == []
    assert [leak["splits"] for leak in report["leaks"]] == [["train", "val"]]
    assert [entry["labels"] for entry in report["conflicts"]] == [list(CLASSES)]


def test_one_file_in_two_splits_is_reported_once(squares):
    path = squares / "to_left" / "00.mp4"
    report = check(manifest_of(squares, Item(path=str(path), label="to_left", split="test")))
    assert [(leak["kind"], leak["name"], leak["splits"]) for leak in report["leaks"]] == [
        ("file", str(path), ["test", "train"])
    ]
    assert (report["num_files"], report["num_items"]) == (8, 9)
    assert report["files"][0]["splits"] == ["train", "test"]


def test_a_group_in_two_splits_is_a_leak_with_a_path_of_each(squares):
    data = manifest_of(squares)
    items = tuple(replace(item, group="anna" if item.label == "to_left" else None) for item in data.items)
    (leak,) = check(replace(data, items=items))["leaks"]
    assert (leak["kind"], leak["name"], leak["splits"], leak["num_files"]) == ("group", "anna", ["train", "val"], 4)
    assert {Path(path).stem for path in leak["paths"]} >= {"00", "03"}


def test_parts_of_a_file_may_have_labels_of_their_own_but_the_same_part_may_not(squares):
    path = str(squares / "to_left" / "00.mp4")
    first = Item(path=path, label="to_left", split="train", end=0.5)
    data = Manifest(items=(first, Item(path=path, label="to_right", split="train", start=0.5)), class_names=CLASSES)
    assert check(data)["conflicts"] == []
    again = replace(first, label="to_right", start=0.0)
    (conflict,) = check(replace(data, items=(*data.items, again)))["conflicts"]
    assert (conflict["labels"], conflict["end"]) == (list(CLASSES), 0.5)


def test_folders_of_images_are_videos_too(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(np.full((8, 10, 3), i, np.uint8)).save(tmp_path / name / f"{i}.png")
    items = tuple(Item(path=str(tmp_path / name), label="to_left", split="train") for name in "ab")
    report = check(Manifest(items=items, class_names=("to_left",)))
    assert {(file["codec"], file["num_frames"]) for file in report["files"]} == {("images", 3)}
    assert report["duplicates"] == [[item.path for item in items]]


def test_videos_shorter_than_a_clip_are_counted_by_their_part(squares):
    path = squares / "to_left" / "00.mp4"
    data = replaced(manifest_of(squares), path, end=0.5)
    assert check(data, clip=ClipSpec(num_frames=3, frame_stride=2))["odd"]["short"] == []
    report = check(data, clip=ClipSpec(num_frames=4, frame_stride=2))
    assert report["odd"]["short"] == [{"path": str(path), "start": None, "end": 0.5, "num_frames": 6, "span": 7}]
    assert "to_left/00.mp4   6 frames of 7" in check_text(report)
    assert not is_bad(report)


def test_odd_durations_sizes_and_rates_are_reported(squares):
    long = other_video(squares / "to_left" / "long.mp4", num_frames=60)
    brief = other_video(squares / "to_left" / "brief.mp4", num_frames=6, size=64, fps=30.0)
    odd = check(manifest_of(squares))["odd"]
    assert {entry["path"] for entry in odd["durations"]} == {str(long), str(brief)}
    assert odd["median_duration"] == 1.0
    assert list(odd["sizes"].items()) == [("48x48", 9), ("64x64", 1)]
    assert list(odd["fps"].items()) == [("12", 9), ("30", 1)]


def test_a_size_that_predicts_the_class_is_in_the_text(tmp_path):
    items = []
    for i in range(12):
        for label, size in zip(CLASSES, (48, 64), strict=True):
            path = other_video(tmp_path / f"{label}{i}.mp4", num_frames=12 + i, size=size)
            items.append(Item(path=str(path), label=label, split="train"))
    report = check(Manifest(items=tuple(items), class_names=CLASSES))
    assert [entry["features"] for entry in report["shortcuts"] if entry["suspicious"]] == [["size"], ["size", "length"]]
    page = check_text(report)
    assert re.search(r"size alone +100 % of the videos", page)
    assert re.search(r"chance +50 %", page)
    assert not is_bad(report)


def test_a_copy_does_not_vote_for_its_original(tmp_path):
    """Each video has a size of its own and is there twice; its twin alone would give it away."""
    rng = np.random.default_rng(0)
    items = []
    for i, label in enumerate(rng.permutation(CLASSES * 8)):
        path = other_video(tmp_path / f"{i}.mp4", size=32 + 4 * i)
        copy = shutil.copy(path, tmp_path / f"{i}_copy.mp4")
        items += [Item(path=str(entry), label=str(label), split="train") for entry in (path, copy)]
    report = check(Manifest(items=tuple(items), class_names=CLASSES))
    assert len(report["duplicates"]) == 16
    assert not any(entry["suspicious"] for entry in report["shortcuts"])


def test_nothing_is_changed_but_the_cache(squares, tmp_path):
    def state():
        return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in squares.rglob("*")}

    (squares / "to_left" / "00.mp4").write_text("broken")
    before = state()
    check(manifest_of(squares))
    check(manifest_of(squares), cache=tmp_path / "cache.json")
    assert state() == before
    assert {path.name for path in tmp_path.iterdir()} == {"squares", "cache.json"}


@pytest.mark.skipif(not (REAL_DATA / "ut_interaction").exists(), reason="needs shared/data/ut_interaction")
def test_ut_interaction_decodes_and_is_seen_through():
    root = REAL_DATA / "ut_interaction"
    items = tuple(
        Item(path=str(path), label=path.parent.name, split="train", group=path.stem.split("_")[1])
        for path in sorted(root.glob("*/*.avi"))
    )
    labels = tuple(sorted({item.label for item in items}))
    report = check(Manifest(items=items, class_names=labels), num_workers=2)
    true_counts = {str(root / entry["path"]): entry["n"] for entry in json.loads((root / "probe.json").read_text())}
    assert {file["path"]: file["num_frames"] for file in report["files"]} == true_counts
    assert (report["num_bad"], report["duplicates"], is_bad(report)) == (0, [], False)
    assert "aspect ratio alone" in check_text(report)
