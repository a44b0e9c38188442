"""Trees as UCF101 unpacks them: groups g01-g07 are the test of fold 1, as in the official lists."""

import logging
from collections import Counter

import pytest
from test_class_folders import touch

from stvid.data.layouts.ucf101 import ucf101
from stvid.data.manifest import validate
from stvid.errors import InputError

CLASSES = ("ApplyEyeMakeup", "HandstandPushups", "Archery")  # not in the order of the alphabet
STEM = {"HandstandPushups": "HandStandPushups"}  # as on disk and in the lists


def names(groups):
    return [f"{c}/v_{STEM.get(c, c)}_g{g:02d}_c{i:02d}.avi" for c in CLASSES for g in groups for i in (1, 2)]


def lists(folder, fold=1, test=range(1, 3), train=range(3, 9)):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classInd.txt").write_text("".join(f"{i} {c}\r\n" for i, c in enumerate(CLASSES, start=1)))
    numbered = [f"{name} {CLASSES.index(name.split('/')[0]) + 1}" for name in names(train)]
    (folder / f"trainlist{fold:02d}.txt").write_text("\r\n".join(numbered) + "\r\n")
    (folder / f"testlist{fold:02d}.txt").write_text("\r\n".join(names(test)) + "\r\n")


def tree(root, videos="UCF-101", splits="ucfTrainTestlist", **options):
    touch(root / videos, *names(range(1, 9)))
    lists(root / splits, **options)
    return root


def groups(data, split):
    return {item.group for item in data.select(split)}


def test_the_official_split_is_kept_and_val_is_whole_groups_of_train(tmp_path, caplog):
    root = tree(tmp_path / "a b é")
    with caplog.at_level(logging.INFO):
        data = validate(ucf101(root=str(root)))
    assert groups(data, "test") == {f"{c} g{g:02d}" for c in CLASSES for g in (1, 2)}
    assert groups(data, "train") | groups(data, "val") == {f"{c} g{g:02d}" for c in CLASSES for g in range(3, 9)}
    assert Counter((item.split, item.label) for item in data.items if item.split == "val") == {
        ("val", c): 2 for c in CLASSES
    }
    assert {item.path for item in data.items} == {str(root / "UCF-101" / name) for name in names(range(1, 9))}
    assert "3 classes; train 30, val 6, test 12" in caplog.text


def test_classes_stand_in_the_order_of_class_ind(tmp_path):
    assert ucf101(root=str(tree(tmp_path))).class_names == CLASSES


def test_another_fold_is_another_test(tmp_path):
    tree(tmp_path)
    lists(tmp_path / "ucfTrainTestlist", fold=2, test=range(5, 8), train=[1, 2, 3, 4, 8])
    assert groups(ucf101(root=str(tmp_path), fold=2), "test") == {f"{c} g{g:02d}" for c in CLASSES for g in (5, 6, 7)}


@pytest.mark.parametrize(
    ("videos", "splits", "root"),
    [
        (".", "ucfTrainTestlist", "."),
        ("UCF-101", "ucfTrainTestlist", "UCF-101"),
        ("UCF-101", ".", "."),
        ("UCF-101", "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist", "."),
        ("videos/UCF-101", "ucfTrainTestlist", "."),
    ],
)
def test_lists_are_found_in_below_and_beside_the_root(tmp_path, videos, splits, root):
    tree(tmp_path, videos, splits)
    assert len(ucf101(root=str(tmp_path / root)).items) == 48


def test_the_lists_folder_can_be_named(tmp_path):
    tree(tmp_path / "data", splits="../elsewhere/ucfTrainTestlist")
    with pytest.raises(InputError, match="data.splits=DIR"):
        ucf101(root=str(tmp_path / "data"))
    for splits in ("elsewhere", "elsewhere/ucfTrainTestlist"):
        assert len(ucf101(root=str(tmp_path / "data"), splits=str(tmp_path / splits)).items) == 48
    with pytest.raises(InputError, match="data.splits .*nowhere does not exist"):
        ucf101(root=str(tmp_path / "data"), splits=str(tmp_path / "nowhere"))


def test_transcoded_and_linked_videos_are_found(tmp_path):
    lists(tmp_path / "data" / "ucfTrainTestlist")
    touch(tmp_path / "elsewhere", *(name.replace(".avi", ".mp4") for name in names(range(1, 9))))
    (tmp_path / "data" / "UCF-101").symlink_to(tmp_path / "elsewhere")
    paths = {item.path for item in ucf101(root=str(tmp_path / "data")).items}
    assert str(tmp_path / "data" / "UCF-101" / "Archery" / "v_Archery_g01_c01.mp4") in paths


def test_capitals_are_no_difference(tmp_path):
    tree(tmp_path)
    (tmp_path / "UCF-101" / "HandstandPushups").rename(tmp_path / "UCF-101" / "HandStandPushups")
    data = ucf101(root=str(tmp_path))
    assert len(data.items) == 48
    assert data.class_names == CLASSES


def test_a_duplicate_video_is_a_warning(tmp_path, caplog):
    touch(tree(tmp_path), "copy/Archery/v_Archery_g01_c01.mp4")
    assert len(ucf101(root=str(tmp_path)).items) == 48
    assert "1 videos below" in caplog.text
    assert "v_Archery_g01_c01.mp4" in caplog.text


def test_another_seed_is_another_val_of_the_same_train(tmp_path):
    tree(tmp_path)
    first, second = (ucf101(root=str(tmp_path), seed=seed, val_fraction=0.4) for seed in (0, 1))
    assert groups(first, "val") != groups(second, "val")
    assert first.select("test") == second.select("test")


def remove(root, name):
    (root / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda r: remove(r, "ucfTrainTestlist/classInd.txt"), ["has some of them, but no classInd.txt"]),
        (lambda r: (r / "ucfTrainTestlist").rename(r / "x"), ["official lists trainlist01.txt", "data.splits=DIR"]),
        (
            lambda r: remove(r, "UCF-101/Archery/v_Archery_g01_c02.avi"),
            ["1 of the 48 videos", "Archery/v_Archery_g01_c02", "it contains 47 videos", "data=manifest"],
        ),
        (lambda r: (r / "UCF-101").rename(r / ".hidden"), ["48 of the 48 videos", "it contains 0 videos"]),
        (
            lambda r: (r / "ucfTrainTestlist/testlist01.txt").write_text("Archry/v_Archry_g01_c01.avi\n"),
            ["testlist01.txt, line 1", "'Archry'", "did you mean 'Archery'?"],
        ),
        (
            lambda r: (r / "ucfTrainTestlist/trainlist01.txt").write_text("\nv_Archery_g01_c01.avi 1\n"),
            ["trainlist01.txt, line 2", "is not CLASS/VIDEO.avi"],
        ),
        (
            lambda r: (r / "ucfTrainTestlist/classInd.txt").write_text("ApplyEyeMakeup\n"),
            ["classInd.txt, line 1", "is not NUMBER CLASS"],
        ),
        (
            lambda r: (r / "ucfTrainTestlist/classInd.txt").write_text("1 ApplyEyeMakeup\n01 Archery\n"),
            ["classInd.txt, line 2", "'01 Archery', but class 01 already is 'ApplyEyeMakeup'"],
        ),
    ],
)
def test_an_invalid_tree_is_an_error(tmp_path, spoil, expected):
    spoil(tree(tmp_path / "data"))
    with pytest.raises(InputError) as error:
        ucf101(root=str(tmp_path / "data"))
    assert all(word in str(error.value) for word in expected), str(error.value)


def test_lists_of_another_fold_do_not_serve(tmp_path):
    with pytest.raises(InputError, match=r"has some of them, but no trainlist03.txt, testlist03.txt"):
        ucf101(root=str(tree(tmp_path)), fold=3)
