"""The benchmark of recipes: it trains what train.py trains, in folds by group, and selects epochs as it says."""

import csv
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, make_folder, train_py

from stvid.data.manifest import Item, Manifest
from stvid.run.config import compose_config
from stvid.run.config_help import read_yaml
from stvid.run.config_tree import to_plain

OVERRIDES = (
    "model=cnn_lstm",
    "model.freeze=all",
    "model.feature_norm=batch",
    "clip.size=32",
    "data.whole_video=true",
    "data.num_workers=0",
    "data.batch_size=4",
    "data.passes=2",
    "mixing=mixup",
    "optimizer.schedule=one_cycle",
    "trainer.max_epochs=4",
    "trainer.precision=32",
)


@pytest.fixture
def recipes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import recipe_training
    import recipes

    yield recipes
    for module in (recipes, recipe_training):
        sys.modules.pop(module.__name__)


@pytest.mark.parametrize("ema", ["null", "0.5"])
def test_a_fold_is_trained_as_train_py_trains_it(recipes, tmp_path, ema):
    """The val curve of every epoch, against that of Lightning."""
    root, run, words = make_folder(tmp_path / "videos"), tmp_path / "run", (*OVERRIDES, f"ema={ema}")
    arguments = [*words, "data=folder", f"data.root={root}", "logger=none", "report=false", f"hydra.run.dir={run}"]
    done = train_py(*arguments)
    assert done.returncode == 0, done.stderr
    manifest = Manifest.read_csv(run / "manifest.csv")
    items = tuple(item for item in manifest.items if item.split in ("train", "val"))
    setting = recipes.Setting(name="x", overrides=words)
    features = recipes.Features(items, setting, ())
    parts = {split: [i for i, item in enumerate(items) if item.split == split] for split in ("train", "val", "test")}
    config = compose_config(words)
    curves = recipes.train_fold(to_plain(config), features, {**parts, "test": parts["val"]}, config=config, seed=0)
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    curve = curves["weights" if ema == "null" else "average"]
    assert [point[0] for point in curve] == pytest.approx([float(row["val_video_accuracy"]) for row in rows])
    assert [point[1] for point in curve] == pytest.approx([float(row["val_loss"]) for row in rows], rel=1e-4)
    assert [point[2] for point in curve] == [point[0] for point in curve]


def test_no_group_is_in_two_parts_of_a_fold_and_every_video_is_tested_once(recipes):
    items = [
        Item(path=f"{group}_{i}.mp4", label="ab"[i % 2], split="train", group=f"g{group}")
        for group in range(12)
        for i in range(2 + group % 3)
    ]
    folds = recipes.make_folds(items, 4, seed=1)
    assert sorted(i for fold in folds for i in fold["test"]) == list(range(len(items)))
    for fold in folds:
        groups = {part: {items[i].group for i in indices} for part, indices in fold.items()}
        assert all(groups.values())
        assert sum(map(len, groups.values())) == 12
        assert sorted(i for indices in fold.values() for i in indices) == list(range(len(items)))


def test_frames_and_images_that_a_setting_uses(recipes):
    from recipe_training import choose

    features = torch.arange(10.0)[:, None] + torch.tensor([0.0, 0.5, 100.0, 100.5])
    setting = recipes.Setting(name="x")
    assert choose(features, setting, 2) is features
    second = choose(features, replace(setting, frames="every 3", images=[1]), 2)
    assert second.tolist() == [[100, 100.5], [103, 103.5], [106, 106.5], [109, 109.5]]
    centred = choose(features, replace(setting, centred=[0]), 2)
    assert centred[:2].tolist() == [[-4.5, -4.5, 100, 100.5], [-3.5, -3.5, 101, 101.5]]
    assert choose(features, replace(setting, frames="spread 5"), 2)[:, 0].tolist() == [1, 3, 5, 7, 9]
    assert choose(features[:2], replace(setting, frames="spread 4"), 2)[:, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("select", "epoch"),
    [("best", 2), ("smoothed", 3), ("last", 5)],
)
def test_the_selected_epoch(recipes, select, epoch):
    curve = [(0.5, 5.0), (0.6, 1.0), (0.7, 1.0), (0.6, 1.0), (0.7, 3.0), (0.6, 0.5)]  # accuracy and loss on val
    record = {"weights": [[*point, number] for number, point in enumerate(curve)]}
    assert recipes.share_right(record, recipes.Setting(name="x", select=select)) == epoch


def test_settings_of_the_studies_are_overrides_that_exist(recipes):
    for study in read_yaml(recipes.STUDIES).values():
        names = [row["name"] for row in study["settings"]]
        assert len(set(names)) == len(names)
        for row in study["settings"]:
            setting = recipes.Setting(**{**study.get("defaults", {}), **row})
            assert set(setting.ensemble) <= set(names)
            compose_config([*study["base"], *setting.overrides, *setting.beside])
