"""Videos of none of the classes: their separation against independent formulas, the threshold, and bad input."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import in_process, moving_square
from sklearn.metrics import roc_auc_score, roc_curve
from torchmetrics.functional.classification import binary_auroc

from stvid.cli import main
from stvid.errors import InputError
from stvid.evaluation.results import PredictionRow
from stvid.evaluation.statistics import auroc, auroc_interval
from stvid.evaluation.unknown import confidences, log_threshold, separation, threshold_for
from stvid.run.checkpoint import load_checkpoint
from stvid.video.writer import write_video


def command(*arguments):
    return in_process(["stvid", *map(str, arguments)], lambda: main(list(map(str, arguments))))


def rows_of(values, *, label="a", names=("a", "b"), group=None):
    """Rows whose largest probability is that of the first class."""
    return [
        PredictionRow(
            path=f"{label}{i}.mp4",
            label=label,
            group=group and group(i),
            predicted=names[0],
            views=1,
            probabilities=(value, 1 - value),
        )
        for i, value in enumerate(values)
    ]


@pytest.mark.parametrize("decimals", [1, 2, 9])
def test_the_area_is_that_of_scikit_learn_and_torchmetrics_also_with_ties(decimals):
    rng = np.random.default_rng(decimals)
    known, unknown = rng.beta(4, 2, 70).round(decimals), rng.beta(2, 3, 40).round(decimals)
    labels, scores = [1] * 70 + [0] * 40, np.concatenate([known, unknown])
    assert auroc(known, unknown) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert auroc(known, unknown) == pytest.approx(
        binary_auroc(torch.tensor(scores), torch.tensor(labels)).item(), abs=1e-6
    )
    assert auroc([0.5], [0.5]) == 0.5


def test_the_interval_has_delongs_variance():
    """With many videos, Wilson's interval is the normal one; the variance of Hanley and McNeil for normal scores."""
    rng = np.random.default_rng(0)
    areas = [auroc(rng.normal(1, 1, 400), rng.normal(0, 1, 300)) for _ in range(500)]
    low, high = auroc_interval(rng.normal(1, 1, 400), rng.normal(0, 1, 300))
    assert (high - low) / (2 * 1.96) == pytest.approx(np.std(areas), rel=0.12)


def test_groups_widen_the_interval_and_a_perfect_separation_still_has_one():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 20)
    known, unknown = rng.normal(0, 1, 10)[groups] + rng.normal(2, 0.5, 200), rng.normal(0, 1, 100)
    plain, grouped = auroc_interval(known, unknown), auroc_interval(known, unknown, groups_N=groups.tolist())
    assert grouped.high - grouped.low > 1.5 * (plain.high - plain.low)
    low, high = auroc_interval([0.9, 0.8, 0.7], [0.1] * 50)
    assert high == 1
    assert low == auroc_interval([0.9, 0.8, 0.7], [0.1] * 3).low < 0.6, "three videos tell little"
    assert auroc_interval([0.9], [0.1, 0.95]).low > 0


def test_false_acceptance_is_that_of_the_roc_curve():
    rng = np.random.default_rng(3)
    known, unknown = rng.beta(6, 2, 90), rng.beta(3, 3, 60)
    found = separation(rows_of(known), rows_of(unknown, label=""), rows_of(known), ("a", "b"))
    best = [np.maximum(values, 1 - values) for values in (known, unknown)]
    false, true, _ = roc_curve([1] * 90 + [0] * 60, np.concatenate(best), drop_intermediate=False)
    assert found["false_acceptance"] == pytest.approx(false[true >= 0.95].min())
    low, high = found["false_acceptance_ci95"]
    assert low < found["false_acceptance"] < high
    assert sum(found["histogram"]["known"]) == 90
    assert sum(found["histogram"]["unknown"]) == 60


@pytest.mark.parametrize("number", [1, 19, 20, 21, 40, 41])
def test_a_threshold_accepts_the_share_and_no_larger_one_does(number):
    values = np.random.default_rng(number).random(number).tolist()
    threshold = threshold_for(values)
    accepted = sum(value >= threshold for value in values)
    assert accepted >= 0.95 * number > sum(value > threshold for value in values)


def test_the_threshold_depends_on_val_alone():
    val = rows_of(np.linspace(0.6, 1.0, 41))
    thresholds = {
        separation(rows_of(known), rows_of(unknown, label=""), val, ("a", "b"))["threshold"]
        for known, unknown in (([0.9, 0.95], [0.55]), ([0.7], [0.51, 0.52, 0.99]))
    }
    assert len(thresholds) == 1
    assert thresholds.pop() == pytest.approx(0.62, abs=2e-6)
    found = separation(val, rows_of([0.9, 0.99], label=""), val, ("a", "b"))
    assert found["threshold"] is None, "it would separate nothing"
    assert found["unknown_at_threshold"] == 1


def test_a_threshold_that_separates_nothing_is_not_chosen(caplog):
    log_threshold({"threshold": None, "unknown_at_threshold": 0.97}, is_kept=True)
    assert "that of 95 % of the val videos also accepts 97 % of the unknown ones" in caplog.text


def test_a_background_class_is_neither_known_nor_a_reason_to_be_sure():
    rows = [*rows_of([0.9, 0.2]), *rows_of([0.3], label="b")]
    assert confidences(rows, ("a", "b")) == [0.9, 0.8, 0.7]
    assert confidences(rows, ("a", "b"), background=["b"]) == [0.9, 0.2]
    with pytest.raises(InputError, match="none of the evaluated videos is readable and of a class"):
        separation(rows_of([0.3], label="b"), rows, rows, ("a", "b"), background=["b"])


@pytest.fixture(scope="module")
def run(run_folder, tmp_path_factory):
    return shutil.copytree(run_folder, tmp_path_factory.mktemp("unknown") / "run")


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """Squares that stand still, in folders of several levels, and a file that breaks half way."""
    root = tmp_path_factory.mktemp("still") / "none"
    for i, folder in enumerate(("", "one", "one", "two/deep")):
        (root / folder).mkdir(parents=True, exist_ok=True)
        frames = moving_square(to_right=True, seed=i)
        write_video(root / folder / f"{i}.mp4", np.repeat(frames[5:6], 12, axis=0), fps=12)
    (root / "one" / "broken.mp4").write_bytes(b"no video" * 99)
    return root


def test_unknown_videos_are_measured_and_set_the_threshold_of_predict(run, still, tmp_path, caplog):
    done = command("evaluate", run, "--unknown", still, "--json", tmp_path / "r.json", "--workers", 0)
    assert done.returncode == 0, done.stdout + done.stderr
    unknown = json.loads((tmp_path / "r.json").read_text())["unknown"]
    assert (unknown["num_videos"], unknown["num_failed"], unknown["num_val"]) == (5, 1, 2)
    assert "left out of the unknown videos" in caplog.text
    assert "broken.mp4" in caplog.text
    assert "val has few videos (2)" in caplog.text
    rows = list(csv.DictReader((run / "evaluate/test/unknown.csv").open()))
    best = [max(float(row[f"p_{name}"]) for name in ("to_left", "to_right")) for row in rows if not row["failed"]]
    assert len(rows) == 5
    predictions = list(csv.DictReader((run / "evaluate/test/predictions.csv").open()))
    known = [max(float(row["p_to_left"]), float(row["p_to_right"])) for row in predictions]
    assert unknown["auroc"] == pytest.approx(roc_auc_score([1] * len(known) + [0] * len(best), known + best))
    assert f"AUROC                {unknown['auroc']:.3f}" in done.stdout
    assert 'id="unknown"' in (run / "evaluate/test/report.html").read_text()

    stored = json.loads((run / "calibration.json").read_text())
    assert (stored["threshold"], stored["threshold_from"]) == (unknown["threshold"], "unknown")
    assert load_checkpoint(run).threshold == unknown["threshold"] > 0
    videos = [*sorted(still.rglob("[0-9].mp4")), predictions[0]["path"]]
    done = command("predict", run, *videos, "--workers", 0, "--json", tmp_path / "p.json")
    assert done.returncode == 0, done.stderr
    entries = json.loads((tmp_path / "p.json").read_text())
    for entry in entries:
        assert entry["unknown"] == (entry["top"][0]["probability"] < unknown["threshold"])
    assert done.stdout.count("unknown: no class reaches") == sum(entry["unknown"] for entry in entries)

    done = command("evaluate", run, "--workers", 0, "--no-report")
    assert done.returncode == 0, done.stderr
    assert not (run / "evaluate/test/unknown.csv").exists()


def test_with_calibrate_the_temperature_comes_first_and_the_threshold_from_val(run, still):
    options = ["--unknown", still, "--calibrate", "--workers", 0, "--no-report"]
    done = command("evaluate", run, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    stored = json.loads((run / "calibration.json").read_text())
    result = json.loads((run / "evaluate/test/result.json").read_text())
    assert stored["temperature"] == result["protocol"]["temperature"] != 1
    assert "share_frozen_at_threshold" not in stored
    assert len(stored["loss"]) == 2
    assert stored["threshold_from"] == ("unknown" if result["unknown"]["threshold"] is not None else "frozen")
    (run / "calibration.json").unlink()


@pytest.mark.parametrize("kind", ["file", "link", "copy"])
def test_training_and_test_videos_are_no_unknown_videos(run, still, tmp_path, kind):
    mixed = shutil.copytree(still, tmp_path / "mixed")
    rows = list(csv.DictReader((run / "manifest.csv").open()))
    for split in ("train", "test"):
        path = (run / next(row["path"] for row in rows if row["split"] == split)).resolve()
        place = mixed / "copied.mp4"
        place.unlink(missing_ok=True)
        if kind == "link":
            place.symlink_to(path)
        else:
            shutil.copy(path, place)
        folder = path.parent if kind == "file" else mixed
        done = command("evaluate", run, "--unknown", folder, "--workers", 0)
        assert done.returncode == 2
        assert "are in the run's own data set or are evaluated as known ones" in done.stderr
    assert not (run / "calibration.json").exists()


def test_a_folder_without_a_readable_video_is_an_error(run, tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(name.encode() * 99)
    done = command("evaluate", run, "--unknown", tmp_path, "--workers", 0, "--no-report")
    assert done.returncode == 2
    assert "--unknown: none of the 2 videos could be read, the first:" in done.stderr


def test_an_unknown_background_class_is_an_error(run, still):
    done = command("evaluate", run, "--unknown", still, "--background", "pause")
    assert done.returncode == 2
    assert "--background pause: the model has no such class" in done.stderr


def test_several_runs_and_folders_without_videos_are_mistakes(run, tmp_path):
    twin = shutil.copytree(run, run.parent / "twin")
    done = command("evaluate", run, twin, "--unknown", tmp_path)
    assert done.returncode == 2
    assert "--unknown needs one run" in done.stderr
    assert "holds no video files" in done.stderr
