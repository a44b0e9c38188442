"""Groups that nobody has named: proposed by names, folders and pictures, with how sure it is."""

import json
import shlex

import numpy as np
import pytest
from conftest import REAL_DATA
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from stvid.commands.check_groups import groups_section
from stvid.data.group_proposals import (
    FOLDER_PATTERN,
    MAX_DISTANCE,
    NAME_PATTERNS,
    groups_by_pattern,
    hash_frames,
    near_duplicates,
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


def test_recordings_of_one_place_are_near_duplicates_and_others_are_not(videos):
    infos = {path: probe(path) for path in videos}
    pairs = near_duplicates(hash_frames(videos, infos, progress=False))
    assert set(pairs) == set(zip(videos[::2], videos[1::2], strict=True))
    assert all(0 <= distance <= MAX_DISTANCE for distance in pairs.values())


def test_empty_pictures_are_not_compared(tmp_path):
    for name, grey in (("a", 0), ("b", 0), ("c", 255)):
        write_video(tmp_path / f"{name}.mp4", np.full((5, 32, 32, 3), grey, np.uint8), fps=10)
    paths = [str(tmp_path / f"{name}.mp4") for name in "abc"]
    assert hash_frames(paths, {path: probe(path) for path in paths}, progress=False) == {}
    assert near_duplicates({}) == {}


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
    infos = {path: probe(path, decode_all=False) for path in source}
    pairs = near_duplicates(hash_frames(list(source), infos, progress=False))
    assert len(pairs) >= 3
    assert all(source[a] == source[b] for a, b in pairs)
