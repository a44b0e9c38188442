from collections import Counter

import pytest
from test_layouts import touch

from stvid.data.layouts.class_folders import frames
from stvid.errors import InputError


def test_a_folder_that_holds_images_is_a_video(tmp_path):
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
def test_split_folders_are_taken_as_they_are(tmp_path, extension):
    touch(tmp_path, *(f"{s}/{c}/{i}/1.{extension}" for s in ("train", "val", "test") for c in "ab" for i in range(2)))
    data = frames(root=str(tmp_path))
    assert {(item.path, item.label, item.split) for item in data.items} == {
        (str(tmp_path / s / c / str(i)), c, s) for s in ("train", "val", "test") for c in "ab" for i in range(2)
    }


def test_groups_come_from_the_path_of_the_folder_or_from_a_table(tmp_path):
    root = touch(tmp_path / "d", *(f"{c}/p{p}_{i}/1.jpg" for c in ("run", "sit") for p in range(6) for i in range(2)))
    by_pattern = frames(root=str(root), group_pattern=r"(p\d)_")
    assert {item.group for item in by_pattern.items} == {f"p{p}" for p in range(6)}
    splits = {group: {item.split for item in by_pattern.items if item.group == group} for group in ("p0", "p1", "p2")}
    assert all(len(found) == 1 for found in splits.values())
    table = tmp_path / "groups.csv"
    table.write_text("path,group\n" + "\n".join(f"{p.relative_to(root)},{p.name[:2]}" for p in root.glob("*/*")))
    assert frames(root=str(root), group_csv=str(table)) == by_pattern


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], ["no folders of images found", "it holds none", "CLASS/.../VIDEO/IMAGE", ".jpg"]),
        (["run/a.mp4"], ["no folders of images found", "it holds none"]),
        (["v1/1.jpg", "v2/1.jpg"], ["2 folders of images lie in it directly, without a class"]),
        (["train/v1/1.jpg"], ["below", "train: 1 folders of images lie in it directly"]),
    ],
)
def test_a_wrong_tree_is_told(tmp_path, names, words):
    with pytest.raises(InputError) as error:
        frames(root=str(touch(tmp_path, *names)))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_images_beside_the_folders_of_a_class_are_left_out_and_told(tmp_path, caplog):
    touch(tmp_path, *(f"{c}/{i}/1.jpg" for c in ("run", "sit") for i in range(3)), "run/cover.jpg")
    assert len(frames(root=str(tmp_path)).items) == 6
    assert "1 folders of images lie directly in" in caplog.text
