"""CSV tables: encodings, line numbers, separators, and cells that are read back as they were written."""

import csv
import itertools
from pathlib import Path

import pytest

from stvid.data.manifest import Item, Manifest, read_manifest
from stvid.data.tables import join_path, read_table
from stvid.errors import InputError

PLAIN = "path,label,split\na.mp4,run,train\nb.mp4,sit,val\n"


def table_of(tmp_path, content):
    path = tmp_path / "data.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_text_with_a_byte_order_mark_is_read_in_its_encoding(tmp_path, encoding, newline):
    text = PLAIN.replace("sit", "café").replace("\n", newline)
    assert Manifest.read_csv(table_of(tmp_path, text.encode(encoding))).class_names == ("café", "run")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (PLAIN.encode("utf-16")[2:], ["line 1", "NUL", "iconv -f UTF-16"]),
        (PLAIN.replace("sit", "s\0t"), ["line 3", "NUL"]),
        (PLAIN.encode("utf-16")[:-1], ["utf-16", "damaged"]),
        (PLAIN.replace("sit", "café").encode("latin-1"), ["line 3", "label", "not UTF-8", "iconv -f LATIN1"]),
        (PLAIN.replace("b.mp4", "é.mp4").encode("latin-1"), ["line 3", "path", "not UTF-8", "iconv -f LATIN1"]),
        (PLAIN.replace(",", ";"), ["separated by semicolons", "commas"]),
        (PLAIN.replace(",", "\t"), ["separated by tabs"]),
        (PLAIN.replace("split", "split,label"), ["two columns named label"]),
        (PLAIN.replace("split", "split, Path"), ["two columns named path"]),
        (PLAIN.replace("b.mp4", "b,1.mp4"), ["line 3", "4 cells", "3 columns", "quotes"]),
        (PLAIN.replace("sit", '"sit'), ["line 3", "not CSV"]),
        ("", ["(none)", "missing: path, label, split"]),
        ("\n\n", ["missing: path, label, split"]),
        ("path,label,split\n,,\n", ["lists no videos"]),
    ],
)
def test_a_table_that_cannot_be_read_is_one_message(tmp_path, content, expected):
    with pytest.raises(InputError) as error:
        Manifest.read_csv(table_of(tmp_path, content))
    assert all(word in str(error.value) for word in expected), str(error.value)
    assert "\n" not in str(error.value)


def test_all_mistakes_in_the_header_or_all_rows_that_are_too_long_are_told_at_once(tmp_path):
    path = table_of(tmp_path, "path,label,Label,path,path\na.mp4,run,x,y,z\n")
    with pytest.raises(InputError) as error:
        Manifest.read_csv(path)
    message = str(error.value)
    assert message.startswith("3 mistakes:")
    assert all(words in message for words in ("3 columns named path", "two columns named label", "missing: split"))
    path = table_of(tmp_path, PLAIN + "d,1.mp4,run,train\ne,1.mp4,run,train\n")
    with pytest.raises(InputError, match=r"2 mistakes:\n.*line 4: 4 cells.*\n.*line 5: 4 cells"):
        Manifest.read_csv(path)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("gap", ["\n\n\n", "\n,,\n  \n", '\n"a\n\nb.mp4",run,train\n'])
def test_a_message_names_the_line_where_an_editor_shows_it(tmp_path, newline, gap):
    text = f"path,label,split{gap}\nx.mp4,walk,trian\n"
    line = 1 + text[: text.index("x.mp4")].count("\n")
    with pytest.raises(InputError, match=f"line {line}: split is 'trian'"):
        Manifest.read_csv(table_of(tmp_path, text.replace("\n", newline)))


def test_rows_without_text_and_the_case_of_the_header_do_not_count(tmp_path):
    path = table_of(tmp_path, " Path ,LABEL,split\r\na.mp4,run,train\r\n,,\r\n\r\nb.mp4,sit,val\r\n,,\r\n")
    assert [item.label for item in Manifest.read_csv(path).items] == ["run", "sit"]


NAMES = ["a", "a,b", 'a"b', '"a"', "a\nb", "a\r\nb", "a\rb", " a", "a ", "\ta", "#a", "a;b", "'a'", "é", "e\u0301"]
NAMES += ["\ufeffa", "a\u2028b", "\x85", "a\x0bb", "=1+1", "null", "0", "1e5", "\\", "a\\", "${x}", "\udce9", "~", " "]


def test_write_read_write_is_the_identity(tmp_path):
    items = [
        Item(path=str(tmp_path / "x" / f"{name}.mp4"), label=label, split="train", group=name, start=start, end=end)
        for (name, label), (start, end) in zip(
            itertools.product(NAMES, NAMES), itertools.cycle([(None, None), (0.1, None), (1e-9, 1e9), (None, 2.5)])
        )
    ]
    items.append(Item(path="/elsewhere/ a.mp4", label=NAMES[0], split="test"))
    data = Manifest(items=tuple(items), class_names=tuple(NAMES))
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    data.write_csv(first)
    again = Manifest.read_csv(first, class_names=NAMES)
    assert again == data
    again.write_csv(second)
    assert second.read_bytes() == first.read_bytes()
    with first.open(newline="", encoding="utf-8", errors="surrogateescape") as file:  # what Python itself reads
        assert [row[1] for row in csv.reader(file)][1:] == [item.label for item in items]


def test_a_table_of_other_columns_keeps_them(tmp_path):
    table = read_table(table_of(tmp_path, "id,note,note\n1,a,b\n"), required=("id",))
    assert next(iter(table.rows)).cells["id"] == "1"


def test_a_table_without_a_split_is_split_like_a_folder(tmp_path, caplog):
    rows = [f"{c}{i}.mp4,{c},g{i // 2}" for c in ("run", "sit") for i in range(40)]
    path = table_of(tmp_path, "\n".join(["path,label,group", *rows]))
    with caplog.at_level("INFO"):
        data = read_manifest(path=str(path), val_fraction=0.2, test_fraction=0.3)
    sizes = {split: len(data.select(split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 40, "val": 16, "test": 24}
    splits_of = {(item.group, item.split) for item in data.items}
    assert len(splits_of) == 20, "groups stay whole"
    assert "no column split, so a stratified split was made" in caplog.text
    assert read_manifest(path=str(path), val_fraction=0.2, test_fraction=0.3) == data
    assert read_manifest(path=str(path), seed=1) != read_manifest(path=str(path), seed=2)
    with pytest.raises(InputError, match="missing: split"):  # an evaluation needs to know
        Manifest.read_csv(path)


@pytest.mark.parametrize("folder", ["/data/set", "/"])
@pytest.mark.parametrize(
    "name",
    ["a.mp4", "a/b.mp4", "../a", "a/../b", "./a", "a//b", "a/./b", "a/.", "a/", "/a/b", "/a/", "//a", "///a", "", "."],
)
def test_paths_are_joined_as_pathlib_joins_them(folder, name):
    assert join_path(folder, name) == str((Path(folder) / name).absolute())


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_in_a_file(tmp_path, end):
    lines = ["path,label", f'a,"x{end}y"', "", "b", "c,z\x0b\u2028"]
    table = read_table(table_of(tmp_path, end.join(lines)), required=["path"])
    assert list(table.rows) == [
        (2, {"path": "a", "label": f"x{end}y"}),
        (5, {"path": "b", "label": ""}),
        (6, {"path": "c", "label": "z\x0b\u2028"}),
    ]
    assert list(table.rows.column("label")) == [row.cells["label"] for row in table.rows]
    assert len(table.rows) == 3


def test_of_columns_with_one_name_the_last_is_read(tmp_path):
    rows = read_table(table_of(tmp_path, "path,Set,set\na,1,train\nb,2\n"), required=["path"]).rows
    assert [row.cells["set"] for row in rows] == list(rows.column("set")) == ["train", ""]
