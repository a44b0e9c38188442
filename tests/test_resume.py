"""Resuming a run that was killed, stopped by a signal, requeued by Slurm, or gets other options."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY, make_folder, train_py
from omegaconf import OmegaConf
from test_train import rows_of, same_but_time

from stvid.data.datamodule import VideoDataModule
from stvid.data.dataset import TrainingClips
from stvid.errors import InputError
from stvid.run.resume import resume_config
from stvid.run.trust import MOVED_TARGETS
from stvid.training.callbacks.checkpoints import EarlyStop
from stvid.training.callbacks.progress import EpochTable

OPTIONS = ("trainer.max_epochs=3", "augment=none", "ema=0.9", "save_every=1")


def test_kills_at_random_times_change_nothing():
    """`benchmarks/resume.py` does twenty kills; it compares every tensor of the checkpoints."""
    command = [sys.executable, str(ROOT / "benchmarks" / "resume.py"), "--kills", "2", "--each", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills, 0 runs differ" in done.stdout


def train(video_folder, run, *overrides):
    return train_py("data=folder", f"data.root={video_folder}", f"hydra.run.dir={run}", *TINY, *OPTIONS, *overrides)


def assert_equal_runs(run, reference):
    assert same_but_time(run / "metrics.csv") == same_but_time(reference / "metrics.csv")
    for name in ("best.ckpt", "last.ckpt"):
        a, b = (torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (run, reference))
        for part in ("state_dict", "current_model_state"):
            assert all(torch.equal(a[part][key], b[part][key]) for key in b[part])


@pytest.fixture(scope="module")
def finished_run(video_folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("finished") / "run"
    assert train(video_folder, run).returncode == 0
    return run


def send_signal(monkeypatch, number, *, epoch):
    """Makes the run get a signal in the first step of an epoch."""
    original = EpochTable.on_train_batch_start

    def on_train_batch_start(table, trainer, task, batch, batch_idx):
        original(table, trainer, task, batch, batch_idx)
        if (trainer.current_epoch, batch_idx) == (epoch, 0):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(EpochTable, "on_train_batch_start", on_train_batch_start)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_gets_a_signal_saves_and_resumes_to_the_same_result(
    video_folder, finished_run, tmp_path, monkeypatch, number
):
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        send_signal(patch, number, epoch=1)
        done = train(video_folder, tmp_path / "run")
    assert done.returncode == 128 + number, done.stderr
    assert "Traceback" not in done.stderr
    assert signal.getsignal(number) == before
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == 1
    assert train_py(f"resume={tmp_path / 'run'}").returncode == 0
    assert_equal_runs(tmp_path / "run", finished_run)


def test_a_run_augmented_on_the_device_resumes_to_the_result_of_one_augmented_by_the_readers(
    video_folder, tmp_path, monkeypatch
):
    """On a CPU the device is the same, so all bits are."""
    augment = (
        "augment=strong",
        "augment.flip_pairs=[[to_left,to_right]]",
        "augment.rand_augment=1",
        "clip.input=rgb_diff",
    )
    assert train(video_folder, tmp_path / "readers", *augment).returncode == 0
    with monkeypatch.context() as patch:
        patch.setattr(VideoDataModule, "augments_on_device", True)
        with patch.context() as stopped:
            send_signal(stopped, signal.SIGTERM, epoch=1)
            assert train(video_folder, tmp_path / "device", *augment, "data.num_workers=1").returncode == 143
        finish, calls = TrainingClips.augment_batch, []
        patch.setattr(TrainingClips, "augment_batch", lambda *a: calls.append("augment" in a[1]) or finish(*a))
        assert train_py(f"resume={tmp_path / 'device'}").returncode == 0
    assert any(calls)
    assert_equal_runs(tmp_path / "device", tmp_path / "readers")


def test_a_slurm_job_is_requeued_and_resumes_in_its_folder(video_folder, finished_run, tmp_path, monkeypatch):
    """With a `scontrol` that logs its arguments."""
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "scontrol"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n')
    tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.chdir(tmp_path)
    slurm = ("trainer=slurm", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.strategy=auto")
    command = (*slurm, "data=folder", f"data.root={video_folder}", *TINY, *OPTIONS)
    with monkeypatch.context() as patch:
        send_signal(patch, signal.SIGUSR1, epoch=1)
        assert train_py(*command).returncode == 128 + signal.SIGUSR1
    assert (tmp_path / "called").read_text() == "requeue 4711\n"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    done = train_py(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_equal_runs(tmp_path / "outputs" / "slurm_4711", finished_run)


def test_a_run_killed_after_its_last_epoch_only_evaluates(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "result.json").unlink()
    done = train_py(f"resume={run}")
    assert done.returncode == 0, done.stderr
    a, b = (json.loads((folder / "result.json").read_text()) for folder in (run, finished_run))
    assert all(a[key] == b[key] for key in ("loss", "confusion", "epoch", "training_seconds"))
    assert_equal_runs(run, finished_run)


def test_a_finished_run_says_so_and_how_to_train_longer(finished_run):
    before = (finished_run / "result.json").read_bytes()
    done = train_py(f"resume={finished_run}")
    assert done.returncode == 0
    assert "is finished" in done.stdout
    assert "trainer.max_epochs=N allow_changes=true" in done.stdout
    assert (finished_run / "result.json").read_bytes() == before


def test_a_finished_run_can_be_trained_longer(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    done = train_py(f"resume={run}", "trainer.max_epochs=4", "data.num_workers=1", "allow_changes=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["epoch"] for row in rows_of(run / "metrics.csv")] == ["1", "2", "3", "4"]
    config = OmegaConf.load(run / "config.yaml")
    assert config.trainer.max_epochs == 4
    assert config.data.datamodule.num_workers == 1


def test_a_run_of_the_version_before_the_new_layout_resumes(finished_run, tmp_path):
    """Its config has the old names, and no key `trust`."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    text = (run / "config.yaml").read_text().replace("trust: []\n", "")
    for old, new in MOVED_TARGETS.items():
        text = text.replace(f"_target_: {new}\n", f"_target_: {old}\n")
    assert "stvid.training.optim.Optimization\n" in text
    (run / "config.yaml").write_text(text)
    done = train_py(f"resume={run}", "trainer.max_epochs=4", "allow_changes=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(rows_of(run / "metrics.csv")) == 4


def test_code_that_only_the_run_names_is_not_imported_without_trust(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    config = OmegaConf.load(run / "config.yaml")
    config.loss, config.trust = {"_target_": "unknown_package.Loss"}, ["unknown_package"]
    OmegaConf.save(config, run / "config.yaml")
    done = train_py(f"resume={run}")
    assert done.returncode == 2
    assert "loss._target_ (=unknown_package.Loss) of the run is code outside of stvid" in done.stderr
    assert "add trust=[unknown_package]" in done.stderr
    (run / "checkpoints" / "last.ckpt").unlink()  # it would tell that the config was changed
    done = train_py(f"resume={run}", "trust=[unknown_package]")
    assert "No module named 'unknown_package'" in done.stderr  # it was tried


DATAMODULE = {"num_workers": "${data.num_workers}", "augment": "${augment}", "manifest": {"root": "${data.root}"}}
NEW = {"resume": "RUN", "allow_changes": False, "sweep": {}, "data": {"datamodule": DATAMODULE}}
STORED = {
    "resume": None,
    "allow_changes": False,
    "seed": 0,
    "trainer": {"max_epochs": 3},
    "data": {"num_workers": 2, "datamodule": {"num_workers": 2, "augment": {"flip": 0.5}}},
    "augment": {"flip": 0.5},
}


def resumed_with(*overrides, allow=False):
    new = OmegaConf.create({**NEW, "allow_changes": allow})
    return OmegaConf.to_container(resume_config(OmegaConf.create(STORED), ["resume=RUN", *overrides], new))


def test_a_harmless_override_is_allowed_and_applied_everywhere():
    config = resumed_with("data.num_workers=7")
    assert (config["data"]["num_workers"], config["data"]["datamodule"]["num_workers"]) == (7, 7)
    config = resumed_with("augment.flip=0", allow=True)
    assert (config["augment"]["flip"], config["data"]["datamodule"]["augment"]["flip"]) == (0, 0)
    assert resumed_with("hydra.verbose=true") == STORED


def test_an_override_that_changes_the_result_needs_allow_changes():
    with pytest.raises(InputError, match=r"leave out trainer.max_epochs=9, or insist with allow_changes=true"):
        resumed_with("trainer.max_epochs=9", "data.num_workers=7")
    assert resumed_with("trainer.max_epochs=9", allow=True)["trainer"] == {"max_epochs": 9}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer=cpu", "cannot change"),
        ("~seed", "cannot change"),
        ("optimizer.lr=1", "model.weights=RUN"),
        ("data.datamodule.manifest.root=elsewhere", "cannot change"),
        ("trainer.max_epoch=9", "trainer.max_epochs"),
    ],
)
def test_a_run_keeps_its_videos_model_and_groups(override, message):
    with pytest.raises(InputError, match=message):
        resumed_with(override, allow=True)


def test_refused_overrides_leave_the_run_unchanged(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file() and path.name != "train.log"}
    for override in ("optimizer.weight_decay=0", "model.dropout=0.9", "clip.size=48"):
        done = train_py(f"resume={run}", override, "trainer.max_epochs=4", "allow_changes=true")
        assert done.returncode == 2
        assert override in done.stderr
    assert train_py(f"resume={run}", f"hydra.run.dir={tmp_path / 'other'}").returncode == 2
    assert "last.ckpt" in train_py(f"resume={run / 'checkpoints' / 'best.ckpt'}").stderr
    assert all(path.read_bytes() == content for path, content in before.items())


def test_fewer_epochs_than_trained_are_refused_and_leave_the_run_unchanged(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    before = (run / "config.yaml").read_bytes()
    epochs = len(rows_of(run / "metrics.csv"))
    done = train_py(f"resume={run}", f"trainer.max_epochs={epochs - 1}", "allow_changes=true")
    assert done.returncode == 2, done.stderr
    assert f"at the end of epoch {epochs} already" in done.stderr
    assert (run / "config.yaml").read_bytes() == before


def test_the_batch_size_cannot_change_within_an_epoch(video_folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        send_signal(patch, signal.SIGTERM, epoch=1)
        done = train(video_folder, tmp_path / "run")
    assert f"python {ROOT / 'train.py'} resume={tmp_path / 'run'}" in done.stdout
    done = train_py(f"resume={tmp_path / 'run'}", "data.batch_size=2", "allow_changes=true")
    assert done.returncode == 2
    assert "at the end of an epoch only" in done.stderr
    assert train_py(f"resume={tmp_path / 'run'}").returncode == 0


def test_a_run_of_an_older_version_names_its_missing_keys():
    new = OmegaConf.create({**NEW, "loss": {"label_smoothing": 0.1}})
    with pytest.raises(InputError, match="older version of stvid, without loss"):
        resume_config(OmegaConf.create(STORED), ["resume=RUN"], new)


def test_early_stopping_ends_a_run_without_improvement(video_folder, tmp_path):
    root = make_folder(tmp_path / "videos", videos=4)
    slow = ("optimizer.lr=1e-12", "early_stopping=2", "trainer.max_epochs=9", "ema=null")
    done = train(root, tmp_path / "run", *slow)
    assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "run" / "metrics.csv")) < 9
    assert "stopped early: 2 validations without a better result" in done.stdout
    stop = EarlyStop(patience=2)
    stop.wait_count = 2  # as after a kill behind its last epoch
    trainer = type("Trainer", (), {"should_stop": False})()
    stop.on_train_start(trainer, None)
    assert trainer.should_stop


@pytest.mark.parametrize(
    ("override", "message"),
    [("save_every=0", "save_every (=0)"), ("early_stopping=0", "early_stopping (=0)"), ("ema=2", "ema (=2)")],
)
def test_values_out_of_range_are_errors(video_folder, tmp_path, override, message):
    done = train(video_folder, tmp_path / "run", override)
    assert done.returncode == 2
    assert message in done.stderr
