"""Files of a run that were damaged, or changed by someone else: one InputError, a correct answer, and nothing run."""

import json
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from conftest import ROOT, train_py
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from stvid.errors import InputError
from stvid.evaluation.results import read_evaluation, read_predictions
from stvid.report.report import report_of_run
from stvid.run.checkpoint import load_checkpoint
from stvid.run.results import read_result, read_run_result
from stvid.run.stored import TRAINER, check_arguments, check_same_config, check_targets, read_config
from stvid.sweep.space import Choice, Interval, Space
from stvid.sweep.trials import read_metrics, read_trials
from stvid.training.callbacks.bad_videos import read_bad_videos
from stvid.training.callbacks.progress import read_epochs
from stvid.video.probe_cache import ProbeCache

CONTENTS = {
    "empty": b"",
    "text": b"hello",
    "list": b"[1, 2]",
    "no keys": b"{}",
    "number": b"7",
    "null": b"null",
    "truncated": b'{"class_names": ["a", "b"',
    "not UTF-8": b'{"temperature": "\xff\xfe"}',
    "noise": bytes(range(256)) * 9,
    "nested": b"[" * 200_000,
    "digits": b'{"temperature": ' + b"9" * 5000 + b"}",
    "NUL": b'a,b\n"\x00",2\n',
    "cells": b"path,reason,epoch\n1\n1,2,3,4\n",
    "folder": None,
}
FILES = {
    "calibration.json": load_checkpoint,
    "result.json": read_result,
    "result.json of a run": read_run_result,
    "result.json of a trial": read_metrics,
    "predictions.csv": lambda run: read_predictions(run / "predictions.csv", ["to_left", "to_right"]),
    "metrics.csv": lambda run: read_epochs(run / "metrics.csv"),
    "bad_videos.csv": lambda run: read_bad_videos(run / "bad_videos.csv"),
    "trials.json": lambda run: read_trials(run, SPACE),
    "config.yaml": lambda run: read_config(run / "config.yaml"),
    "best.ckpt": load_checkpoint,
}
HARMLESS = {  # a mapping without the optional keys, a run that is not finished
    *(("result.json of a run", "no keys"), ("result.json of a trial", "no keys")),
    *(("config.yaml", content) for content in ("no keys", "empty", "text", "null", "cells")),  # `resume` refuses them
}
SPACE = Space(fixed=(), varied={"lr": Interval(low=0.1, high=1), "kind": Choice(values=("a", "b"))})


@pytest.fixture
def run(run_folder, tmp_path):
    return shutil.copytree(run_folder, tmp_path / "run")


def place_of(run, name):
    return run / "checkpoints" / name if name.endswith(".ckpt") else run / name.split()[0]


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_one_message_that_names_it(name, content, run):
    file = place_of(run, name)
    file.unlink(missing_ok=True)
    if CONTENTS[content] is None:
        file.mkdir()
    else:
        file.write_bytes(CONTENTS[content])
    if (name, content) in HARMLESS:
        FILES[name](run)
        return
    if (name, content) == ("best.ckpt", "folder"):  # the last checkpoint is used instead
        assert FILES[name](run).path.name == "last.ckpt"
        return
    with pytest.raises(InputError, match=file.name):
        FILES[name](run)


@pytest.mark.parametrize("content", CONTENTS)
def test_a_damaged_probe_cache_begins_anew(content, tmp_path):
    file = tmp_path / "cache.json"
    file.mkdir() if CONTENTS[content] is None else file.write_bytes(CONTENTS[content])
    assert not len(ProbeCache(file))


@pytest.mark.parametrize("value", ["-1", "0", "Infinity", "-Infinity", "NaN", "true", '"1"', "null", "[1]", "1e400"])
def test_a_temperature_out_of_its_range_is_refused(value, run):
    step = load_checkpoint(run).step
    (run / "calibration.json").write_text(f'{{"temperature": {value}, "checkpoint": "best.ckpt", "step": {step}}}')
    with pytest.raises(InputError, match=r"calibration\.json.*temperature"):
        load_checkpoint(run)


@pytest.mark.parametrize("value", ["-1", "0", "1.5", "NaN", "true", '"1"', "[1]"])
def test_a_threshold_out_of_its_range_is_refused(value, run):
    record = {"temperature": 1.0, "checkpoint": "best.ckpt", "step": load_checkpoint(run).step}
    text = json.dumps(record)[:-1] + f', "threshold": {value}}}'
    (run / "calibration.json").write_text(text)
    with pytest.raises(InputError, match=r"calibration\.json.*threshold"):
        load_checkpoint(run)


RESULTS = {
    "num_clips": lambda r: r["protocol"].update(num_clips=10**7),
    "accuracy": lambda r: r.update(video_accuracy=2),
    "interval": lambda r: r.update(video_accuracy_ci95=[0.1]),
    "NaN": lambda r: r.update(loss=float("nan")),
    "classes": lambda r: r.update(class_names=["a", "a"]),
    "no classes": lambda r: r.update(class_names=[]),
    "other classes": lambda r: r.update(class_names=["a", "b"]),
    "confusion": lambda r: r.update(confusion=[[1, 2]]),
    "negative": lambda r: r["confusion"][0].__setitem__(0, -1),
    "per class": lambda r: r.update(per_class={}),
    "split": lambda r: r.update(split="all"),
    "bins": lambda r: r.update(reliability=[{"low": 0}]),
    "audit": lambda r: r.update(audit={}),
    "folds": lambda r: r.update(folds="all"),
    "hardware": lambda r: r.update(hardware=[]),
}


@pytest.mark.parametrize("change", RESULTS)
def test_a_changed_result_is_refused(change, run):
    result = json.loads((run / "result.json").read_text())
    RESULTS[change](result)
    (run / "result.json").write_text(json.dumps(result))
    with pytest.raises(InputError, match=r"result\.json is damaged or was changed"):
        report_of_run(load_checkpoint(run))
    if change in ("num_clips", "accuracy", "split"):
        with pytest.raises(InputError, match=r"result\.json is damaged or was changed"):
            read_evaluation(run, "val")


def flipped_bit(path):
    with zipfile.ZipFile(path) as archive:
        name = max(archive.infolist(), key=lambda entry: entry.file_size).filename
        payload = archive.read(name)
    content = bytearray(path.read_bytes())
    content[content.index(payload) + len(payload) // 2] ^= 1
    path.write_bytes(content)


def compressed(path):
    with zipfile.ZipFile(path) as old:
        parts = {entry.filename: old.read(entry) for entry in old.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, part in parts.items():
            new.writestr(name, part)


def changed(change):
    def apply(path):
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path)

    return apply


def model(**values):
    return changed(lambda c: c["stvid"]["config"]["model"].update(values))


CHECKPOINTS = {
    "flipped bit": flipped_bit,
    "compressed": compressed,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-500]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "huge width": model(widths=[10**9, 10**9, 10**9, 10**9]),
    "huge list": model(_target_="stvid.models.cnn_lstm.CNNLSTM", widths=None),
    "deep": changed(
        lambda c: c["stvid"]["config"].update(
            model={"_target_": "stvid.models.cnn_lstm.CNNLSTM", "encoder": "small", "num_layers": 10**9}
        )
    ),
    "encoder": changed(
        lambda c: c["stvid"]["config"].update(model={"_target_": "stvid.models.cnn_lstm.CNNLSTM", "encoder": 5})
    ),
    "negative": model(widths=[-1, 2, 3, 4]),
    "wrong type": model(widths="wide"),
    "unknown key": model(wide=3),
    "num_clips": changed(lambda c: c["stvid"]["protocol"].update(num_clips=10**7)),
    "clip": changed(lambda c: c["stvid"]["clip"].update(size=[10**6, 10**6])),
    "large clip": changed(lambda c: c["stvid"]["clip"].update(num_frames=2**7, size=[2**11, 2**11])),
    "clip type": changed(lambda c: c["stvid"]["clip"].update(num_frames="all")),
    "clip key": changed(lambda c: c["stvid"]["clip"].update(colour=1)),
    "no record": changed(lambda c: c.update(stvid=None)),
    "no config": changed(lambda c: c["stvid"].update(config=[])),
    "no weights": changed(lambda c: c.update(state_dict=[])),
    "text weights": changed(lambda c: c["state_dict"].update({"model.head.weight": "x"})),
    "sparse": changed(lambda c: c["state_dict"].update({"model.head.bias": torch.zeros(2).to_sparse()})),
    "epoch": changed(lambda c: c.update(epoch="one")),
    "position": changed(lambda c: c.update(loops={})),
    "classes": changed(lambda c: c["stvid"].update(class_names=[1, 2])),
    "more classes": changed(lambda c: c["stvid"].update(class_names=[str(i) for i in range(1000)])),
}


@pytest.mark.parametrize("change", CHECKPOINTS)
def test_a_damaged_checkpoint_is_one_message(change, run):
    path = run / "checkpoints" / "best.ckpt"
    CHECKPOINTS[change](path)
    with pytest.raises(InputError, match=r"best\.ckpt"):
        load_checkpoint(run)


TRIAL = {"number": 0, "values": {"lr": "0.5", "kind": "a"}, "status": "running", "metrics": {}, "is_mistake": False}


@pytest.mark.parametrize(
    "change",
    [
        {"values": {"lr": "0.5", "kind": "a", "loss._target_": "os.system"}},
        {"values": {"lr": "0.5", "kind": "c"}},
        {"values": {"lr": "5", "kind": "a"}},
        {"values": {"lr": "nan", "kind": "a"}},
        {"number": 3},
        {"metrics": {"video_accuracy": "high"}},
        {"status": None},
    ],
)
def test_trials_that_the_sweep_cannot_have_are_refused(change, tmp_path):
    (tmp_path / "trials.json").write_text(json.dumps([TRIAL]))
    assert read_trials(tmp_path, SPACE)[0].values == TRIAL["values"]
    (tmp_path / "trials.json").write_text(json.dumps([TRIAL | change]))
    with pytest.raises(InputError, match=r"trials\.json"):
        read_trials(tmp_path, SPACE)


HOSTILE = {
    "loss": {"_target_": "torch.utils.collect_env.run"},
    "optimizer.optimizer": {"_target_": "subprocess.run", "_partial_": True},
    "trainer.callbacks": [{"_target_": "os.system"}],
    "trainer.plugins": [[{"_target_": "os.system"}]],
    "logger.x": {"_target_": "os.system"},
    "data.datamodule.clip._target_": "os.system",
    "hydra.x": {"_target_": "os.system"},
    "mixing": {"_target_": "stvid.data.synthetic.actions.actions", "root": "elsewhere"},  # ours, at another place
    "loss._args_": ["x"],
    "loss._partial_": True,
    "loss._recursive_": False,
}


@pytest.mark.parametrize("place", HOSTILE)
def test_a_config_from_someone_else_names_no_code(place, run):
    config = read_config(run / "config.yaml")
    check_targets(OmegaConf.to_container(config), {}, [], name="run")
    OmegaConf.update(config, place, HOSTILE[place], force_add=True)
    with pytest.raises(InputError, match="of the run is"):
        check_targets(OmegaConf.to_container(config), {}, [], name="run")


MLFLOW = {
    "_target_": "pytorch_lightning.loggers.MLFlowLogger",
    "experiment_name": "stvid",
    "run_name": None,
    "tracking_uri": None,
}
WANDB = {"_target_": "pytorch_lightning.loggers.WandbLogger", "project": "stvid", "name": None, "offline": False}
TENSORBOARD = {"_target_": "pytorch_lightning.loggers.TensorBoardLogger", "name": "tensorboard", "version": ""}
DDP = {"_target_": "pytorch_lightning.strategies.DDPStrategy", "process_group_backend": "gloo"}
REACHING = {
    "server": {"logger": {**MLFLOW, "tracking_uri": "http://example.org"}},
    "experiment": {"logger": {**MLFLOW, "experiment_name": "other"}},
    "artifacts": {"logger": {**MLFLOW, "artifact_location": "x"}},
    "name above": {"logger": {**TENSORBOARD, "name": "../../.."}},
    "name of the folder above": {"logger": {**TENSORBOARD, "name": ".."}},
    "Windows": {"logger": {**TENSORBOARD, "name": "..\\x"}},
    "drive": {"logger": {**TENSORBOARD, "name": "C:x"}},
    "version": {"logger": {**TENSORBOARD, "version": "/tmp/x"}},
    "folder": {"logger": {**TENSORBOARD, "save_dir": "x"}},
    "nested": {"logger": {**TENSORBOARD, "settings": {"base_url": "x"}}},
    "no target": {"logger": {"name": "x"}},
    "entity": {"logger": {**WANDB, "entity": "other"}},
    "project": {"logger": {**WANDB, "project": "other"}},
    "upload": {"logger": {**WANDB, "log_model": True}},
    "root": {"trainer": {"default_root_dir": "x"}},
    "profiler": {"trainer": {"profiler": "advanced"}},
    "plugins": {"trainer": {"plugins": ["x"]}},
    "callbacks": {"trainer": {"callbacks": ["x"]}},
    "strategy": {"trainer": {"strategy": {**DDP, "checkpoint_io": "x"}}},
    "no strategy": {"trainer": {"strategy": {"x": 1}}},
    "devices": {"trainer": {"devices": ["x"]}},
    "processes": {"trainer": {"devices": 10**6}},
    "processes in text": {"trainer": {"devices": "1000000"}},
}
HARMLESS_ARGUMENTS = [
    {"logger": None},
    {"logger": {**MLFLOW, "run_name": "my run-1.2"}},
    {"logger": {**WANDB, "offline": True, "name": "a"}},
    {"logger": TENSORBOARD},
    {"trainer": {"limit_train_batches": 0.5, "deterministic": True, "devices": [0, 1], "strategy": DDP}},
    {"trainer": {"strategy": "ddp", "gradient_clip_val": None}},
]


def completed(config):
    return {
        section: {"_target_": TRAINER, **values} if section == "trainer" else values
        for section, values in config.items()
    }


@pytest.mark.parametrize("kind", REACHING)
def test_a_config_from_someone_else_reaches_no_server_and_no_other_folder(kind):
    config = completed(REACHING[kind])
    with pytest.raises(InputError, match=r"of the run .*repeat"):
        check_arguments(config, {"logger": TENSORBOARD}, ["my_package"], name="run")
    check_arguments(config, config, [], name="run")  # the command line says the same
    check_arguments(config, {}, ["pytorch_lightning", "None"], name="run")


@pytest.mark.parametrize("config", HARMLESS_ARGUMENTS)
def test_a_run_keeps_its_own_logger_and_trainer(config):
    check_arguments(completed(config), {}, [], name="run")


def test_every_shipped_logger_and_trainer_is_harmless():
    for group in ("logger", "trainer"):
        for file in (ROOT / "configs" / group).glob("*.yaml"):
            with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
                config = compose("train", overrides=[f"{group}={file.stem}"])
            stored = {group: OmegaConf.to_container(config[group], resolve=True) if config[group] else None}
            check_arguments(stored, {}, [], name="run")


def test_a_resumed_run_takes_its_logger_from_the_command_line_and_its_values_are_checked(run):
    config = OmegaConf.load(run / "config.yaml")
    config.logger.name = "../../escaped"
    OmegaConf.save(config, run / "config.yaml")
    (run / "result.json").unlink()
    (run / "checkpoints" / "last.ckpt").rename(run / "last.ckpt")  # so that nothing tells that the config was changed
    done = train_py(f"resume={run}")
    assert done.returncode == 2
    assert "logger.name (=../../escaped) of the run" in done.stderr
    config.seed = -1
    OmegaConf.save(config, run / "config.yaml")
    done = train_py(f"resume={run}", "logger=none")
    assert done.returncode == 2
    assert "config.yaml cannot be used: seed (=-1) must be" in done.stderr
    assert not (run.parents[1] / "escaped").exists()


def test_a_resumed_run_may_get_another_logger(run):
    (run / "result.json").unlink()
    done = train_py(f"resume={run}", "logger=none", "report=false")
    assert done.returncode == 0, done.stderr
    assert OmegaConf.load(run / "config.yaml").logger is None


@pytest.mark.parametrize(
    "line",
    [
        "loss: ${oc.create:{_target_: os.system}}",
        "seed: ${oc.env:HOME}",
        r"seed: \\${oc.env:HOME}",
        "a: &a [1, 2]\nb: [*a, *a]",
        "a: !!python/object/apply:os.system [x]",
        "_target_: os.system",
    ],
)
def test_a_config_is_data_only(line, tmp_path):
    (tmp_path / "config.yaml").write_text(line + "\n")
    with pytest.raises(InputError, match=r"config\.yaml is damaged or was changed"):
        read_config(tmp_path / "config.yaml")


def test_keys_that_differ_from_the_checkpoint_are_named(tmp_path):
    record = {"optimizer": {"lr": 0.1, "betas": (0.9, 0.99)}, "data": {"num_workers": 1}}
    same = {"optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}, "data": {"num_workers": 3}}
    check_same_config(same, record, ignored=["data.num_workers"], file=tmp_path)
    with pytest.raises(InputError, match=r"optimizer\.lr from 0\.1 to 0\.5, optimizer\.new from \(nothing\) to 1"):
        check_same_config(
            {"optimizer": {"lr": 0.5, "betas": [0.9, 0.99], "new": 1}, "data": {"num_workers": 1}},
            record,
            ignored=[],
            file=tmp_path,
        )


def test_a_changed_config_is_not_resumed(run):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("max_epochs: 3", "max_epochs: 4").replace("  lr: ", "  lr: 1"))
    before = (run / "result.json").read_bytes()
    done = train_py(f"resume={run}")
    assert done.returncode == 2
    assert "optimizer.lr from " in done.stderr
    assert "trainer.max_epochs from 3 to 4" in done.stderr
    assert (run / "result.json").read_bytes() == before


def test_a_folder_in_use_or_with_files_of_another_run_is_refused(run, video_folder):
    hold_lock = (
        "import sys; from pathlib import Path; from stvid.run.folder import RunFolder\n"
        "from stvid.run.lock import locked_folder\n"
        "with locked_folder(RunFolder(Path(sys.argv[1]))): print(1, flush=True); input()"
    )
    command = [sys.executable, "-c", hold_lock, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        done = train_py(f"resume={run}", "trainer.max_epochs=4", "allow_changes=true")
        other.communicate("\n")
    assert done.returncode == 2
    assert f"is in use: process {other.pid} on " in done.stderr
    (run / "config.yaml").unlink()
    done = train_py("data=folder", f"data.root={video_folder}", f"hydra.run.dir={run}")
    assert done.returncode == 2
    assert "of another run" in done.stderr


def test_a_damaged_prediction_is_told_with_its_line(run, tmp_path):
    header, *rows = (run / "predictions.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "predictions.csv").write_text(
        "\n".join([header, "", rows[0], "", "", "x" + rows[1].replace(",", ",x", 1)])
    )
    with pytest.raises(InputError, match="line 6 is damaged"):
        read_predictions(tmp_path / "predictions.csv", ["to_left", "to_right"])
