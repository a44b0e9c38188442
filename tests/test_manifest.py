import os
from pathlib import Path

import pytest

from stvid.data.manifest import LEAK_KEYS, Item, Manifest, _name_below, read_manifest, similar_classes, validate
from stvid.errors import InputError


def csv_file(tmp_path, text):
    path = tmp_path / "data.csv"
    path.write_text(text, encoding="utf-8")
    return path


def manifest_of(tmp_path, rows, class_names=("run", "sit")):
    """rows: (name, label, split, group); the files are created."""
    for name, *_ in rows:
        (tmp_path / name).touch()
    items = tuple(Item(path=str(tmp_path / n), label=lab, split=s, group=g) for n, lab, s, g in rows)
    return Manifest(items=items, class_names=class_names)


def test_a_written_manifest_reads_back_equal_and_moves_with_its_folder(tmp_path):
    data = manifest_of(tmp_path, [("a b é.mp4", "run", "train", "g1"), ("b.mp4", "sit", "val", None)])
    data.write_csv(tmp_path / "m.csv")
    assert Manifest.read_csv(tmp_path / "m.csv") == data
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert Manifest.read_csv(moved / "m.csv").items[0].path == str(moved / "a b é.mp4")


def test_times_and_groups_are_optional_columns(tmp_path):
    path = csv_file(tmp_path, "path,label,split,start,end,group\na.mp4,run,train,1.5,2,g\nb.mp4,sit,val,,,\n")
    first, second = Manifest.read_csv(path).items
    assert (first.start, first.end, first.group) == (1.5, 2.0, "g")
    assert (second.start, second.end, second.group) == (None, None, None)


def test_numeric_labels_take_their_names_in_order(tmp_path):
    path = csv_file(tmp_path, "path,label,split\na.mp4,1,train\nb.mp4,0,train\n")
    data = Manifest.read_csv(path, class_names=["sit", "run"])
    assert [item.label for item in data.items] == ["run", "sit"]
    assert data.class_names == ("sit", "run")


@pytest.mark.parametrize(
    ("text", "class_names", "expected"),
    [
        ("path,label\na.mp4,run\n", None, ["missing: split", "path, label"]),
        ("path,label,split\n", None, ["lists no videos"]),
        ("path,label,split\na.mp4,run,training\n", None, ["line 2", "'training'", "train, val, test"]),
        ("path,label,split\na.mp4,3,train\nb.mp4,1,train\n", None, ["numbers", "data.class_names"]),
        ("path,label,split\na.mp4,3,train\n", ["sit", "run"], ["label 3", "2 names"]),
        ("path,label,split\na.mp4,run,train\nb.mp4,sitt,train\n", ["sit", "run"], ["line 3", "'sitt'", "'sit'"]),
        ("path,label,split,start,end\na.mp4,run,train,3,2\n", None, ["line 2", "end (=2.0 s)", "start (=3.0 s)"]),
        ("path,label,split,start\na.mp4,run,train,soon\n", None, ["start is 'soon'", "seconds"]),
        ("path,label,split\n,run,train\n", None, ["line 2", "empty"]),
        ("path,label,split\na.mp4,\u3164\u200b,train\n", None, ["line 2", r"'\u3164\u200b'", "blank"]),
        (f"path,label,split\na.mp4,{'9' * 5000},train\n", ["sit", "run"], ["line 2", "label 999", "2 names"]),
        ("path,label,split,label\na.mp4,run,train,sit\n", None, ["two columns named label"]),
    ],
)
def test_an_invalid_table_is_an_error_with_the_line_and_the_remedy(tmp_path, text, class_names, expected):
    with pytest.raises(InputError) as error:
        Manifest.read_csv(csv_file(tmp_path, text), class_names=class_names)
    assert all(word in str(error.value) for word in expected), str(error.value)


def test_all_bad_rows_are_told_at_once(tmp_path):
    rows = ["a.mp4,run,train,0,1", "b.mp4,sit,dev,soon,1", "c.mp4,sit,val,,", ",sit,test,,", "e.mp4,sit,val,3,2"]
    path = csv_file(tmp_path, "\n".join(["path,label,split,start,end", *rows]))
    with pytest.raises(InputError) as error:
        Manifest.read_csv(path)
    assert str(error.value).split("\n  ") == [
        "3 mistakes:",
        f"{path}, line 3: split is 'dev', must be one of train, val, test; "
        "start is 'soon', must be seconds, 0 or more, at most 1,000,000,000",
        f"{path}, line 5: path or label is empty",
        f"{path}, line 6: end (=2.0 s) must be after start (=3.0 s)",
    ]
    path = csv_file(tmp_path, "path,label,split\n" + 40 * "a.mp4,run,dev\n")
    with pytest.raises(InputError, match=r"40 mistakes:(\n  .*line .*){30}\n  and 10 more$"):
        Manifest.read_csv(path)


def test_all_that_makes_a_data_set_unfit_is_told_at_once(tmp_path):
    rows = [("a", "run", "train", "g"), ("b", "Run", "train", None), ("a", "run", "test", "g")]
    with pytest.raises(InputError) as error:
        validate(manifest_of(tmp_path, rows, class_names=("run", "Run", "sit")))
    first, *mistakes = str(error.value).split("\n  ")
    expected = ["several ways", "no validation videos", "no videos of: sit", "1 file(s) are in", "1 group(s) are in"]
    assert first == "5 mistakes:"
    assert all(words in mistake for words, mistake in zip(expected, mistakes, strict=True)), mistakes


def test_a_missing_table_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.csv does not exist"):
        Manifest.read_csv(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("a", "run", "val", None), ("b", "sit", "val", None)], ["no training videos"]),
        ([("a", "run", "train", None)], ["'train'", "no videos of: sit"]),
        (
            [
                ("a", "run", "train", "p1"),
                ("b", "sit", "train", "p2"),
                ("c", "run", "val", "p1"),
                ("d", "sit", "val", None),
            ],
            ["group", "p1 in train, val", "data.allow_leaks=true"],
        ),
    ],
)
def test_an_unfit_data_set_is_refused(tmp_path, rows, expected):
    with pytest.raises(InputError) as error:
        validate(manifest_of(tmp_path, rows))
    assert all(word in str(error.value) for word in expected), str(error.value)


def test_the_same_file_in_two_splits_is_a_leak_even_through_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "a")
    data = manifest_of(
        tmp_path,
        [
            ("a", "run", "train", None),
            ("b", "sit", "train", None),
            ("link", "run", "val", None),
            ("c", "sit", "val", None),
        ],
    )
    with pytest.raises(InputError, match=r"1 file\(s\) are in more than one split"):
        validate(data)
    assert validate(data, allow_leaks=True) is data


def test_a_data_set_with_one_class_is_an_error(tmp_path):
    data = manifest_of(tmp_path, [("a", "run", "train", None), ("b", "run", "val", None)], class_names=("run",))
    with pytest.raises(InputError, match=rf"only one class, 'run'; .* at least two.* 2 videos .*{tmp_path / 'a'}"):
        validate(data)


def test_a_missing_file_is_a_bad_video_and_missing_all_is_a_mistake(tmp_path):
    data = manifest_of(tmp_path, [("a", "run", "train", None), ("b", "sit", "train", None), ("c", "sit", "val", None)])
    (tmp_path / "b").unlink()
    (tmp_path / "c").unlink()
    assert validate(data) is data
    (tmp_path / "a").unlink()
    with pytest.raises(InputError, match="none of the 3 videos exist, the first: .*a"):
        validate(data)


def test_odd_names_survive(tmp_path):
    odd = "b\udce9ta .mp4"  # a file name that is not UTF-8, with a space before its dot
    item = Item(path=str(tmp_path / odd), label="run ", split="train", group="g ")
    Manifest(items=(item,), class_names=("run ",)).write_csv(tmp_path / "m.csv")
    (back,) = Manifest.read_csv(tmp_path / "m.csv", class_names=("run ",)).items
    assert (back.path, back.group) == (item.path, "g ")


def test_blanks_around_the_cells_of_a_table_made_by_hand_do_not_count(tmp_path):
    path = csv_file(tmp_path, 'path, label, split, group\na.mp4, run, train, g\nb.mp4,  sit,val," h"\n')
    items = Manifest.read_csv(path).items
    assert [(item.label, item.split, item.group) for item in items] == [("run", "train", "g"), ("sit", "val", " h")]


def test_a_raised_two_is_a_name(tmp_path):
    path = csv_file(tmp_path, "path,label,split\na.mp4,²,train\nb.mp4,³,train\n")
    assert Manifest.read_csv(path).class_names == ("²", "³")
    with pytest.raises(InputError, match="line 3: unknown class '³'"):
        Manifest.read_csv(path, class_names=["²", "a"])


def test_a_class_without_held_out_videos_is_a_warning(tmp_path, caplog):
    rows = [("a", "run", "train", None), ("b", "sit", "train", None), ("c", "sit", "val", None)]
    data = manifest_of(tmp_path, rows)
    assert validate(data) is data
    assert "split 'val' has no videos of: run" in caplog.text


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("walk", "Walk"),
        ("walk", "walk "),
        ("walk", "\u00a0walk"),
        ("sit down", "sit  down"),
        ("sit down", "sit_down"),
        ("wa\u200blk", "walk"),
        ("walk\ufe0f", "walk"),
        ("wa\u034flk", "walk"),
        ("caf\u00e9", "cafe\u0301"),
        ("straße", "STRASSE"),
        ("１", "1"),
        ("ﬁght", "fight"),
    ],
)
def test_classes_that_look_the_same_stop_unless_they_are_accepted(tmp_path, first, second):
    rows = [("a", first, "train", None), ("b", second, "train", None), ("c", "run", "train", None)]
    rows.append(("d", "run", "val", None))
    data = manifest_of(tmp_path, rows, class_names=(first, "run", second))
    with pytest.raises(InputError) as error:
        validate(data)
    assert f"{first!a} and {second!a}" in str(error.value)
    assert str(tmp_path / "a") in str(error.value)
    assert "data.allow_similar_classes=true" in str(error.value)
    assert validate(data, allow_similar_classes=True) is data


def test_classes_that_differ_in_signs_are_not_similar():
    assert similar_classes(["run", "ran", "+1", "-1", "a-b", "ab", "c", "c++", "c#", "...", "?", " ", "_"]) == []


def test_a_split_in_another_column_is_not_replaced_by_a_new_one(tmp_path):
    rows = [f"{i}.mp4,{'ab'[i % 2]},{'Train' if i < 20 else 'test'}" for i in range(40)]
    path = csv_file(tmp_path, "\n".join(["path,label,subset", *rows]))
    with pytest.raises(InputError, match="column 'subset' has names of splits, but a column split is missing"):
        read_manifest(path=str(path))
    path = csv_file(tmp_path, "\n".join(["path,label,subset", *(row.replace("Train", "one") for row in rows)]))
    assert {item.split for item in read_manifest(path=str(path)).items} == {"train", "val", "test"}


@pytest.mark.parametrize("name", ["a.mp4", "link.mp4", "dir/b.mp4", "dir/up.mp4", "dir/../a.mp4", "dir/..", "none/x"])
def test_real_paths_are_those_of_the_system(tmp_path, name):
    (tmp_path / "real").mkdir()
    for file in ("a.mp4", "real/b.mp4"):
        (tmp_path / file).touch()
    (tmp_path / "dir").symlink_to("real")
    (tmp_path / "link.mp4").symlink_to("dir/up.mp4")
    (tmp_path / "real" / "up.mp4").symlink_to("../a.mp4")
    assert LEAK_KEYS["file"](Item(path=f"{tmp_path}/{name}", label="a", split="train")) == os.path.realpath(
        f"{tmp_path}/{name}"
    )


@pytest.mark.parametrize(
    "path",
    ["/d/v.mp4", "/d/a/v.mp4", "/d//v.mp4", "/d/./v.mp4", "/d/.v.mp4", "/d/a/", "/d", "/dd/v.mp4", "/d/../v", "v.mp4"],
)
def test_names_in_tables_are_those_of_pathlib(path):
    wanted = Path(path).relative_to("/d").as_posix() if Path(path).is_relative_to("/d") else str(Path(path))
    assert _name_below("/d", path) == wanted
