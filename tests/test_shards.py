"""`data=shards` gives what `data=manifest` gives for the same prepared videos, and reads one tar after the other."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, in_process, stvid, train_py
from test_resume import assert_equal_runs, send_signal

import stvid.video.shard_reader as reader
from stvid.cli import main
from stvid.clip import ClipSpec
from stvid.data.datamodule import VideoDataModule
from stvid.data.dataset import collate
from stvid.data.layouts.recognition import recognize
from stvid.data.layouts.shards import shards
from stvid.data.manifest import read_manifest
from stvid.data.sampler import EpochSampler, SampleKey
from stvid.data.transforms import Augment
from stvid.errors import InputError
from stvid.video.shard_index import find_member

CLIP = ClipSpec(num_frames=4, frame_stride=2, size=32)


def module(manifest, **options) -> VideoDataModule:
    options = {"num_workers": 0, "batch_size": 2, "num_clips": 2, "clip": CLIP, "seed": 3, **options}
    data = VideoDataModule(manifest=manifest, augment=Augment(speed=(0.8, 1.25), flip=0.5, contrast=0.3), **options)
    data.setup()
    return data


@pytest.fixture
def pair(prepared):
    """The data modules of the tars and of the table, of one prepared folder."""
    manifests = shards(root=str(prepared / "shards")), read_manifest(path=str(prepared / "manifest.csv"))
    return tuple(map(module, manifests))


def test_clips_are_those_of_the_table_for_the_same_seed_epoch_and_item(pair):
    tars, table = pair
    assert len(tars.train) == len(table.train) == 12
    for epoch in (0, 5):
        for index in range(len(tars.train)):
            a, b = (data.train[SampleKey(epoch, index)] for data in pair)
            assert torch.equal(a["clips"], b["clips"])
            assert a["label"] == b["label"]
    for a, b in zip(tars.val_dataloader(), table.val_dataloader(), strict=True):
        assert torch.equal(a["clips"], b["clips"])
        assert torch.equal(a["labels"], b["labels"])
        assert torch.equal(a["videos"], b["videos"])


def test_clips_augmented_later_are_those_of_the_readers(pair):
    tars, table = pair
    keys = [SampleKey(5, index) for index in range(len(tars.train))]
    later = replace(tars.train, augments_later=True)
    batch = later.augment_batch(collate([later[key] for key in keys]))
    wanted = collate([table.train[key] for key in keys])
    assert torch.equal(batch["clips"], wanted["clips"])
    assert torch.equal(batch["labels"], wanted["labels"])


def batches(data, epoch):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_workers_and_their_number_change_nothing(prepared):
    manifest = shards(root=str(prepared / "shards"))
    expected = batches(module(manifest), 1)
    for num_workers in (1, 2):
        got = batches(module(manifest, num_workers=num_workers), 1)
        assert [batch["paths"] for batch in got] == [batch["paths"] for batch in expected]
        assert all(torch.equal(a["clips"], b["clips"]) for a, b in zip(got, expected, strict=True))


def test_an_epoch_takes_every_item_once_in_an_order_of_seed_and_epoch(prepared):
    manifest = shards(root=str(prepared / "shards"))
    orders = {}
    for seed in (0, 1):
        sampler = module(manifest, seed=seed, shuffle_buffer=3)._train_sampler()
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            orders[seed, epoch] = [key.index for key in sampler]
            assert sorted(orders[seed, epoch]) == list(range(12))
            assert orders[seed, epoch] == [key.index for key in sampler]
            sampler.set_epoch(epoch, start=5)
            assert [key.index for key in sampler] == orders[seed, epoch][5:]
    assert len(set(map(tuple, orders.values()))) == 4


PLACES = [(f"train-{tar:06d}.tar", 512 + 4096 * i) for tar in range(20) for i in range(10)]


def sampler_of(**options) -> EpochSampler:
    return EpochSampler(**{"num_items": 200, "shuffle": True, "places": PLACES, "window": 25, "seed": 1, **options})


def test_tars_follow_each_other_and_items_move_only_within_their_window():
    keys = list(sampler_of())
    in_order = []
    for key in keys:
        tar = key.index // 10
        in_order += [] if tar in in_order else [tar]
    assert sorted(in_order) == list(range(20))
    assert in_order != list(range(20))
    sequence = [key.index for key in sampler_of(window=1)]
    tars = [index // 10 for index in sequence]
    assert [tars[i] for i in range(0, 200, 10)] == list(dict.fromkeys(tars)), "one tar at a time"
    assert all(np.diff(sequence[i : i + 10]).tolist() == [1] * 9 for i in range(0, 200, 10)), "in the file's order"
    mixed = [key.index for key in keys]
    for start in range(0, 200, 25):
        assert sorted(mixed[start : start + 25]) == sorted(sequence[start : start + 25])
        assert mixed[start : start + 25] != sequence[start : start + 25]
    assert set(mixed) == set(range(200))


def test_ranks_share_an_epoch_and_read_the_same_tars_at_the_same_time():
    whole = list(sampler_of())
    parts = [list(sampler_of(rank=rank, world_size=2)) for rank in range(2)]
    assert parts == [whole[0::2], whole[1::2]]


def test_balance_repeats_small_classes_and_lengths_make_batches_of_one_tar_or_two():
    labels = ["small" if i % 10 == 0 else "large" for i in range(200)]
    keys = list(sampler_of(labels=labels))
    assert Counter(labels[key.index] for key in keys) == {"small": 100, "large": 100}
    assert len(set(keys)) == 200
    lengths = [i % 7 for i in range(200)]
    keys = list(sampler_of(lengths=lengths, batch_size=2, window=10))
    assert sorted(key.index for key in keys) == list(range(200))
    assert sum(lengths[a.index] == lengths[b.index] for a, b in zip(keys[::2], keys[1::2], strict=True)) > 90
    tars = [key.index // 10 for key in keys]
    assert len(set(tars[:100])) == 10, "half of the epoch reads half of the tars"


def test_a_tar_is_opened_once_in_an_epoch(prepared, monkeypatch):
    opened, open_tar = [], reader.open_tar
    monkeypatch.setattr(reader, "open_tar", lambda shard: opened.append(shard.name) or open_tar(shard))
    monkeypatch.setattr(reader, "_open_tars", reader._OpenTars())
    data = module(shards(root=str(prepared / "shards")), shuffle_buffer=2)
    names = {find_member(item.path).shard.name for item in data.train.items}
    assert len(names) > reader.MAX_OPEN
    opened.clear()
    assert len(batches(data, 0)) == 6
    assert Counter(opened) == dict.fromkeys(names, 1)


def test_a_hundred_thousand_items_need_no_file(tmp_path, monkeypatch):
    """The time to read such an index is in docs/data.md; here, that nothing is opened but the index."""
    count = 5000
    info = {"num_frames": 48, "fps": 24.0, "duration": 2.0, "height": 80, "width": 80, "codec": "h264"}
    lines = [{"stvid_shards": 1, "num_items": count, "class_names": ["a", "b"]}]
    lines[0]["shards"] = [
        {"name": f"{split}-000000.tar", "bytes": 10**9, "videos": count // 2} for split in ("train", "val")
    ]
    for i in range(count):
        split, place = ("train", "val")[i % 2], {"offset": 4096 * i, "bytes": 4000, "crc32": 0, "info": info}
        line = {"path": f"videos/{i}.mp4", "label": "ab"[i // 2 % 2], "split": split, "group": f"g{i}"}
        lines.append({**line, "shard": f"{split}-000000.tar", **place})
    (tmp_path / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for split in ("train", "val"):
        with (tmp_path / f"{split}-000000.tar").open("wb") as file:
            file.truncate(10**9)
    monkeypatch.setattr(reader, "open_tar", lambda shard: pytest.fail("a tar was opened"))
    data = module(shards(root=str(tmp_path)))
    assert (len(data.train), data.bad) == (count // 2, {})
    assert len(list(data._train_sampler())) == count // 2


def test_a_buffer_below_one_is_told(prepared):
    with pytest.raises(InputError, match=r"data.shuffle_buffer \(=0\)"):
        module(shards(root=str(prepared / "shards")), shuffle_buffer=0)


def test_a_folder_of_tars_is_recognised(prepared):
    assert recognize(prepared / "shards")[:2] == ("shards", "data.root")


@pytest.fixture(scope="module")
def tar_run(prepared, tmp_path_factory):
    run = tmp_path_factory.mktemp("tars") / "run"
    done = train(prepared, run)
    assert done.returncode == 0, done.stdout + done.stderr
    return run


def train(prepared, run, *overrides):
    options = ("trainer.max_epochs=3", "augment=none", "ema=0.9", "save_every=1", "data.shuffle_buffer=4", *TINY)
    return train_py("data=shards", f"data.root={prepared / 'shards'}", f"hydra.run.dir={run}", *options, *overrides)


def test_a_run_that_was_stopped_resumes_to_the_same_result(prepared, tar_run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        send_signal(patch, 15, epoch=1)
        assert train(prepared, tmp_path / "run").returncode == 143
    done = train_py(f"resume={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert_equal_runs(tmp_path / "run", tar_run)


def test_evaluation_of_the_tars_is_that_of_the_table(prepared, tar_run):
    results = []
    for more in ([], ["--manifest", str(prepared / "manifest.csv")]):
        done = in_process(["stvid", "evaluate", str(tar_run), "--no-report", *more], main)
        assert done.returncode == 0, done.stdout + done.stderr
        results.append(json.loads((tar_run / "evaluate/test/result.json").read_text()))
    assert results[0]["loss"] == results[1]["loss"]
    assert results[0]["confusion"] == results[1]["confusion"]
    assert "train-" not in (tar_run / "evaluate/test/predictions.csv").read_text()
    video = prepared / "videos/to_left/01.mp4"
    done = in_process(["stvid", "predict", str(tar_run), str(video)], main)
    assert (done.returncode, "to_left" in done.stdout) == (0, True), done.stderr


def test_tars_that_were_moved_are_found(prepared, tar_run, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in (prepared / "shards").iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    table = tar_run / "manifest.csv"
    content = table.read_text()
    try:
        table.write_text(content.replace(str(prepared / "shards"), str(tmp_path / "gone")))
        done = in_process(["stvid", "evaluate", str(tar_run), "--split", "val", "--no-report"], main)
        assert (done.returncode, "Moved? Go on with" in done.stderr) == (2, True), done.stderr
        command = ["stvid", "evaluate", str(tar_run), "--split", "val", "--data-root", str(moved), "--no-report"]
        done = in_process(command, main)
        assert done.returncode == 0, done.stderr
    finally:
        table.write_text(content)


def test_check_compares_checksums(shard_folder):
    item = shards(root=str(shard_folder)).items[3]
    member = find_member(item.path)
    tar = shard_folder / member.shard.name
    content = bytearray(tar.read_bytes())
    content[member.offset + 100] ^= 1
    tar.write_bytes(content)
    report = shard_folder / "check.json"
    done = in_process(["stvid", "check", "data=shards", f"data.root={shard_folder}", "--json", str(report)], main)
    assert done.returncode == 1, done.stderr
    bad = json.loads(report.read_text())["bad"]
    assert [(entry["path"], entry["reason"]) for entry in bad] == [(item.path, "unreadable")]


@pytest.mark.slow
def test_two_processes_train(prepared, tmp_path):
    run = tmp_path / "run"
    options = ("trainer.max_epochs=1", "trainer.devices=2", "augment=none", "report=false", *TINY)
    done = stvid("train", "data=shards", f"data.root={prepared / 'shards'}", f"hydra.run.dir={run}", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (run / "result.json").exists()


def test_features_of_a_frozen_encoder_are_cached_beside_the_tars(shard_folder):
    data = module(shards(root=str(shard_folder)))
    cached = data.use_cached_features({"encoder": "x"})["train"]
    keys = [cached.cache_key(key) for key in data.all_keys("train")]
    assert len(set(keys)) == 12
    member = find_member(data.train.items[0].path)
    assert cached.files[0] == [member.num_bytes, member.crc32]
    assert Path(cached.cache.path).parent == shard_folder / ".stvid_features"
