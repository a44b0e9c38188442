"""The built-in data set: its pairs differ in the order of frames only, and it is the same wherever it is rendered."""

import multiprocessing
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import av
import numpy as np
import pytest

from stvid.data.manifest import validate
from stvid.data.synthetic import actions as module
from stvid.data.synthetic.actions import CLASSES, RENDITIONS, actions, render_video
from stvid.data.synthetic.figures import SIDES, joints, sample_figure
from stvid.data.synthetic.motions import MOTIONS
from stvid.data.synthetic.root import MARKER
from stvid.errors import InputError

SMALL = {"num_train": 2, "num_val": 1, "num_test": 1, "num_frames": 16, "size": 64}
PAIRS = [(CLASSES[i], CLASSES[i + 1]) for i in range(0, len(CLASSES), 2)]


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def files_in(root) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(Path(root).rglob("*.mp4"))}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    root = tmp_path_factory.mktemp("actions")
    return root, actions(root=root, **SMALL, num_workers=1)


# ---- what can be seen


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_pair_differs_in_the_order_of_its_frames_and_in_nothing_else(first, second):
    videos = [
        render_video(label=label, figure=sample_figure(rng(1)), rng=rng(2), num_frames=16, size=64)
        for label in (first, second)
    ]
    assert np.array_equal(videos[0], videos[1][::-1])
    assert not np.array_equal(videos[0], videos[1])


def test_classes_come_in_pairs_of_one_motion_forwards_and_backwards():
    assert [RENDITIONS[label] for pair in PAIRS for label in pair] == [
        (name, is_reversed) for name in MOTIONS for is_reversed in (False, True)
    ]


@pytest.mark.parametrize("name", MOTIONS)
def test_every_clip_of_31_of_48_frames_shows_a_good_part_of_the_motion(name):
    """In each of them, the joint that moves most travels an eighth of the body's height or more."""
    for seed in range(20):
        figure = sample_figure(rng(seed))
        body = joints(figure, MOTIONS[name](figure, rng(seed), 48))
        for start in range(18):
            clips = [joint[start : start + 31].reshape(31, -1) for joint in body.values()]
            assert max(np.ptp(clip, axis=0).max() for clip in clips) > 1 / 8


def test_a_walker_faces_the_way_it_goes_and_its_standing_foot_does_not_slip():
    for seed in range(20):
        figure = sample_figure(rng(seed))
        motion = MOTIONS["walk_forward"](figure, rng(seed), 48)
        assert np.all(np.diff(motion.pelvis_T3[:, 0]) > 0), "x is forward"
        lowest_T2 = motion.ankles_T23[..., 1] <= motion.ankles_T23[..., 1].min() + 1e-6
        stands_T2 = lowest_T2[1:] & lowest_T2[:-1]
        steps_T2 = np.diff(motion.ankles_T23[..., 0], axis=0)
        assert stands_T2.any(axis=0).all()
        assert np.abs(steps_T2[stands_T2]).max() < 1e-6


@pytest.mark.parametrize("name", MOTIONS)
def test_limbs_keep_their_lengths_and_knees_bend_forwards(name):
    for seed in range(20):
        figure = sample_figure(rng(seed))
        body = joints(figure, MOTIONS[name](figure, rng(seed), 24))
        bones = [("hips", "knees", figure.thigh), ("knees", "ankles", figure.shin),
                 ("shoulders", "elbows", figure.upper_arm), ("elbows", "hands", figure.forearm)]  # fmt: skip
        for start, end, length in bones:
            assert np.allclose(np.linalg.norm(body[end] - body[start], axis=-1), length, atol=1e-4), (start, end)
        assert np.all(body["knees"][..., 0] >= np.minimum(body["hips"], body["ankles"])[..., 0] - 1e-6)
        assert np.all(np.sign(body["hips"][..., 2] - body["pelvis"][:, None, 2]) == SIDES)


def test_a_carried_box_is_in_the_hands_once_it_leaves_the_ground():
    for seed in range(40):
        figure = sample_figure(rng(seed))
        motion = MOTIONS["pick_up"](figure, rng(seed), 48)
        box_T3, hands_T23 = motion.carried.centre, joints(figure, motion)["hands"]
        lifted_T = box_T3[:, 1] > box_T3[0, 1] + 0.01
        gap_T = np.linalg.norm(hands_T23.mean(axis=1) - box_T3, axis=-1)
        assert lifted_T[-1]
        assert gap_T[lifted_T].max() < 0.02
        assert box_T3[-1, 1] - box_T3[0, 1] > 0.25


def test_the_background_is_dimmer_than_the_figure():
    for seed in range(8):
        figure = sample_figure(rng(seed))
        frames = render_video(label=CLASSES[seed], figure=figure, rng=rng(seed), num_frames=16, size=64).astype(float)
        brightness = frames.max(axis=-1)
        assert np.median(brightness) < 0.6 * np.quantile(brightness, 0.99)


# ---- the files


def test_the_manifest_is_complete_valid_and_balanced(rendered):
    _, manifest = rendered
    assert validate(manifest) is manifest  # files exist, and no figure is in two splits
    assert manifest.class_names == CLASSES
    assert Counter((item.split, item.label) for item in manifest.items) == {
        (split, label): count for split, count in (("train", 2), ("val", 1), ("test", 1)) for label in CLASSES
    }
    classes_of = defaultdict(set)
    for item in manifest.items:
        classes_of[item.group].add(item.label)
    assert all(labels == set(CLASSES) for labels in classes_of.values()), "every figure does everything"


def test_a_file_holds_the_frames_that_were_drawn(rendered):
    _, manifest = rendered
    item = next(item for item in manifest.select("train") if item.label == "stand_up")
    with av.open(item.path) as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(float)
        assert container.streams.video[0].average_rate == 24
    drawn = render_video(
        label="stand_up",
        figure=sample_figure(module.seeded_generator(0, "figure", item.group)),
        rng=module.seeded_generator(0, "video", "train", "stand_up", "0"),
        num_frames=16,
        size=64,
    )
    assert decoded.shape == drawn.shape == (16, 64, 64, 3)
    errors = [np.abs(decoded - order).mean() for order in (drawn, drawn[::-1])]
    assert errors[0] < 6
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_files_do_not_depend_on_how_many_processes_render_them_or_how_these_start(
    rendered, tmp_path, monkeypatch, method
):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    context = multiprocessing.get_context(method)
    pool = module.ProcessPoolExecutor
    monkeypatch.setattr(module, "ProcessPoolExecutor", lambda workers: pool(workers, mp_context=context))
    actions(root=tmp_path, **SMALL, num_workers=2)
    assert files_in(tmp_path) == files_in(rendered[0])


def test_a_video_does_not_depend_on_how_many_others_there_are(rendered, tmp_path):
    manifest = actions(root=tmp_path, **{**SMALL, "num_train": 1}, num_workers=1)
    here, existing = (
        {Path(path).name: data for path, data in files_in(root).items() if "/train/" in path}
        for root in (tmp_path, rendered[0])
    )
    assert len(manifest.select("train")) == len(here) == len(CLASSES)
    assert here == {name: existing[name] for name in here}


def test_no_two_videos_are_alike(rendered):
    videos = list(files_in(rendered[0]).values())
    assert len(set(videos)) == len(videos)


def test_a_complete_data_set_is_only_read(rendered, monkeypatch):
    root, manifest = rendered
    monkeypatch.setattr(module, "_render_job", None)
    assert actions(root=root, **SMALL) == manifest


def test_an_interrupted_rendering_goes_on_with_what_is_missing(rendered, tmp_path, monkeypatch):
    done, draw = [], module._render_job

    def interrupted(job):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(draw(job))

    monkeypatch.setattr(module, "_render_job", interrupted)
    with pytest.raises(KeyboardInterrupt):
        actions(root=tmp_path, **SMALL, num_workers=1)
    assert not list(tmp_path.rglob("manifest.csv")), "its presence says that all is there"

    before = len(files_in(tmp_path))
    redrawn = []
    monkeypatch.setattr(module, "_render_job", lambda job: redrawn.append(draw(job)))
    actions(root=tmp_path, **SMALL, num_workers=1)
    assert before == 5
    assert before + len(redrawn) == len(files_in(rendered[0]))
    assert files_in(tmp_path) == files_in(rendered[0])


def test_other_parameters_are_other_data_sets(rendered):
    root, manifest = rendered
    other = actions(root=root, **SMALL, seed=1, num_workers=1)
    assert Path(other.items[0].path).parents[2] != Path(manifest.items[0].path).parents[2]
    assert Path(other.items[0].path).read_bytes() != Path(manifest.items[0].path).read_bytes()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"num_train": 0}, r"num_train \(=0\) must be at least 1"),
        ({"num_test": -3}, r"num_test \(=-3\) must be at least 1"),
        ({"num_frames": 8}, r"num_frames \(=8\) must be at least 16"),
        ({"size": 16}, r"size \(=16\) must be at least 32"),
        ({"size": 65}, r"size \(=65\) must be even"),
        ({"seed": -1}, r"seed \(=-1\) must be at least 0"),
    ],
)
def test_a_parameter_out_of_range_is_refused_before_anything_is_written(tmp_path, parameters, message):
    with pytest.raises(InputError, match=message):
        actions(root=tmp_path / "new", **{**SMALL, **parameters})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "files",
    [
        ["walk/1.mp4", "run/1.mp4"],
        ["1.avi"],
        ["train/walk/1.mp4"],
        ["walk/0001/1.jpg"],
        ["notes.txt"],
        [".git/config"],
        ["0123456789ab/train/1.mp4", "walk/1.mp4"],  # an older version has rendered into it
        ["0123456789ab/walk/1.mp4"],
    ],
)
def test_nothing_is_rendered_into_a_folder_of_others(tmp_path, files):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as error:
        actions(root=tmp_path, **SMALL, num_workers=1)
    assert f"data=folder data.root={tmp_path}" in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_table_is_no_folder_for_the_built_in_set(tmp_path):
    (tmp_path / "data.csv").touch()
    with pytest.raises(InputError, match="is a file.*data=manifest"):
        actions(root=tmp_path / "data.csv", **SMALL, num_workers=1)


def test_videos_beside_rendered_ones_are_refused_and_other_files_are_not(rendered):
    root, manifest = rendered
    (root / "README").touch()
    assert actions(root=root, **SMALL) == manifest
    (root / "mine").mkdir()
    (root / "mine" / "1.mp4").touch()
    try:
        with pytest.raises(InputError, match=r"holds mine, .*data=folder"):
            actions(root=root, **SMALL)
    finally:
        shutil.rmtree(root / "mine")


def test_sets_of_versions_without_a_marker_are_still_used(rendered):
    root, manifest = rendered
    (root / MARKER).unlink()
    (root / "README").unlink(missing_ok=True)
    assert actions(root=root, **SMALL) == manifest
