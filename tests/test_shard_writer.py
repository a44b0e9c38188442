"""Tars of prepared videos: the same bytes every time, whatever happens on the way."""

import json
import os
import tarfile
from pathlib import Path

import pytest
from numbered import write_video
from test_prepare import items_of, manifest_of, run

import stvid.data.shard_writer as writer
from stvid.data.layouts.shards import shards
from stvid.data.manifest import Item, Manifest
from stvid.data.prepare_plan import parse_size
from stvid.data.shard_writer import Entry, write_shards
from stvid.errors import VideoError
from stvid.video.probe import probe


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def entries_of(prepared: Path) -> list[Entry]:
    items = Manifest.read_csv(prepared / "manifest.csv").items
    names = [Path(item.path).relative_to(prepared).as_posix() for item in items]
    return [
        Entry(item=item, name=name, file=prepared / name, comment=json.dumps({"source": name}))
        for item, name in zip(items, names, strict=True)
    ]


def pack(entries, folder, **options) -> dict:
    options = {"max_bytes": 8000, "num_workers": 0, "progress": False, **options}
    return write_shards(entries, folder, class_names=("to_left", "to_right"), **options)


def test_tars_hold_each_video_and_its_json_and_the_index_their_places(prepared):
    lines = [json.loads(line) for line in (prepared / "shards/index.jsonl").read_text().splitlines()]
    head, lines = lines[0], lines[1:]
    assert (head["num_items"], head["class_names"]) == (16, ["to_left", "to_right"])
    table = Manifest.read_csv(prepared / "manifest.csv").items
    expected = [(str(Path(i.path).relative_to(prepared)), i.label, i.split, i.group) for i in table]
    assert [(line["path"], line["label"], line["split"], line["group"]) for line in lines] == expected
    places = {(line["shard"], line["path"]): line for line in lines}
    num_videos = 0
    for shard in head["shards"]:
        path = prepared / "shards" / shard["name"]
        content = path.read_bytes()
        assert shard["bytes"] == len(content)
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            assert shard["videos"] == len(members) / 2
            assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
            for video, properties in zip(members[::2], members[1::2], strict=True):
                line, values = places[shard["name"], video.name], json.load(tar.extractfile(properties))
                stem, suffix = os.path.splitext(properties.name)
                assert (f"{stem}.mp4", suffix) == (video.name, ".json")
                assert content[line["offset"] :][: line["bytes"]] == (prepared / video.name).read_bytes()
                assert {key: values[key] for key in ("label", "path", "bytes", "crc32", "info")} == {
                    key: line[key] for key in ("label", "path", "bytes", "crc32", "info")
                }
                assert values["info"]["num_frames"] == probe(prepared / video.name).num_frames
                num_videos += 1
    assert num_videos == 16


def test_no_tar_has_more_than_its_size_and_those_of_training_mix_the_classes(prepared, tmp_path):
    entries = entries_of(prepared)
    pack(entries, tmp_path / "tars", max_bytes=20_000)
    plan = writer.plan_shards(entries, max_bytes=20_000)
    assert list(plan) == [f"train-{n:06d}.tar" for n in range(3)] + ["val-000000.tar", "test-000000.tar"]
    for members in plan.values():
        assert sum(entry.file.stat().st_size for entry in members) <= 20_000
    labels = [entry.item.label for name, members in plan.items() if "train" in name for entry in members]
    assert labels != sorted(labels)
    alone = writer.plan_shards(entries, max_bytes=1000)
    assert {len(members) for members in alone.values()} == {1}, "a video that is too large has its own tar"


def test_packing_twice_gives_the_same_bytes(prepared, tmp_path):
    entries = entries_of(prepared)
    pack(entries, tmp_path / "once")
    pack(entries, tmp_path / "twice", num_workers=2)
    assert contents(tmp_path / "once") == contents(tmp_path / "twice")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "once").glob("*.tar")}
    assert pack(entries, tmp_path / "once")["num_kept"] == len(before) > 4
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert contents(tmp_path / "once") == contents(tmp_path / "twice")


def test_a_call_that_was_stopped_goes_on(prepared, tmp_path, monkeypatch):
    entries = entries_of(prepared)
    num_tars = pack(entries, tmp_path / "whole")["num_tars"]
    write_tar, calls = writer._write_tar, []

    def write_two(path, *rest, **options):
        calls.append(path)
        if len(calls) == 3:
            (path.parent / f".{path.name}.0.17.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        return write_tar(path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "_write_tar", write_two)
        with pytest.raises(KeyboardInterrupt):
            pack(entries, tmp_path / "stopped")
    assert not (tmp_path / "stopped/index.jsonl").exists(), "no index before all tars are there"
    assert pack(entries, tmp_path / "stopped") == {
        "num_tars": num_tars,
        "num_kept": 2,
        "bytes": sum(path.stat().st_size for path in (tmp_path / "whole").glob("*.tar")),
    }
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_what_has_changed_is_packed_anew_and_old_tars_go(prepared, tmp_path):
    entries = entries_of(prepared)
    first = pack(entries, tmp_path / "tars", max_bytes=20_000)
    (tmp_path / "tars/train-000001.tar").write_bytes((tmp_path / "tars/train-000001.tar").read_bytes()[:700])
    assert pack(entries, tmp_path / "tars", max_bytes=20_000)["num_kept"] == first["num_tars"] - 1
    damaged = bytearray((tmp_path / "tars/train-000001.tar").read_bytes())
    damaged[600] ^= 1  # in a video: its size stays
    (tmp_path / "tars/train-000001.tar").write_bytes(damaged)
    assert pack(entries, tmp_path / "tars", max_bytes=20_000)["num_kept"] == first["num_tars"] - 1
    large = pack(entries, tmp_path / "tars", max_bytes=10**9)
    assert (large["num_tars"], large["num_kept"]) == (3, 2), "val and test had one tar before"
    assert sorted(path.name for path in (tmp_path / "tars").glob("*.tar")) == [
        f"{split}-000000.tar" for split in ("test", "train", "val")
    ]
    other = [Entry(**{**vars(entry), "comment": '{"source": "another"}'}) for entry in entries]
    assert pack(other, tmp_path / "tars", max_bytes=10**9)["num_kept"] == 0


def test_the_items_of_a_data_set_come_back_in_their_order(tmp_path):
    """With odd names, bad videos, a part of a video, and a video that is there twice."""
    names = ("b.c/one.v2.mp4", "%2E.mp4", "ü" * 70 + ".mp4", os.fsdecode(b"a\xe9.mp4"), "x.tar/in.mp4")
    paths = [tmp_path / "data" / name for name in names]
    for number, path in enumerate(paths, start=5):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / "new.mp4", num_frames=number)
        (tmp_path / "new.mp4").rename(path)
    (tmp_path / "data/bad.mp4").write_text("no video")
    items = (
        *items_of(tmp_path / "data/bad.mp4", *paths),
        Item(path=str(paths[0]), label="clap", split="val", group="anna"),
        Item(path=str(paths[1]), label="clap", split="val", start=0.04, end=0.12),
        Item(path=str(paths[1]), label="wave", split="train"),
    )
    summary = run(manifest_of(items, ("wave", "clap")), tmp_path / "out", tar_size=10**6)
    assert summary["tars"]["num_tars"] == 2
    made = shards(root=str(tmp_path / "out/shards"))
    copies = Manifest.read_csv(tmp_path / "out/manifest.csv", class_names=("wave", "clap")).items
    assert made.class_names == ("wave", "clap")
    assert [(i.label, i.split, i.group) for i in made.items] == [(i.label, i.split, i.group) for i in copies]
    with pytest.raises(VideoError, match="bad.mp4: unreadable"):
        probe(made.items[0].path)
    for copy, item in list(zip(copies, made.items, strict=True))[1:]:
        assert probe(item.path) == probe(copy.path)
        assert Path(item.path).parts[-2:] == Path(copy.path).parts[-2:], "which random choices depend on"
    train = [item for item in made.items if item.split == "train"]
    assert train[-1].path == train[2].path
    with tarfile.open(tmp_path / "out/shards/train-000000.tar", errors="surrogateescape") as tar:
        stems = [Path(name).name for name in tar.getnames()]
    assert len(stems) == 10
    assert all(stem.count(".") == 1 for stem in stems), "the key of WebDataset ends at the first dot"


@pytest.mark.parametrize(
    ("text", "size"), [("1GB", 10**9), ("1.5 mb", 1_500_000), ("2000", 2000), ("1kB", 1000), ("3TB", 3 * 10**12)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "1XB", "-1GB", "nan", "999", "0", "1e9", "GB", "9" * 20])
def test_wrong_sizes_are_told(text):
    with pytest.raises(ValueError, match="must be a size of at least 1kB, such as 500MB or 1GB"):
        parse_size(text)
