"""The leaderboard of a sweep: order, text, the command that trains again, and the picture."""

import csv
import shlex
import sys

from hydra.core.override_parser.overrides_parser import OverridesParser

from stvid.sweep.space import Choice, Interval
from stvid.sweep.trials import Trial, draw_summary, ranked, summary_text, write_summary


def trial(number, status="done", accuracy=None, loss=None, **values):
    metrics = {"video_accuracy": accuracy, "loss": loss}
    metrics = {key: value for key, value in metrics.items() if value is not None}
    return Trial(number=number, values=values, status=status, metrics=metrics)


def test_the_leaderboard_is_in_order_and_the_best_can_be_retrained(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py"])
    fixed = ["data.root='my videos'", "model.dims=[1,2]", "+note='its $HOME'"]
    trials = [
        trial(0, accuracy=0.4, lr="0.1", tag="'a b'"),
        trial(1, "failed: no\nmemory", lr="0.2", tag="'a b'"),
        trial(2, accuracy=0.9, loss=1.0, lr="0.3", tag="a\\,b"),
        trial(3, "running", lr="0.4", tag="x"),
        trial(4, "stopped early at epoch 2", accuracy=0.6, lr="0.5", tag="x"),
    ]
    write_summary(tmp_path, trials)
    with (tmp_path / "summary.csv").open(newline="") as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["2", "4", "0", "3", "1"]
    text = summary_text(tmp_path, fixed, trials, with_best=True)
    assert [line.split()[0] for line in text.splitlines()[2:7]] == ["2", "4", "0", "3", "1"]
    command = next(line for line in text.splitlines() if line.startswith("retrain it")).removeprefix("retrain it")
    program, script, *overrides = shlex.split(command)
    assert (program, script) == ("python", "train.py")
    assert overrides == [*fixed, "lr=0.3", "tag=a\\,b"]
    parsed = OverridesParser.create().parse_overrides(overrides)
    assert [override.value() for override in parsed[:2]] == ["my videos", [1, 2]]
    assert [override.value() for override in parsed[3:]] == [0.3, "a,b"]


def test_of_equal_accuracies_the_lower_loss_is_better():
    trials = [trial(0, accuracy=0.5, loss=2.0), trial(1, accuracy=0.5, loss=1.0), trial(2, accuracy=0.5)]
    assert [ranked_trial.number for ranked_trial in ranked(trials)] == [1, 0, 2]


def test_the_picture_shows_numbers_names_and_orders_of_magnitude(tmp_path):
    varied = {
        "lr": Interval(low=1e-5, high=1e-1, log=True),
        "kind": Choice(values=("a", "b")),
        "size": Choice(values=("1", "2")),
        "depth": Choice(values=("1", "2", "3"), ordered=True),
    }
    values = {"lr": "0.001", "kind": "b", "size": "2", "depth": "3"}
    trials = [
        trial(0, accuracy=0.4, **values),
        trial(1, "stopped early at epoch 1", accuracy=0.2, **values),
        trial(2, "failed: x", **values),
    ]
    draw_summary(trials, varied, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert ranked(trials)[-1].number == 2
