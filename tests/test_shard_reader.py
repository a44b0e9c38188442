"""Videos of tars show the frames of their files, and a damaged tar or index is one clear message."""

import json
import multiprocessing
import threading
import zlib
from pathlib import Path

import pytest
import torch

import stvid.video.shard_reader as reader
from stvid.data.layouts.shards import shards
from stvid.data.manifest import Manifest
from stvid.data.parts import digest_files
from stvid.errors import CHANGED, MISSING, TRUNCATED, UNREADABLE, InputError, VideoError
from stvid.video.probe import probe
from stvid.video.reader import BACKENDS, is_installed, read_frames
from stvid.video.shard_index import find_member, read_index, video_exists, video_size
from stvid.video.shard_reader import open_member
from stvid.video.types import source_identity


def read(item):
    return read_frames(item.path, [0, 5, 11], info=probe(item.path))


def set_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)


def change_index(folder: Path, change) -> None:
    """`change` gets the lines as plain data."""
    lines = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    change(lines)
    (folder / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("in_memory", [True, False])
def test_every_backend_reads_the_frames_of_the_prepared_file(prepared, monkeypatch, backend, in_memory):
    if not is_installed(backend):
        pytest.skip(f"{backend} is not installed")
    if not in_memory:
        monkeypatch.setattr(reader, "MAX_IN_MEMORY", 0)
    copies, items = Manifest.read_csv(prepared / "manifest.csv").items, shards(root=str(prepared / "shards")).items
    for copy, item in list(zip(copies, items, strict=True))[::5]:
        info = probe(item.path)
        assert info == probe(copy.path), "known from the index"
        expected = read_frames(copy.path, [7, 0, 11, 7])
        assert torch.equal(read_frames(item.path, [7, 0, 11, 7], info=info, backend=backend), expected)
        assert torch.equal(read_frames(item.path, [3], short_side=20), read_frames(copy.path, [3], short_side=20))


def test_paths_of_members_exist_and_have_the_size_of_the_video(prepared):
    for copy, item in zip(
        Manifest.read_csv(prepared / "manifest.csv").items, shards(root=str(prepared / "shards")).items, strict=True
    ):
        assert video_exists(item.path)
        assert video_size(item.path) == video_size(copy.path) == Path(copy.path).stat().st_size
    other = prepared / "shards/train-000000.tar/videos/another.mp4"
    assert find_member(other) is None
    assert not video_exists(other)
    assert find_member(prepared / "manifest.csv") is None
    with pytest.raises(VideoError, match=MISSING):
        probe(other)


def test_threads_and_processes_read_the_same_tars_at_once(prepared):
    items = shards(root=str(prepared / "shards")).items
    expected = [read(item) for item in items]
    found = {}

    def read_all(name):
        found[name] = [read(item) for item in items]

    threads = [threading.Thread(target=read_all, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found["forked"] = pool.map(read, items * 2, chunksize=1)[: len(items)]
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for got in found.values() for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_damaged_video_is_told_and_the_others_are_read(shard_folder, monkeypatch, in_memory):
    item, other = shards(root=str(shard_folder)).items[:2]
    member = find_member(item.path)
    if in_memory:
        set_byte(shard_folder / member.shard.name, member.offset + member.num_bytes // 2)
    else:
        monkeypatch.setattr(reader, "MAX_IN_MEMORY", 0)
        set_byte(shard_folder / member.shard.name, member.offset - 512 + 124)  # its size in the header
    with pytest.raises(VideoError, match=f"{member.shard.name} is damaged") as error:
        read(item)
    assert error.value.reason == UNREADABLE
    assert read(other).shape[0] == 3
    if in_memory:
        assert reader.find_damage(item.path).reason == UNREADABLE
    assert reader.find_damage(other.path) is None


def test_a_header_of_another_video_is_told(shard_folder, monkeypatch):
    monkeypatch.setattr(reader, "MAX_IN_MEMORY", 0)
    change_index(shard_folder, lambda lines: lines[1].update(bytes=lines[1]["bytes"] - 1))
    with pytest.raises(VideoError, match="has another video there than its index says") as error:
        read(shards(root=str(shard_folder)).items[0])
    assert error.value.reason == CHANGED


@pytest.mark.parametrize(
    ("damage", "message", "reason"),
    [
        (lambda tar: tar.unlink(), r"{tar} does not exist, and the index lists it. Copy the tars", MISSING),
        (lambda tar: tar.write_bytes(tar.read_bytes()[:5000]), r"{tar} is not complete: it has 5,000 bytes", CHANGED),
        (lambda tar: tar.write_bytes(tar.read_bytes() * 2), r"{tar} is another file than the index lists", CHANGED),
    ],
    ids=["missing", "cut", "larger"],
)
def test_a_tar_that_is_not_that_of_the_index_stops_a_run_and_is_no_other_video(shard_folder, damage, message, reason):
    item = shards(root=str(shard_folder)).items[0]
    tar = shard_folder / find_member(item.path).shard.name
    damage(tar)
    with pytest.raises(InputError) as stopped:
        shards(root=str(shard_folder))
    assert message.format(tar=tar) in str(stopped.value)
    with pytest.raises(VideoError) as error:  # in the midst of a run
        read(item)
    assert error.value.reason == reason
    assert video_exists(item.path) == (reason != MISSING)


def test_a_tar_that_is_cut_while_it_is_open_is_truncated(shard_folder):
    item = shards(root=str(shard_folder)).items[0]
    read(item)
    with (shard_folder / find_member(item.path).shard.name).open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(VideoError, match="ends inside the video") as error:
        read(item)
    assert error.value.reason == TRUNCATED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines.pop(), "it lists 15 videos and should list 16"),
        (lambda lines: lines[0].update(stvid_shards=2), "line 1: line 1.stvid_shards is 2"),
        (lambda lines: lines[3].update(offset=10**9), "line 4: the video ends at byte 1,000,00"),
        (lambda lines: lines[3].pop("crc32"), "line 4: the video has no crc32"),
        (lambda lines: lines[3].update(shard="train-000099.tar"), "line 4: 'train-000099.tar'"),
        (lambda lines: lines[3].update(shard="../../x-000000.tar"), "must be a name like train-000000.tar"),
        (lambda lines: lines[3].update(path="../../secret.mp4"), "must be a path below the tar"),
        (lambda lines: lines[3].update(path="/secret.mp4"), "must be a path below the tar"),
        (lambda lines: lines[3].update(label="dance"), "line 4: the label 'dance' is not in class_names of line 1"),
        (lambda lines: lines[3].update(split="all"), "line 4: the video.split is 'all'"),
        (lambda lines: lines[3]["info"].update(num_frames=0), "line 4: properties that no video has"),
        (lambda lines: lines.__setitem__(3, []), "line 4: the video is []"),
        (lambda lines: lines.clear(), "line 1"),
    ],
)
def test_a_changed_index_is_one_message(shard_folder, change, message):
    change_index(shard_folder, change)
    with pytest.raises(InputError, match=r"index\.jsonl is damaged") as error:
        shards(root=str(shard_folder))
    assert message in str(error.value)
    assert "stvid prepare" in str(error.value)


def test_an_index_that_is_cut_anywhere_is_one_message(shard_folder):
    content = (shard_folder / "index.jsonl").read_bytes()
    for length in range(0, len(content) - 1, 97):
        (shard_folder / "index.jsonl").write_bytes(content[:length])
        with pytest.raises(InputError, match=r"index\.jsonl is damaged"):
            shards(root=str(shard_folder))


def test_a_folder_without_an_index_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match="has no index.jsonl.*--tar-size 1GB; then name OUT/shards"):
        shards(root=str(tmp_path))
    with pytest.raises(InputError, match="does not exist"):
        shards(root=str(tmp_path / "missing"))


def test_an_index_that_was_written_anew_is_read_anew(shard_folder):
    assert read_index(shard_folder) is read_index(shard_folder)
    change_index(shard_folder, lambda lines: lines[1].update(label="to_right"))
    assert shards(root=str(shard_folder)).items[0].label == "to_right"


def test_a_video_is_known_by_its_size_and_checksum_so_that_parts_notice_remade_tars(shard_folder, tmp_path):
    path = shards(root=str(shard_folder)).items[0].path
    content = open_member(path, find_member(path)).read()
    assert source_identity(path) == [len(content), zlib.crc32(content)]
    assert source_identity(shard_folder / "train-000000.tar/videos/none.mp4") is None
    before = digest_files([path])
    index = (shard_folder / "index.jsonl").read_bytes()
    (shard_folder / "index.jsonl").write_bytes(index.replace(b'"crc32": ', b'"crc32": 1'))
    assert digest_files([path]) != before
