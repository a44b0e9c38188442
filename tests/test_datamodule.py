import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.utils.class_weight
import torch
from conftest import break_half_way
from torch.utils.data import DataLoader

from stvid.clip import ClipSpec
from stvid.data.datamodule import VideoDataModule, _warn_without_groups
from stvid.data.layouts.class_folders import folder
from stvid.data.loading import resolve_workers, worker_options
from stvid.data.manifest import Manifest
from stvid.data.transforms import Augment
from stvid.errors import TRUNCATED, InputError, VideoError
from stvid.video.reader import is_installed

CLIP = ClipSpec(num_frames=4, frame_stride=2, size=16)


def module(video_folder, *, clip=CLIP, augment=None, **options):
    options = {"num_workers": 0, "batch_size": 4, **options}
    return VideoDataModule(manifest=folder(root=str(video_folder)), clip=clip, augment=augment or Augment(), **options)


def trainer_on(device, **attributes):
    """A stand-in for Lightning's trainer."""
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)), **attributes)


def test_both_loaders_give_what_they_promise(video_folder):
    data = module(video_folder, num_clips=2)
    data.setup()
    train = list(data.train_dataloader())
    assert all(batch["clips"].shape == (4, 4, 3, 16, 16) for batch in train)
    assert len(train) == len(data.train) // 4
    val = list(data.val_dataloader())
    assert sorted(v for batch in val for v in batch["videos"].tolist()) == sorted([*range(len(data.val))] * 2)


def test_an_automatic_batch_size_that_no_training_has_chosen_is_a_clear_error(video_folder):
    data = module(video_folder, batch_size="auto")
    data.setup()
    for loader in (data.train_dataloader, data.val_dataloader):
        with pytest.raises(InputError, match=r"data.batch_size \(=auto\)"):
            loader()


def test_what_probing_found_is_kept_beside_the_videos(video_folder):
    data = module(video_folder)
    data.setup()
    assert (video_folder / ".stvid_probe.jsonl").is_file()


def test_a_few_bad_videos_are_borne_and_many_stop_the_run(video_folder, tmp_path):
    root = tmp_path / "videos"
    for path in video_folder.rglob("*.mp4"):
        (root / path.parent.name).mkdir(parents=True, exist_ok=True)
        (root / path.parent.name / path.name).write_bytes(path.read_bytes())
    data = module(root, max_bad=0.5)
    spoilt = [item.path for item in data.manifest.select("train")[:2]]
    for path in spoilt:
        Path(path).write_bytes(b"nothing")
    data.setup()
    failed = {failure.path for batch in data.train_dataloader() for failure in batch["failed"]}
    assert failed <= set(spoilt)
    with pytest.raises(InputError, match=r"2 of \d+ videos cannot be read") as error:
        module(root).setup()
    assert all(path in str(error.value) for path in spoilt)


def test_a_file_that_breaks_half_way_is_known_beforehand_or_met_when_read(video_folder, tmp_path):
    for path in video_folder.rglob("*.mp4"):
        copy = tmp_path / path.parent.name / path.name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    victim = Path(module(tmp_path).manifest.select("train")[0].path)
    break_half_way(victim)
    actual = {}
    for probe in ("decode", "count"):
        data = module(tmp_path, probe=probe, max_bad=0.5)
        data.setup()
        actual[probe] = [info for info in data.train.infos if isinstance(info, VideoError)]
    assert [error.path for error in actual["decode"]] == [str(victim)]
    assert actual["decode"][0].reason == TRUNCATED


def test_a_backend_that_is_not_installed_is_an_error(video_folder, monkeypatch):
    monkeypatch.setattr("stvid.data.datamodule.is_installed", lambda backend: False)
    with pytest.raises(InputError, match=r"data.backend=decord is not installed: pip install decord2"):
        module(video_folder, backend="decord")
    with pytest.raises(InputError, match=r"pip install 'stvid\[torchcodec\]'"):
        module(video_folder, backend="torchcodec")


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_every_backend_feeds_the_same_batches(video_folder, backend):
    if not is_installed(backend):
        pytest.skip(f"{backend} is not installed")
    batches = []
    for name in ("pyav", backend):
        data = module(video_folder, backend=name, clip=ClipSpec(num_frames=4, frame_stride=2, size=64))
        data.setup()
        batches.append(next(iter(data.train_dataloader())))
    assert torch.equal(batches[0]["clips"], batches[1]["clips"])


def test_balance_draws_small_classes_more_often(video_folder, tmp_path):
    rows = [f"{path},{path.parent.name},train" for path in sorted(video_folder.rglob("*.mp4"))]
    few = [row for row in rows if "to_left" in row][:2] + [row for row in rows if "to_right" in row][:6]
    val = [row.replace(",train", ",val") for row in rows if row not in few]
    (tmp_path / "m.csv").write_text("path,label,split\n" + "\n".join(few + val))
    manifest = Manifest.read_csv(tmp_path / "m.csv")
    data = VideoDataModule(
        manifest=manifest, clip=CLIP, augment=Augment(), batch_size=4, num_workers=0, balance="classes"
    )
    data.setup()
    labels = torch.cat([batch["labels"] for batch in data.train_dataloader()])
    assert labels.bincount().tolist() == [4, 4]
    assert data.class_weights is None
    data.balance = "loss"
    by_hand = sklearn.utils.class_weight.compute_class_weight(
        "balanced", classes=np.array(["to_left", "to_right"]), y=[item.label for item in manifest.select("train")]
    )
    assert data.class_weights == pytest.approx(by_hand.tolist())


def test_a_clip_longer_than_every_video_is_an_error(video_folder):
    data = module(video_folder, clip=ClipSpec(num_frames=16, frame_stride=2))
    with pytest.raises(InputError, match="spans 31 video frames, more than any video has: the longest has 12"):
        data.setup()
    data = module(video_folder, clip=ClipSpec(num_frames=16, frame_stride=2, short="pad"))
    data.setup()  # a clip is then at most so long: each is a whole video
    assert next(iter(data.train_dataloader()))["clips"].shape[:2] == (4, 6)


def test_short_videos_are_an_error_where_asked(video_folder):
    data = module(video_folder, clip=ClipSpec(num_frames=8, frame_stride=2, short="error"))
    with pytest.raises(InputError, match=r"has 12 frames, a clip spans 15, and clip\.short=error"):
        data.setup()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"batch_size": 0}, "data.batch_size"),
        ({"num_workers": -1}, "num_workers (=-1)"),
        ({"num_clips": 0}, "num_clips"),
        ({"num_crops": 2}, "num_crops"),
        ({"max_bad": 2}, "data.max_bad"),
        ({"balance": "class"}, "data.balance (=class) must be one of none, classes, loss"),
        ({"probe": "no"}, "data.probe (=no)"),
        ({"probe_timeout": 0}, "data.probe_timeout"),
        ({"max_pixels": 0}, "data.max_pixels"),
        ({"backend": "opencv"}, "data.backend (=opencv) must be one of pyav, decord, torchcodec"),
        ({"augment": Augment(flip_pairs=[["to_left", "up"]])}, "'up'"),
    ],
)
def test_invalid_settings_are_errors(video_folder, options, expected):
    with pytest.raises(InputError) as error:
        module(video_folder, **options)
    assert expected in str(error.value)


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 2), (3, 2), (4, 2), (6, 3), (64, 8)])
def test_auto_takes_half_of_the_cores_but_two_workers_on_two(monkeypatch, cores, workers):
    for name in ("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("stvid.device.num_cores", lambda: cores)
    assert resolve_workers("auto") == workers


def test_devices_share_the_workers_and_a_number_is_for_each(video_folder, monkeypatch):
    monkeypatch.setattr("stvid.device.num_cores", lambda: 16)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "16")
    data = module(video_folder, num_workers="auto")
    data.setup()
    data.trainer = trainer_on("cpu", num_devices=4, global_rank=1, world_size=8)
    assert data.train_dataloader().num_workers == data.val_dataloader().num_workers == data.num_workers == 2
    assert data.num_workers_alone == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    data.trainer = None
    assert data.num_workers == 4
    data.requested_workers = 1
    data.trainer = trainer_on("cpu", num_devices=4, global_rank=1, world_size=8)
    assert data.train_dataloader().num_workers == data.num_workers_alone == 1


def test_readers_of_validation_do_not_stay_beside_those_of_training(video_folder):
    data = module(video_folder, num_workers=2)
    data.setup()
    train, val, before = data.train_dataloader(), data.val_dataloader(), set(multiprocessing.active_children())
    readers = []
    for _ in range(2):  # epochs
        for loader in (train, val):
            assert len(list(loader)) == len(loader)
            readers.append(set(multiprocessing.active_children()) - before)
    assert len(readers[0]) == 2
    assert readers == [readers[0]] * 4


@pytest.mark.parametrize("persistent", [True, False])
def test_a_process_ends_although_readers_leave_signals_to_it_and_still_wait_for_work(persistent):
    """As where an error keeps a loader alive; the bound is only for a process that never ends."""
    code = (
        "import torch; from torch.utils.data import DataLoader; from stvid.data.loading import worker_options\n"
        f"loader = DataLoader(torch.arange(9), **worker_options(1, persistent={persistent}))\n"
        "batches = iter(loader); print(next(batches))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "tensor([0])\n", "")


class Signalled(torch.utils.data.Dataset):
    """Items that are made in spite of the signals that a terminal or a scheduler sends to every process."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        return index


def test_readers_leave_signals_to_the_process_that_trains():
    assert [int(batch) for batch in DataLoader(Signalled(), batch_size=None, **worker_options(1))] == [0, 1]


@pytest.mark.parametrize(("rank", "times"), [("0", 1), ("1", 0)])
def test_missing_groups_are_told_once_by_the_main_process(video_folder, caplog, monkeypatch, rank, times):
    """The trials of a sweep build one module after another in one process."""
    monkeypatch.setenv("RANK", rank)
    _warn_without_groups.cache_clear()
    for _ in range(2):
        module(video_folder)
    assert sum("no groups are named" in record.message for record in caplog.records) == times


@pytest.mark.parametrize(
    ("choice", "device", "expected"),
    [
        ("auto", "cpu", False),
        ("auto", "cuda", True),
        ("auto", "mps", False),  # not tested there
        ("cpu", "cuda", False),
        ("gpu", "cuda", True),
        ("gpu", "mps", True),
    ],
)
def test_clips_are_augmented_where_the_choice_and_the_device_say(video_folder, choice, device, expected):
    data = module(video_folder, augment=Augment(flip=0.5, device=choice))
    data.setup()
    assert not data.augments_on_device, "without a trainer, nothing would finish the batches"
    data.trainer = trainer_on(device, num_devices=1, global_rank=0, world_size=1)
    assert data.augments_on_device == expected
    assert data.train_dataloader().dataset.augments_later == expected


def test_the_hook_after_the_transfer_finishes_training_batches_and_leaves_others(video_folder, monkeypatch):
    data = module(video_folder, augment=Augment(flip=0.5, flip_pairs=[["to_left", "to_right"]], contrast=0.4))
    data.setup()
    wanted = list(data.train_dataloader())
    monkeypatch.setattr(VideoDataModule, "augments_on_device", True)
    done = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    for batch, other in zip(done, wanted, strict=True):
        assert batch.keys() == other.keys()
        assert torch.equal(batch["clips"], other["clips"])
        assert torch.equal(batch["labels"], other["labels"])
    for batch in data.val_dataloader():
        assert data.on_after_batch_transfer(batch, 0) is batch


def test_features_of_a_frozen_encoder_are_of_clips_that_are_augmented(video_folder, monkeypatch):
    data = module(video_folder, augment=Augment(contrast=0.4))
    data.setup()
    monkeypatch.setattr(VideoDataModule, "augments_on_device", True)
    cached = data.use_cached_features({"encoder": "x"})["train"]
    ((_, batch),) = cached.batches(data.all_keys("train")[:4], batch_size=4, num_workers=0)
    assert "augment" not in batch
