"""Trees as HMDB51 unpacks them; ID 0 in a split file is a video that the split does not use."""

import logging
from collections import Counter

import pytest
from test_class_folders import touch

from stvid.data.layouts.hmdb51 import hmdb51
from stvid.data.manifest import validate
from stvid.errors import InputError

IDS = {"#2006 a_sword_film": 1, "Kill_Bill!_(2)": 1, "April_09": 1, "Aussie": 2, "long__[_hair_]": 2, "unused": 0}
SPLITS = "testTrainMulti_7030_splits"


def names(label):
    return [(f"{source}_{label}_f_cm_np2_ba_goo_{i}", number) for source, number in IDS.items() for i in range(2)]


def tree(root, videos=".", splits=SPLITS, fold=1, extra=()):
    for label in ("sword", "brush_hair"):
        entries = [*names(label), *((f"{source}_{label}_u_nm_np1_fr_med_7", number) for source, number in extra)]
        touch(root / videos / label, *(f"{name}.avi" for name, _ in entries))
        (root / splits).mkdir(parents=True, exist_ok=True)
        text = "".join(f"{name}.avi {number} \n" for name, number in entries)
        (root / splits / f"{label}_test_split{fold}.txt").write_text(text)
    return root


def groups(data, split, label="sword"):
    return {item.group for item in data.select(split) if item.label == label}


def test_ids_are_splits_and_a_group_is_a_source_video(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        data = validate(hmdb51(root=str(tree(tmp_path / "a b é"))))
    assert groups(data, "test") == {"sword Aussie", "sword long__[_hair_]"}
    assert groups(data, "train") | groups(data, "val") == {
        *("sword #2006 a_sword_film", "sword Kill_Bill!_(2)", "sword April_09"),
    }
    assert Counter(item.split for item in data.items) == {"train": 8, "val": 4, "test": 8}
    assert data.class_names == ("brush_hair", "sword")
    assert not any("unused" in item.path for item in data.items)
    assert all(item.path == str(tmp_path / "a b é" / item.label / item.path.split("/")[-1]) for item in data.items)
    assert "2 classes; train 8, val 4, test 8" in caplog.text
    assert "test accuracy may be slightly too high" not in caplog.text


def test_a_source_in_train_and_test_is_divided_with_a_warning(tmp_path, caplog):
    data = validate(hmdb51(root=str(tree(tmp_path, extra=[("Aussie", 1)]))))
    assert {"sword Aussie (test)"} == groups(data, "test") - {"sword long__[_hair_]"}
    assert "sword Aussie (train)" in groups(data, "train") | groups(data, "val")
    assert sum(item.group.startswith("sword Aussie") for item in data.select("test")) == 2
    assert caplog.text.count("test accuracy may be slightly too high") == 1
    assert "2 source videos have clips in both train and test of the official split 1 (6 clips" in caplog.text


@pytest.mark.parametrize(
    ("videos", "splits", "root"),
    [
        ("hmdb51_org", SPLITS, "."),
        ("hmdb51_org", SPLITS, "hmdb51_org"),
        ("videos", f"test_train_splits/{SPLITS}", "."),
        ("videos", f"splits/{SPLITS}", "."),
        (".", ".", "."),
    ],
)
def test_split_files_are_found_in_below_and_beside_the_root(tmp_path, videos, splits, root):
    tree(tmp_path, videos, splits)
    assert len(hmdb51(root=str(tmp_path / root)).items) == 20


def test_the_split_files_can_be_elsewhere_and_of_another_fold(tmp_path):
    tree(tmp_path / "data", splits="../elsewhere", fold=3)
    data = hmdb51(root=str(tmp_path / "data"), splits=str(tmp_path / "elsewhere"), fold=3)
    assert len(data.select("test")) == 8


def spoil(root, line):
    (root / SPLITS / "sword_test_split1.txt").write_text(line)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda r: (r / SPLITS).rename(r / "x"), ["*_test_split1.txt are not", "data.splits=DIR", SPLITS]),
        (lambda r: (r / "sword").rename(r / ".sword"), ["10 of the 20 videos", "sword/", "it contains 12 videos"]),
        (lambda r: spoil(r, "a_sword_f.avi 3 \n"), ["sword_test_split1.txt, line 1", "0, 1, 2"]),
        (lambda r: spoil(r, "\na_sword_f.avi\n"), ["sword_test_split1.txt, line 2", "is not VIDEO.avi ID"]),
    ],
)
def test_an_invalid_tree_is_an_error(tmp_path, change, expected):
    change(tree(tmp_path / "data"))
    with pytest.raises(InputError) as error:
        hmdb51(root=str(tmp_path / "data"))
    assert all(word in str(error.value) for word in expected), str(error.value)


def test_split_files_of_another_fold_do_not_serve(tmp_path):
    with pytest.raises(InputError, match=r"_test_split2.txt are not in, below or beside data.root"):
        hmdb51(root=str(tree(tmp_path)), fold=2)


def test_names_that_differ_in_capitals_alone_are_different_videos(tmp_path):
    tree(tmp_path, extra=[("april_09", 2)])
    (item,) = (item for item in hmdb51(root=str(tmp_path)).items if "/april_09_sword_" in item.path)
    assert (item.split, item.group) == ("test", "sword april_09")
