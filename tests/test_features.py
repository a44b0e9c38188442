"""With a frozen encoder a run trains from stored features, and is the same run as without them."""

import csv
import os
import re
import shutil

import pytest
import torch
from conftest import TINY, break_half_way, make_folder, train_py

from stvid.checkpoint import load
from stvid.data.drawing import EpochSampler
from stvid.data.manifest import Manifest
from stvid.training.features import fingerprint

FROZEN = ("model=cnn_lstm", "model.freeze=all", "trainer.max_epochs=2", "data.passes=1", "trainer.precision=32", *TINY)
FEATURES = ".stvid_features"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("features") / "squares", videos=7)


def run(videos, folder, *overrides):
    done = train_py("data=folder", f"data.root={videos}", *FROZEN, *overrides, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    return [{key: row[key] for key in row if key not in ("clips_per_second", "seconds")} for row in rows], done


def clear(videos):
    shutil.rmtree(videos / FEATURES, ignore_errors=True)


def stores(videos):
    return sorted((videos / FEATURES).glob("*.h5"))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("data.whole_video=true", "augment.flip_pairs=[[to_left,to_right]]"),
        ("data.balance=classes", "data.passes=2"),
    ],
    ids=["clips", "whole videos", "two passes"],
)
def test_a_run_from_stored_features_is_the_run_without_them(videos, tmp_path, overrides):
    clear(videos)
    with_store, _ = run(videos, tmp_path / "on", *overrides)
    assert len(stores(videos)) == 2
    without, _ = run(videos, tmp_path / "off", *overrides, "data.features=off")
    assert with_store == without
    one, other = load(tmp_path / "on").model.state_dict(), load(tmp_path / "off").model.state_dict()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-6, rtol=1e-5)


def test_a_second_run_reads_no_video_in_training(videos, tmp_path, monkeypatch):
    clear(videos)
    first, _ = run(videos, tmp_path / "first")
    read = []
    monkeypatch.setattr("stvid.data.dataset.TrainingClips.__getitem__", lambda self, key: read.append(key))
    second, _ = run(videos, tmp_path / "second")
    assert second == first
    assert not read


def test_only_what_changed_is_encoded_again(videos, tmp_path):
    clear(videos)
    run(videos, tmp_path / "first")
    before = stores(videos)
    changed = [item.path for item in Manifest.read_csv(tmp_path / "first/manifest.csv").items if item.split == "train"][
        3
    ]
    os.utime(changed, ns=(1, 1))
    _, done = run(videos, tmp_path / "second")
    assert stores(videos) == before
    (told,) = re.findall(r"features of train: (\d+) of (\d+)", done.stdout)
    assert int(told[0]) == int(told[1]) - 1


@pytest.mark.parametrize(
    "override", ["seed=1", "clip.size=40", "clip.input=diff", "augment=none", "trainer.precision=bf16"]
)
def test_another_encoder_or_preprocessing_is_another_store(videos, tmp_path, override):
    clear(videos)
    run(videos, tmp_path / "first")
    before = set(stores(videos))
    run(videos, tmp_path / "second", override)
    assert set(stores(videos)) - before


def test_videos_that_break_are_left_out_as_ever(tmp_path):
    videos = make_folder(tmp_path / "squares", videos=7)
    for name in ("to_left/03.mp4", "to_right/05.mp4"):
        break_half_way(videos / name)
    options = ("data.max_bad=0.5", "data.probe=count", "clip.num_frames=12", "clip.frame_stride=1")
    with_store, _ = run(videos, tmp_path / "on", *options)
    without, _ = run(videos, tmp_path / "off", *options, "data.features=off")
    assert with_store == without
    assert (tmp_path / "on/bad_videos.csv").read_text() == (tmp_path / "off/bad_videos.csv").read_text()


def test_a_trainable_encoder_stores_nothing(videos, tmp_path):
    clear(videos)
    run(videos, tmp_path / "run", "model.freeze=1")
    assert not stores(videos)


def test_a_fingerprint_tells_a_single_bit():
    layer = torch.nn.BatchNorm1d(3)
    before = fingerprint(layer)
    assert fingerprint(torch.nn.BatchNorm1d(3)) == before
    layer.running_mean[1] += 1e-7
    assert fingerprint(layer) != before


@pytest.mark.parametrize("labels", [None, ["a"] * 7 + ["b"] * 2])
def test_every_draw_of_any_epoch_is_known_beforehand(labels):
    sampler = EpochSampler(num_items=9, shuffle=True, labels=labels, passes=2)
    known = set(sampler.every_draw())
    for epoch in range(6):
        sampler.set_epoch(epoch)
        assert set(sampler) <= known
