"""What `stvid evaluate` says: against scikit-learn, with many views, in other ways to play, over several folds."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import in_process, moving_square, train_py
from sklearn import metrics as sk

from stvid.cli import main
from stvid.data import dataset
from stvid.data.layouts.ut_interaction import CLASS_NAMES
from stvid.evaluation.evaluate import select_test_split
from stvid.evaluation.evaluation_run import EvaluationOptions, evaluate_run
from stvid.evaluation.results import read_predictions
from stvid.evaluation.temporal_audit import still_classes
from stvid.inference import classify
from stvid.run.checkpoint import load_checkpoint
from stvid.video.writer import write_video

FOUR = ["data.num_workers=0", "data.batch_size=8", "clip.num_frames=4", "clip.size=32", "trainer.accelerator=cpu"]


def command(*arguments):
    return in_process(["stvid", *map(str, arguments)], lambda: main(list(map(str, arguments))))


@pytest.fixture(scope="module")
def run(run_folder, tmp_path_factory):
    """A copy, to which evaluations may write."""
    return shutil.copytree(run_folder, tmp_path_factory.mktemp("evaluate") / "run")


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    """Six classes in four sequences, called like UT-Interaction's videos."""
    root = tmp_path_factory.mktemp("ut")
    for sequence in (1, 2, 3, 4):
        for label in range(6):
            frames = moving_square(to_right=label % 2 == 0, seed=10 * label + sequence)
            write_video(root / f"{sequence * 6 + label}_{sequence}_{label}.mp4", frames, fps=12)
    return root


@pytest.fixture(scope="module")
def cross_validation(sequences, tmp_path_factory):
    """`train.py -m data.fold=...`: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("folds") / "sweep"
    overrides = [
        "data=ut_interaction",
        f"data.root={sequences}",
        "data.val_fraction=0.3",
        "trainer.max_epochs=1",
        *FOUR,
    ]
    done = train_py("-m", "data.fold=1,2,3,4", *overrides, "model.widths=[4,4,4,4]", f"hydra.sweep.dir={folder}")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def as_arrays(folder):
    result = json.loads((folder / "result.json").read_text())
    rows = read_predictions(folder / "predictions.csv", result["class_names"])
    number = {name: i for i, name in enumerate(result["class_names"])}
    truth = np.array([number[row.label] for row in rows])
    return result, rows, truth, np.array([row.probabilities for row in rows], dtype=np.float32)


def test_scores_equal_scikit_learns_on_the_same_predictions(cross_validation):
    result, rows, truth, p = as_arrays(cross_validation[0] / "evaluate" / "test")
    answer = p.argmax(1)
    precision, recall, f1, support = sk.precision_recall_fscore_support(truth, answer, zero_division=0)
    assert result["video_accuracy"] == pytest.approx(sk.accuracy_score(truth, answer))
    assert result["mean_class_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, answer))
    assert result["macro_f1"] == pytest.approx(sk.f1_score(truth, answer, average="macro"))
    assert result["loss"] == pytest.approx(sk.log_loss(truth, p, labels=range(6)), rel=1e-5)
    assert result["confusion"] == sk.confusion_matrix(truth, answer, labels=range(6)).tolist()
    for k, share in result["top_k_accuracy"].items():
        assert share == pytest.approx(sk.top_k_accuracy_score(truth, p, k=int(k), labels=range(6)))
    for i, name in enumerate(CLASS_NAMES):
        found = [result["per_class"][name][key] or 0 for key in ("precision", "recall", "f1", "num_videos")]
        assert found == pytest.approx([precision[i], recall[i], f1[i], support[i]])
    assert result["clip_accuracy"] == pytest.approx(np.mean([row.views_right / row.views for row in rows]))
    bins = np.ceil(p.max(1) * 15)
    gaps = [
        np.mean(bins == b) * abs((answer == truth)[bins == b].mean() - p.max(1)[bins == b].mean()) for b in set(bins)
    ]
    assert result["ece"] == pytest.approx(sum(gaps), abs=1e-6)


def test_a_sweep_over_folds_is_a_cross_validation(cross_validation):
    folder, words = cross_validation
    result, rows, _, _ = as_arrays(folder / "evaluate" / "test")
    assert result["num_videos"] == len(rows) == 24
    assert len({row.video for row in rows}) == 24
    own = [json.loads((folder / str(i) / "evaluate" / "test" / "result.json").read_text()) for i in range(4)]
    accuracies = [one["video_accuracy"] for one in own]
    assert [fold["video_accuracy"] for fold in result["folds"]] == accuracies
    assert [fold["name"] for fold in result["folds"]] == ["fold 1", "fold 2", "fold 3", "fold 4"]
    assert result["spread"] == pytest.approx({"mean": np.mean(accuracies), "std": np.std(accuracies, ddof=1)})
    assert result["confusion"] == sum(np.array(one["confusion"]) for one in own).tolist()
    assert result["interval"] == {"over": "groups", "num": 4}
    assert f"mean over 4 folds {np.mean(accuracies):.3f}" in words


def test_the_same_from_the_runs_by_name_and_from_the_sweeps_folder(cross_validation, tmp_path):
    folder, _ = cross_validation
    first = json.loads((folder / "evaluate" / "test" / "result.json").read_text())
    for names in ([folder], [folder / str(i) for i in range(4)]):
        done = command("evaluate", *names, "--json", tmp_path / "r.json", "--workers", 0, "--no-report")
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / "r.json").read_text()) == first


def test_some_runs_of_a_sweep_have_a_place_of_their_own(cross_validation):
    folder, _ = cross_validation
    before = (folder / "evaluate" / "test" / "result.json").read_bytes()
    done = command("evaluate", folder / "0", folder / "1", "--workers", 0, "--no-report")
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "evaluate" / "test_runs_0_1" / "result.json").read_text())
    assert [fold["name"] for fold in result["folds"]] == ["fold 1", "fold 2"]
    assert (folder / "evaluate" / "test" / "result.json").read_bytes() == before


def test_a_page_is_drawn_of_a_run_an_evaluation_and_a_cross_validation(run, cross_validation, tmp_path):
    assert "<html" in (run / "report.html").read_text()  # when training ended
    for one in (run, cross_validation[0]):
        done = command("evaluate", one, "--workers", 0)
        assert done.returncode == 0, done.stderr
    assert "<html" in (run / "evaluate" / "test" / "report.html").read_text()
    assert "fold 3" in (cross_validation[0] / "evaluate" / "test" / "report.html").read_text()
    twin = shutil.copytree(run, tmp_path / "twin")
    for arguments in ([run], [run, "--split", "test"], [cross_validation[0]], [run, twin]):
        done = command("report", *arguments, "--out", tmp_path / "page.html")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "<html" in (tmp_path / "page.html").read_text()
        (tmp_path / "page.html").unlink()


def test_runs_judged_by_the_same_videos_are_no_folds(run, tmp_path):
    other = shutil.copytree(run, run.parent / "other")
    done = command("evaluate", run, other, "--workers", 0)
    assert done.returncode == 2
    assert "stvid report RUN RUN" in done.stderr


def test_thirty_views_decode_a_video_once(run, monkeypatch):
    calls = []
    read = dataset.read_frames
    monkeypatch.setattr(dataset, "read_frames", lambda path, *a, **k: calls.append(path) or read(path, *a, **k))
    trained = load_checkpoint(run)
    data = select_test_split(trained, split="val")
    answers = classify(trained, data.select("val"), num_clips=10, num_crops=3, num_workers=0, progress=False)
    assert sorted(calls) == sorted(item.path for item in data.select("val"))
    assert torch.bincount(answers.videos_V).tolist() == [30] * len(calls)


def test_the_table_tells_views_and_groups(run):
    judged = evaluate_run(run, EvaluationOptions(num_clips=4, num_crops=5, num_workers=0))
    assert judged.result["protocol"]["num_crops"] == 5
    for one in judged.predictions:
        assert one.views == 20
        assert 0 <= one.views_right <= 20
    read = read_predictions(judged.folder / "predictions.csv", judged.result["class_names"])
    for again, one in zip(read, judged.predictions, strict=True):
        assert np.float32(again.probabilities).tolist() == np.float32(one.probabilities).tolist()
        assert replace(again, probabilities=()) == replace(one, probabilities=())


def test_an_audit_plays_the_videos_in_five_other_ways(run, tmp_path):
    done = command("evaluate", run, "--split", "train", "--audit", "--json", tmp_path / "r.json", "--workers", 0)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert list(result["audit"]) == ["frozen", "shuffled", "reversed", "half_speed", "double_speed"]
    mirrored = sum(row[1 - i] for i, row in enumerate(result["audit"]["reversed"]["confusion"]))
    assert result["video_accuracy"] > 0.9
    assert mirrored / result["num_videos"] > 0.9  # what moves to the left moves to the right
    assert result["audit"]["frozen"]["video_accuracy"] < 0.8
    assert "does it use time?" in done.stdout
    frozen = result["audit"]["frozen"]
    difference = result["video_accuracy"] - frozen["video_accuracy"]
    assert frozen["lost"] - frozen["gained"] == round(difference * result["num_videos"])


def test_an_audit_of_videos_with_hardly_more_frames_than_clips(run, tmp_path):
    done = command("evaluate", run, "--clips", 7, "--audit", "--workers", 0, "--no-report")
    assert done.returncode == 0, done.stdout + done.stderr  # at double speed they have 6


def test_an_audit_of_all_folds(cross_validation, tmp_path):
    folder, _ = cross_validation
    done = command("evaluate", folder / "2", folder / "3", "--audit", "--workers", 0, "--no-report")
    assert done.returncode == 0, done.stdout + done.stderr
    whole = json.loads((folder / "evaluate" / "test_runs_2_3" / "result.json").read_text())
    parts = [json.loads((folder / name / "evaluate" / "test" / "result.json").read_text()) for name in "23"]
    for playback, found in whole["audit"].items():
        confusion = sum(np.array(part["audit"][playback]["confusion"]) for part in parts)
        assert found["confusion"] == confusion.tolist()
        assert found["lost"] == sum(part["audit"][playback]["lost"] for part in parts)


def test_a_still_picture_gives_a_class_away_only_where_it_is_recognised():
    def scores(**classes):
        return {
            "num_videos": 100,
            "per_class": {
                name: {"recall": recall, "precision": precision, "num_videos": 25}
                for name, (recall, precision) in classes.items()
            },
        }

    plain = scores(
        known=(0.9, 0.9), mirrored=(1.0, 1.0), missed=(0.1, 0.1), constant=(1.0, 0.25), only_still=(0.0, None)
    )
    frozen = scores(
        known=(0.85, 0.8), mirrored=(1.0, 0.5), missed=(0.0, None), constant=(1.0, 0.25), only_still=(0.9, 0.9)
    )
    assert still_classes(plain, frozen) == ["known"]


def test_the_result_says_what_the_run_has_seen_before(run, tmp_path):
    for split, seen in (("test", 0), ("val", 2), ("train", 12)):
        done = command("evaluate", run, "--split", split, "--json", tmp_path / "r.json", "--workers", 0, "--no-report")
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / "r.json").read_text())["num_seen"] == seen


def test_a_temperature_is_kept_with_the_run_and_used_by_all_that_follows(run, video_folder, tmp_path):
    done = command("evaluate", run, "--calibrate", "--json", tmp_path / "r.json", "--workers", 0)
    assert done.returncode == 0, done.stderr
    kept = json.loads((run / "calibration.json").read_text())
    before, after = kept["loss"]
    assert after <= before + 1e-6
    assert json.loads((tmp_path / "r.json").read_text())["protocol"]["temperature"] == kept["temperature"]
    assert load_checkpoint(run).temperature == kept["temperature"]
    video = video_folder / "to_left" / "00.mp4"
    with_it, without = [], []
    for found in (with_it, without):
        done = command("predict", run, video, "--json", tmp_path / "p.json", "--workers", 0)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / "p.json").read_text())[0]["top"][0]["probability"])
        (run / "calibration.json").unlink(missing_ok=True)
    assert with_it != without


def test_no_temperature_is_fitted_on_nothing(run, tmp_path):
    broken = shutil.copytree(run, tmp_path / "broken")
    rows = list(csv.DictReader((broken / "manifest.csv").open()))
    for number, row in enumerate(row for row in rows if row["split"] == "val"):
        row["path"] = str(tmp_path / f"{number}.mp4")
        (tmp_path / f"{number}.mp4").write_bytes(b"no video" * 99)
    lines = [f"{(run / row['path']).resolve()},{row['label']},{row['split']}" for row in rows]
    (broken / "manifest.csv").write_text("path,label,split\n" + "\n".join(lines))
    done = command("evaluate", broken, "--calibrate", "--workers", 0)
    assert done.returncode == 2
    assert "none of the 2 val videos could be read" in done.stderr
    assert not (broken / "calibration.json").exists()


def test_a_damaged_temperature_is_told(run):
    (run / "calibration.json").write_text('{"temperature": 2.0, "check')
    done = command("evaluate", run, "--workers", 0)
    assert done.returncode == 2
    assert "calibration.json is damaged" in done.stderr
    (run / "calibration.json").unlink()


def test_another_checkpoints_temperature_is_not_used(run, caplog):
    (run / "calibration.json").write_text(json.dumps({"temperature": 3.0, "checkpoint": "best.ckpt", "step": 99999}))
    assert load_checkpoint(run).temperature == 1.0
    assert "is of another checkpoint" in caplog.text
    (run / "calibration.json").unlink()


def test_a_table_of_one_of_two_classes_is_judged_audited_and_drawn(run, tmp_path, caplog):
    rows = [row for row in csv.DictReader((run / "manifest.csv").open()) if row["split"] == "test"]
    own = [row for row in rows if row["label"] == "to_right"]
    table = tmp_path / "one_class.csv"
    table.write_text("path,label,split\n" + "\n".join(f"{(run / r['path']).resolve()},{r['label']},test" for r in own))
    options = ["--audit", "--calibrate", "--json", tmp_path / "r.json", "--workers", 0]
    done = command("evaluate", run, "--manifest", table, *options)
    (run / "calibration.json").unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no videos of 1 of the model's 2 classes" in caplog.text
    assert "no videos of: to_left" in done.stdout
    result = json.loads((tmp_path / "r.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert result["class_names"] == ["to_left", "to_right"]
    assert np.shape(result["confusion"]) == (2, 2)
    assert sum(result["confusion"][1]) == result["num_videos"] == len(own)
    assert result["per_class"]["to_left"]["recall"] is None
    assert result["mean_class_accuracy"] == result["per_class"]["to_right"]["recall"] == result["video_accuracy"]
    assert result["audit"]["frozen"]["per_class"]["to_left"] is None
    page = (run / "evaluate" / "test_one_class" / "report.html").read_text()
    assert "No videos of: to_left." in page


def test_a_table_without_videos_of_the_split(run, tmp_path):
    table = tmp_path / "only_train.csv"
    rows = [row for row in csv.DictReader((run / "manifest.csv").open()) if row["split"] == "train"]
    table.write_text("path,label,split\n" + "\n".join(f"{row['path']},{row['label']},train" for row in rows))
    done = command("evaluate", run, "--manifest", table)
    assert done.returncode == 2
    assert "no videos in it" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--clips", "13"], ["num_clips (=13)", "has frames: 12"]),
        (["--crops", "4"], ["num_crops (=4)", "1 (the middle), 3"]),
        (["--split", "tset"], ["--split tset", "train, val, test"]),
    ],
)
def test_impossible_views_and_splits(run, arguments, words):
    done = command("evaluate", run, *arguments, "--workers", 0)
    assert done.returncode == 2
    assert all(word in done.stderr for word in words), done.stderr


def test_a_run_without_checkpoints(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    done = command("evaluate", tmp_path)
    assert done.returncode == 2
    assert "has no checkpoints/best.ckpt" in done.stderr
