"""`refit=true`: the same training again, on train and val together, and who uses the model."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY, train_py

from stvid.errors import InputError
from stvid.evaluation.evaluation_run import EvaluationOptions, evaluate_run
from stvid.evaluation.results import evaluated_checkpoint
from stvid.recognizer import load
from stvid.run.config import compose_config

OPTIONS = (*TINY, "checkpoint=last", "trainer.max_epochs=2", "ema=0.5", "logger=none", "report=false")


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def refit_run(video_folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("refit") / "run"
    done = train_py("data=folder", f"data.root={video_folder}", f"hydra.run.dir={run}", *OPTIONS, "refit=true")
    assert done.returncode == 0, done.stderr
    assert "refit: 2 epochs on" in done.stdout + done.stderr
    assert not Path("checkpoints").exists(), "Lightning's own checkpoints, in the current folder"
    return run


def test_the_model_is_that_of_a_run_whose_train_split_has_the_val_videos(refit_run, tmp_path):
    with (refit_run / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    table, run = tmp_path / "all.csv", tmp_path / "run"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for old, new in (("train", "train"), ("val", "train"), ("test", "val")):
            writer.writerows([row["path"], row["label"], new] for row in rows if row["split"] == old)
    done = train_py("data=manifest", f"data.path={table}", f"hydra.run.dir={run}", *OPTIONS)
    assert done.returncode == 0, done.stderr
    expected, found = weights(run / "checkpoints" / "best.ckpt"), weights(refit_run / "checkpoints" / "refit.ckpt")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    before = weights(refit_run / "checkpoints" / "best.ckpt")
    assert not all(torch.equal(found[name], before[name]) for name in found)


def test_the_result_on_val_is_that_of_the_model_that_has_not_seen_val(refit_run, tmp_path):
    result = json.loads((refit_run / "result.json").read_text())
    assert result["checkpoint"].endswith("best.ckpt")
    copied = shutil.copytree(refit_run, tmp_path / "run")
    again = evaluate_run(copied / "checkpoints" / "best.ckpt", EvaluationOptions(split="val", num_workers=0)).result
    assert again["loss"] == pytest.approx(result["loss"], rel=1e-5)
    for options in (EvaluationOptions(split="val"), EvaluationOptions(calibrate=True)):
        with pytest.raises(
            InputError, match=r"was trained on the videos of val too.*best.ckpt --(split val|calibrate)"
        ):
            evaluate_run(copied, options)


def test_a_run_is_used_with_its_refit_model(refit_run, tmp_path):
    assert load(refit_run).trained.path.name == "refit.ckpt"
    copied = shutil.copytree(refit_run, tmp_path / "run")
    assert evaluate_run(copied, EvaluationOptions(num_workers=0)).result["checkpoint"].endswith("refit.ckpt")
    assert evaluated_checkpoint(copied, copied).name == "best.ckpt"
    assert evaluated_checkpoint(copied / "evaluate" / "test", copied).name == "refit.ckpt"


def test_a_schedule_that_needs_val_is_refused():
    with pytest.raises(InputError, match="refit=true trains without val, and optimizer.schedule=plateau needs it"):
        compose_config(["refit=true", "optimizer.schedule=plateau"])


def test_a_finished_run_is_not_trained_again(refit_run):
    before = (refit_run / "checkpoints" / "refit.ckpt").stat().st_mtime_ns
    done = train_py(f"resume={refit_run}")
    assert done.returncode == 0, done.stderr
    assert (refit_run / "checkpoints" / "refit.ckpt").stat().st_mtime_ns == before


def test_a_run_that_was_killed_in_the_refit_goes_on_there(refit_run, tmp_path):
    copied = shutil.copytree(refit_run, tmp_path / "run")
    expected = weights(copied / "checkpoints" / "refit.ckpt")
    (copied / "result.json").unlink()
    (copied / "checkpoints" / "refit.ckpt").unlink()
    done = train_py(f"resume={copied}")
    assert done.returncode == 0, done.stderr
    found = weights(copied / "checkpoints" / "refit.ckpt")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert (copied / "result.json").exists()
