"""Several processes: they train the model that one would, and judge as one would."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, make_folder, stvid, train_py
from test_train import paths_of_test, rows_of
from torch import nn
from two_processes import CASES

from stvid.errors import InputError
from stvid.models.i3d import I3D
from stvid.run.checkpoint import build_model
from stvid.training.parallel import CPUSyncBatchNorm, SyncedBatchNorm

EXACT = ("trainer.precision=32", "optimizer=sgd", "model.dropout=0", "trainer.max_epochs=4", "data.max_bad=0.5")


def test_two_processes_train_the_model_that_one_trains_on_the_same_batches(video_folder, tmp_path):
    """Broken videos leave them unequally many clips, so a mean over processes would not be the mean over clips."""
    root = shutil.copytree(video_folder, tmp_path / "videos")
    for name in ("03.mp4", "05.mp4"):
        (root / "to_left" / name).write_bytes(b"x" * 5000)
    run, alone = tmp_path / "run", tmp_path / "alone"
    overrides = ["data=folder", f"data.root={root}", *TINY, *EXACT]
    processes = ["trainer=ddp_cpu", "data.batch_size=4", f"hydra.run.dir={run}"]
    done = stvid(*overrides, *processes, program=(sys.executable, str(ROOT / "train.py")), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"run", "videos"}
    bad = {os.path.basename(row["path"]) for row in rows_of(run / "bad_videos.csv")}
    assert bad == {"03.mp4", "05.mp4"} - {os.path.basename(p) for p in paths_of_test(run)}
    assert all(done.stdout.count(f"/{name}") == 1 for name in bad)
    assert [line.split()[0] for line in done.stdout.splitlines() if line.strip()].count("1/4") == 1

    assert train_py(*overrides, "trainer=cpu", "data.batch_size=8", f"hydra.run.dir={alone}").returncode == 0
    mine, its = (torch.load(one / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for one in (run, alone))
    assert mine.keys() == its.keys()
    for key in its:
        torch.testing.assert_close(mine[key], its[key], rtol=0, atol=1e-5)
    for name in ("train_loss", "train_clip_accuracy", "val_loss", "val_clip_accuracy", "val_video_accuracy"):
        mine, its = ([float(row[name]) for row in rows_of(one / "metrics.csv")] for one in (run, alone))
        assert mine == pytest.approx(its, abs=1e-5)


def test_a_loss_that_is_not_finite_ends_all_processes_with_one_message(video_folder, tmp_path):
    """A step is looked at when the next one begins, by all processes at once."""
    wild = ("optimizer=sgd", "optimizer.lr=1e30", "trainer.gradient_clip_val=null", "trainer.precision=32")
    overrides = ("data=folder", f"data.root={video_folder}", *TINY, *wild, "trainer=ddp_cpu", "trainer.max_epochs=3")
    run = f"hydra.run.dir={tmp_path / 'run'}"
    done = stvid(*overrides, run, program=(sys.executable, str(ROOT / "train.py")), cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "not finite after" in done.stderr
    assert ".mp4" in done.stderr
    assert "Traceback" not in done.stderr
    for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt"):
        weights = torch.load(path, weights_only=True)["state_dict"].values()
        assert all(torch.isfinite(w).all() for w in weights if w.is_floating_point())


JUDGE = """
import sys
from pathlib import Path
from stvid.cli import main
for number, line in enumerate(sys.stdin.read().splitlines()):
    code = 0
    try:
        main(line.split("|"))
    except SystemExit as stop:
        code = stop.code
    print(f"{number} ended with {code}", flush=True)
"""  # seconds of imports are paid once


def test_any_number_of_processes_judges_each_video_once_and_finds_the_same_numbers(run_folder, tmp_path):
    """Seven videos, one of them broken; and a mistake of several processes is one message."""
    root = make_folder(tmp_path / "videos", videos=4)
    (root / "to_left" / "00.mp4").write_bytes(b"x" * 5000)
    (root / "to_right" / "03.mp4").unlink()
    lines = [f"{path},{path.parent.name},test" for path in sorted(root.rglob("*.mp4"))]
    options = ["evaluate", str(run_folder), "--workers", "0"]
    for processes in (1, 2, 3):
        (tmp_path / f"seven{processes}.csv").write_text("\n".join(["path,label,split", *lines]))
    calls = [
        [*options, "--manifest", f"{tmp_path}/seven{n}.csv", "--processes", str(n)] for n in (2, 3, 1)
    ]  # forked first
    calls.insert(0, [*options, "--split", "tset", "--processes", "2"])
    words = "\n".join("|".join(call) for call in calls)
    done = subprocess.run([sys.executable, "-c", JUDGE], input=words, cwd=ROOT, capture_output=True, text=True)
    assert [line for line in done.stdout.splitlines() if "ended with" in line] == [
        "0 ended with 2", "1 ended with 0", "2 ended with 0", "3 ended with 0"
    ]  # fmt: skip
    assert done.stdout.count("video accuracy") == 3
    assert done.stderr.count("--split tset") == 1
    assert "Traceback" not in done.stderr
    folders = [run_folder / "evaluate" / f"test_seven{n}" for n in (1, 2, 3)]
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    assert [Path(result.pop("manifest")).name for result in results] == [f"seven{n}.csv" for n in (1, 2, 3)]
    predictions = [rows_of(folder / "predictions.csv") for folder in folders]
    assert (results[0]["num_videos"], results[0]["num_failed"], len(predictions[0])) == (7, 1, 7)
    assert results[1:] == results[:1] * 2
    assert predictions[1:] == predictions[:1] * 2


@pytest.fixture(scope="module")
def differences(tmp_path_factory):
    """Of every model, after a step of two processes and a step of one; the two are started once for all models."""
    file = tmp_path_factory.mktemp("two") / "differences.json"
    words = [sys.executable, str(Path(__file__).with_name("two_processes.py")), str(file)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text())


@pytest.mark.parametrize("name", CASES)
def test_two_processes_take_the_step_of_one_with_every_model(name, differences):
    """Weights and statistics; one process sees three clips of the batch, the other one clip."""
    found = differences[name]
    assert found["same_names"]
    assert found["moved"] > 1e-4
    assert found["farthest"][1] < 1e-5, found["farthest"]


def test_a_frozen_batch_norm_stays_frozen_when_it_is_replaced(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    model = SyncedBatchNorm().apply(I3D(num_classes=2, freeze="bn1")).train()
    assert isinstance(model.network.bn1, CPUSyncBatchNorm)
    assert not model.network.bn1.training
    assert model.network.layer1[0].bn1.training


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_what_a_norm_of_timms_does_beside_normalising_is_kept(backend, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)
    config = {"_target_": "stvid.models.cnn_lstm.CNNLSTM", "encoder": "timm/mobilenetv3_small_050"}
    torch.manual_seed(0)
    model, clips = build_model(config, num_classes=2).eval(), torch.randn(1, 3, 2, 32, 32)
    with torch.no_grad():
        before = model(clips)
        torch.testing.assert_close(SyncedBatchNorm().apply(model).eval()(clips), before)


class Doubled(nn.BatchNorm2d):
    """A batch norm that does something else than torch's."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_a_batch_norm_of_another_kind_is_not_replaced_by_torchs(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    with pytest.raises(InputError, match=r"0 is a Doubled.*Set trainer\.sync_batchnorm=false"):
        SyncedBatchNorm().apply(nn.Sequential(Doubled(3)))


def test_a_synchronised_batch_norm_keeps_weights_names_and_modes(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    model = nn.Sequential(nn.Conv3d(3, 4, 1), nn.Sequential(nn.BatchNorm3d(4), nn.ReLU()))
    model[1][0].eval()
    before, keys = list(model.parameters()), list(model.state_dict())
    SyncedBatchNorm().apply(model)
    assert isinstance(model[1][0], CPUSyncBatchNorm)
    assert not model[1][0].training
    assert all(one is other for one, other in zip(model.parameters(), before, strict=True))
    assert list(model.state_dict()) == keys
