"""Which videos a run is judged by: classes that are there, and what it has seen before."""

import os
from pathlib import Path

import pytest
from torch import nn

from stvid.clip import ClipSpec
from stvid.data.manifest import Item
from stvid.errors import InputError
from stvid.evaluation.evaluate import absent_classes, seen_in_training, select_test_split
from stvid.run.checkpoint import TrainedModel

CLASSES = ("jump", "run", "sit")


def write_csv(path, *rows):
    """A table; relative paths start from its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("path,label,split,group\n" + "\n".join(",".join(map(str, row)) for row in rows))
    return path


def make_files(folder, *, content=""):
    """`folder/CLASS/PERSON.mp4` of two people; no two files have the same bytes."""
    for label in CLASSES:
        (folder / label).mkdir(parents=True)
        for person in ("p1", "p2", "p3"):
            (folder / label / f"{person}.mp4").write_text(f"{content}{label} {person}")
    return folder


@pytest.fixture
def videos(tmp_path):
    return make_files(tmp_path / "data" / "own", content="own ")


@pytest.fixture
def trained(tmp_path, videos):
    """A run that was trained on p1, validated on p2, and may be tested on p3."""
    folder = tmp_path / "run"
    splits = {"p1": "train", "p2": "val", "p3": "test"}
    rows = [(videos / c / f"{p}.mp4", c, split, p) for c in CLASSES for p, split in splits.items()]
    write_csv(folder / "manifest.csv", *rows)
    return TrainedModel(
        path=folder / "checkpoints" / "best.ckpt",
        folder=folder,
        model=nn.Identity(),
        clip=ClipSpec(num_frames=4, size=32),
        class_names=CLASSES,
        protocol={"num_clips": 1, "num_crops": 1},
        config={},
        epoch=1,
    )


def seen(trained, path, *, group=None):
    """Whether the run has seen a file."""
    item = Item(path=str(Path(path).absolute()), label="jump", split="test", group=group)
    return seen_in_training(trained, [item]) == [item]


def test_a_table_of_some_classes_will_do(trained, videos, tmp_path):
    table = write_csv(tmp_path / "some.csv", (videos / "run/p3.mp4", "run", "test", ""))
    data = select_test_split(trained, split="test", manifest=table)
    assert data.class_names == CLASSES
    assert [item.label for item in data.items] == ["run"]
    assert absent_classes(data, "test") == ["jump", "sit"]


def test_absent_are_the_classes_that_the_split_lacks_not_the_table(trained, videos, tmp_path):
    rows = [(videos / c / "p3.mp4", c, "test" if c == "sit" else "val", "") for c in CLASSES]
    data = select_test_split(trained, split="test", manifest=write_csv(tmp_path / "some.csv", *rows))
    assert absent_classes(data, "test") == ["jump", "run"]


def test_labels_the_model_does_not_know_are_named(trained, videos, tmp_path):
    rows = [(videos / "run/p3.mp4", label, "test", "") for label in ("run", "runn", "swim")]
    with pytest.raises(InputError, match=r"some.csv has classes that the model does not know: runn, swim; .*'run'\?"):
        select_test_split(trained, split="test", manifest=write_csv(tmp_path / "some.csv", *rows))


def test_numbers_are_labels_of_the_classes_in_order(trained, videos, tmp_path):
    table = write_csv(tmp_path / "some.csv", (videos / "run/p3.mp4", 1, "test", ""))
    assert [item.label for item in select_test_split(trained, split="test", manifest=table).items] == ["run"]


def test_a_test_video_of_its_own_is_new_and_train_and_val_are_not(trained, videos):
    data = select_test_split(trained, split="test")
    assert seen_in_training(trained, data.items) == [item for item in data.items if item.split != "test"]


def test_groups_of_another_data_set_are_not_those_of_this_one(trained, tmp_path):
    """Both call their people p1, p2, p3."""
    other = make_files(tmp_path / "data" / "other")
    table = write_csv(other / "all.csv", *((f"{c}/{p}.mp4", c, "test", p) for c in CLASSES for p in ("p1", "p2", "p3")))
    assert len(select_test_split(trained, split="test", manifest=table).items) == 9


def test_a_new_video_of_a_group_is_seen_within_the_data_set(trained, videos, tmp_path):
    for place in ("run/p1_again.mp4", "run/more/p1_again.mp4"):
        new = videos / place
        new.parent.mkdir(exist_ok=True)
        new.write_text("never seen itself")
        assert seen(trained, new, group="p1")
        assert seen(trained, new, group="p2")
        assert not seen(trained, new, group="p3")
        assert not seen(trained, new)
    table = write_csv(tmp_path / "again.csv", (new, "run", "test", "p1"))
    with pytest.raises(InputError, match=r"1 of 1 videos .* same group of the same data set.*p1_again.*--allow-leaks"):
        select_test_split(trained, split="test", manifest=table)
    assert select_test_split(trained, split="test", manifest=table, allow_leaks=True).items


def test_a_folder_whose_name_begins_alike_is_another_data_set(trained, videos):
    new = videos.with_name("own2") / "run" / "p1.mp4"
    new.parent.mkdir(parents=True)
    new.write_text("of another data set")
    assert not seen(trained, new, group="p1")


def test_a_file_is_seen_by_whatever_path(trained, videos, tmp_path):
    original = videos / "run" / "p1.mp4"
    (tmp_path / "link.mp4").symlink_to(original)
    (tmp_path / "folder").symlink_to(videos, target_is_directory=True)
    os.link(original, tmp_path / "hard.mp4")
    for path in ("link.mp4", "folder/run/p1.mp4", "hard.mp4"):
        assert seen(trained, tmp_path / path), path
    table = write_csv(tmp_path / "deep" / "er" / "t.csv", ("../../data/own/run/../run/p1.mp4", "run", "test", ""))
    with pytest.raises(InputError, match="1 of 1 videos .*same file"):
        select_test_split(trained, split="test", manifest=table)


def test_a_copy_is_seen_and_another_file_of_the_same_size_is_not(trained, videos, tmp_path):
    original = (videos / "run" / "p1.mp4").read_bytes()
    (tmp_path / "copy.mp4").write_bytes(original)
    (tmp_path / "other.mp4").write_bytes(original[::-1])
    assert seen(trained, tmp_path / "copy.mp4")
    assert not seen(trained, tmp_path / "other.mp4")
    (tmp_path / "empty.mp4").touch()
    (videos / "run" / "p2.mp4").write_bytes(b"")
    assert not seen(trained, tmp_path / "empty.mp4")


def test_only_files_of_one_size_are_read(trained, tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr("stvid.evaluation.evaluate.content_keys", lambda paths, **_: compared.extend(paths) or {})
    (tmp_path / "new.mp4").write_text("a size that no other file has")
    assert not seen(trained, tmp_path / "new.mp4")
    assert compared == []


def test_a_checkpoint_alone_has_seen_nothing_that_is_known(trained, videos):
    (trained.folder / "manifest.csv").unlink()
    assert not seen(trained, videos / "run" / "p1.mp4", group="p1")
