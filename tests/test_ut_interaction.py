import logging
from collections import Counter

import pytest
from conftest import REAL_DATA
from test_class_folders import touch

from stvid.data.layouts.ut_interaction import ut_interaction
from stvid.data.manifest import validate
from stvid.errors import InputError

CLASSES = ("hand_shaking", "hugging", "kicking", "pointing", "punching", "pushing")
REAL = REAL_DATA / "ut_interaction"


def tree(root, sequences=range(1, 21)):
    names = [
        f"segmented_set{1 + (s > 10)}/{i}_{s}_{label}.avi"
        for s in sequences
        for i, label in enumerate((0, 1, 2, 3, 4, 5))
    ]
    return touch(root, *names, "unsegmented/seq1.avi", "1_2.avi", "3_4_6.avi")


def sequences(data, split):
    return {int(item.group.removeprefix("sequence ")) for item in data.select(split)}


@pytest.mark.parametrize(
    ("fold", "custom"), [(1, range(1, 11)), (10, range(1, 11)), (11, range(11, 21)), (20, range(11, 21))]
)
def test_one_sequence_of_a_set_is_held_out_and_the_rest_of_the_set_is_train_and_val(tmp_path, fold, custom, caplog):
    with caplog.at_level(logging.INFO):
        data = validate(ut_interaction(root=str(tree(tmp_path / "a b é")), fold=fold))
    assert sequences(data, "test") == {fold}
    assert sequences(data, "train") | sequences(data, "val") == set(custom) - {fold}
    assert not sequences(data, "train") & sequences(data, "val")
    assert Counter(item.split for item in data.items) == {"train": 48, "val": 6, "test": 6}
    rest = f"the other sequences of set {1 if fold <= 10 else 2}"
    assert f"sequence {fold} is test; val is 15% of {rest}, seed 0" in caplog.text


def test_the_label_in_the_name_is_the_class(tmp_path):
    data = ut_interaction(root=str(tree(tmp_path)))
    assert data.class_names == CLASSES
    assert all(item.path.endswith(f"_{CLASSES.index(item.label)}.avi") for item in data.items)
    assert all(f"_{item.group.split()[1]}_" in item.path for item in data.items)


def test_both_sets_can_be_trained_on(tmp_path):
    data = validate(ut_interaction(root=str(tree(tmp_path)), fold=13, both_sets=True))
    assert sequences(data, "test") == {13}
    assert sequences(data, "train") | sequences(data, "val") == set(range(1, 21)) - {13}


def test_another_seed_is_another_val(tmp_path):
    tree(tmp_path)
    vals = [sequences(ut_interaction(root=str(tmp_path), seed=seed), "val") for seed in range(5)]
    assert len(set(map(frozenset, vals))) > 1


@pytest.mark.parametrize(
    ("names", "fold", "expected"),
    [
        ([], 1, ["no UT-Interaction videos", "0 videos are there", "SAMPLE_SEQUENCE_LABEL.avi"]),
        (["seq1.avi", "0_1_6.avi"], 1, ["no UT-Interaction videos", "2 videos are there"]),
        (["0_1_4.avi", "1_2_4.avi"], 3, ["no videos of sequence 3 (data.fold)", "it has sequences 1, 2"]),
        (["0_1_4.avi", "1_2_4.avi"], 1, ["class 'punching' has 1 group,"]),
    ],
)
def test_an_invalid_tree_is_an_error(tmp_path, names, fold, expected):
    with pytest.raises(InputError) as error:
        ut_interaction(root=str(touch(tmp_path, *names)), fold=fold)
    assert all(word in str(error.value) for word in expected), str(error.value)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL}")
def test_the_folds_of_the_real_videos():
    """Sequence 6 shows no punch, sequence 8 two: the other folds have one video of each class to test on."""
    for fold in range(1, 21):
        data = ut_interaction(root=str(REAL), fold=fold)
        assert len(data.items) == 60
        assert sequences(data, "test") == {fold}
        assert len(data.select("test")) == {6: 5, 8: 7}.get(fold, 6)
        assert {item.label for item in data.select("val")} == set(CLASSES)
        assert all(f"/{item.label}/" in item.path for item in data.items)
    assert len(ut_interaction(root=str(REAL), both_sets=True).items) == 120
