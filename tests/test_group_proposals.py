"""Groups that nobody has named: proposed by names, folders and pictures, with how sure it is."""

import json
import os
import shlex
import tracemalloc

import numpy as np
import pytest
from conftest import REAL_DATA
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image
from scipy.sparse.csgraph import connected_components

from stvid.commands.check_groups import groups_section
from stvid.data import group_proposals
from stvid.data.group_proposals import (
    FOLDER_PATTERN,
    MAX_DISTANCE,
    NAME_PATTERNS,
    frame_distances,
    groups_by_pattern,
    groups_by_picture,
    hash_frames,
    propose_groups,
)
from stvid.data.manifest import Item
from stvid.video.probe import probe
from stvid.video.writer import write_video


def items_of(names, split=lambda number: "train" if number % 2 else "test"):
    return [Item(path=f"/d/{name}", label=name.split("/")[0], split=split(number)) for number, name in enumerate(names)]


def proposed(items):
    return next(filter(None, (groups_by_pattern(items, pattern) for pattern in NAME_PATTERNS)), None)


PEOPLE = ("anna", "ben", "cleo", "dan")


@pytest.mark.parametrize(
    ("template", "group"),
    [
        ("{c}/{p}_00{i}.mp4", "{p}"),
        ("{c}/{p}{i}.mp4", "{p}"),
        ("{c}/{p}-part{i}.mp4", "{p}"),
        ("{c}/{p}_c{i}.avi", "{p}"),
        ("{c}/{p} ({i}).mp4", "{p}"),
        ("{c}/{p}_clip_{i}.mp4", "{p}"),
        ("{c}/2024-05-{n}_{i}.mp4", "2024-05-{n}"),
        ("{c}/v_{c}_g{n}_c0{i}.avi", "{n}"),
        ("{c}/abcdefghi{n}_00000{i}_00001{i}.mp4", "abcdefghi{n}"),
    ],
)
def test_usual_names_of_parts_are_groups(template, group):
    names = [
        (template.format(c=c, p=p, i=i, n=10 + n), group.format(p=p, n=10 + n))
        for c in ("run", "sit")
        for n, p in enumerate(PEOPLE)
        for i in range(3)
    ]
    found = proposed(items_of([name for name, _ in names]))
    assert found["groups"] == {f"/d/{name}": group for name, group in names}
    assert (found["num_groups"], found["num_leaks"]) == (4, 4)


@pytest.mark.parametrize(
    "names",
    [
        [f"{c}/{i:02d}.mp4" for c in ("run", "sit") for i in range(20)],  # numbers only
        [f"{c}/{c}_{i:02d}.mp4" for c in ("run", "sit") for i in range(20)],  # the name of the class
        [f"{c}/video{i}.mp4" for c in ("run", "sit") for i in range(20)],
        [f"{c}/{i}_{i}_0.mp4" for c in ("run", "sit") for i in range(20)],  # each is a group of its own
        ["run/a_1.mp4", "run/a_2.mp4", "run/b_1.mp4", "run/b_2.mp4", "sit/x.mp4"],  # not all match
    ],
)
def test_names_that_say_nothing_of_recordings_are_no_groups(names):
    names = sorted(set(names))
    found = proposed(items_of(names))
    assert found is None or found["num_groups"] < len(names)


def test_folders_below_the_classes_are_groups():
    found = groups_by_pattern(items_of([f"run/{p}/{i}.mp4" for p in PEOPLE for i in range(3)]), FOLDER_PATTERN)
    assert set(found["groups"].values()) == set(PEOPLE)


@pytest.mark.parametrize("pattern", [*NAME_PATTERNS, FOLDER_PATTERN])
def test_the_printed_override_gives_the_pattern(pattern):
    counts = dict.fromkeys(("checked", "confirmed", "num_groups", "num_leaks"), 1)
    groups = {
        "num_unnamed": 1,
        "names": {"pattern": pattern, "example": ["a", "b"], **counts},
        "folders": None,
        "pictures": {"num_linked": 0, "num_compared": 0},
    }
    (line,) = (line for line in groups_section(groups, str) if "data.group_pattern='" in line)
    (argument,) = shlex.split(line[line.index('"data.group_pattern') :])
    (override,) = OverridesParser.create().parse_overrides([argument])
    assert override.value() == pattern


def scene(seed, *, num_frames=10, size=64):
    """uint8 T x H x W x 3: a random place, in which a small square moves."""
    rng = np.random.default_rng(seed)
    place = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((size, size), Image.BICUBIC)
    frames = np.tile(np.asarray(place), (num_frames, 1, 1, 1))
    for i in range(num_frames):
        frames[i, 20:26, 4 * i : 4 * i + 6] = 255
    return frames


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Five places, each in two videos; the second is recorded later, smaller and brighter."""
    root, paths = tmp_path_factory.mktemp("places"), []
    for seed in range(5):
        (root / "run").mkdir(exist_ok=True)
        frames = scene(seed)
        write_video(root / "run" / f"{chr(97 + seed)}_1.mp4", frames, fps=10)
        smaller = np.stack([np.asarray(Image.fromarray(frame).resize((48, 48))) for frame in frames[::-1]])
        write_video(root / "run" / f"{chr(97 + seed)}_2.mp4", np.minimum(smaller + 8, 255).astype(np.uint8), fps=10)
        paths += [str(root / "run" / f"{chr(97 + seed)}_{i}.mp4") for i in (1, 2)]
    return paths


def near_duplicates(infos, **options):
    """Pairs of paths -> bits that differ."""
    hashes = hash_frames(infos, progress=False, **options)
    paths, distances_VV = list(hashes), frame_distances(list(hashes.values()))
    pairs = np.argwhere(np.triu(distances_VV <= MAX_DISTANCE))
    return {(paths[a], paths[b]): int(distances_VV[a, b]) for a, b in pairs}


def test_recordings_of_one_place_are_near_duplicates_and_others_are_not(videos):
    pairs = near_duplicates({path: probe(path) for path in videos})
    assert set(pairs) == set(zip(videos[::2], videos[1::2], strict=True))
    assert all(0 <= distance <= MAX_DISTANCE for distance in pairs.values())


def test_pictures_are_read_in_other_processes_and_a_crash_loses_only_its_video(videos, monkeypatch):
    parent, read = os.getpid(), group_proposals.read_frames

    def crash_once(path, *args, **kwargs):
        assert os.getpid() != parent
        return os._exit(1) if path == videos[0] else read(path, *args, **kwargs)

    monkeypatch.setattr(group_proposals, "read_frames", crash_once)
    infos = {path: probe(path) for path in videos}
    hashes = hash_frames(infos, num_workers=2, progress=False)
    monkeypatch.undo()
    alone = hash_frames(infos, progress=False)
    assert list(hashes) == videos[1:]
    assert all((hashes[path] == alone[path]).all() for path in hashes)


def test_empty_pictures_are_not_compared(tmp_path):
    for name, grey in (("a", 0), ("b", 0), ("c", 255)):
        write_video(tmp_path / f"{name}.mp4", np.full((5, 32, 32, 3), grey, np.uint8), fps=10)
    paths = [str(tmp_path / f"{name}.mp4") for name in "abc"]
    assert hash_frames({path: probe(path) for path in paths}, progress=False) == {}
    assert frame_distances([]).shape == (0, 0)


def random_hashes(num_videos, *, num_places, seed=0):
    """Of 1 to 3 frames, most of them a place with a few other bits."""
    rng = np.random.default_rng(seed)
    places = rng.random((num_places, 64)) < 0.5
    return [
        places[rng.integers(num_places, size=rng.integers(1, 4))] ^ (rng.random(64) < 0.08) for _ in range(num_videos)
    ]


def test_distances_and_groups_are_those_of_all_pairs(monkeypatch):
    monkeypatch.setattr(group_proposals, "_VIDEOS_AT_ONCE", 7)
    hashes = random_hashes(40, num_places=150)
    expected = np.array([[min((a != b).sum() for a in one for b in two) for two in hashes] for one in hashes])
    np.fill_diagonal(expected, 255)
    distances_VV = frame_distances(hashes)
    np.testing.assert_array_equal(distances_VV, expected)
    items = [Item(path=f"/{i:02d}", label="a", split=("train", "val", "test")[i % 3]) for i in range(40)]
    paths = [item.path for item in items]
    found = groups_by_picture(items, paths, distances_VV)
    near = expected <= MAX_DISTANCE
    linked = [i for i in range(40) if near[i].any()]
    _, component = connected_components(near)
    assert 5 <= found["num_groups"] < len(linked) < 40
    assert set(found["groups"]) == {paths[i] for i in linked}
    assert len({(component[i], found["groups"][paths[i]]) for i in linked}) == found["num_groups"]
    assert found["num_groups"] == len({component[i] for i in linked})
    val = [near[i, ::3].any() for i in range(1, 40, 3)]
    assert found["seen"]["val"] == [sum(val), len(val)]
    pairs = sorted((expected[i, j], i, j) for i in range(40) for j in range(i) if near[i, j] and (i - j) % 3)
    assert [distance for *_, distance in found["examples"]] == [distance for distance, *_ in pairs[:5]]
    assert all(expected[paths.index(a), paths.index(b)] == distance for a, b, distance in found["examples"])


def test_many_videos_of_a_camera_that_stands_still_take_little_memory():
    """All pairs are near-duplicates: two million."""
    items = [Item(path=f"/{i}.mp4", label="a", split="test" if i % 4 else "train") for i in range(2000)]
    hashes = random_hashes(2000, num_places=1)
    tracemalloc.start()
    try:
        found = groups_by_picture(items, [item.path for item in items], frame_distances(hashes))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found["num_linked"], found["largest"], found["seen"]) == (2000, 2000, {"test": [1500, 1500]})
    assert peak < 64 * 2**20


def test_the_proposal_says_what_leaks_and_how_sure_it_is(videos):
    items = [Item(path=path, label="run", split="test" if path.endswith("_2.mp4") else "train") for path in videos]
    groups = propose_groups(items, {path: probe(path) for path in videos}, progress=False)
    assert json.loads(json.dumps(groups)) == groups
    assert groups["pictures"]["seen"] == {"test": [5, 5]}
    assert (groups["pictures"]["num_groups"], groups["pictures"]["num_linked"]) == (5, 10)
    assert (groups["names"]["checked"], groups["names"]["confirmed"], groups["names"]["num_leaks"]) == (5, 5, 5)
    text = "\n".join(groups_section(groups, str))
    assert "10 videos have none, so clips of one recording may be in train and in test" in text
    assert "quite sure: in 5 of 5 groups the pictures agree" in text
    assert "5 of 5 test videos have a near-duplicate frame in train" in text


def test_named_groups_need_no_proposal(videos):
    items = [Item(path=path, label="run", split="train", group="g") for path in videos]
    groups = propose_groups(items, {}, progress=False)
    assert groups == {"num_unnamed": 0}
    assert groups_section(groups, str) == []


@pytest.mark.skipif(not (REAL_DATA / "fight_part").exists(), reason="needs shared/data/fight_part")
def test_near_duplicates_of_real_clips_have_one_source():
    root = REAL_DATA / "fight_part"
    table = [line.split(",") for line in (root / "groups.csv").read_text().splitlines()[1:]]
    source = {str(root / path): group for path, group in table[::3]}
    pairs = near_duplicates({path: probe(path, decode_all=False) for path in source})
    assert len(pairs) >= 3
    assert all(source[a] == source[b] for a, b in pairs)
