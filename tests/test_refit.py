"""`refit=true`: the same training again, on train and val together, and who uses the model."""

import csv
import json
import logging
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, moving_square, train_py

from stvid.data.manifest import Manifest
from stvid.errors import InputError
from stvid.evaluation.calibration import fit_temperature
from stvid.evaluation.evaluation_run import EvaluationOptions, evaluate_run
from stvid.evaluation.results import evaluated_checkpoint
from stvid.evaluation.unknown import find_unknown, predict_unknown, separation
from stvid.inference import classify
from stvid.recognizer import load
from stvid.run.checkpoint import load_checkpoint
from stvid.run.config import compose_config
from stvid.video.writer import write_video

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
    with pytest.raises(InputError, match=r"was trained on the videos of val too.*best.ckpt --split val"):
        evaluate_run(copied, EvaluationOptions(split="val"))


def test_a_run_is_used_with_its_refit_model(refit_run, tmp_path):
    assert load(refit_run).trained.path.name == "refit.ckpt"
    copied = shutil.copytree(refit_run, tmp_path / "run")
    assert evaluate_run(copied, EvaluationOptions(num_workers=0)).result["checkpoint"].endswith("refit.ckpt")
    assert evaluated_checkpoint(copied, copied).name == "best.ckpt"
    assert evaluated_checkpoint(copied / "evaluate" / "test", copied).name == "refit.ckpt"


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """A folder of two videos that stand still."""
    folder = tmp_path_factory.mktemp("still")
    for seed in range(2):
        frames = moving_square(to_right=True, seed=seed)
        write_video(folder / f"{seed}.mp4", np.repeat(frames[5:6], 12, axis=0), fps=12)
    return folder


def read_calibration(run):
    return json.loads((run / "calibration.json").read_text())


@pytest.mark.parametrize("through", ["run", "best.ckpt"])
def test_the_temperature_is_fitted_with_the_model_that_has_not_seen_val_and_used_with_both(
    refit_run, tmp_path, caplog, through
):
    copied = shutil.copytree(refit_run, tmp_path / "run")
    best, refitted = (load_checkpoint(copied / "checkpoints" / f"{name}.ckpt") for name in ("best", "refit"))
    named = copied if through == "run" else best.path
    with caplog.at_level(logging.INFO):
        result = evaluate_run(named, EvaluationOptions(calibrate=True, num_workers=0)).result
    if through == "run":
        assert "refit.ckpt was trained on val too, so val is measured with best.ckpt" in caplog.text
        assert result["checkpoint"].endswith("refit.ckpt")
    stored = read_calibration(copied)
    assert (stored["checkpoint"], stored["step"], stored["refit_step"]) == ("best.ckpt", best.step, refitted.step)
    items = Manifest.read_csv(copied / "manifest.csv", class_names=best.class_names).select("val")
    answers = classify(best, items, num_workers=0)
    labels_N = torch.tensor([best.class_names.index(item.label) for item in items])
    assert stored["temperature"] == fit_temperature(answers.logits_VK, answers.videos_V, labels_N) != 1
    assert result["protocol"]["temperature"] == stored["temperature"]
    for path in (copied, best.path, refitted.path):
        trained = load_checkpoint(path)
        assert (trained.temperature, trained.threshold) == (stored["temperature"], stored["threshold"])


def test_unknown_videos_are_measured_with_the_refit_model_and_the_threshold_with_the_other(refit_run, still, tmp_path):
    copied = shutil.copytree(refit_run, tmp_path / "run")
    best, refitted = (load_checkpoint(copied / "checkpoints" / f"{name}.ckpt") for name in ("best", "refit"))
    (copied / "calibration.json").write_text(
        json.dumps({"checkpoint": "best.ckpt", "step": best.step, "refit_step": refitted.step, "temperature": 0.5})
    )
    options = EvaluationOptions(unknown=str(still), num_workers=0)
    evaluation = evaluate_run(copied, options)
    unknown, rows = evaluation.result["unknown"], evaluation.predictions
    assert evaluation.result["checkpoint"].endswith("refit.ckpt")

    best, refitted = (load_checkpoint(trained.path) for trained in (best, refitted))
    assert best.temperature == refitted.temperature == 0.5
    items = Manifest.read_csv(copied / "manifest.csv", class_names=best.class_names).select("val")
    val_N = classify(best, items, num_workers=0).probabilities_NK.amax(1)
    assert unknown["val_at_threshold"] == (val_N >= val_N.min() - 1e-6).float().mean()
    test_N = [max(row.probabilities) for row in rows]
    unknown_rows = predict_unknown(refitted, find_unknown(refitted, str(still), ()), num_workers=0)
    found = separation(rows, unknown_rows, rows, best.class_names)
    assert unknown["auroc"] == found["auroc"]
    threshold = max(math.floor(1e6 * val_N.min().item()) / 1e6, 1e-6)
    assert unknown["known_at_threshold"] == pytest.approx(sum(p >= threshold for p in test_N) / len(test_N))
    stored = read_calibration(copied)
    assert stored["temperature"] == 0.5
    if unknown["threshold"] is not None:
        assert unknown["threshold"] == pytest.approx(threshold)
        assert load_checkpoint(copied).threshold == load_checkpoint(best.path).threshold == unknown["threshold"]


def test_a_calibration_of_another_refit_is_not_used(refit_run, tmp_path, caplog):
    copied = shutil.copytree(refit_run, tmp_path / "run")
    best = load_checkpoint(copied / "checkpoints" / "best.ckpt")
    calibration = {"checkpoint": "best.ckpt", "step": best.step, "temperature": 2.0}
    for refit in ({}, {"refit_step": 10**6}):
        (copied / "calibration.json").write_text(json.dumps(calibration | refit))
        assert load_checkpoint(best.path).temperature == 2
        assert load_checkpoint(copied).temperature == 1
        assert "--calibrate fits a new one" in caplog.text


def test_without_the_checkpoint_before_the_refit_nothing_is_measured_on_val(refit_run, still, tmp_path):
    copied = shutil.copytree(refit_run, tmp_path / "run")
    for name in ("best", "last"):
        (copied / "checkpoints" / f"{name}.ckpt").unlink()
    for options in (EvaluationOptions(calibrate=True), EvaluationOptions(unknown=str(still))):
        with pytest.raises(InputError, match=r"--(calibrate|unknown) needs a model that has not seen val.*best.ckpt"):
            evaluate_run(copied, options)
    assert evaluate_run(copied, EvaluationOptions(num_workers=0)).result["checkpoint"].endswith("refit.ckpt")


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
