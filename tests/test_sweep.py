"""Sweeps, mostly of a cheap function: which trials run, what is kept, and resuming after a kill."""

import csv
import itertools
import json
import multiprocessing
import runpy
import signal
import statistics
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, in_process

optuna = pytest.importorskip("optuna", reason="the search extra is not installed")

APP = """
import json, math, multiprocessing, os, signal
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig
from stvid.exits import report_errors
from stvid.run.config_errors import hydra_errors_as_input_errors
from stvid.errors import InputError
from stvid.sweep.proposals import pruning_reporter
from stvid.sweep.sweep import register_sweeper

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
    if config.starts_process:  # as data loading does
        process = multiprocessing.Process(target=(run / "started").touch)
        process.start()
        process.join()
    accuracy = max(0.0, 1 - abs(math.log10(config.lr) + 2) / 4)
    report = pruning_reporter(run)
    for epoch in range(1, config.epochs + 1):
        if report and report(epoch, accuracy * epoch / config.epochs):
            return accuracy * epoch / config.epochs
    return accuracy

@hydra.main(version_base="1.3", config_path=".", config_name="app")
def main(config):
    return objective(config)

if __name__ == "__main__":
    register_sweeper()
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
    "starts_process": False,
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
        command = [str(app), "-m", *overrides, *([] if resumed else [f"hydra.sweep.dir={folder}"])]
        return in_process(command, lambda: runpy.run_path(str(app), run_name="__main__"))

    return run


def calls(folder):
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]


def summary(folder):
    with (folder / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def journal(folder):
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "journal.log"))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name="sweep", storage=storage).get_trials()


def test_a_grid_is_every_combination_in_order(search, tmp_path):
    done = search("kind=a,b,c", "lr=0.1", "size=range(1,4)")
    assert done.returncode == 0, done.stderr
    assert [(call["kind"], call["size"]) for call in calls(tmp_path / "sweep")] == [
        *itertools.product("abc", (1, 2, 3))
    ]
    assert {call["lr"] for call in calls(tmp_path / "sweep")} == {0.1}
    assert [row["status"] for row in summary(tmp_path / "sweep")] == ["done"] * 9


def values_of(sweep):
    return [trial["values"] for trial in json.loads((sweep / "trials.json").read_text())]


def test_a_killed_sweep_resumes_with_the_trials_that_it_would_have_run(search, tmp_path):
    """Its proposals equal those of an uninterrupted sweep; the interrupted trial runs again in its own folder."""
    overrides = ("sweep=optuna", "sweep.trials=12", LR, "kind=a,b")
    search(*overrides, "dies_in=null", folder=tmp_path / "whole")
    sweep = tmp_path / "sweep"
    killed = multiprocessing.get_context("fork").Process(target=search, args=(*overrides, "dies_in=5"))
    killed.start()
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    before = journal(sweep)
    assert [row["status"] for row in summary(sweep)] == ["done"] * 5 + ["running"]
    assert [trial.state.name for trial in before] == ["COMPLETE"] * 5 + ["RUNNING"]

    done = search(f"resume={sweep}")
    assert done.returncode == 0, done.stderr
    assert "12 trials, 5 finished before" in done.stdout
    after = journal(sweep)
    assert [trial.number for trial in after] == list(range(12))
    assert {trial.state.name for trial in after} == {"COMPLETE"}
    assert after[:5] == before[:5]
    assert [call["run"] for call in calls(sweep)] == [str(n) for n in (0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 11)]
    assert sorted(row["run"] for row in summary(sweep)) == sorted(map(str, range(12)))
    assert values_of(sweep) == values_of(tmp_path / "whole")


def test_the_same_command_resumes_too_and_the_number_of_trials_may_grow(search, tmp_path):
    overrides = ("sweep=random", LR)
    search(*overrides, "sweep.trials=3")
    assert search(*overrides, "sweep.trials=5").returncode == 0
    assert search(f"resume={tmp_path / 'sweep'}").returncode == 0
    assert len(calls(tmp_path / "sweep")) == 5
    assert search(f"resume={tmp_path / 'sweep'}", "sweep.trials=6").returncode == 0
    assert len(calls(tmp_path / "sweep")) == len({call["lr"] for call in calls(tmp_path / "sweep")}) == 6


def test_a_trial_that_raises_is_recorded_and_the_sweep_continues(search, tmp_path):
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


def test_a_trial_below_the_median_is_stopped_early_and_listed_as_such(search, tmp_path):
    sweep = tmp_path / "sweep"
    overrides = ("sweep=optuna", "sweep.trials=12", "sweep.startup_trials=4", "sweep.warmup_epochs=2", "epochs=6", LR)
    assert search(*overrides).returncode == 0
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


def test_the_pruner_can_be_halving_or_none(search, tmp_path):
    overrides = ("sweep=random", "sweep.trials=9", "sweep.startup_trials=1", "sweep.warmup_epochs=1", "epochs=4", LR)
    search(*overrides, "sweep.pruner=halving", folder=tmp_path / "halving")
    search(*overrides, folder=tmp_path / "none")
    states = {name: [trial.state.name for trial in journal(tmp_path / name)] for name in ("halving", "none")}
    assert set(states["halving"]) == {"COMPLETE", "PRUNED"}
    assert set(states["none"]) == {"COMPLETE"}


def test_the_joblib_launcher_runs_trials_in_other_processes(search, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the joblib extra is not installed")
    settings = ("trials=5", "parallel=2", "startup_trials=0", "warmup_epochs=1")
    overrides = ("sweep=optuna", *(f"sweep.{setting}" for setting in settings))
    config = ("raises=1", "epochs=2", "starts_process=true")
    done = search(*overrides, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *config, LR)
    assert done.returncode == 0, done.stderr + done.stdout
    trials = journal(tmp_path / "sweep")
    assert trials[1].state.name == "FAIL"
    assert all(trial.intermediate_values for trial in trials if trial.number != 1)  # written by those processes
    assert sorted(call["run"] for call in calls(tmp_path / "sweep")) == list("01234")
    assert len(list((tmp_path / "sweep").glob("*/started"))) == 4


@pytest.mark.parametrize(
    ("overrides", "message_parts"),
    [
        (["sweep=bayes", LR], ["sweep=bayes", "grid, optuna, random"]),
        (["sweep=optuna", "sweep.pruner=hyperband", LR], ["sweep.pruner (=hyperband)", "none, median, halving"]),
        (["sweep=optuna", "sweep.trials=0", LR], ["sweep.trials (=0)", "at least 1"]),
        (["sweep=random", "sweep.trials=null", LR], ["sweep.trials (=null)"]),
        (["sweep=random", "sweep.seed=x", LR], ["sweep.seed (=x)", "whole number"]),
        (["sweep=random", "+sweep.trails=3", LR], ["unknown config key sweep.trails", "trials"]),
        (["sweep=random", "sweep.seed=1,2", LR], ["sweep.seed=1,2", "cannot have several values"]),
        (["+sweep.pruner=median", "kind=a,b"], ["sweep.pruner (=median)", "random, optuna"]),
        (["sweep.parallel=many", "kind=a,b"], ["sweep.parallel (=many)"]),
        (["sweep.retry_failed=perhaps", "kind=a,b"], ["sweep.retry_failed (=perhaps)"]),
        ([LR], ["lr", "sweep=random, sweep=optuna"]),
        (["sweep=optuna"], ["nothing varies"]),
        (["sweep=random", "lr=tag(exp,interval(1,2))"], ["unknown tag exp"]),
        (["knd=a,b"], ["knd"]),
        (["lr=1,2", "resume=nowhere"], ["has no sweep.yaml"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_mistake_is_one_message_and_no_folder_is_made(overrides, message_parts, search, tmp_path):
    done = search(*overrides)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert all(part in done.stderr for part in message_parts), done.stderr
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("overrides", "message_parts"),
    [
        ([LR, "sweep=random", "sweep.seed=5"], ["sweep.seed (=5)", "started with 0", "trials, parallel"]),
        (["lr=1,2", "sweep=random"], ["other overrides", LR]),
        (["resume=SWEEP", "kind=b"], ["leave out kind=b"]),
        (["resume=SWEEP", "sweep=optuna"], ["sweep.method (=optuna)", "started with random"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_folder_holds_one_sweep(overrides, message_parts, search, tmp_path):
    search(LR, "sweep=random", "sweep.trials=1")
    done = search(*(text.replace("SWEEP", str(tmp_path / "sweep")) for text in overrides))
    assert done.returncode == 2, done.stdout + done.stderr
    assert all(part in done.stderr for part in message_parts), done.stderr
    assert len(calls(tmp_path / "sweep")) == 1


def test_two_processes_do_not_run_the_same_sweep(search, tmp_path):
    search("kind=a,b")
    hold_lock = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]).acquire(); print(1, flush=True); input()"
    command = [sys.executable, "-c", hold_lock, str(tmp_path / "sweep" / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        done = search("kind=a,b")
        other.communicate("\n")
    assert done.returncode == 2
    assert "is in use" in done.stderr


def test_without_optuna_it_says_what_to_install(search, monkeypatch):
    monkeypatch.setattr("stvid.sweep.proposals.importlib.util.find_spec", lambda name: None)
    done = search("sweep=optuna", LR)
    assert done.returncode == 2
    assert "pip install 'stvid[search]'" in done.stderr
