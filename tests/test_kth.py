import logging

import pytest
from test_class_folders import touch

from stvid.data.layouts.kth import kth
from stvid.data.manifest import validate
from stvid.errors import InputError

ACTIONS = ("boxing", "handclapping", "handwaving", "jogging", "running", "walking")
TRAIN = {11, 12, 13, 14, 15, 16, 17, 18}
VAL = {19, 20, 21, 23, 24, 25, 1, 4}
TEST = {22, 2, 3, 5, 6, 7, 8, 9, 10}
PREFACE = """
This database contains sequences of six classes of actions performed by
25 subjects in four different conditions (see below).

Training:   person11, 12, 13, 14, 15, 16, 17, 18
Test:       person22, 02, 03, 05, 06, 07, 08, 09, 10


"""
LINES = """person01_boxing_d1\t\tframes\t1-95, 96-185, 186-245, 246-360
person11_boxing_d1    \t\tframes\t1-106, 107-194, 195-250

person13_boxing_d1\t*missing*
person02_boxing_d1\t\tframes\t1-64, 270-332, 194-264
person03_boxing_d1\t\tframes\t1-64
"""


def recordings(persons=range(1, 26), actions=ACTIONS, folder="{action}"):
    return [
        f"{folder.format(action=a)}/person{p:02d}_{a}_d{d}_uncomp.avi" for p in persons for a in actions for d in (1, 2)
    ]


@pytest.mark.parametrize("folder", ["{action}", ".", "deep/a b é/{action}"])
def test_persons_are_split_as_published(tmp_path, folder, caplog):
    touch(tmp_path, *recordings(folder=folder))
    with caplog.at_level(logging.INFO):
        data = validate(kth(root=str(tmp_path)))
    for split, persons in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        assert {item.group for item in data.select(split)} == {f"person{p:02d}" for p in persons}
    assert {item.path for item in data.items} == {str(tmp_path / name) for name in recordings(folder=folder)}
    assert all(f"_{item.label}_" in item.path for item in data.items)
    assert data.class_names == ACTIONS
    assert "there is no 00sequences.txt in the root (6 classes; train 96, val 96, test 108)" in caplog.text


def sequences(root):
    touch(root, *(f"person{p:02d}_boxing_d1_uncomp.avi" for p in (1, 2, 11, 13)))
    (root / "00sequences.txt").write_text(PREFACE + LINES)
    return root


def test_a_range_of_frames_is_an_item_in_seconds(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        data = kth(root=str(sequences(tmp_path)))
    spans = {split: [(item.start, item.end) for item in data.select(split)] for split in ("train", "val", "test")}
    assert spans["val"] == [(0.0, 3.8), (3.8, 7.4), (7.4, 9.8), (9.8, 14.4)]
    assert spans["test"] == [(0.0, 2.56), (193 / 25, 264 / 25), (269 / 25, 332 / 25)]
    assert spans["train"] == [(0.0, 4.24), (4.24, 7.76), (7.76, 10.0), (None, None)]
    assert "1 recordings without sequences are whole; 1 listed recordings are missing" in caplog.text


def test_whole_recordings_can_be_asked_for(tmp_path):
    (sequences(tmp_path) / "00sequences.txt").write_text("unread")
    data = kth(root=str(tmp_path), whole=True)
    assert [(item.group, item.start, item.end) for item in data.items] == [
        (f"person{p:02d}", None, None) for p in (11, 13, 1, 2)
    ]


def test_other_videos_are_left_out_and_logged(tmp_path, caplog):
    touch(tmp_path, *recordings(), "holiday.avi", "person01_dancing_d1_uncomp.avi")
    with caplog.at_level(logging.INFO):
        assert len(kth(root=str(tmp_path)).items) == 300
    assert "2 other videos left out" in caplog.text


@pytest.mark.parametrize(
    ("names", "text", "expected"),
    [
        ([], None, ["no KTH recordings", "0 videos are there", "personNN_ACTION_dM_uncomp.avi"]),
        (["boxing/1.avi"], None, ["no KTH recordings", "1 videos are there", "boxing, handclapping"]),
        (recordings(TRAIN | TEST), None, ["no recordings of val", "19, 20, 21, 23, 24, 25, 1, 4"]),
        (recordings(VAL | TEST), None, ["no recordings of train", "11, 12"]),
        (recordings(range(1, 27)), None, ["there is no person 26 in KTH"]),
        (recordings(), "person01_boxing_d1 frames 9-5", ["00sequences.txt, line 1", "FIRST-LAST"]),
        (recordings(), "person01_boxing_d1 frames 0-5", ["00sequences.txt, line 1", "FIRST-LAST"]),
        (recordings(), "person01_boxing_d1", ["00sequences.txt, line 1", "FIRST-LAST"]),
        (recordings(), PREFACE, ["00sequences.txt has no line", "data.whole=true"]),
    ],
)
def test_an_invalid_tree_is_an_error(tmp_path, names, text, expected):
    touch(tmp_path, *names)
    if text:
        (tmp_path / "00sequences.txt").write_text(text)
    with pytest.raises(InputError) as error:
        kth(root=str(tmp_path))
    assert all(word in str(error.value) for word in expected), str(error.value)
