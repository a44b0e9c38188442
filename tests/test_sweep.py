"""Sweeps, mostly of a cheap function: what is proposed, what is kept, what goes on after a kill."""

import csv
import itertools
import json
import math
import multiprocessing
import runpy
import shlex
import signal
import statistics
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, in_process
from hydra.core.override_parser.overrides_parser import OverridesParser

from stvid.errors import InputError
from stvid.sweep import trials as leaderboard
from stvid.sweep import trials as picture
from stvid.sweep.proposals import JOURNAL_NAME, Study, mend
from stvid.sweep.settings import Settings
from stvid.sweep.space import Choice, Interval, read_space
from stvid.sweep.trials import Trial, ranked, read_trials

optuna = pytest.importorskip("optuna", reason="the search extra is not installed")

APP = """
import json, math, os, signal
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig
from stvid.errors import report_errors
from stvid.run.config import hydra_errors_as_input_errors
from stvid.errors import InputError
from stvid.search.pruning import report_of

def objective(config):
    run = Path(HydraConfig.get().runtime.output_dir)
    with (run.parent / "calls.jsonl").open("a") as file:
        file.write(json.dumps({"run": run.name, "lr": config.lr, "kind": config.kind, "size": config.size}) + "\\n")
    if config.raises == "mistake":
        raise InputError("data.root (=/nowhere): there is no such folder")
    if str(config.raises) == run.name:
        raise RuntimeError("out of memory")
    if str(config.dies_in) == run.name and not (run / "died").exists():
        (run / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    goal = max(0.0, 1 - abs(math.log10(config.lr) + 2) / 4)
    report = report_of(run)
    for epoch in range(1, config.epochs + 1):
        if report and report(epoch, goal * epoch / config.epochs):
            return goal * epoch / config.epochs
    return goal

@hydra.main(version_base="1.3", config_path=".", config_name="app")
def main(config):
    return objective(config)

if __name__ == "__main__":
    with report_errors(), hydra_errors_as_input_errors():
        main()
"""
CONFIG = {
    "defaults": ["_self_", {"sweep": "grid"}, {"override hydra/sweeper": "stvid"}],
    "lr": 0.01,
    "kind": "a",
    "size": 1,
    "epochs": 1,
    "resume": None,
    "raises": None,
    "dies_in": None,
    "hydra": {
        "searchpath": [f"file://{ROOT / 'configs'}"],
        "sweep": {"dir": "nowhere"},
        "output_subdir": None,
    },
}
LR = "lr=tag(log,interval(1e-5,1e-1))"


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    (folder / "app.py").write_text(APP)
    (folder / "app.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder / "app.py"


@pytest.fixture
def search(app, tmp_path, monkeypatch):
    """`search(overrides...)` runs a sweep of the cheap function in tmp_path/sweep, in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides, folder=tmp_path / "sweep"):
        resumed = any(text.startswith("resume=") for text in overrides)
        words = [str(app), "-m", *overrides, *([] if resumed else [f"hydra.sweep.dir={folder}"])]
        return in_process(words, lambda: runpy.run_path(str(app), run_name="__main__"))

    return run


def calls(folder):
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]


def summary(folder):
    with (folder / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def journal(folder):
    backend = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL_NAME))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name="sweep", storage=storage).get_trials()


def space_of(*overrides):
    return read_space(overrides, OverridesParser.create())


def test_a_grid_is_every_combination_in_order(search, tmp_path):
    done = search("kind=a,b,c", "lr=0.1", "size=range(1,4)")
    assert done.returncode == 0, done.stderr
    assert [(call["kind"], call["size"]) for call in calls(tmp_path / "sweep")] == [
        *itertools.product("abc", (1, 2, 3))
    ]
    assert {call["lr"] for call in calls(tmp_path / "sweep")} == {0.1}
    assert [row["status"] for row in summary(tmp_path / "sweep")] == ["done"] * 9


def test_the_grammar_says_what_varies():
    space = space_of("a=1", "b=x,y", LR, "n=int(interval(2,8))", "r=range(0,1,0.25)", "+new=choice(1,none)", "b=p,q")
    assert space.fixed == ("a=1",)
    assert space.varied == {
        "lr": Interval(low=1e-5, high=1e-1, log=True),
        "n": Interval(low=2, high=8, whole=True),
        "r": Choice(values=("0.0", "0.25", "0.5", "0.75"), ordered=True),
        "+new": Choice(values=("1", "none")),
        "b": Choice(values=("p", "q")),
    }


def test_random_draws_every_order_of_magnitude_alike(tmp_path):
    space = space_of(LR, "n=int(interval(2,5))", "dropout=interval(0,0.5)", "r=range(0,1,0.25)", "kind=a,b")
    study = Study(folder=tmp_path, space=space, settings=Settings(method="random", trials=300))
    drawn = [study.propose(number) for number in range(300)]
    places = sorted((math.log10(float(values["lr"])) + 5) / 4 for values in drawn)
    assert places[0] >= 0
    assert places[-1] <= 1
    distance = max(max((i + 1) / 300 - x, x - i / 300) for i, x in enumerate(places))  # Kolmogorov-Smirnov
    assert distance < 1.63 / math.sqrt(300)  # its 1 % point
    assert {values["n"] for values in drawn} == {"2", "3", "4", "5"}
    assert {values["r"] for values in drawn} == {"0.0", "0.25", "0.5", "0.75"}
    assert 0.4 < sum(values["kind"] == "a" for values in drawn) / 300 < 0.6
    assert 0.22 < statistics.mean(float(values["dropout"]) for values in drawn) < 0.28


def test_optuna_learns_and_a_seed_says_what_is_drawn(tmp_path):
    drawn = {}
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        (tmp_path / name).mkdir()
        settings = Settings(method="optuna", trials=25, seed=seed)
        study = Study(folder=tmp_path / name, space=space_of(LR), settings=settings)
        drawn[name] = []
        for number in range(25):
            values = study.propose(number)
            drawn[name].append(abs(math.log10(float(values["lr"])) + 2))
            metrics = {"video_accuracy": -drawn[name][-1]}
            study.record(Trial(number=number, values=values, status="done", metrics=metrics))
    assert drawn["one"] == drawn["two"] != drawn["three"]
    for misses in drawn.values():
        assert statistics.mean(misses[15:]) < statistics.mean(misses[:5])


def test_killed_after_five_it_goes_on_with_seven(search, tmp_path):
    """What it proposes is what the sweep that nobody killed proposes; the trial that ran is run in its own folder."""
    asked = ("sweep=optuna", "sweep.trials=12", LR, "kind=a,b")
    search(*asked, "dies_in=null", folder=tmp_path / "whole")
    sweep = tmp_path / "sweep"
    killed = multiprocessing.get_context("fork").Process(target=search, args=(*asked, "dies_in=5"))
    killed.start()
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    before = journal(sweep)
    assert [row["status"] for row in summary(sweep)] == ["done"] * 5 + ["running"]
    assert [trial.state.name for trial in before] == ["COMPLETE"] * 5 + ["RUNNING"]

    done = search(f"resume={sweep}")
    assert done.returncode == 0, done.stderr
    assert "12 trials, 5 done before" in done.stdout
    after = journal(sweep)
    assert [trial.number for trial in after] == list(range(12))
    assert {trial.state.name for trial in after} == {"COMPLETE"}
    assert after[:5] == before[:5]
    assert [call["run"] for call in calls(sweep)] == [str(n) for n in (0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 11)]
    assert sorted(row["run"] for row in summary(sweep)) == sorted(map(str, range(12)))
    assert [trial.values for trial in read_trials(sweep)] == [trial.values for trial in read_trials(tmp_path / "whole")]


def test_the_same_command_goes_on_too_and_more_trials_can_be_asked_for(search, tmp_path):
    asked = ("sweep=random", LR)
    search(*asked, "sweep.trials=3")
    assert search(*asked, "sweep.trials=5").returncode == 0
    assert search(f"resume={tmp_path / 'sweep'}").returncode == 0
    assert len(calls(tmp_path / "sweep")) == 5
    assert search(f"resume={tmp_path / 'sweep'}", "sweep.trials=6").returncode == 0
    assert len(calls(tmp_path / "sweep")) == len({call["lr"] for call in calls(tmp_path / "sweep")}) == 6


def test_a_kill_between_two_files_loses_no_trial(tmp_path):
    space, settings = space_of(LR), Settings(method="optuna", trials=4)
    values = Study(folder=tmp_path, space=space, settings=settings).propose(0)
    with (tmp_path / JOURNAL_NAME).open("ab") as file:
        file.write(b'{"op_code":4,"wor')  # a line that a kill cut off
    mend(tmp_path / JOURNAL_NAME)
    study = Study(folder=tmp_path, space=space, settings=settings)
    assert study.propose(0) == values  # it was in the journal, but not yet in trials.json
    study.record(Trial(number=0, values=values, status="done", metrics={"video_accuracy": 0.5}))
    assert study.propose(1) != values
    with pytest.raises(InputError, match="holds 2 trials, and 5 were begun"):
        study.propose(5)


def test_a_trial_that_raises_is_recorded_and_the_search_goes_on(search, tmp_path):
    done = search("sweep=optuna", "sweep.trials=4", LR, "raises=1")
    assert done.returncode == 0, done.stderr
    rows = summary(tmp_path / "sweep")
    assert (rows[-1]["run"], rows[-1]["status"]) == ("1", "failed: RuntimeError: out of memory")
    assert [row["status"] for row in rows[:-1]] == ["done"] * 3
    assert [trial.state.name for trial in journal(tmp_path / "sweep")] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert "in objective" in (tmp_path / "sweep" / "1" / "app.log").read_text()  # the traceback


def test_failed_trials_of_a_grid_can_be_run_again(search, tmp_path):
    done = search("kind=a,b,c", "raises=1")
    assert done.returncode == 1
    assert search(f"resume={tmp_path / 'sweep'}").returncode == 1
    assert len(calls(tmp_path / "sweep")) == 3
    stored = yaml.safe_load((tmp_path / "sweep" / "sweep.yaml").read_text())
    stored["overrides"] = ["kind=a,b,c", "raises=null"]
    (tmp_path / "sweep" / "sweep.yaml").write_text(yaml.safe_dump(stored))
    assert search(f"resume={tmp_path / 'sweep'}", "sweep.retry_failed=true").returncode == 0
    assert [call["run"] for call in calls(tmp_path / "sweep")] == ["0", "1", "2", "1"]


def test_a_mistake_that_hits_all_trials_ends_the_sweep(search, tmp_path):
    done = search("sweep=random", "sweep.trials=12", LR, "raises=mistake")
    assert done.returncode == 2
    assert "data.root (=/nowhere)" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert len(calls(tmp_path / "sweep")) == 2


def test_a_trial_that_falls_behind_is_stopped_and_says_so(search, tmp_path):
    sweep = tmp_path / "sweep"
    asked = ("sweep=optuna", "sweep.trials=12", "sweep.startup_trials=4", "sweep.warmup_epochs=2", "epochs=6", LR)
    assert search(*asked).returncode == 0
    trials = journal(sweep)
    stopped = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert stopped
    assert all(trial.number >= 4 for trial in stopped)
    rows = {int(row["run"]): row for row in summary(sweep)}
    for trial in stopped:
        epoch = trial.last_step
        others = [t.intermediate_values[epoch] for t in trials[: trial.number] if t.state.name == "COMPLETE"]
        assert trial.intermediate_values[epoch] < statistics.median(others)
        assert epoch >= 2
        assert rows[trial.number]["status"] == f"stopped early at epoch {epoch}"
        assert float(rows[trial.number]["video_accuracy"]) == pytest.approx(trial.value)
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert all(len(trial.intermediate_values) == 6 for trial in done)


def test_halving_and_none_are_there_too(search, tmp_path):
    asked = ("sweep=random", "sweep.trials=9", "sweep.startup_trials=1", "sweep.warmup_epochs=1", "epochs=4", LR)
    search(*asked, "sweep.pruner=halving", folder=tmp_path / "halving")
    search(*asked, folder=tmp_path / "none")
    states = {name: [trial.state.name for trial in journal(tmp_path / name)] for name in ("halving", "none")}
    assert set(states["halving"]) == {"COMPLETE", "PRUNED"}
    assert set(states["none"]) == {"COMPLETE"}


def test_trials_in_processes_of_their_own(search, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the joblib extra is not installed")
    asked = ("sweep=optuna", "sweep.trials=5", "sweep.parallel=2", "sweep.startup_trials=0", "sweep.warmup_epochs=1")
    done = search(*asked, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "raises=1", "epochs=2", LR)
    assert done.returncode == 0, done.stderr + done.stdout
    trials = journal(tmp_path / "sweep")
    assert trials[1].state.name == "FAIL"
    assert all(trial.intermediate_values for trial in trials if trial.number != 1)  # reported from there
    assert sorted(call["run"] for call in calls(tmp_path / "sweep")) == list("01234")


def test_the_leaderboard_is_in_order_and_the_best_can_be_retrained(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py"])
    fixed = ["data.root='my videos'", "model.dims=[1,2]", "+note='its $HOME'"]
    trials = [
        Trial(number=0, values={"lr": "0.1", "tag": "'a b'"}, status="done", metrics={"video_accuracy": 0.4}),
        Trial(number=1, values={"lr": "0.2", "tag": "'a b'"}, status="failed: no\nmemory"),
        Trial(
            number=2, values={"lr": "0.3", "tag": "a\\,b"}, status="done", metrics={"video_accuracy": 0.9, "loss": 1.0}
        ),
        Trial(number=3, values={"lr": "0.4", "tag": "x"}),
        Trial(
            number=4,
            values={"lr": "0.5", "tag": "x"},
            status="stopped early at epoch 2",
            metrics={"video_accuracy": 0.6},
        ),
    ]
    leaderboard.write_summary(tmp_path, trials)
    assert [row["run"] for row in summary(tmp_path)] == ["2", "4", "0", "3", "1"]
    text = leaderboard.closing_words(tmp_path, fixed, trials, with_best=True)
    assert [line.split()[0] for line in text.splitlines()[2:7]] == ["2", "4", "0", "3", "1"]
    command = next(line for line in text.splitlines() if line.startswith("retrain it")).removeprefix("retrain it")
    program, script, *overrides = shlex.split(command)
    assert (program, script) == ("python", "train.py")
    assert overrides == [*fixed, "lr=0.3", "tag=a\\,b"]
    parsed = OverridesParser.create().parse_overrides(overrides)
    assert [override.value() for override in parsed[:2]] == ["my videos", [1, 2]]
    assert [override.value() for override in parsed[3:]] == [0.3, "a,b"]


def test_the_picture_shows_numbers_names_and_orders_of_magnitude(tmp_path):
    space = space_of(LR, "kind=a,b", "size=1,2", "depth=range(1,4)")
    values = {"lr": "0.001", "kind": "b", "size": "2", "depth": "3"}
    trials = [
        Trial(number=0, values=values, status="done", metrics={"video_accuracy": 0.4}),
        Trial(number=1, values=values, status="stopped early at epoch 1", metrics={"video_accuracy": 0.2}),
        Trial(number=2, values=values, status="failed: x"),
    ]
    picture.draw(trials, space.varied, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert ranked(trials)[-1].number == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sweep=bayes", LR], ["sweep=bayes", "grid, optuna, random"]),
        (["sweep=optuna", "sweep.pruner=hyperband", LR], ["sweep.pruner (=hyperband)", "none, median, halving"]),
        (["sweep=optuna", "sweep.trials=0", LR], ["sweep.trials (=0)", "at least 1"]),
        (["sweep=random", "sweep.trials=null", LR], ["sweep.trials (=None)"]),
        (["sweep=random", "sweep.seed=x", LR], ["sweep.seed (=x)", "whole number"]),
        (["sweep=random", "+sweep.trails=3", LR], ["unknown config key sweep.trails", "trials"]),
        (["sweep=random", "sweep.seed=1,2", LR], ["sweep.seed=1,2", "cannot vary"]),
        (["+sweep.pruner=median", "kind=a,b"], ["sweep.pruner (=median)", "random, optuna"]),
        (["sweep.parallel=many", "kind=a,b"], ["sweep.parallel (=many)"]),
        (["sweep.retry_failed=perhaps", "kind=a,b"], ["sweep.retry_failed (=perhaps)"]),
        ([LR], ["lr", "sweep=random, sweep=optuna"]),
        (["sweep=optuna"], ["nothing varies"]),
        (["sweep=random", "lr=tag(exp,interval(1,2))"], ["unknown tag exp", "log"]),
        (["sweep=random", "lr=tag(log,interval(0,2))"], ["above 0"]),
        (["sweep=random", "lr=interval(2,1)"], ["wrong way round"]),
        (["kind=shuffle(a,b)"], ["shuffle()"]),
        (["knd=a,b"], ["knd"]),
        (["lr=1,2", "resume=nowhere"], ["no sweep.yaml there"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_mistake_is_one_message_and_nothing_is_begun(overrides, words, search, tmp_path):
    done = search(*overrides)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([LR, "sweep=random", "sweep.seed=5"], ["sweep.seed (=5)", "begun with 0", "trials, parallel"]),
        (["lr=1,2", "sweep=random"], ["other overrides", LR]),
        (["resume=SWEEP", "kind=b"], ["leave out kind=b"]),
        (["resume=SWEEP", "sweep=optuna"], ["sweep.method (=optuna)", "begun with random"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_folder_holds_one_sweep(overrides, words, search, tmp_path):
    search(LR, "sweep=random", "sweep.trials=1")
    done = search(*(text.replace("SWEEP", str(tmp_path / "sweep")) for text in overrides))
    assert done.returncode == 2, done.stdout + done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert len(calls(tmp_path / "sweep")) == 1


def test_two_processes_do_not_run_the_same_sweep(search, tmp_path):
    search("kind=a,b")
    holds = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]).acquire(); print(1, flush=True); input()"
    words = [sys.executable, "-c", holds, str(tmp_path / "sweep" / ".lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        done = search("kind=a,b")
        other.communicate("\n")
    assert done.returncode == 2
    assert "another process is running this sweep" in done.stderr


def test_without_optuna_it_says_what_to_install(search, monkeypatch):
    monkeypatch.setattr("stvid.sweep.proposals.importlib.util.find_spec", lambda name: None)
    done = search("sweep=optuna", LR)
    assert done.returncode == 2
    assert "pip install 'stvid[search]'" in done.stderr
