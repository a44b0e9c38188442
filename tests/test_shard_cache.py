"""Tars of a URL are fetched when they are needed, whole and once, into a folder that stays below its limit."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
import torch
from conftest import TINY, train_py

import stvid.video.shard_cache as cache
from stvid.data.layouts.shards import shards
from stvid.data.loading import _log_small_cache, tar_places, warn_of_small_cache
from stvid.errors import InputError, VideoError
from stvid.files import _machine
from stvid.video.probe import probe
from stvid.video.reader import read_frames
from stvid.video.shard_index import find_member, video_exists
from stvid.video.shard_reader import _open_tars, _OpenTars


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """The cache of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "stvid" / "shards"


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list[float]:
    """Seconds that were waited between attempts; they take no time."""
    waits: list[float] = []
    monkeypatch.setattr(cache.time, "sleep", waits.append)
    return waits


@pytest.fixture
def url(prepared):
    """The tars in a file system in memory."""
    memory = fsspec.filesystem("memory")
    memory.mkdirs("/bucket/tars", exist_ok=True)
    for path in (prepared / "shards").glob("[!.]*"):
        if path.is_file():
            memory.pipe_file(f"/bucket/tars/{path.name}", path.read_bytes())
    yield "memory://bucket/tars"
    memory.rm("/bucket", recursive=True)


@pytest.fixture
def fetched(monkeypatch):
    """Names of the tars that were fetched."""
    names, fetch = [], cache._fetch

    def recorded(url, name, target, *, num_bytes):
        names.append(name)
        fetch(url, name, target, num_bytes=num_bytes)

    monkeypatch.setattr(cache, "_fetch", recorded)
    return names


def tars_in(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("*.tar")}


def test_the_items_are_those_of_the_folder_and_tars_come_when_they_are_read(url, prepared, tmp_path, fetched):
    items = shards(root=url, cache=str(tmp_path / "cache")).items
    local = shards(root=str(prepared / "shards")).items
    assert [Path(i.path).relative_to(tmp_path / "cache") for i in items] == [
        Path(i.path).relative_to(prepared / "shards") for i in local
    ]
    assert [probe(item.path) for item in items] == [probe(item.path) for item in local]
    assert tar_places(items) == tar_places(local)
    assert all(video_exists(item.path) for item in items)
    assert tars_in(tmp_path / "cache") == {}
    for item, expected in zip(items, local, strict=True):
        assert torch.equal(read_frames(item.path, [0, 7]), read_frames(expected.path, [0, 7]))
    assert sorted(fetched) == sorted(tars_in(prepared / "shards"))
    assert tars_in(tmp_path / "cache") == tars_in(prepared / "shards")


def test_the_folder_stays_below_its_limit_and_keeps_what_was_used_last(url, tmp_path, fetched, monkeypatch):
    times = iter(range(10**6))
    monkeypatch.setattr("stvid.video.shard_reader.mark_used", lambda path: os.utime(path, ns=(0, next(times))))
    items = [i for i in shards(root=url, cache=str(tmp_path / "cache"), cache_gb=45e-6).items if i.split == "train"]
    by_tar = {find_member(item.path).shard.name: item for item in items}
    assert len(by_tar) > 4
    for number, (name, item) in enumerate(by_tar.items()):
        read_frames(item.path, [0])
        kept = tars_in(tmp_path / "cache")
        assert sum(kept.values()) <= 45_000
        assert name in kept
        assert len(kept) == min(number + 1, 45_000 // max(kept.values()))
    assert fetched == list(by_tar)
    _open_tars.files.clear()
    read_frames(next(reversed(by_tar.values())).path, [0])
    assert len(fetched) == len(by_tar), "the newest is still there"
    read_frames(next(iter(by_tar.values())).path, [0])
    assert fetched[-1] == next(iter(by_tar)), "the oldest is fetched again"


@pytest.mark.parametrize(("window", "cache_gb", "warns"), [(12, 45e-6, True), (2, 45e-6, False), (12, 1.0, False)])
def test_a_buffer_that_spans_more_than_the_cache_is_told(url, tmp_path, caplog, window, cache_gb, warns):
    _log_small_cache.cache_clear()
    items = [i for i in shards(root=url, cache=str(tmp_path / "cache"), cache_gb=cache_gb).items if i.split == "train"]
    for _ in range(2):
        warn_of_small_cache(items, window=window)
    assert sum("spans tars of" in record.message for record in caplog.records) == warns


def test_a_tar_that_is_not_whole_is_fetched_again(url, tmp_path, fetched):
    item = shards(root=url, cache=str(tmp_path / "cache")).items[0]
    expected = read_frames(item.path, [3])
    tar = Path(find_member(item.path).shard.path)
    tar.write_bytes(tar.read_bytes()[:1000])
    _open_tars.files.clear()
    assert torch.equal(read_frames(item.path, [3]), expected)
    assert fetched == [tar.name] * 2


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_tar_that_cannot_be_fetched_stops_the_run(url, tmp_path, fetched, damage):
    """As bad videos, the run would go on without them."""
    item = shards(root=url, cache=str(tmp_path / "cache")).items[0]
    memory, name = fsspec.filesystem("memory"), find_member(item.path).shard.name
    content = memory.cat_file(f"/bucket/tars/{name}")
    memory.rm(f"/bucket/tars/{name}")
    if damage == "cut":
        memory.pipe_file(f"/bucket/tars/{name}", content[:-512])
    with pytest.raises(InputError, match=f"{url}/{name} could not be fetched in 3 attempts") as error:
        read_frames(item.path, [0])
    if damage == "cut":
        assert f"it has {len(content) - 512:,} bytes, the index says {len(content):,}" in str(error.value)
    assert not [path for path in (tmp_path / "cache").iterdir() if "tar" in path.name]
    memory.pipe_file(f"/bucket/tars/{name}", content)
    assert len(read_frames(item.path, [0])) == 1


def test_fetching_is_tried_three_times_with_a_growing_wait(url, tmp_path, waits, monkeypatch):
    failures, open_url = iter([OSError("busy")] * 2), fsspec.open

    def failing(*arguments):
        for error in failures:
            raise error
        return open_url(*arguments)

    monkeypatch.setattr(fsspec, "open", failing)
    item = shards(root=url, cache=str(tmp_path / "cache")).items[0]
    assert waits == [0.5, 2.0], "the index"
    failures = iter([OSError("busy"), TimeoutError()])
    assert len(read_frames(item.path, [0])) == 1
    assert waits == [0.5, 2.0] * 2, "a tar"


def test_partial_tars_of_killed_processes_are_removed_and_those_of_others_need_room(url, tmp_path, fetched):
    folder = tmp_path / "cache"
    items = [i for i in shards(root=url, cache=str(folder), cache_gb=45e-6).items if i.split == "train"]
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    dead = folder / f".train-000000.tar.{_machine()}.{killed.pid}.partial"
    other = folder / ".train-000000.tar.01234567.1.partial"
    dead.write_bytes(bytes(40_000))
    other.write_bytes(bytes(25_000))
    for item in items:
        read_frames(item.path, [0])
        assert not dead.exists()
        assert sum(path.stat().st_size for path in folder.glob("*.tar*")) <= 45_000
    assert other.exists()
    os.utime(other, (time.time() - 90_000,) * 2)
    dead.write_bytes(bytes(40_000))
    shards(root=url, cache=str(folder), cache_gb=45e-6)
    assert not dead.exists()
    assert not other.exists(), "nobody has written it for more than a day"


@pytest.mark.parametrize("has_link", [False, True])
def test_a_reader_closes_removed_tars_when_it_opens_another(url, tmp_path, monkeypatch, has_link):
    """On NFS, a file that is removed while it is open keeps a link: `.nfs0123`."""
    monkeypatch.setattr("stvid.video.shard_reader._open_tars", open_tars := _OpenTars())
    items = [i for i in shards(root=url, cache=str(tmp_path / "cache")).items if i.split == "train"]
    paths = list({find_member(item.path).shard.name: item.path for item in items}.values())[:3]
    read_frames(paths[0], [0])
    read_frames(paths[1], [0])
    (removed, kept) = open_tars.files.items()
    if has_link:
        Path(removed[0].path).rename(tmp_path / ".nfs0123")
    else:
        Path(removed[0].path).unlink()
    assert len(read_frames(paths[0], [1])) == 1, "it is still read"
    assert not removed[1].closed
    read_frames(paths[2], [0])
    assert (removed[1].closed, kept[1].closed) == (True, False)
    assert len(open_tars.files) == 2


def test_a_tar_that_another_machine_has_removed_is_fetched_again(url, tmp_path, fetched, monkeypatch):
    """On NFS, reading a file that another machine has removed is ESTALE."""
    monkeypatch.setattr("stvid.video.shard_reader._open_tars", open_tars := _OpenTars())
    item = shards(root=url, cache=str(tmp_path / "cache")).items[0]
    expected = read_frames(item.path, [3])
    ((tar, file),) = open_tars.files.items()
    Path(tar.path).unlink()
    stale = open_tars.files[tar] = StaleFile(file)
    assert torch.equal(read_frames(item.path, [3]), expected)
    assert (fetched, stale.closed) == ([tar.name] * 2, True)


class StaleFile(io.FileIO):
    """An open file whose second read is ESTALE."""

    def __init__(self, file):
        super().__init__(os.dup(file.fileno()))
        self.num_reads = 0

    def read(self, size):
        self.num_reads += 1
        if self.num_reads == 2:
            raise OSError(errno.ESTALE, "Stale file handle")
        return super().read(min(size, 100))


def test_a_new_index_drops_the_tars_of_the_old_one(url, tmp_path):
    items = shards(root=url, cache=str(tmp_path / "cache")).items
    read_frames(items[0].path, [0])
    shards(root=url + "/", cache=str(tmp_path / "cache"))
    assert len(tars_in(tmp_path / "cache")) == 1
    memory = fsspec.filesystem("memory")
    index = memory.cat_file("/bucket/tars/index.jsonl")
    memory.pipe_file("/bucket/tars/index.jsonl", index.replace(b'"group": null', b'"group": "one"'))
    assert {item.group for item in shards(root=url, cache=str(tmp_path / "cache")).items} == {"one"}
    assert tars_in(tmp_path / "cache") == {}


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("memory://bucket/nothing", "memory://bucket/nothing/index.jsonl cannot be read"),
        ("nosuch://bucket/tars", "nosuch://bucket/tars cannot be read: Protocol not known"),
        ("simplecache::memory://bucket", "names several file systems"),
    ],
)
def test_a_url_that_cannot_be_read_is_one_message(url, tmp_path, root, message):
    with pytest.raises(InputError) as error:
        shards(root=root, cache=str(tmp_path / "cache"))
    assert message in str(error.value)
    assert not (tmp_path / "cache").exists()


def test_a_folder_of_something_else_is_left_alone(url, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="contains other files, such as thesis.tex"):
        shards(root=url, cache=str(tmp_path / "mine"))
    shards(root=url, cache=str(tmp_path / "cache"))
    fsspec.filesystem("memory").copy("/bucket/tars/index.jsonl", "/other/index.jsonl")
    with pytest.raises(InputError, match="holds the tars of memory://bucket/tars, not of memory://other"):
        shards(root="memory://other", cache=str(tmp_path / "cache"))


def test_a_folder_is_accepted_without_its_source_if_it_has_the_index_of_the_url(url, tmp_path, home, fetched):
    """The home folder may be new, and the disk of the tars not."""
    folder = tmp_path / "cache"
    items = shards(root=url, cache=str(folder)).items
    read_frames(items[0].path, [0])
    shutil.rmtree(home)
    assert shards(root=url, cache=str(folder)).items == items
    _open_tars.files.clear()
    read_frames(items[0].path, [0])
    assert len(fetched) == 1
    shutil.rmtree(home)
    (folder / "notes.txt").touch()
    with pytest.raises(InputError, match="contains other files, such as notes.txt"):
        shards(root=url, cache=str(folder))
    (folder / "notes.txt").unlink()
    with (folder / "index.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(InputError, match="contains other files, such as index.jsonl"):
        shards(root=url, cache=str(folder))
    assert len(tars_in(folder)) == 1


def test_a_folder_that_was_not_filled_from_the_url_is_left_alone(url, shard_folder, home, fetched):
    """It may be what the user has uploaded: its tars must not be removed."""
    with pytest.raises(InputError, match="contains other files, such as index.jsonl"):
        shards(root=url, cache=str(shard_folder))


def test_the_default_folder_is_in_the_cache_of_the_user(url, home):
    item = shards(root=url).items[0]
    assert Path(item.path).is_relative_to(home)
    assert shards(root=url + "/").items[0] == item


def test_a_folder_cannot_choose_a_server(url, tmp_path, home):
    """Whoever made it; only a URL that the user has named is read."""
    item = shards(root=url, cache=str(tmp_path / "cache")).items[0]
    for file in home.glob("*.json"):
        shutil.copy(file, tmp_path / "cache")
        file.unlink()
    with pytest.raises(VideoError, match="missing"):
        read_frames(item.path, [0])
    assert not video_exists(item.path)
    with pytest.raises(InputError, match=r"train-\d+\.tar does not exist, and the index lists it"):
        shards(root=str(tmp_path / "cache"))


def test_a_run_trains_from_a_url_in_worker_processes(prepared, tmp_path):
    """`file://` is a file system that worker processes see, too."""
    shutil.copytree(prepared / "shards", tmp_path / "remote")
    options = ("trainer.max_epochs=1", "augment=none", *TINY, "data.num_workers=2")
    url, folder = f"file://{tmp_path / 'remote'}", tmp_path / "my cache"
    run = ("data=shards", f"data.root={url}", f"data.cache={folder}", f"hydra.run.dir={tmp_path / 'run'}")
    done = train_py(*run, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert sum(map(sum, result["confusion"])) == 2
    assert {name.split("-")[0] for name in tars_in(folder)} == {"train", "val"}
    assert str(folder) in (tmp_path / "run/manifest.csv").read_text()
    (tmp_path / "run/manifest.csv").unlink()
    (tmp_path / "run/result.json").unlink()
    done = train_py(f"resume={tmp_path / 'run'}")
    assert (done.returncode, "its config names a server" in done.stderr) == (2, True), done.stderr
    done = train_py("data=shards", f"data.root={url}/nothing", *options)
    assert (done.returncode, "index.jsonl cannot be read" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


def test_a_tar_that_is_gone_ends_a_run_with_one_message_from_any_process(prepared, tmp_path):
    shutil.copytree(prepared / "shards", tmp_path / "remote")
    (tmp_path / "remote/train-000001.tar").unlink()
    options = ("trainer.max_epochs=1", "augment=none", *TINY, "data.num_workers=1")
    source = (f"data.root=file://{tmp_path / 'remote'}", f"data.cache={tmp_path / 'cache'}")
    done = train_py("data=shards", *source, f"hydra.run.dir={tmp_path / 'run'}", *options)
    assert done.returncode == 2, done.stderr
    assert "train-000001.tar could not be fetched in 3 attempts" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
