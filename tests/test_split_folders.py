"""Names and levels of folders: which are splits, which are classes, and what is left out."""

import logging
from collections import Counter

import pytest
from test_class_folders import touch

from stvid.data.layouts.class_folders import folder, frames
from stvid.data.layouts.split_folders import split_of
from stvid.data.manifest import validate
from stvid.errors import InputError


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train TRAIN training trn videos_train train_videos Train-Set trainset TrainVideos train_256"),
        ("val", "val valid validation validate dev videos_val val_frames Dev-Set rawframes_val devset development"),
        ("test", "test testing tst eval evaluation held-out HeldOut hold_out Holdout test_data videos_test TestSet"),
        (None, "trains tests walk videos contest devil evaluate_me trainval train_val retrain training_dog 256 _"),
    ],
)  # fmt: skip
def test_usual_names_of_splits_are_known(split, names):
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)


def tree(root, *places, media="{}.mp4"):
    """Six videos in each class folder (walk and run) of each place."""
    return touch(
        root, *(f"{place}/{c}/{media.format(i)}" for place in places for c in ("walk", "run") for i in range(6))
    )


@pytest.mark.parametrize(
    ("places", "sizes"),
    [
        (["training", "testing"], {"train": 10, "val": 2, "test": 12}),
        (["training", "validation"], {"train": 12, "val": 12}),
        (["videos_train", "videos_val"], {"train": 12, "val": 12}),
        (["Train", "DEV"], {"train": 12, "val": 12}),
        (["train", "eval", "val"], {"train": 12, "val": 12, "test": 12}),
    ],
)
@pytest.mark.parametrize(("layout", "media"), [(folder, "{}.mp4"), (frames, "{}/1.jpg")], ids=["folder", "frames"])
@pytest.mark.parametrize("is_below", [False, True], ids=["SPLIT/CLASS", "CLASS/SPLIT"])
def test_splits_of_any_usual_name_are_above_or_below_the_classes(tmp_path, places, sizes, layout, media, is_below):
    if is_below:
        files = [f"{c}/{place}/{media.format(i)}" for place in places for c in ("walk", "run") for i in range(6)]
        touch(tmp_path, *files)
    else:
        tree(tmp_path, *places, media=media)
    data = validate(layout(root=str(tmp_path)))
    assert data.class_names == ("run", "walk")
    assert Counter(item.split for item in data.items) == sizes
    for item in data.items:
        place = item.path.removeprefix(f"{tmp_path}/").split("/")[1 if is_below else 0]
        assert split_of(place) == item.split or (item.split, split_of(place)) == ("val", "train")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # the root is one level too high
        (["DATA/walk/1.mp4", "DATA/run/1.mp4"], ["only one folder", "data.root={root}/DATA"]),
        (["DATA/train/walk/1.mp4", "DATA/test/walk/1.mp4"], ["test, train", "data.root={root}/DATA"]),
        (["a/b/walk/1.mp4", "a/b/run/1.mp4"], ["data.root={root}/a/b"]),
        (["train/all/walk/1.mp4", "train/all/run/1.mp4", "val/all/walk/1.mp4"], ["{root}/train/all", "move"]),
        (["p1/walk/1.mp4", "p1/run/1.mp4", "p2/walk/1.mp4", "p2/run/1.mp4"], ["same folders (run, walk)", "{root}/p1"]),
        (["x/1.mp4", *(f"p{i}/{c}/1.mp4" for i in "12" for c in "abc")], ["p1 and p2", "(a, b, c)", "group_pattern"]),
        # splits that cannot be used
        (["test/walk/1.mp4", "val/run/1.mp4"], ["(val, test)", "none for training"]),
        (["walk/test/1.mp4", "run/val/1.mp4"], ["none for training"]),
        (["train/1.mp4", "test/2.mp4"], ["test, train", "no class folders", "SPLIT/CLASS/"]),
        (["training/a/1.mp4", "boxing/1.mp4", "skating/1.mp4"], ["training", "boxing, skating", "splits or classes?"]),
        (["walk/train/1.mp4", "walk/test/1.mp4", "run/1.mp4"], ["{root}/walk", "(test, train)", "{root}/run"]),
        (["walk/train/1.mp4", "walk/val/1.mp4", "run/train/1.mp4", "run/2.mp4"], ["not all videos in {root}/run"]),
        ([f"{c}/{s}/1.mp4" for c in ("a", "b") for s in ("train", "training")], ["two folders for the split 'train'"]),
        ([f"{s}/{c}/1.mp4" for c in ("a", "b") for s in ("train", "val", "dev")], ["two folders for the split 'val'"]),
    ],
)  # fmt: skip
def test_folders_that_are_no_classes_stop_with_what_to_do(tmp_path, files, expected):
    with pytest.raises(InputError) as error:
        folder(root=str(touch(tmp_path, *files)))
    assert all(word.format(root=tmp_path) in str(error.value) for word in expected), str(error.value)


def test_named_groups_say_that_equal_folders_below_the_classes_are_no_classes(tmp_path):
    touch(tmp_path, *(f"{c}/p{i}/{c}.mp4" for c in ("walk", "run") for i in range(8)))
    with pytest.raises(InputError, match="hold the same folders"):
        folder(root=str(tmp_path))
    data = folder(root=str(tmp_path), group_pattern="^([^/]+)/")
    assert data.class_names == ("run", "walk")
    assert {item.group for item in data.items} == {f"p{i}" for i in range(8)}


@pytest.mark.parametrize(
    "files", [["vehicle/train/1.mp4", "vehicle/car/1.mp4", "animal/dog/1.mp4"], ["train/1.mp4", "car/1.mp4"]]
)
def test_a_class_may_have_the_name_of_a_split(tmp_path, files):
    names = [f"{file[:-5]}{i}.mp4" for file in files for i in range(6)]
    assert len(folder(root=str(touch(tmp_path, *names))).class_names) == 2


def test_what_is_left_out_is_counted_and_named(tmp_path, caplog):
    tree(tmp_path, "train", "val")
    touch(tmp_path, "train/walk/a.RMVB", "train/walk/b.rmvb", "train/run/c.mp4.part", "train/run/notes.txt", "README")
    touch(tmp_path, "unlabelled/1.mp4", "unlabelled/2.mp4", "train/.hidden.xyz")
    with caplog.at_level(logging.INFO):
        assert len(folder(root=str(tmp_path)).items) == 24
    messages = "\n".join(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert f"{tmp_path}/unlabelled is no split, its 2 videos are not used" in messages
    assert "5 other files" in messages
    assert all(part in messages for part in ("2 .rmvb", "1 .part", "1 .txt", "1 (no extension)"))
    assert "the first: " in messages
    assert "hidden" not in messages


def test_the_usual_files_beside_videos_are_no_warning(tmp_path, caplog):
    touch(tree(tmp_path, "train", "val"), "labels.csv", "train/walk/thumbnail.jpg")
    with caplog.at_level(logging.INFO):
        folder(root=str(tmp_path))
    assert [record.levelname for record in caplog.records if "are not used" in record.getMessage()] == ["INFO"]


@pytest.mark.parametrize(("layout", "media"), [(folder, "{}.mp4"), (frames, "{}/1.jpg")], ids=["folder", "frames"])
def test_folders_of_the_system_are_no_classes_and_hold_no_videos(tmp_path, layout, media):
    system = ("__MACOSX/walk", "$RECYCLE.BIN", "@eaDir/1.mp4", "walk/@eaDir", "lost+found", "System Volume Information")
    touch(tree(tmp_path, ".", media=media), *(f"{place}/{media.format(9)}" for place in system))
    data = layout(root=str(tmp_path))
    assert data.class_names == ("run", "walk")
    assert len(data.items) == 12
