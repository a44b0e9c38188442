"""Tables as DeepMind publishes them, videos as the usual download scripts name them."""

import logging

import pytest
from test_class_folders import touch

from stvid.data.layouts.kinetics import kinetics
from stvid.data.manifest import validate
from stvid.errors import InputError

HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"
TRAIN = [("massaging person's head", "-3B32lodO2M", 59, 69), ("abseiling", "_a-b_c-d_e-", 4, 14)]
VAL = [("abseiling", "aaaaaaaaaa1", 0, 10), ("massaging person's head", "aaaaaaaaaa2", 5, 15)]
TEST = [("abseiling", "bbbbbbbbbb1", 1, 11), ("massaging person's head", "bbbbbbbbbb2", 7, 17)]
ROWS = {"train": TRAIN, "val": VAL, "test": TEST}


def table(path, rows, header=HEADER):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header + "".join(",".join(map(str, (*row, "split", 0))) + "\n" for row in rows))


def clip(row, extension="mp4"):
    return f"{row[1]}_{row[2]:06d}_{row[3]:06d}.{extension}"


def tree(root, tables=("train.csv", "val.csv", "test.csv")):
    for name, (split, rows) in zip(tables, ROWS.items(), strict=True):
        table(root / name, rows)
        touch(root, *(f"{split}/{clip(row)}" for row in rows))
    return root


@pytest.mark.parametrize(
    "tables",
    [
        ("train.csv", "val.csv", "test.csv"),
        ("annotations/train.csv", "annotations/validate.csv", "annotations/test.csv"),
        ("annotations/kinetics_train.csv", "annotations/kinetics_val.csv", "annotations/kinetics_test.csv"),
        ("kinetics-400_train.csv", "kinetics-400_validation.csv", "kinetics-400_test.csv"),
        ("kinetics700_2020/train.csv", "kinetics700_2020/validate.csv", "kinetics700_2020/test.csv"),
    ],
)
def test_tables_name_clips_and_a_trimmed_one_is_taken_whole(tmp_path, tables, caplog):
    root = tree(tmp_path / "a b é", tables)
    with caplog.at_level(logging.INFO):
        data = validate(kinetics(root=str(root)))
    assert {(i.path, i.label, i.split, i.start, i.end, i.group) for i in data.items} == {
        (str(root / split / clip(row)), row[0], split, None, None, row[1]) for split in ROWS for row in ROWS[split]
    }
    assert data.class_names == ("abseiling", "massaging person's head")
    assert f"splits from {', '.join(tables)} (2 classes; train 2, val 2, test 2)" in caplog.text


def test_of_a_whole_video_the_item_is_the_seconds_of_the_table(tmp_path):
    root = tree(tmp_path)
    (root / "train" / clip(TRAIN[1])).rename(root / "train" / "_a-b_c-d_e-.webm")
    (item,) = (item for item in kinetics(root=str(root)).items if item.path.endswith(".webm"))
    assert (item.split, item.start, item.end, item.group) == ("train", 4.0, 14.0, "_a-b_c-d_e-")


def test_a_trimmed_clip_goes_before_the_whole_video_and_a_replacement_before_all(tmp_path):
    root = tree(tmp_path)
    touch(root, "whole/-3B32lodO2M.mp4", f"replacement/replacement_for_corrupted_k400/{clip(TRAIN[1])}")
    first, second = sorted(kinetics(root=str(root)).select("train"), key=lambda item: item.label)
    assert "replacement_for_corrupted_k400" in first.path
    assert (second.path, second.start) == (str(root / "train" / clip(TRAIN[0])), None)


def test_clips_lie_in_class_folders_too(tmp_path):
    root = tree(tmp_path)
    touch(root, f"videos_train/abseiling/{clip(TRAIN[1], 'mkv')}")
    (root / "train" / clip(TRAIN[1])).unlink()
    assert any("videos_train" in item.path for item in kinetics(root=str(root)).select("train"))


def test_missing_videos_are_left_out_with_a_warning(tmp_path, caplog):
    root = tree(tmp_path)
    (root / "train" / clip(TRAIN[0])).unlink()
    assert [item.group for item in kinetics(root=str(root)).select("train")] == ["_a-b_c-d_e-"]
    assert "1 of the 2 videos that" in caplog.text
    assert "lists for train are not below" in caplog.text
    assert "-3B32lodO2M_000059_000069" in caplog.text


def test_two_different_tables_of_one_split_are_refused_unless_one_is_nearer(tmp_path, caplog):
    root = tree(tmp_path)
    (root / "copies").mkdir()
    (root / "copies" / "validate.csv").write_bytes((root / "val.csv").read_bytes())
    expected = kinetics(root=str(root))
    assert "is not used" not in caplog.text
    table(root / "copies" / "train.csv", VAL)
    assert kinetics(root=str(root)) == expected
    assert f"{root / 'copies/train.csv'} is not used, because {root / 'train.csv'} is nearer" in caplog.text
    table(root / "kinetics_validation.csv", TRAIN)
    with pytest.raises(InputError, match="two different files for 'val'") as error:
        kinetics(root=str(root))
    assert f"{root / 'kinetics_validation.csv'} and {root / 'val.csv'}" in str(error.value)


def test_rows_without_a_label_are_no_test(tmp_path, caplog):
    root = tree(tmp_path)
    table(root / "test.csv", [row[1:] for row in TEST], header="youtube_id,time_start,time_end,split,is_cc\n")
    with caplog.at_level(logging.INFO):
        assert not kinetics(root=str(root)).select("test")
    assert "test.csv (2 rows without a label left out)" in caplog.text


def test_class_folders_without_tables_are_taken_as_they_are(tmp_path):
    for split, rows in ROWS.items():
        touch(tmp_path, *(f"{split}/{row[0]}/{clip(row)}" for row in rows))
    touch(tmp_path, "val/abseiling/-_-_-_-_-_-.mp4", "val/abseiling/other.mp4")
    (tmp_path / "train" / "labels.csv").write_text("a,b\n")
    data = validate(kinetics(root=str(tmp_path)))
    assert {(i.label, i.split, i.group) for i in data.items} == {
        *((row[0], split, row[1]) for split, rows in ROWS.items() for row in rows),
        *(("abseiling", "val", "-_-_-_-_-_-"), ("abseiling", "val", None)),
    }


def remove(root, split):
    for row in ROWS[split]:
        (root / split / clip(row)).unlink()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda r: remove(r, "train"), ["2 of the 2 videos", "all of them", "-3B32lodO2M_000059_000069"]),
        (lambda r: remove(r, "val"), ["2 of the 2 videos", "lists for val", "all of them"]),
        (lambda r: (r / "train.csv").unlink(), ["no table of train", "val.csv"]),
        (lambda r: (r / "val.csv").unlink(), ["no table of val", "but no val.csv"]),
        (lambda r: table(r / "val.csv", []), ["val.csv lists no labelled videos for val"]),
        (lambda r: table(r / "val.csv", [("abseiling", "aaaaaaaaaa1", "x", 10)]), ["val.csv, line 2", "two times"]),
        (lambda r: table(r / "val.csv", [("abseiling", "aaaaaaaaaa1", 10, 10)]), ["val.csv, line 2", "two times"]),
        (lambda r: table(r / "val.csv", [("abseiling", "", 0, 10)]), ["val.csv, line 2", "youtube_id"]),
    ],
)
def test_invalid_tables_are_errors(tmp_path, change, expected):
    change(tree(tmp_path))
    with pytest.raises(InputError) as error:
        kinetics(root=str(tmp_path))
    assert all(word in str(error.value) for word in expected), str(error.value)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], ["no tables train.csv and val.csv anywhere below", "no train/CLASS/ and val/CLASS/", "label,youtube_id"]),
        (["train/abseiling/a.mp4"], ["It has the folders train."]),
        (["train.csv", "val.csv"], ["train.csv lacks the columns youtube_id,time_start,time_end"]),
        (["train/a/x.txt", "val/a/x.mp4"], ["no videos found in class folders below", "train"]),
    ],
)
def test_a_tree_without_tables_and_class_folders_is_an_error(tmp_path, names, expected):
    with pytest.raises(InputError) as error:
        kinetics(root=str(touch(tmp_path, *names)))
    assert all(word in str(error.value) for word in expected), str(error.value)
