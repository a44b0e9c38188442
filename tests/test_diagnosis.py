"""A model at chance and one that overfits are called so, each with one suggestion that fits."""

import dataclasses

import pytest
from test_report import Page, make_report, written

from stvid.evaluation.diagnosis import diagnose, loss_note


def result(*, low=0.6, sizes=(10, 10), epoch=6, num_train=40, **config):
    names = [f"class{i}" for i in range(len(sizes))]
    model = {"weights": None, "freeze": 0, "dropout": 0.2, **config.pop("model", {})}
    return {
        "split": "val",
        "video_accuracy": low + 0.1,
        "video_accuracy_ci95": [low, low + 0.2],
        "num_videos": sum(sizes),
        "per_class": {name: {"num_videos": size} for name, size in zip(names, sizes, strict=True)},
        "protocol": {"num_clips": 1},
        "epoch": epoch,
        "data": {"num_videos": {"train": {names[0]: num_train}}},
        "config": {"model": model, "augment": {"scale": [0.7, 1.0]}, "clip": {"input": "rgb"}, **config},
    }


def curves(train, val, num_epochs=8):
    rows = [{"epoch": str(e + 1), "train_clip_accuracy": "0.5", "val_clip_accuracy": "0.5"} for e in range(num_epochs)]
    rows[-1] |= {"train_clip_accuracy": str(train), "val_clip_accuracy": str(val)}
    return rows


FINE = curves(0.8, 0.75)
OVERFITTED = curves(1.0, 0.6)


@pytest.mark.parametrize(
    ("low", "sizes", "is_at_chance"),
    [
        (0.51, (10, 10), False),
        (0.49, (10, 10), True),
        (0.3, (5, 5, 5, 5), False),
        (0.2, (5, 5, 5, 5), True),
        (0.55, (12, 4, 4), True),  # always predicting the most common class gives 0.6
        (0.65, (12, 4, 4), False),
        (0.0, (10, 10), True),  # worse than chance
        (0.2, (10,), False),  # one class has no chance level
    ],
)
def test_a_model_is_at_chance_if_its_interval_reaches_chance_or_the_most_common_class(low, sizes, is_at_chance):
    lines = diagnose(result(low=low, sizes=sizes), FINE)
    assert len(lines) == is_at_chance
    assert all(line.startswith("At chance") for line in lines)


@pytest.mark.parametrize(
    ("epochs", "best", "overfits"),
    [
        (OVERFITTED, 1, True),
        (OVERFITTED, 4, True),
        (OVERFITTED, 5, False),  # still improves on val
        (curves(0.79, 0.6), 1, False),
        (curves(1.0, 0.6, num_epochs=3), 1, False),
        (FINE, 1, False),
        ([], 1, False),
        ([{"epoch": "1", "train_clip_accuracy": "1", "val_clip_accuracy": ""}] * 5, 1, False),
    ],
)
def test_a_model_overfits_if_train_is_far_above_val_and_the_best_epoch_is_early(epochs, best, overfits):
    lines = diagnose(result(epoch=best), epochs)
    assert len(lines) == overfits
    assert all(line.startswith("Overfitting: the clip accuracy ends at 100.0") for line in lines)


@pytest.mark.parametrize(
    ("settings", "suggestion"),
    [
        ({}, "Try experiment=small_real, the recipe for 40 training videos, or experiment=small_real_conv3d"),
        ({"num_train": 5000}, "Try pretrained weights, such as experiment=r3d_18_kinetics"),
        ({"model": {"weights": "DEFAULT"}}, "Try model.freeze=all"),
        ({"model": {"weights": "DEFAULT", "freeze": "all"}}, "Try augment=strong"),
        ({"model": {"weights": "DEFAULT", "freeze": "all"}, "augment": {"scale": [0.35, 1]}}, "Try early_stopping=5"),
    ],
)
def test_the_suggestion_fits_an_overfitted_model(settings, suggestion):
    (line,) = diagnose(result(epoch=1, **settings), OVERFITTED)
    assert suggestion in line
    assert line.count("Try") == 1


@pytest.mark.parametrize(
    ("settings", "suggestion"),
    [({}, "Try experiment=small_real"), ({"model": {"weights": "DEFAULT"}}, "Try find_lr=true")],
)
def test_the_suggestion_fits_a_model_at_chance(settings, suggestion):
    (line,) = diagnose(result(low=0.4, **settings), FINE)
    assert suggestion in line


def test_both_have_different_suggestions():
    chance, overfitting = diagnose(result(low=0.4, epoch=1), OVERFITTED)
    assert chance.partition("Try")[2] != overfitting.partition("Try")[2]


def losses(train, val):
    return [{"epoch": "1", "train_loss": str(train), "val_loss": str(val)}]


def test_a_training_loss_above_the_val_loss_is_explained():
    config = {"augment": {"flip": 0.5}, "model": {"dropout": 0.5}, "loss": {"label_smoothing": 0.1}, "mixing": None}
    note = loss_note(config, losses(1.5, 1.0))
    assert "on augmented clips, with dropout, with label smoothing" in note
    assert "mixed" not in note
    assert "with mixed clips" in loss_note({"mixing": {"mixup": 0.8}}, losses(1.5, 1.0))
    assert loss_note(config, losses(1.0, 1.5)) == loss_note(config, []) == ""


def test_the_page_has_the_diagnosis_and_names_model_and_data(tmp_path):
    report = make_report(name="2026-11-28_19-14-11_conv3d")
    run = {**report.result, **result(low=0.1, epoch=1), **report.run}
    run["config"]["data"] = {"root": "/data/my_actions"}
    epochs = [{**row, "lr": "0.1", "train_loss": "2", "val_loss": "1"} for row in OVERFITTED]
    page = Page(written(dataclasses.replace(report, run=run, epochs=epochs), tmp_path))
    assert "At chance" in page.text
    assert "Overfitting" in page.text
    assert "The training loss (2.000) is above the val loss (1.000)" in page.text
    assert page.text.strip().startswith("Conv3D on my_actions: ")
    assert "2026-11-28_19-14-11_conv3d" in page.text
