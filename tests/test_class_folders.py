"""The contract of all layouts, and the layouts of class folders: `folder` and `frames`."""

import inspect
import logging
import os
from collections import Counter

import pytest
from conftest import ROOT
from hydra.utils import get_object
from omegaconf import OmegaConf

from stvid.data.layouts.class_folders import folder, frames
from stvid.data.layouts.kinetics import kinetics
from stvid.data.manifest import read_manifest
from stvid.errors import InputError

LAYOUTS = {
    path.stem: get_object(target)
    for path in sorted((ROOT / "configs" / "data").glob("*.yaml"))
    if (target := str(OmegaConf.select(OmegaConf.load(path), "datamodule.manifest._target_"))).startswith(
        "stvid.data.layouts."
    )
}


def touch(root, *names):
    """Empty files below a folder that is returned."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_a_folder_without_splits_is_split_and_logged(tmp_path, caplog):
    touch(tmp_path, *(f"{c}/deep/er/{i}.{e}" for c in ("run", "sit fast") for i, e in enumerate(["avi", "MP4"] * 10)))
    touch(tmp_path, "labels.csv", "run/notes.txt", ".git/x/y.mp4", "run/.hidden.mp4")
    with caplog.at_level(logging.INFO):
        data = folder(root=str(tmp_path))
    assert data.class_names == ("run", "sit fast")
    assert Counter(item.split for item in data.items) == {"train": 28, "val": 6, "test": 6}
    assert "stratified split" in caplog.text
    assert "seed 0" in caplog.text


def test_split_folders_are_taken_as_they_are(tmp_path):
    touch(tmp_path, *(f"{s}/{c}/{i}.avi" for s in ("train", "val", "test") for c in ("run", "sit") for i in range(3)))
    data = folder(root=str(tmp_path))
    assert all(f"/{item.split}/{item.label}/" in item.path for item in data.items)
    assert len(data.items) == 18


def test_a_missing_val_folder_is_made_from_train_and_test_is_left_alone(tmp_path):
    touch(tmp_path, *(f"{s}/{c}/{i}.avi" for s in ("train", "test") for c in ("run", "sit") for i in range(20)))
    data = folder(root=str(tmp_path))
    assert Counter(item.split for item in data.items) == {"train": 34, "val": 6, "test": 40}
    assert all("/test/" in item.path for item in data.select("test"))


@pytest.mark.parametrize(
    ("layout", "video"),
    [(folder, "a.avi"), (frames, "a/1.jpg"), (kinetics, "a.avi")],
    ids=["folder", "frames", "kinetics"],
)
@pytest.mark.parametrize(
    ("names", "others"),
    [
        (("val", "validation"), ("train",)),
        (("valid", "VAL"), ("train", "test")),
        (("Train", "train"), ("val",)),
        (("test", "Test"), ("train", "val")),
    ],
)
def test_two_folders_of_one_split_are_refused(tmp_path, layout, video, names, others):
    touch(tmp_path, *(f"{split}/{label}/{video}" for split in (*names, *others) for label in ("run", "sit")))
    if len(set(map(str.lower, names))) == 1 and (tmp_path / names[0]).samefile(tmp_path / names[1]):
        pytest.skip("this file system takes capitals for the same name")
    with pytest.raises(InputError, match="two folders for the split") as error:
        layout(root=str(tmp_path))
    assert f": {' and '.join(str(tmp_path / name) for name in sorted(names))}. " in str(error.value)


def test_a_second_name_of_a_split_folder_is_no_second_folder(tmp_path):
    touch(tmp_path, *(f"{split}/{label}/{split}.avi" for split in ("train", "val") for label in ("run", "sit")))
    touch(tmp_path, "test/notes.txt", "Validation/notes.txt")  # without classes it is not taken for a split
    (tmp_path / "valid").symlink_to(tmp_path / "val")
    assert Counter(item.split for item in folder(root=str(tmp_path)).items) == {"train": 2, "val": 2}


def test_links_are_followed_but_never_in_a_circle(tmp_path):
    root = touch(tmp_path / "d", *(f"run/{i}.avi" for i in range(5)), *(f"sit/{i}.avi" for i in range(5)))
    touch(tmp_path / "elsewhere", "6.avi")
    (root / "run" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "run" / "back").symlink_to(root / "run")
    names = [item.path for item in folder(root=str(root)).items if item.label == "run"]
    assert len(names) == 6
    assert any(name.endswith("more/6.avi") for name in names)


def test_groups_come_from_a_pattern_or_a_table(tmp_path):
    root = touch(
        tmp_path / "d", *(f"{c}/v_g{g:02d}_c{i}.avi" for c in ("run", "sit") for g in range(8) for i in range(2))
    )
    by_pattern = folder(root=str(root), group_pattern=r"_g(\d+)_")
    assert {item.group for item in by_pattern.items} == {f"{g:02d}" for g in range(8)}
    rows = [f"{path.relative_to(root)},{path.name[:5]}" for path in root.rglob("*.avi")]
    table = tmp_path / "groups.csv"
    table.write_text("path,group\n" + "\n".join(rows))
    by_table = folder(root=str(root), group_csv=str(table))
    assert {item.group for item in by_table.items} == {f"v_g{g:02d}" for g in range(8)}
    groups = {split: {item.group for item in by_table.select(split)} for split in ("train", "val", "test")}
    assert not groups["train"] & groups["val"]
    assert not groups["train"] & groups["test"]


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        ([], {}, ["no videos found", "CLASS/.../VIDEO"]),
        (["a.mp4", "b.mp4"], {}, ["2 videos are directly in it"]),
        (["run/a.txt"], {}, ["no videos found"]),
        (["run/a.mp4"], {"group_pattern": "("}, ["not a regular expression"]),
        (["run/a.mp4"], {"group_pattern": r"g(\d)"}, ["matches nothing in 'a.mp4'"]),
        (["run/a.mp4", "run/g1.mp4", "sit/b.mp4"], {"group_pattern": r"g(\d)"}, ["2 mistakes", "'a.mp4'", "'b.mp4'"]),
        (["run/a.mp4"], {"group_pattern": r"a(\d*)"}, ["matches nothing in 'a.mp4'"]),
        (["run/a.mp4"], {"group_pattern": r"(b)?a"}, ["matches nothing in 'a.mp4'"]),
        (["run/a.mp4"], {"group_pattern": "a", "group_csv": "b"}, ["set only one of them"]),
        (["run/a.mp4"], {"group_csv": "none.csv"}, ["none.csv does not exist"]),
    ],
)
def test_a_folder_without_usable_videos_is_an_error(tmp_path, names, options, expected):
    with pytest.raises(InputError) as error:
        folder(root=str(touch(tmp_path, *names)), **options)
    assert all(word in str(error.value) for word in expected), str(error.value)


def test_a_table_of_groups_may_say_each_thing_only_once_and_in_any_bytes(tmp_path):
    odd = "run/b\udce9.avi"
    root = touch(tmp_path / "d", odd, *(f"{label}/{i}.avi" for label in ("run", "sit") for i in range(8)))
    rows = [f"{path.relative_to(root)},{path.stem}" for path in root.rglob("*.avi")]
    table = tmp_path / "groups.csv"
    table.write_bytes(os.fsencode("path,group\n" + "\n".join([*rows, rows[0]])))
    groups = {item.path: item.group for item in folder(root=str(root), group_csv=str(table)).items}
    assert groups[str(root / odd)] == "b\udce9"
    table.write_bytes(os.fsencode("path,group\n" + "\n".join([*rows, f"{odd},other"])))
    with pytest.raises(InputError, match="line 19: two groups for run/b.*'other'"):
        folder(root=str(root), group_csv=str(table))


def test_every_layout_file_has_a_config():
    files = {path.stem for path in (ROOT / "stvid" / "data" / "layouts").glob("*.py")}
    files -= {"__init__", "discovery", "recognition", "split_folders"}  # parts of layouts
    assert files == {layout.__module__.rpartition(".")[2] for layout in LAYOUTS.values()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_defaults_in_yaml_are_those_of_the_layout(name):
    data = OmegaConf.load(ROOT / "configs" / "data" / f"{name}.yaml")
    wiring = OmegaConf.to_container(data.datamodule.manifest, resolve=False)
    parameters = inspect.signature(LAYOUTS[name]).parameters
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters.values())
    assert set(wiring) == {*parameters, "_target_"}
    for argument, parameter in parameters.items():
        key = wiring[argument].removeprefix("${data.").removesuffix("}")
        assert (
            OmegaConf.is_missing(data, key)
            if parameter.default is parameter.empty
            else (data[key] == parameter.default)
        )


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - {"manifest"}))
def test_a_root_that_is_no_folder_is_an_error(name, tmp_path):
    touch(tmp_path, "file")
    with pytest.raises(InputError, match="data.root .*nowhere does not exist"):
        LAYOUTS[name](root=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="data.root .*file is not a folder"):
        LAYOUTS[name](root=str(tmp_path / "file"))


@pytest.mark.parametrize("name", ["ucf101", "hmdb51", "ut_interaction"])
@pytest.mark.parametrize("fold", [0, -1, 21])
def test_an_invalid_fold_is_an_error(name, fold, tmp_path):
    with pytest.raises(InputError, match=rf"data.fold \(={fold}\) must be one of 1 to (3|20)"):
        LAYOUTS[name](root=str(tmp_path), fold=fold)


def test_a_manifest_is_read(tmp_path):
    touch(tmp_path, "a.mp4")
    (tmp_path / "m.csv").write_text("path,label,split\na.mp4,run,train\n")
    assert read_manifest(path=str(tmp_path / "m.csv")).items[0].path == str(tmp_path / "a.mp4")


def test_the_log_has_one_line_with_the_videos_of_each_split(tmp_path, caplog):
    touch(tmp_path, *(f"{s}/{c}/{i}.avi" for s in ("train", "val") for c in ("run", "sit") for i in range(3)))
    with caplog.at_level(logging.INFO):
        folder(root=str(tmp_path))
    (record,) = caplog.records
    assert record.getMessage() == f"{tmp_path}: splits from the folders train, val (2 classes; train 6, val 6)"


def test_a_root_may_be_written_from_home_or_from_here(tmp_path, monkeypatch):
    touch(tmp_path / "a b é", *(f"{c}/{i}.avi" for c in ("run", "sit") for i in range(3)))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    items = folder(root=str(tmp_path / "a b é")).items
    assert folder(root="~/a b é").items == folder(root="a b é").items == items
    assert all(item.path.startswith(str(tmp_path / "a b é")) for item in items)


def test_a_folder_that_contains_images_is_a_video(tmp_path):
    touch(
        tmp_path,
        *(f"{c}/v {i}/{n:03d}.{e}" for c in ("run", "sit") for i in range(19) for n, e in enumerate(["jpg", "PNG"])),
    )
    touch(
        tmp_path, "run/deep/er/é/1.webp", "sit/v 19/1.jpg", "run/empty/notes.txt", "run/.hidden/1.jpg", "run/odd/.1.jpg"
    )
    data = frames(root=str(tmp_path))
    assert {item.path for item in data.items if item.label == "run"} == {
        *(str(tmp_path / "run" / f"v {i}") for i in range(19)),
        str(tmp_path / "run" / "deep" / "er" / "é"),
    }
    assert Counter(item.split for item in data.items) == {"train": 28, "val": 6, "test": 6}
    assert data.class_names == ("run", "sit")


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "png", "bmp", "webp", "tif"])
def test_split_folders_of_image_folders_are_taken_as_they_are(tmp_path, extension):
    touch(tmp_path, *(f"{s}/{c}/{i}/1.{extension}" for s in ("train", "val", "test") for c in "ab" for i in range(2)))
    data = frames(root=str(tmp_path))
    assert {(item.path, item.label, item.split) for item in data.items} == {
        (str(tmp_path / s / c / str(i)), c, s) for s in ("train", "val", "test") for c in "ab" for i in range(2)
    }


def test_groups_of_image_folders_come_from_the_path_of_the_folder_or_from_a_table(tmp_path):
    root = touch(tmp_path / "d", *(f"{c}/p{p}_{i}/1.jpg" for c in ("run", "sit") for p in range(6) for i in range(2)))
    by_pattern = frames(root=str(root), group_pattern=r"(p\d)_")
    assert {item.group for item in by_pattern.items} == {f"p{p}" for p in range(6)}
    splits = {group: {item.split for item in by_pattern.items if item.group == group} for group in ("p0", "p1", "p2")}
    assert all(len(actual) == 1 for actual in splits.values())
    table = tmp_path / "groups.csv"
    table.write_text("path,group\n" + "\n".join(f"{p.relative_to(root)},{p.name[:2]}" for p in root.glob("*/*")))
    assert frames(root=str(root), group_csv=str(table)) == by_pattern


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], ["no folders of images found", "CLASS/.../VIDEO/IMAGE", ".jpg"]),
        (["run/a.mp4"], ["no folders of images found"]),
        (["v1/1.jpg", "v2/1.jpg"], ["2 folders of images are directly in it, without a class"]),
        (["train/v1/1.jpg"], ["below", "train; 1 folders of images are directly in it"]),
    ],
)
def test_a_tree_without_image_folders_is_an_error(tmp_path, names, expected):
    with pytest.raises(InputError) as error:
        frames(root=str(touch(tmp_path, *names)))
    assert all(word in str(error.value) for word in expected), str(error.value)


def test_images_without_a_class_are_left_out_with_a_warning(tmp_path, caplog):
    touch(tmp_path, *(f"{c}/{i}/1.jpg" for c in ("run", "sit") for i in range(3)), "run/cover.jpg")
    assert len(frames(root=str(tmp_path)).items) == 6
    assert "1 folders of images directly in" in caplog.text
