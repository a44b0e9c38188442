"""Going on with a run: killed, told to stop, put back into the queue, or with other options."""

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

from stvid.errors import InputError
from stvid.run.checkpoint import MOVED_TARGETS
from stvid.run.resume import resumed
from stvid.training.callbacks.checkpoints import EarlyStop
from stvid.training.callbacks.progress import EpochTable

OPTIONS = ("trainer.max_epochs=3", "augment=none", "ema=0.9", "save_every=1")


def test_three_kills_at_random_moments_change_nothing():
    """`benchmarks/resume.py` does twenty; it compares every tensor of the checkpoints."""
    command = [sys.executable, str(ROOT / "benchmarks" / "resume.py"), "--kills", "3", "--each", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills, 0 runs differ" in done.stdout


def train(video_folder, run, *overrides):
    return train_py("data=folder", f"data.root={video_folder}", f"hydra.run.dir={run}", *TINY, *OPTIONS, *overrides)


def same_run(one, other):
    assert same_but_time(one / "metrics.csv") == same_but_time(other / "metrics.csv")
    for name in ("best.ckpt", "last.ckpt"):
        mine, its = (torch.load(run / "checkpoints" / name, weights_only=True) for run in (one, other))
        for part in ("state_dict", "current_model_state"):
            assert all(torch.equal(mine[part][key], its[part][key]) for key in its[part])


@pytest.fixture(scope="module")
def whole(video_folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train(video_folder, run).returncode == 0
    return run


def signalled(monkeypatch, number, *, epoch):
    """The run gets a signal in the first step of an epoch."""
    original = EpochTable.on_train_batch_start

    def on_train_batch_start(table, trainer, task, batch, batch_idx):
        original(table, trainer, task, batch, batch_idx)
        if (trainer.current_epoch, batch_idx) == (epoch, 0):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(EpochTable, "on_train_batch_start", on_train_batch_start)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_saves_and_leaves_and_goes_on_as_if_nothing_had_been(
    video_folder, whole, tmp_path, monkeypatch, number
):
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        signalled(patch, number, epoch=1)
        done = train(video_folder, tmp_path / "run")
    assert done.returncode == 128 + number, done.stderr
    assert "Traceback" not in done.stderr
    assert signal.getsignal(number) == before
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == 1
    assert train_py(f"resume={tmp_path / 'run'}").returncode == 0
    same_run(tmp_path / "run", whole)


def test_a_slurm_job_goes_back_into_the_queue_and_goes_on_in_its_folder(video_folder, whole, tmp_path, monkeypatch):
    """With a `scontrol` that writes down how it was called."""
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
        signalled(patch, signal.SIGUSR1, epoch=1)
        assert train_py(*command).returncode == 128 + signal.SIGUSR1
    assert (tmp_path / "called").read_text() == "requeue 4711\n"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    done = train_py(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    same_run(tmp_path / "outputs" / "slurm_4711", whole)


def test_a_run_killed_after_its_last_epoch_only_judges(whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "result.json").unlink()
    done = train_py(f"resume={run}")
    assert done.returncode == 0, done.stderr
    mine, its = (json.loads((one / "result.json").read_text()) for one in (run, whole))
    assert {key: mine[key] for key in ("loss", "confusion", "epoch")} == {
        key: its[key] for key in ("loss", "confusion", "epoch")
    }
    assert mine["training_seconds"] == its["training_seconds"]
    same_run(run, whole)


def test_a_finished_run_says_so_and_how_to_train_longer(whole):
    before = (whole / "result.json").read_bytes()
    done = train_py(f"resume={whole}")
    assert done.returncode == 0
    assert "is finished" in done.stdout
    assert "trainer.max_epochs=N allow_changes=true" in done.stdout
    assert (whole / "result.json").read_bytes() == before


def test_a_finished_run_can_be_trained_longer(whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    done = train_py(f"resume={run}", "trainer.max_epochs=4", "data.num_workers=1", "allow_changes=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["epoch"] for row in rows_of(run / "metrics.csv")] == ["1", "2", "3", "4"]
    config = OmegaConf.load(run / "config.yaml")
    assert config.trainer.max_epochs == 4
    assert config.data.datamodule.num_workers == 1


def test_a_run_of_the_version_before_the_new_layout_resumes(whole, tmp_path):
    """Its config has the old names, and no key `trust`."""
    run = shutil.copytree(whole, tmp_path / "run")
    text = (run / "config.yaml").read_text().replace("trust: []\n", "")
    for old, new in MOVED_TARGETS.items():
        text = text.replace(f"_target_: {new}\n", f"_target_: {old}\n")
    assert "stvid.training.optim.Optimization\n" in text
    (run / "config.yaml").write_text(text)
    done = train_py(f"resume={run}", "trainer.max_epochs=4", "allow_changes=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(rows_of(run / "metrics.csv")) == 4


def test_code_that_only_the_run_names_is_not_imported_without_trust(whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    config = OmegaConf.load(run / "config.yaml")
    config.loss, config.trust = {"_target_": "unknown_package.Loss"}, ["unknown_package"]
    OmegaConf.save(config, run / "config.yaml")
    done = train_py(f"resume={run}")
    assert done.returncode == 2
    assert "loss._target_ (=unknown_package.Loss) of the run is code outside of stvid" in done.stderr
    assert "add trust=[unknown_package]" in done.stderr
    done = train_py(f"resume={run}", "trust=[unknown_package]")
    assert "No module named 'unknown_package'" in done.stderr  # it was tried


WIRES = {"num_workers": "${data.num_workers}", "augment": "${augment}", "manifest": {"root": "${data.root}"}}
WIRED = {"data": {"datamodule": WIRES}}
FRESH = {"resume": "RUN", "allow_changes": False, "sweep": {}, **WIRED}
OWN = {
    "resume": None,
    "allow_changes": False,
    "seed": 0,
    "trainer": {"max_epochs": 3},
    "data": {"num_workers": 2, "datamodule": {"num_workers": 2, "augment": {"flip": 0.5}}},
    "augment": {"flip": 0.5},
}


def beside(*overrides, allow=False):
    fresh = OmegaConf.create({**FRESH, "allow_changes": allow})
    return OmegaConf.to_container(resumed(OmegaConf.create(OWN), ["resume=RUN", *overrides], fresh))


def test_what_changes_nothing_may_stand_beside_resume_and_reaches_every_place():
    found = beside("data.num_workers=7")
    assert (found["data"]["num_workers"], found["data"]["datamodule"]["num_workers"]) == (7, 7)
    found = beside("augment.flip=0", allow=True)
    assert (found["augment"]["flip"], found["data"]["datamodule"]["augment"]["flip"]) == (0, 0)
    assert beside("hydra.verbose=true") == OWN


def test_what_would_change_the_result_must_be_insisted_on():
    with pytest.raises(InputError, match=r"leave out trainer.max_epochs=9, or insist with allow_changes=true"):
        beside("trainer.max_epochs=9", "data.num_workers=7")
    assert beside("trainer.max_epochs=9", allow=True)["trainer"] == {"max_epochs": 9}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer=cpu", "keeps its videos"),
        ("~seed", "keeps its videos"),
        ("optimizer.lr=1", "model.weights=RUN"),
        ("data.root=elsewhere", "keeps its videos"),
        ("trainer.max_epoch=9", "trainer.max_epochs"),
    ],
)
def test_a_run_does_not_become_another(override, words):
    with pytest.raises(InputError, match=words):
        beside(override, allow=True)


def test_what_a_checkpoint_decides_is_refused_before_anything_is_lost(whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file() and path.name != "train.log"}
    for override in ("optimizer.weight_decay=0", "model.dropout=0.9", "clip.size=48"):
        done = train_py(f"resume={run}", override, "trainer.max_epochs=4", "allow_changes=true")
        assert done.returncode == 2
        assert override in done.stderr
    assert train_py(f"resume={run}", f"hydra.run.dir={tmp_path / 'other'}").returncode == 2
    assert "last.ckpt" in train_py(f"resume={run / 'checkpoints' / 'best.ckpt'}").stderr
    assert all(path.read_bytes() == content for path, content in before.items())


def test_an_epoch_is_ended_with_the_batches_it_was_begun_with(video_folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGTERM, epoch=1)
        done = train(video_folder, tmp_path / "run")
    assert f"python {ROOT / 'train.py'} resume={tmp_path / 'run'}" in done.stdout
    done = train_py(f"resume={tmp_path / 'run'}", "data.batch_size=2", "allow_changes=true")
    assert done.returncode == 2
    assert "at the end of an epoch only" in done.stderr
    assert train_py(f"resume={tmp_path / 'run'}").returncode == 0


def test_a_run_of_an_older_version_says_what_it_lacks():
    fresh = OmegaConf.create({**FRESH, "loss": {"label_smoothing": 0.1}})
    with pytest.raises(InputError, match="older version of stvid, without loss"):
        resumed(OmegaConf.create(OWN), ["resume=RUN"], fresh)


def test_a_run_stops_when_it_gets_no_better(video_folder, tmp_path):
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
    ("override", "words"),
    [("save_every=0", "save_every (=0)"), ("early_stopping=0", "early_stopping (=0)"), ("ema=2", "ema (=2)")],
)
def test_impossible_values_are_told(video_folder, tmp_path, override, words):
    done = train(video_folder, tmp_path / "run", override)
    assert done.returncode == 2
    assert words in done.stderr
