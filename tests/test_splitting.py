from collections import Counter, defaultdict
from dataclasses import replace

import pytest

from stvid.data.manifest import Item
from stvid.data.splitting import make_splits, split_items
from stvid.errors import InputError

FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}


def items_of(groups, per_group, classes=("run", "sit", "wave")):
    return [
        Item(path=f"/{c}/{g}_{i}.avi", label=c, split="", group=f"g{g}" if per_group else None)
        for c in classes
        for g in range(groups)
        for i in range(per_group or 1)
    ]


def test_without_groups_every_class_is_dealt_out_in_proportion():
    split = split_items(items_of(20, 0), fractions=FRACTIONS, seed=0)
    counts = Counter((item.label, item.split) for item in split)
    assert {counts[c, s] for c in ("run", "sit", "wave") for s in ("val", "test")} == {3}


def test_groups_stay_whole_and_every_class_is_everywhere():
    split = split_items(items_of(12, 3), fractions=FRACTIONS, seed=0)
    splits_of_group = defaultdict(set)
    for item in split:
        splits_of_group[item.group].add(item.split)
    assert all(len(actual) == 1 for actual in splits_of_group.values())
    assert len({(item.label, item.split) for item in split}) == 9
    shares = Counter(item.split for item in split)
    assert 0.6 < shares["train"] / len(split) < 0.8


def test_the_split_depends_on_the_seed_alone():
    items = items_of(10, 2)
    assert split_items(items, fractions=FRACTIONS, seed=3) == split_items(items[::-1], fractions=FRACTIONS, seed=3)
    assert split_items(items, fractions=FRACTIONS, seed=3) != split_items(items, fractions=FRACTIONS, seed=4)


def test_too_few_videos_of_a_class_are_named():
    with pytest.raises(InputError, match="class 'run' has 2 videos, too few for 3 splits"):
        split_items(items_of(2, 0), fractions=FRACTIONS, seed=0)


def test_all_small_classes_are_named_with_another_spelling_of_the_first():
    items = [replace(item, label=label) for item in items_of(3, 0) for label in ("Run", item.label)]
    items = [item for item in items if item.label != "Run"] + [item for item in items if item.label == "Run"][:1]
    with pytest.raises(
        InputError, match=r"class 'Run' \(is it 'run'\?\) has 1 video, too few for 3 splits: .*column split"
    ):
        split_items(items, fractions=FRACTIONS, seed=0)


def test_fractions_must_be_proportions():
    with pytest.raises(InputError, match=r"train=-0\.2"):
        split_items(items_of(5, 0), fractions={"train": -0.2, "val": 0.6, "test": 0.6}, seed=0)


@pytest.mark.parametrize("per_group", [0, 2])
def test_three_videos_or_groups_of_a_class_are_enough(per_group):
    split = split_items(items_of(3, per_group), fractions=FRACTIONS, seed=0)
    assert len({(item.label, item.split) for item in split}) == 9


def test_a_rare_class_among_common_ones_is_in_every_split():
    rare = [Item(path=f"/rare/{i}.avi", label="rare", split="") for i in range(3)]
    split = split_items([*items_of(40, 0), *rare], fractions=FRACTIONS, seed=1)
    assert {item.split for item in split if item.label == "rare"} == {"train", "val", "test"}


def test_every_video_is_in_the_test_of_one_fold_and_groups_stay_whole():
    items = items_of(groups=12, per_group=2)
    tested = []
    for fold in range(1, 5):
        parted, done = make_splits(items, val_fraction=0.2, test_fraction=0.3, seed=1, fold=fold, num_folds=4)
        assert done == f"fold {fold} of 4 is the test, val is 20% of the rest, seed 1"
        assert len(parted) == len(items)
        tested += [item.path for item in parted if item.split == "test"]
        for group in {item.group for item in parted}:
            assert len({item.split for item in parted if item.group == group}) == 1
        for split in ("train", "val", "test"):
            assert {item.label for item in parted if item.split == split} == {"run", "sit", "wave"}
    assert sorted(tested) == sorted(item.path for item in items)


def test_folds_that_do_not_exist():
    items, fractions = items_of(groups=12, per_group=2), {"val_fraction": 0.2, "test_fraction": 0.2, "seed": 0}
    for fold in (0, 6):
        with pytest.raises(InputError, match=rf"data\.fold \(={fold}\) must be one of 1 to data\.num_folds \(=5\)"):
            make_splits(items, **fractions, fold=fold)
    with pytest.raises(InputError, match=r"data\.num_folds \(=1\) must be at least 2"):
        make_splits(items, **fractions, fold=1, num_folds=1)
