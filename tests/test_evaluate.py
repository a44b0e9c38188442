"""Evaluation: metrics against scikit-learn, views, audit, calibration, cross-validation, and the choice of videos."""

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import in_process, moving_square, train_py
from sklearn import metrics as sk
from torch import nn

from stvid.cli import main
from stvid.clip import ClipSpec
from stvid.data import dataset
from stvid.data.layouts.ut_interaction import CLASS_NAMES
from stvid.data.manifest import Item
from stvid.errors import InputError
from stvid.evaluation.evaluate import absent_classes, load_manifest, seen_in_training
from stvid.evaluation.evaluation_run import EvaluationOptions, evaluate_run
from stvid.evaluation.results import read_predictions
from stvid.evaluation.temporal_audit import still_classes
from stvid.inference import classify
from stvid.run.checkpoint import TrainedModel, load_checkpoint
from stvid.video.writer import write_video

OPTIONS = ["data.num_workers=0", "data.batch_size=8", "clip.num_frames=4", "clip.size=32", "trainer.accelerator=cpu"]


def command(*arguments):
    return in_process(["stvid", *map(str, arguments)], lambda: main(list(map(str, arguments))))


@pytest.fixture(scope="module")
def run(run_folder, tmp_path_factory):
    """A copy, because evaluations write into it."""
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
    """`train.py -m data.fold=...`: its folder and its output."""
    folder = tmp_path_factory.mktemp("folds") / "sweep"
    overrides = [
        "data=ut_interaction",
        f"data.root={sequences}",
        "data.val_fraction=0.3",
        "trainer.max_epochs=1",
        *OPTIONS,
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


def test_metrics_equal_those_of_scikit_learn(cross_validation):
    result, rows, truth, p = as_arrays(cross_validation[0] / "evaluate" / "test")
    prediction = p.argmax(1)
    precision, recall, f1, support = sk.precision_recall_fscore_support(truth, prediction, zero_division=0)
    assert result["video_accuracy"] == pytest.approx(sk.accuracy_score(truth, prediction))
    assert result["mean_class_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, prediction))
    assert result["macro_f1"] == pytest.approx(sk.f1_score(truth, prediction, average="macro"))
    assert result["loss"] == pytest.approx(sk.log_loss(truth, p, labels=range(6)), rel=1e-5)
    assert result["confusion"] == sk.confusion_matrix(truth, prediction, labels=range(6)).tolist()
    for k, share in result["top_k_accuracy"].items():
        assert share == pytest.approx(sk.top_k_accuracy_score(truth, p, k=int(k), labels=range(6)))
    for i, name in enumerate(CLASS_NAMES):
        actual = [result["per_class"][name][key] or 0 for key in ("precision", "recall", "f1", "num_videos")]
        assert actual == pytest.approx([precision[i], recall[i], f1[i], support[i]])
    assert result["clip_accuracy"] == pytest.approx(np.mean([row.views_right / row.views for row in rows]))
    bins = np.ceil(p.max(1) * 15)
    gaps = [
        np.mean(bins == b) * abs((prediction == truth)[bins == b].mean() - p.max(1)[bins == b].mean())
        for b in set(bins)
    ]
    assert result["ece"] == pytest.approx(sum(gaps), abs=1e-6)


def test_a_sweep_over_folds_is_a_cross_validation(cross_validation):
    folder, output = cross_validation
    result, rows, _, _ = as_arrays(folder / "evaluate" / "test")
    assert result["num_videos"] == len(rows) == 24
    assert len({row.video_key for row in rows}) == 24
    custom = [json.loads((folder / str(i) / "evaluate" / "test" / "result.json").read_text()) for i in range(4)]
    accuracies = [entry["video_accuracy"] for entry in custom]
    assert [fold["video_accuracy"] for fold in result["folds"]] == accuracies
    assert [fold["name"] for fold in result["folds"]] == ["fold 1", "fold 2", "fold 3", "fold 4"]
    assert result["spread"] == pytest.approx({"mean": np.mean(accuracies), "std": np.std(accuracies, ddof=1)})
    assert result["confusion"] == sum(np.array(entry["confusion"]) for entry in custom).tolist()
    assert result["interval"] == {"over": "groups", "num": 4}
    assert f"mean over 4 folds {np.mean(accuracies):.3f}" in output


def test_a_cross_validation_can_be_named_by_its_runs_or_its_sweep(cross_validation, tmp_path):
    folder, _ = cross_validation
    first = json.loads((folder / "evaluate" / "test" / "result.json").read_text())
    for names in ([folder], [folder / str(i) for i in range(4)]):
        done = command("evaluate", *names, "--json", tmp_path / "r.json", "--workers", 0, "--no-report")
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / "r.json").read_text()) == first


def test_some_runs_of_a_sweep_are_evaluated_into_their_own_folder(cross_validation):
    folder, _ = cross_validation
    before = (folder / "evaluate" / "test" / "result.json").read_bytes()
    done = command("evaluate", folder / "0", folder / "1", "--workers", 0, "--no-report")
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "evaluate" / "test_runs_0_1" / "result.json").read_text())
    assert [fold["name"] for fold in result["folds"]] == ["fold 1", "fold 2"]
    assert (folder / "evaluate" / "test" / "result.json").read_bytes() == before


def test_runs_evaluations_and_cross_validations_have_a_report(run, cross_validation, tmp_path):
    assert "<html" in (run / "report.html").read_text()  # when training ended
    for entry in (run, cross_validation[0]):
        done = command("evaluate", entry, "--workers", 0)
        assert done.returncode == 0, done.stderr
    assert "<html" in (run / "evaluate" / "test" / "report.html").read_text()
    assert "fold 3" in (cross_validation[0] / "evaluate" / "test" / "report.html").read_text()
    twin = shutil.copytree(run, tmp_path / "twin")
    for arguments in ([run], [run, "--split", "test"], [cross_validation[0]], [run, twin]):
        done = command("report", *arguments, "--out", tmp_path / "page.html")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "<html" in (tmp_path / "page.html").read_text()
        (tmp_path / "page.html").unlink()


def test_runs_with_the_same_test_videos_are_not_folds(run, tmp_path):
    other = shutil.copytree(run, run.parent / "other")
    done = command("evaluate", run, other, "--workers", 0)
    assert done.returncode == 2
    assert "stvid report RUN RUN" in done.stderr


def test_thirty_views_decode_a_video_once(run, monkeypatch):
    calls = []
    read = dataset.read_frames
    monkeypatch.setattr(dataset, "read_frames", lambda path, *a, **k: calls.append(path) or read(path, *a, **k))
    trained = load_checkpoint(run)
    data = load_manifest(trained, split="val")
    predictions = classify(trained, data.select("val"), num_clips=10, num_crops=3, num_workers=0, progress=False)
    assert sorted(calls) == sorted(item.path for item in data.select("val"))
    assert torch.bincount(predictions.videos_V).tolist() == [30] * len(calls)


def test_predictions_csv_has_the_number_of_views(run):
    evaluation = evaluate_run(run, EvaluationOptions(num_clips=4, num_crops=5, num_workers=0))
    assert evaluation.result["protocol"]["num_crops"] == 5
    for entry in evaluation.predictions:
        assert entry.views == 20
        assert 0 <= entry.views_right <= 20
    read = read_predictions(evaluation.folder / "predictions.csv", evaluation.result["class_names"])
    for again, entry in zip(read, evaluation.predictions, strict=True):
        assert np.float32(again.probabilities).tolist() == np.float32(entry.probabilities).tolist()
        assert replace(again, probabilities=()) == replace(entry, probabilities=())


def test_an_audit_evaluates_five_playbacks(run, tmp_path):
    done = command("evaluate", run, "--split", "train", "--audit", "--json", tmp_path / "r.json", "--workers", 0)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert list(result["audit"]) == ["frozen", "shuffled", "reversed", "half_speed", "double_speed"]
    mirrored = sum(row[1 - i] for i, row in enumerate(result["audit"]["reversed"]["confusion"]))
    assert result["video_accuracy"] > 0.9
    assert mirrored / result["num_videos"] > 0.9  # reversed, a motion to the left is one to the right
    assert result["audit"]["frozen"]["video_accuracy"] < 0.8
    assert "temporal audit" in done.stdout
    frozen = result["audit"]["frozen"]
    difference = result["video_accuracy"] - frozen["video_accuracy"]
    assert frozen["lost"] - frozen["gained"] == round(difference * result["num_videos"])


def test_an_audit_works_if_videos_at_double_speed_have_fewer_frames_than_clips(run, tmp_path):
    done = command("evaluate", run, "--clips", 7, "--audit", "--workers", 0, "--no-report")
    assert done.returncode == 0, done.stdout + done.stderr  # at double speed they have 6


def test_the_audits_of_folds_are_pooled(cross_validation, tmp_path):
    folder, _ = cross_validation
    done = command("evaluate", folder / "2", folder / "3", "--audit", "--workers", 0, "--no-report")
    assert done.returncode == 0, done.stdout + done.stderr
    whole = json.loads((folder / "evaluate" / "test_runs_2_3" / "result.json").read_text())
    parts = [json.loads((folder / name / "evaluate" / "test" / "result.json").read_text()) for name in "23"]
    for playback, actual in whole["audit"].items():
        confusion = sum(np.array(part["audit"][playback]["confusion"]) for part in parts)
        assert actual["confusion"] == confusion.tolist()
        assert actual["lost"] == sum(part["audit"][playback]["lost"] for part in parts)


def test_still_classes_need_recall_and_precision_on_frozen_videos():
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


def test_the_result_counts_seen_videos(run, tmp_path):
    for split, seen in (("test", 0), ("val", 2), ("train", 12)):
        done = command("evaluate", run, "--split", split, "--json", tmp_path / "r.json", "--workers", 0, "--no-report")
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / "r.json").read_text())["num_seen"] == seen


def test_a_temperature_is_saved_with_the_run_and_used_by_predictions(run, video_folder, tmp_path, caplog):
    done = command("evaluate", run, "--calibrate", "--json", tmp_path / "r.json", "--workers", 0)
    assert done.returncode == 0, done.stderr
    stored = json.loads((run / "calibration.json").read_text())
    before, after = stored["loss"]
    assert after <= before + 1e-6
    assert json.loads((tmp_path / "r.json").read_text())["protocol"]["temperature"] == stored["temperature"]
    assert load_checkpoint(run).temperature == stored["temperature"]
    assert load_checkpoint(run).threshold == stored["threshold"]
    assert 0 <= stored["share_frozen_at_threshold"] <= stored["share_at_threshold"] <= 1
    assert (stored["threshold"] is None) == ("no threshold was fitted" in caplog.text)
    video = video_folder / "to_left" / "00.mp4"
    with_it, without = [], []
    for actual in (with_it, without):
        done = command("predict", run, video, "--json", tmp_path / "p.json", "--workers", 0)
        assert done.returncode == 0, done.stderr
        actual.append(json.loads((tmp_path / "p.json").read_text())[0]["top"][0]["probability"])
        (run / "calibration.json").unlink(missing_ok=True)
    assert with_it != without


def test_calibration_without_readable_val_videos_is_an_error(run, tmp_path):
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


def test_a_damaged_calibration_file_is_an_error(run):
    (run / "calibration.json").write_text('{"temperature": 2.0, "check')
    done = command("evaluate", run, "--workers", 0)
    assert done.returncode == 2
    assert "calibration.json is damaged" in done.stderr
    (run / "calibration.json").unlink()


def test_the_temperature_of_another_checkpoint_is_ignored(run, caplog):
    (run / "calibration.json").write_text(json.dumps({"temperature": 3.0, "checkpoint": "best.ckpt", "step": 99999}))
    assert load_checkpoint(run).temperature == 1.0
    assert "belongs to another checkpoint" in caplog.text
    (run / "calibration.json").unlink()


def test_a_manifest_with_one_of_two_classes_is_evaluated_audited_and_reported(run, tmp_path, caplog):
    rows = [row for row in csv.DictReader((run / "manifest.csv").open()) if row["split"] == "test"]
    custom = [row for row in rows if row["label"] == "to_right"]
    table = tmp_path / "one_class.csv"
    table.write_text(
        "path,label,split\n" + "\n".join(f"{(run / r['path']).resolve()},{r['label']},test" for r in custom)
    )
    options = ["--audit", "--calibrate", "--json", tmp_path / "r.json", "--workers", 0]
    done = command("evaluate", run, "--manifest", table, *options)
    (run / "calibration.json").unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no videos of 1 of the model's 2 classes" in caplog.text
    assert "no videos of: to_left" in done.stdout
    result = json.loads((tmp_path / "r.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert result["class_names"] == ["to_left", "to_right"]
    assert np.shape(result["confusion"]) == (2, 2)
    assert sum(result["confusion"][1]) == result["num_videos"] == len(custom)
    assert result["per_class"]["to_left"]["recall"] is None
    assert result["mean_class_accuracy"] == result["per_class"]["to_right"]["recall"] == result["video_accuracy"]
    assert result["audit"]["frozen"]["per_class"]["to_left"] is None
    page = (run / "evaluate" / "test_one_class" / "report.html").read_text()
    assert "No videos of: to_left." in page


def test_a_manifest_without_videos_of_the_split_is_an_error(run, tmp_path):
    table = tmp_path / "only_train.csv"
    rows = [row for row in csv.DictReader((run / "manifest.csv").open()) if row["split"] == "train"]
    table.write_text("path,label,split\n" + "\n".join(f"{row['path']},{row['label']},train" for row in rows))
    done = command("evaluate", run, "--manifest", table)
    assert done.returncode == 2
    assert "no videos in it" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["--clips", "13"], ["num_clips (=13) is larger than the number of frames", ": 12"]),
        (["--crops", "4"], ["num_crops (=4)", "1 (centre), 3"]),
        (["--split", "tset"], ["--split tset", "train, val, test"]),
    ],
)
def test_impossible_views_and_splits_are_errors(run, arguments, messages):
    done = command("evaluate", run, *arguments, "--workers", 0)
    assert done.returncode == 2
    assert all(message in done.stderr for message in messages), done.stderr


def test_a_run_without_checkpoints_is_an_error(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    done = command("evaluate", tmp_path)
    assert done.returncode == 2
    assert "has no checkpoints/best.ckpt" in done.stderr


CLASSES = ("jump", "run", "sit")


def write_csv(path, *rows):
    """Writes a manifest; relative paths start from its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("path,label,split,group\n" + "\n".join(",".join(map(str, row)) for row in rows))
    return path


def make_files(folder, *, content=""):
    """`folder/CLASS/PERSON.mp4` of two people; all files differ."""
    for label in CLASSES:
        (folder / label).mkdir(parents=True)
        for person in ("p1", "p2", "p3"):
            (folder / label / f"{person}.mp4").write_text(f"{content}{label} {person}")
    return folder


@pytest.fixture
def videos(tmp_path):
    return make_files(tmp_path / "data" / "own", content="own ")


@pytest.fixture
def trained(tmp_path, videos):
    """A run that was trained on p1, validated on p2, and has p3 as test videos."""
    folder = tmp_path / "run"
    splits = {"p1": "train", "p2": "val", "p3": "test"}
    rows = [(videos / c / f"{p}.mp4", c, split, p) for c in CLASSES for p, split in splits.items()]
    write_csv(folder / "manifest.csv", *rows)
    return TrainedModel(
        path=folder / "checkpoints" / "best.ckpt",
        folder=folder,
        model=nn.Identity(),
        clip=ClipSpec(num_frames=4, size=32),
        class_names=CLASSES,
        protocol={"num_clips": 1, "num_crops": 1},
        config={},
        epoch=1,
    )


def seen(trained, path, *, group=None):
    """Whether the run has seen a file."""
    item = Item(path=str(Path(path).absolute()), label="jump", split="test", group=group)
    return seen_in_training(trained, [item]) == [item]


def test_a_manifest_may_have_some_of_the_classes(trained, videos, tmp_path):
    table = write_csv(tmp_path / "some.csv", (videos / "run/p3.mp4", "run", "test", ""))
    data = load_manifest(trained, split="test", manifest=table)
    assert data.class_names == CLASSES
    assert [item.label for item in data.items] == ["run"]
    assert absent_classes(data, "test") == ["jump", "sit"]


def test_absent_classes_are_those_without_videos_in_the_split(trained, videos, tmp_path):
    rows = [(videos / c / "p3.mp4", c, "test" if c == "sit" else "val", "") for c in CLASSES]
    data = load_manifest(trained, split="test", manifest=write_csv(tmp_path / "some.csv", *rows))
    assert absent_classes(data, "test") == ["jump", "run"]


def test_unknown_labels_are_errors_that_name_them(trained, videos, tmp_path):
    rows = [(videos / "run/p3.mp4", label, "test", "") for label in ("run", "runn", "swim")]
    with pytest.raises(InputError, match=r"some.csv has classes that the model does not know: runn, swim; .*'run'\?"):
        load_manifest(trained, split="test", manifest=write_csv(tmp_path / "some.csv", *rows))


def test_labels_may_be_class_indices(trained, videos, tmp_path):
    table = write_csv(tmp_path / "some.csv", (videos / "run/p3.mp4", 1, "test", ""))
    assert [item.label for item in load_manifest(trained, split="test", manifest=table).items] == ["run"]


def test_the_runs_own_test_videos_are_unseen_and_train_and_val_are_seen(trained, videos):
    data = load_manifest(trained, split="test")
    assert seen_in_training(trained, data.items) == [item for item in data.items if item.split != "test"]


def test_groups_of_another_data_set_are_different_groups(trained, tmp_path):
    """Both data sets have people p1, p2, p3."""
    other = make_files(tmp_path / "data" / "other")
    table = write_csv(other / "all.csv", *((f"{c}/{p}.mp4", c, "test", p) for c in CLASSES for p in ("p1", "p2", "p3")))
    assert len(load_manifest(trained, split="test", manifest=table).items) == 9


def test_a_new_video_of_a_training_group_counts_as_seen_within_the_data_set(trained, videos, tmp_path):
    for place in ("run/p1_again.mp4", "run/more/p1_again.mp4"):
        new = videos / place
        new.parent.mkdir(exist_ok=True)
        new.write_text("never seen itself")
        assert seen(trained, new, group="p1")
        assert seen(trained, new, group="p2")
        assert not seen(trained, new, group="p3")
        assert not seen(trained, new)
    table = write_csv(tmp_path / "again.csv", (new, "run", "test", "p1"))
    with pytest.raises(InputError, match=r"1 of 1 videos .* same group of the same data set.*p1_again.*--allow-leaks"):
        load_manifest(trained, split="test", manifest=table)
    assert load_manifest(trained, split="test", manifest=table, allow_leaks=True).items


def test_a_folder_with_the_same_prefix_is_another_data_set(trained, videos):
    new = videos.with_name("own2") / "run" / "p1.mp4"
    new.parent.mkdir(parents=True)
    new.write_text("of another data set")
    assert not seen(trained, new, group="p1")


def test_links_and_other_paths_to_a_training_video_count_as_seen(trained, videos, tmp_path):
    original = videos / "run" / "p1.mp4"
    (tmp_path / "link.mp4").symlink_to(original)
    (tmp_path / "folder").symlink_to(videos, target_is_directory=True)
    os.link(original, tmp_path / "hard.mp4")
    for path in ("link.mp4", "folder/run/p1.mp4", "hard.mp4"):
        assert seen(trained, tmp_path / path), path
    table = write_csv(tmp_path / "deep" / "er" / "t.csv", ("../../data/own/run/../run/p1.mp4", "run", "test", ""))
    with pytest.raises(InputError, match="1 of 1 videos .*same file"):
        load_manifest(trained, split="test", manifest=table)


def test_a_copy_counts_as_seen_and_another_file_of_the_same_size_does_not(trained, videos, tmp_path):
    original = (videos / "run" / "p1.mp4").read_bytes()
    (tmp_path / "copy.mp4").write_bytes(original)
    (tmp_path / "other.mp4").write_bytes(original[::-1])
    assert seen(trained, tmp_path / "copy.mp4")
    assert not seen(trained, tmp_path / "other.mp4")
    (tmp_path / "empty.mp4").touch()
    (videos / "run" / "p2.mp4").write_bytes(b"")
    assert not seen(trained, tmp_path / "empty.mp4")


def test_only_files_of_equal_size_are_read(trained, tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr("stvid.evaluation.evaluate.content_keys", lambda paths, **_: compared.extend(paths) or {})
    (tmp_path / "new.mp4").write_text("a size that no other file has")
    assert not seen(trained, tmp_path / "new.mp4")
    assert compared == []


def test_without_a_manifest_beside_the_checkpoint_nothing_counts_as_seen(trained, videos):
    (trained.folder / "manifest.csv").unlink()
    assert not seen(trained, videos / "run" / "p1.mp4", group="p1")
