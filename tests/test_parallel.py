"""Training in two processes gives the model of one process; synchronised batch norm on the CPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, stvid
from test_train import paths_of_test, rows_of
from torch import nn
from two_processes import CASES

from stvid.errors import InputError
from stvid.models.i3d import I3D
from stvid.run.model import build_model
from stvid.training.parallel import CPUSyncBatchNorm, SyncedBatchNorm

DETERMINISTIC = ("optimizer=sgd", "model.dropout=0", "trainer.max_epochs=4", "data.max_bad=0.5", "report=false")
IN_FLOAT64 = (sys.executable, str(ROOT / "tests" / "train_in_float64.py"))


def test_two_processes_train_the_model_that_one_trains_on_the_same_batches(video_folder, tmp_path):
    """Unreadable videos give them different numbers of clips, so a mean over processes is not the mean over clips."""
    root = shutil.copytree(video_folder, tmp_path / "videos")
    for name in ("03.mp4", "05.mp4"):
        (root / "to_left" / name).write_bytes(b"x" * 5000)
    run, single = tmp_path / "run", tmp_path / "single"
    overrides = ["data=folder", f"data.root={root}", *TINY, *DETERMINISTIC]
    two = ["trainer=ddp_cpu", "data.batch_size=4", f"hydra.run.dir={run}"]
    done = stvid(*overrides, *two, program=IN_FLOAT64, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"run", "videos"}
    bad = {os.path.basename(row["path"]) for row in rows_of(run / "bad_videos.csv")}
    assert bad == {"03.mp4", "05.mp4"} - {os.path.basename(p) for p in paths_of_test(run)}
    assert all(done.stdout.count(f"/{name}") == 1 for name in bad)
    assert [line.split()[0] for line in done.stdout.splitlines() if line.strip()].count("1/4") == 1

    item = ["trainer=cpu", "data.batch_size=8", f"hydra.run.dir={single}"]
    done = stvid(*overrides, *item, program=IN_FLOAT64, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    actual, expected = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for folder in (run, single)
    )
    assert actual.keys() == expected.keys()
    assert expected["model.head.weight"].dtype == torch.float64
    for key in expected:
        torch.testing.assert_close(actual[key], expected[key], rtol=0, atol=1e-9)
    for name in ("train_loss", "train_clip_accuracy", "val_loss", "val_clip_accuracy", "val_video_accuracy"):
        actual, expected = ([float(row[name]) for row in rows_of(folder / "metrics.csv")] for folder in (run, single))
        assert actual == pytest.approx(expected, abs=1e-5)


def test_a_nan_loss_stops_all_processes_with_one_message(video_folder, tmp_path):
    """All processes check a step together when the next one begins."""
    diverging = ("optimizer=sgd", "optimizer.lr=1e30", "trainer.gradient_clip_val=null", "trainer.precision=32")
    overrides = (
        "data=folder",
        f"data.root={video_folder}",
        *TINY,
        *diverging,
        "trainer=ddp_cpu",
        "trainer.max_epochs=3",
    )
    run = f"hydra.run.dir={tmp_path / 'run'}"
    done = stvid(*overrides, run, program=(sys.executable, str(ROOT / "train.py")), cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "not finite after" in done.stderr
    assert ".mp4" in done.stderr
    assert "Traceback" not in done.stderr
    for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt"):
        weights = torch.load(path, weights_only=True)["state_dict"].values()
        assert all(torch.isfinite(w).all() for w in weights if w.is_floating_point())


@pytest.fixture(scope="module")
def differences(tmp_path_factory):
    """For every model, the difference between a step of two processes and a step of one."""
    file = tmp_path_factory.mktemp("two") / "differences.json"
    command = [sys.executable, str(Path(__file__).with_name("two_processes.py")), str(file)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text())


@pytest.mark.parametrize("name", CASES)
def test_two_processes_take_the_step_of_one_with_every_model(name, differences):
    """Weights and statistics; one process has three clips of the batch, the other has one."""
    result = differences[name]
    assert result["same_names"]
    assert result["update"] > 1e-4
    assert result["difference"][1] < 1e-5, result["difference"]


def test_a_frozen_batch_norm_stays_frozen_when_replaced(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    model = SyncedBatchNorm().apply(I3D(num_classes=2, freeze="bn1")).train()
    assert isinstance(model.network.bn1, CPUSyncBatchNorm)
    assert not model.network.bn1.training
    assert model.network.layer1[0].bn1.training


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_dropout_and_activation_of_timms_norms_are_kept(backend, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)
    config = {"_target_": "stvid.models.cnn_lstm.CNNLSTM", "encoder": "timm/mobilenetv3_small_050"}
    torch.manual_seed(0)
    model, clips = build_model(config, num_classes=2).eval(), torch.randn(1, 3, 2, 32, 32)
    with torch.no_grad():
        before = model(clips)
        torch.testing.assert_close(SyncedBatchNorm().apply(model).eval()(clips), before)


class DoublingNorm(nn.BatchNorm2d):
    """A batch norm with its own forward pass."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_a_batch_norm_with_its_own_forward_is_an_input_error(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    with pytest.raises(InputError, match=r"0 is a DoublingNorm.*Set trainer\.sync_batchnorm=false"):
        SyncedBatchNorm().apply(nn.Sequential(DoublingNorm(3)))


def test_a_synchronised_batch_norm_keeps_weights_names_and_modes(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    model = nn.Sequential(nn.Conv3d(3, 4, 1), nn.Sequential(nn.BatchNorm3d(4), nn.ReLU()))
    model[1][0].eval()
    before, keys = list(model.parameters()), list(model.state_dict())
    SyncedBatchNorm().apply(model)
    assert isinstance(model[1][0], CPUSyncBatchNorm)
    assert not model[1][0].training
    assert all(new is old for new, old in zip(model.parameters(), before, strict=True))
    assert list(model.state_dict()) == keys
