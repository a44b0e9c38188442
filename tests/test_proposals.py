"""The values that trials get: their distribution, their dependence on the seed, and what a kill leaves behind."""

import math
import statistics

import pytest

from stvid.errors import InputError
from stvid.sweep.proposals import OptunaSearch, truncate_partial_line
from stvid.sweep.settings import Settings
from stvid.sweep.space import Choice, Interval, Space
from stvid.sweep.trials import Trial

pytest.importorskip("optuna", reason="the search extra is not installed")

LR = Interval(low=1e-5, high=1e-1, log=True)


def space_of(**varied):
    return Space(fixed=(), varied=varied)


def test_random_search_draws_uniformly_on_the_scale_of_each_dimension(tmp_path):
    space = space_of(
        lr=LR,
        n=Interval(low=2, high=5, whole=True),
        dropout=Interval(low=0, high=0.5),
        r=Choice(values=("0.0", "0.25", "0.5", "0.75"), ordered=True),
        kind=Choice(values=("a", "b")),
    )
    search = OptunaSearch(folder=tmp_path, space=space, settings=Settings(method="random", trials=300))
    drawn = [search.propose(number) for number in range(300)]
    positions = sorted((math.log10(float(values["lr"])) + 5) / 4 for values in drawn)
    assert positions[0] >= 0
    assert positions[-1] <= 1
    distance = max(max((i + 1) / 300 - x, x - i / 300) for i, x in enumerate(positions))  # Kolmogorov-Smirnov
    assert distance < 1.63 / math.sqrt(300)  # the critical value at 1 %
    assert {values["n"] for values in drawn} == {"2", "3", "4", "5"}
    assert {values["r"] for values in drawn} == {"0.0", "0.25", "0.5", "0.75"}
    assert 0.4 < sum(values["kind"] == "a" for values in drawn) / 300 < 0.6
    assert 0.22 < statistics.mean(float(values["dropout"]) for values in drawn) < 0.28


def test_optuna_learns_and_the_seed_determines_the_proposals(tmp_path):
    distances = {}
    for name, seed in (("first", 0), ("same seed", 0), ("other seed", 1)):
        (tmp_path / name).mkdir()
        settings = Settings(method="optuna", trials=25, seed=seed)
        search = OptunaSearch(folder=tmp_path / name, space=space_of(lr=LR), settings=settings)
        distances[name] = []
        for number in range(25):
            values = search.propose(number)
            distances[name].append(abs(math.log10(float(values["lr"])) + 2))
            metrics = {"video_accuracy": -distances[name][-1]}
            search.record(Trial(number=number, values=values, status="done", metrics=metrics))
    assert distances["first"] == distances["same seed"] != distances["other seed"]
    for series in distances.values():
        assert statistics.mean(series[15:]) < statistics.mean(series[:5])


def test_a_kill_between_two_files_loses_no_trial(tmp_path):
    space, settings = space_of(lr=LR), Settings(method="optuna", trials=4)
    values = OptunaSearch(folder=tmp_path, space=space, settings=settings).propose(0)
    with (tmp_path / "journal.log").open("ab") as file:
        file.write(b'{"op_code":4,"wor')  # a kill cut this line off
    truncate_partial_line(tmp_path / "journal.log")
    search = OptunaSearch(folder=tmp_path, space=space, settings=settings)
    assert search.propose(0) == values  # it was in the journal, but not yet in trials.json
    search.record(Trial(number=0, values=values, status="done", metrics={"video_accuracy": 0.5}))
    assert search.propose(1) != values
    with pytest.raises(InputError, match="holds 2 trials, but 5 were started"):
        search.propose(5)
