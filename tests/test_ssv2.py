import json
import logging

import pytest
from test_class_folders import touch

from stvid.data.layouts.ssv2 import ssv2
from stvid.data.manifest import validate
from stvid.errors import InputError

PUTTING, MOVING = "Putting [something] on a surface", "Moving [something] up"
CLASSES = {"Moving something up": "1", "Putting something on a surface": "0", "Opening something": "2"}
TRAIN, VAL = {"78687": PUTTING, "42326": MOVING}, {"74225": MOVING, "116154": PUTTING}
VIDEOS = "20bn-something-something-v2"


def entries(videos):
    return [
        {"id": name, "label": "putting a cup on a table", "template": template, "placeholders": ["a cup"]}
        for name, template in videos.items()
    ]


def tree(root, prefix="labels/", videos=VIDEOS, extension="webm"):
    (root / f"{prefix}x").parent.mkdir(parents=True, exist_ok=True)
    for name, content in (
        *(("train", entries(TRAIN)), ("validation", entries(VAL))),
        *(("test", [{"id": "1420"}, {"id": "3"}]), ("labels", CLASSES)),
    ):
        (root / f"{prefix}{name}.json").write_text(json.dumps(content))
    return touch(root, *(f"{videos}/{name}.{extension}" for name in (*TRAIN, *VAL, "1420", "3")))


@pytest.mark.parametrize("prefix", ["labels/", "something-something-v2-", "a b é/something-something-v2-"])
def test_a_class_is_its_template_in_the_order_of_labels_json(tmp_path, prefix, caplog):
    root = tmp_path / "x y"
    with caplog.at_level(logging.INFO):
        data = validate(ssv2(root=str(tree(root, prefix))))
    assert {(item.path, item.label, item.split) for item in data.items} == {
        (str(root / VIDEOS / "78687.webm"), "Putting something on a surface", "train"),
        (str(root / VIDEOS / "42326.webm"), "Moving something up", "train"),
        (str(root / VIDEOS / "74225.webm"), "Moving something up", "val"),
        (str(root / VIDEOS / "116154.webm"), "Putting something on a surface", "val"),
    }
    assert data.class_names == ("Putting something on a surface", "Moving something up")
    assert "no test-answers.csv, so no test split (2 classes; train 2, val 2)" in caplog.text


def test_test_videos_are_those_with_an_answer(tmp_path, caplog):
    root = tree(tmp_path, videos="videos/a", extension="mp4")
    (root / "labels" / "test-answers.csv").write_text("1420;Moving something up\n3;Putting something on a surface\n")
    with caplog.at_level(logging.INFO):
        data = validate(ssv2(root=str(root)))
    assert {(item.path, item.label) for item in data.select("test")} == {
        (str(root / "videos/a/1420.mp4"), "Moving something up"),
        (str(root / "videos/a/3.mp4"), "Putting something on a surface"),
    }
    assert "no test split" not in caplog.text


def test_missing_videos_are_left_out_with_a_warning(tmp_path, caplog):
    root = tree(tmp_path)
    (root / VIDEOS / "78687.webm").unlink()
    assert [item.label for item in ssv2(root=str(root)).select("train")] == ["Moving something up"]
    assert "1 of the 2 videos that" in caplog.text
    assert "the first: 78687" in caplog.text


def write(root, name, content):
    (root / "labels" / name).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda r: (r / "labels").rename(r / ".x"),
            ["no train.json, validation.json, labels.json", "none of the label"],
        ),
        (lambda r: (r / "labels" / "labels.json").unlink(), ["no labels.json", "it has labels/train.json"]),
        (lambda r: (r / VIDEOS).rename(r / ".x"), ["2 of the 2 videos", "lists for train", "all of them", "78687"]),
        (lambda r: write(r, "train.json", "["), ["train.json is not a JSON file"]),
        (lambda r: write(r, "train.json", {}), ["train.json must contain a JSON list"]),
        (lambda r: write(r, "train.json", []), ["train.json lists no videos"]),
        (lambda r: write(r, "validation.json", [{"id": "74225"}]), ["validation.json, entry 0", "id and a template"]),
        (lambda r: write(r, "validation.json", entries({"74225": "Moving [something] upp"})), ["did you mean 'Moving"]),
        (lambda r: write(r, "labels.json", []), ["labels.json must contain a JSON object"]),
        (lambda r: write(r, "labels.json", {"Moving something up": "x"}), ["labels.json: every class needs an index"]),
        (
            lambda r: write(r, "labels.json", {"Moving something up": "1", "Moving [something] up": "2"}),
            ["labels.json: the class 'Moving something up' is listed twice"],
        ),
        (
            lambda r: write(r, "something-something-v2-train.json", entries(VAL)),
            ["two different files for 'train'", "labels/something-something-v2-train.json and ", "labels/train.json"],
        ),
        (lambda r: write(r, "test-answers.csv", "1420,x\n"), ["test-answers.csv, line 1", "is not ID;CLASS"]),
        (lambda r: write(r, "test-answers.csv", "1420;x\n"), ["test-answers.csv, video 1420: unknown class 'x'"]),
    ],
)
def test_an_invalid_tree_is_an_error(tmp_path, change, expected):
    change(tree(tmp_path))
    with pytest.raises(InputError) as error:
        ssv2(root=str(tmp_path))
    assert all(word in str(error.value) for word in expected), str(error.value)
