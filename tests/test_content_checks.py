"""Duplicates are found by their bytes; file properties that predict the class are found, and no others."""

from __future__ import annotations

import csv
import filecmp
import json
import math
import os
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path
from statistics import mean, pstdev

import numpy as np
import pytest
from conftest import REAL_DATA

from stvid.data import content_checks as module
from stvid.data.content_checks import FEATURES, content_keys, find_duplicates, find_shortcuts
from stvid.video.types import VideoInfo

UT_INTERACTION = REAL_DATA / "ut_interaction"


@pytest.fixture
def files(tmp_path) -> list[str]:
    """Of 0 to 3 bytes, of two values: some are equal, some only of one size; and one beyond a chunk, twice."""
    rng = np.random.default_rng(0)
    contents = [bytes(rng.integers(0, 2, size).tolist()) for size in (0, 1, 2, 3) for _ in range(6)]
    long = bytes(3 << 20)
    for i, content in enumerate([*contents, long, long, long[:-1] + b"\1"]):
        (tmp_path / f"{i:02d}.mp4").write_bytes(content)
    return sorted(map(str, tmp_path.iterdir()))


def keys_of(paths) -> dict[str, str]:
    return content_keys(paths, progress=False)


def pairs(lists) -> set[tuple[str, str]]:
    return {pair for item in lists for pair in combinations(item, 2)}


def test_copies_are_those_that_a_comparison_of_all_pairs_finds(files):
    equal = {pair for pair in combinations(files, 2) if filecmp.cmp(*pair, shallow=False)}
    keys = keys_of(files)
    assert pairs(find_duplicates(keys)) == equal
    assert {pair for pair in combinations(files, 2) if keys[pair[0]] == keys[pair[1]]} == equal
    assert 20 < len(equal) < 100


def test_only_what_has_the_size_of_something_else_is_read(files, tmp_path, monkeypatch):
    (tmp_path / "alone.mp4").write_bytes(bytes(12345))
    read = []
    monkeypatch.setattr(module, "_hash_content", lambda path: read.append(path) or path)
    keys_of([*files, str(tmp_path / "alone.mp4")])
    assert sorted(read) == files


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_is_the_same_file_and_no_copy(files, tmp_path, link):
    link(files[0], tmp_path / "link.mp4")
    paths = [files[0], str(tmp_path / "link.mp4"), files[-1]]
    keys = keys_of(paths)
    assert keys[paths[0]] == keys[paths[1]] != keys[paths[2]]
    assert find_duplicates(keys) == []


def folder(path: Path, **images: bytes) -> str:
    path.mkdir()
    for name, content in images.items():
        (path / f"{name}.png").write_bytes(content)
    return str(path)


def test_a_folder_of_images_is_its_images_names_and_bytes(tmp_path):
    same = [folder(tmp_path / name, a=b"12", b=b"3") for name in ("first", "second")]
    others = [
        folder(tmp_path / "shifted", a=b"1", b=b"23"),
        folder(tmp_path / "renamed", a=b"12", c=b"3"),
        folder(tmp_path / "changed", a=b"12", b=b"4"),
    ]
    (tmp_path / "second" / "notes.txt").write_text("no image")
    assert find_duplicates(keys_of([*same, *others])) == [same]


def test_what_cannot_be_read_has_no_key_and_is_nobodys_copy(files, tmp_path):
    paths = [files[0], str(tmp_path / "missing.mp4"), str(tmp_path / "gone.mp4"), folder(tmp_path / "empty")]
    assert list(keys_of(paths)) == files[:1]


def test_a_bar_is_shown_only_when_there_is_something_to_read(files, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    content_keys([files[0], files[-1]])
    assert capsys.readouterr().err == ""
    content_keys(files)
    assert "comparing files" in capsys.readouterr().err


def info(*, width=320, height=240, fps=25.0, codec="h264") -> VideoInfo:
    return VideoInfo(num_frames=100, fps=fps, duration=4.0, height=height, width=width, codec=codec)


def check(infos, lengths, labels, groups=None, **options) -> dict[tuple[str, ...], dict]:
    groups = range(len(labels)) if groups is None else groups
    results = find_shortcuts(infos=infos, lengths=lengths, labels=labels, groups=groups, **options)
    return {tuple(item["features"]): item for item in results}


def suspicious(results) -> set[tuple[str, ...]]:
    return {features for features, item in results.items() if item["suspicious"]}


def random_videos(num_videos, *, seed=0, num_classes=4):
    rng = np.random.default_rng(seed)
    infos = [info(width=int(w), height=int(h)) for w, h in rng.integers(100, 2000, (num_videos, 2))]
    lengths = rng.integers(20, 100_000, num_videos).tolist()
    return infos, lengths, [f"class {i % num_classes}" for i in range(num_videos)], rng


@pytest.mark.parametrize(
    ("change", "features"),
    [
        ({"width": 426}, {("aspect ratio",), ("size",), ("aspect ratio", "length"), ("size", "length")}),
        ({"width": 640, "height": 480}, {("size",), ("size", "length")}),
        ({"fps": 30.0}, {("frame rate",)}),
        ({"codec": "mpeg4"}, {("codec",)}),
    ],
)
def test_a_planted_shortcut_is_found_and_only_it(change, features):
    labels = ["run", "sit"] * 40
    infos = [info(**change) if label == "sit" else info() for label in labels]
    results = check(infos, np.random.default_rng(0).integers(50, 300, 80).tolist(), labels)
    assert suspicious(results) == features
    assert all(results[item]["accuracy"] > 0.8 and results[item]["p_value"] <= 0.01 for item in features)


def test_length_that_predicts_the_class_is_found_within_parts_of_files():
    labels = ["run", "sit"] * 40
    results = check([info()] * 80, [50 + 100 * (label == "sit") for label in labels], labels)
    assert results["length",]["accuracy"] == 1.0
    assert results["length",]["suspicious"]


def test_every_set_of_features_is_reported_in_one_form():
    results = check(*random_videos(40)[:3])
    assert list(results) == list(FEATURES)
    assert all(set(item) == {"features", "accuracy", "chance", "p_value", "suspicious"} for item in results.values())
    assert json.loads(json.dumps(list(results.values()))) == list(results.values())


def test_constant_properties_predict_nothing():
    results = check([info()] * 30, [100] * 30, ["run"] * 20 + ["sit"] * 10)
    assert {(item["accuracy"], item["chance"], item["p_value"]) for item in results.values()} == {(2 / 3, 2 / 3, 1.0)}


def test_nothing_is_found_where_there_is_nothing():
    """At 1 %, all sets of features together, of 40 data sets none or one would be called suspicious."""
    alarms = 0
    for seed in range(40):
        infos, lengths, labels, rng = random_videos(100, seed=seed)
        groups = rng.integers(0, 25, 100).tolist() if seed % 2 else None
        alarms += bool(suspicious(check(infos, lengths, labels, groups, seed=seed)))
    assert alarms <= 1


def oracle(columns, labels, groups, *, num_neighbours=5) -> float:
    """The accuracy, one video after the other in plain Python."""
    scaled = []
    for column in columns:
        logs = [math.log(x) for x in column]
        scaled.append([(x - mean(logs)) / pstdev(logs) for x in logs])
    points = list(zip(*scaled, strict=True))
    right = 0
    for i, point in enumerate(points):
        others = sorted((math.dist(point, points[j]), j) for j in range(len(points)) if groups[j] != groups[i])
        votes = Counter(labels[j] for _, j in others[:num_neighbours])  # in the order in which they are met
        right += votes.most_common(1)[0][0] == labels[i] if votes else 0
    return right / len(points)


def test_accuracy_is_that_of_nearest_neighbours_from_other_groups():
    infos, lengths, labels, rng = random_videos(90, seed=5)
    groups = rng.integers(0, 12, 90).tolist()
    results = check(infos, lengths, labels, groups)
    widths, heights = [item.width for item in infos], [item.height for item in infos]
    aspects = [w / h for w, h in zip(widths, heights, strict=True)]
    assert results["aspect ratio",]["accuracy"] == oracle([aspects], labels, groups)
    assert results["size", "length"]["accuracy"] == oracle([widths, heights, lengths], labels, groups)


def test_a_group_does_not_vote_for_itself():
    """Every group has a size and a class of its own choice; who saw its other videos would always be right."""
    groups = [i // 10 for i in range(200)]
    sizes, classes = np.random.default_rng(0).permutation(20) * 50 + 100, np.random.default_rng(1).permutation(20) % 2
    labels = [f"class {classes[group]}" for group in groups]
    infos = [info(width=int(sizes[group])) for group in groups]
    assert not suspicious(check(infos, [100] * 200, labels, groups))
    assert check(infos, [100] * 200, labels)["size",]["accuracy"] == 1.0


def test_few_groups_prove_nothing_however_many_videos_they_have():
    groups = [i // 50 for i in range(300)]
    labels = [f"class {group % 2}" for group in groups]
    infos = [info(width=320 if label == "class 0" else 640) for label in labels]
    with_groups = check(infos, [100] * 300, labels, groups)
    assert with_groups["size",]["accuracy"] == 1.0
    assert not with_groups["size",]["suspicious"]  # 2 of the 20 ways to label six groups look like that
    assert check(infos, [100] * 300, labels)["size",]["suspicious"]


def test_a_difference_that_is_real_but_small_is_not_suspicious():
    rng = np.random.default_rng(0)
    labels = ["run", "sit"] * 2000
    infos = [info(codec="mpeg4" if rng.random() < (0.53 if label == "run" else 0.47) else "h264") for label in labels]
    assert not suspicious(check(infos, rng.integers(50, 300, 4000).tolist(), labels))


def test_of_many_videos_a_sample_decides_and_it_is_always_the_same():
    infos, lengths, _, _ = random_videos(6000)
    labels = ["wide" if item.width > item.height else "tall" for item in infos]
    results = check(infos, lengths, labels)
    assert results == check(infos, lengths, labels)
    assert results["aspect ratio",]["accuracy"] > 0.98


@pytest.mark.parametrize(
    ("labels", "groups"),
    [([], []), (["run"], [0]), (["run"] * 9, range(9)), (["run", "sit"], [0, 0])],
)
def test_without_two_classes_and_two_groups_there_is_nothing_to_guess(labels, groups):
    assert check([info()] * len(labels), [100] * len(labels), labels, groups) == {}


def test_two_videos_are_enough_not_to_fail():
    assert not suspicious(check([info(), info(width=99)], [5, 7], ["run", "sit"]))


@pytest.mark.skipif(not UT_INTERACTION.exists(), reason="needs shared/data/ut_interaction")
def test_ut_interaction_is_cropped_by_class_and_shuffled_labels_are_not():
    details = {item["path"]: item for item in json.loads((UT_INTERACTION / "probe.json").read_text())}
    rows = list(csv.DictReader((UT_INTERACTION / "labels.csv").open()))
    videos = [details[row["path"]] for row in rows]
    infos = [info(width=item["w"], height=item["h"]) for item in videos]
    lengths, labels = [item["n"] for item in videos], [row["class"] for row in rows]
    groups = [row["sequence"] for row in rows]
    results = check(infos, lengths, labels, groups)
    assert results["aspect ratio",]["accuracy"] == pytest.approx(0.39, abs=0.03)
    assert results["size", "length"]["accuracy"] == pytest.approx(0.53, abs=0.03)
    assert results["size", "length"]["chance"] == pytest.approx(1 / 6)
    assert {("aspect ratio",), ("size", "length")} <= suspicious(results)
    shuffled = np.random.default_rng(0).permutation(labels).tolist()
    assert not suspicious(check(infos, lengths, shuffled, groups))
