"""`python train.py` as a user runs it: the files of a run, resuming it, reproducing it, and errors."""

import copy
import csv
import importlib
import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, TINY, break_half_way, in_process, make_folder, stvid, train_py

from stvid import device as hardware
from stvid import training as training_package
from stvid.cli import main
from stvid.commands import cost as pricing
from stvid.data.layouts.class_folders import folder
from stvid.errors import InputError
from stvid.run.accelerator import check_accelerator
from stvid.run.start import with_used_values
from stvid.training.callbacks.progress import ProgressBar


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def same_but_time(path):
    timed = ("seconds", "clips_per_second", "memory_gib", "waiting", "free_clips_per_second")
    return [{k: v for k, v in row.items() if k not in timed} for row in rows_of(path)]


def paths_of_test(run):
    return [row["path"] for row in rows_of(run / "manifest.csv") if row["split"] == "test"]


def squares(video_folder, run, *overrides):
    return train_py("data=folder", f"data.root={video_folder}", f"hydra.run.dir={run}", *TINY, *overrides)


def test_a_run_writes_the_documented_files(run_folder):
    files = {path.relative_to(run_folder).as_posix() for path in run_folder.rglob("*") if path.is_file()}
    assert {"config.yaml", "manifest.csv", "metrics.csv", "result.json", "train.log"} <= files
    assert {"checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= files
    assert any(name.startswith("tensorboard/events") for name in files)
    assert not any("partial" in name for name in files)


def test_the_config_is_resolved(run_folder):
    text = (run_folder / "config.yaml").read_text()
    assert "${" not in text
    assert yaml.safe_load(text)["clip"]["num_frames"] == 4


def recorded(run):
    """Precision and batch sizes in every file that records them."""
    configs = [
        yaml.safe_load((run / "config.yaml").read_text()),
        json.loads((run / "result.json").read_text())["config"],
    ]
    for name in ("best.ckpt", "last.ckpt"):
        configs.append(torch.load(run / "checkpoints" / name, weights_only=True)["stvid"]["config"])
    data = [(config["data"]["batch_size"], config["data"]["datamodule"]["batch_size"]) for config in configs]
    return [(config["trainer"]["precision"], *sizes) for config, sizes in zip(configs, data, strict=True)]


def test_a_run_records_the_precision_and_batch_size_that_replace_auto_and_resumes_with_them(
    video_folder, tmp_path, monkeypatch
):
    """Also on a machine with other capabilities."""
    run = tmp_path / "run"
    monkeypatch.setattr(hardware, "cpu_has_fast_bf16", lambda: False)
    done = squares(video_folder, run, "data.batch_size=auto", "trainer.max_epochs=1")
    assert done.returncode == 0, done.stdout + done.stderr
    num_train = sum(row["split"] == "train" for row in rows_of(run / "manifest.csv"))
    assert recorded(run) == [("32-true", num_train, num_train)] * 4
    monkeypatch.setattr(hardware, "cpu_has_fast_bf16", lambda: True)
    monkeypatch.setattr(pricing, "free_bytes", lambda device: 12 * 2**20)  # room for a few clips
    done = train_py(f"resume={run}", "trainer.max_epochs=2", "allow_changes=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert recorded(run) == [("32-true", num_train, num_train)] * 4


def test_used_values_are_written_into_a_copy_of_the_config():
    config = {"trainer": {"precision": "auto"}, "data": {"batch_size": "auto", "datamodule": {"batch_size": "auto"}}}
    before = copy.deepcopy(config)
    used = with_used_values(config, precision="bf16-mixed", batch_size=24)
    assert config == before
    assert used == {
        "trainer": {"precision": "bf16-mixed"},
        "data": {"batch_size": 24, "datamodule": {"batch_size": 24}},
    }


def test_metrics_have_one_row_per_epoch(run_folder):
    rows = rows_of(run_folder / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert all(0 <= float(row["val_video_accuracy"]) <= 1 for row in rows)
    assert all(float(row["clips_per_second"]) > 0 for row in rows)


def test_the_result_is_that_of_the_best_checkpoint_on_val(run_folder):
    result = json.loads((run_folder / "result.json").read_text())
    best = max(float(row["val_video_accuracy"]) for row in rows_of(run_folder / "metrics.csv"))
    assert result["split"] == "val"
    assert result["video_accuracy"] == pytest.approx(best, abs=1e-6)
    assert rows_of(run_folder / "metrics.csv")[result["epoch"] - 1]["val_video_accuracy"] == f"{best:.6g}"


def test_the_same_seed_gives_the_same_metrics_with_any_number_of_workers(video_folder, run_folder, tmp_path):
    again = squares(video_folder, tmp_path / "again", "trainer.max_epochs=3", "augment=none", "data.num_workers=2")
    assert again.returncode == 0, again.stderr
    assert same_but_time(tmp_path / "again" / "metrics.csv") == same_but_time(run_folder / "metrics.csv")
    other = squares(video_folder, tmp_path / "other", "trainer.max_epochs=3", "augment=none", "seed=1")
    assert other.returncode == 0, other.stderr
    assert same_but_time(tmp_path / "other" / "metrics.csv") != same_but_time(run_folder / "metrics.csv")


def test_a_run_resumes_in_its_own_folder_with_its_own_config(run_folder, tmp_path):
    """With more epochs than that config has, so that the run is not finished."""
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    (run / "result.json").unlink()
    done = train_py(f"resume={run}", "trainer.max_epochs=5", "allow_changes=true")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(run / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert same_but_time(run / "metrics.csv")[:3] == same_but_time(run_folder / "metrics.csv")
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 4
    assert (run / "result.json").is_file()


def test_an_interrupted_run_ends_like_an_uninterrupted_one(video_folder, run_folder, tmp_path, monkeypatch):
    """Same metrics and, bit for bit, the same weights; a video added meanwhile is not used."""
    root = shutil.copytree(video_folder, tmp_path / "videos")
    overrides = ("trainer.max_epochs=3", "augment=none", "model=cnn_lstm")
    whole = squares(root, tmp_path / "whole", *overrides)
    assert whole.returncode == 0, whole.stderr

    def stop(bar, trainer, task):
        if trainer.current_epoch == 1:
            raise RuntimeError("power cut")
        start(bar, trainer, task)

    with monkeypatch.context() as patch:
        start = ProgressBar.on_train_epoch_start
        patch.setattr(ProgressBar, "on_train_epoch_start", stop)
        assert squares(root, tmp_path / "cut", *overrides).returncode == 1
    shutil.copy(root / "to_left" / "00.mp4", root / "to_left" / "new.mp4")
    moved = (tmp_path / "cut").rename(tmp_path / "moved")
    assert train_py(f"resume={moved}").returncode == 0
    assert same_but_time(moved / "metrics.csv") == same_but_time(tmp_path / "whole" / "metrics.csv")
    for name in ("best.ckpt", "last.ckpt"):
        a, b = (torch.load(run / "checkpoints" / name, weights_only=True) for run in (moved, tmp_path / "whole"))
        assert a["epoch"] == b["epoch"]
        assert all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in b["state_dict"])
    assert (moved / "manifest.csv").read_text() == (tmp_path / "whole" / "manifest.csv").read_text()


def test_a_run_killed_before_its_first_checkpoint_starts_again(run_folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(run_folder / "config.yaml", run)
    done = train_py(f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert same_but_time(run / "metrics.csv") == same_but_time(run_folder / "metrics.csv")


def test_a_bad_video_is_named_once_and_the_run_continues(video_folder, tmp_path):
    root = shutil.copytree(video_folder, tmp_path / "videos")
    (root / "to_left" / "03.mp4").write_bytes(b"x" * 5000)
    done = squares(root, tmp_path / "run", "trainer.max_epochs=2", "data.max_bad=0.2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("03.mp4") == 1
    table = rows_of(tmp_path / "run" / "bad_videos.csv")
    assert [(os.path.basename(row["path"]), row["reason"]) for row in table] == [("03.mp4", "unreadable")]


def damage(path, kind):
    """Kinds of damage of real files; `break` keeps the header and overwrites the second half of the frames."""
    if kind == "break":
        break_half_way(path)
    elif kind == "gone":
        path.unlink()
    else:
        path.write_bytes({"no video": b"x" * 5000, "empty": b"", "cut": path.read_bytes()[:-500]}[kind])


def test_damaged_files_are_listed_and_count_in_the_evaluation(tmp_path):
    root = make_folder(tmp_path / "videos", videos=25)
    data = folder(root=str(root))
    data.write_csv(tmp_path / "data.csv")
    victims = {"train": ("break", "cut", "gone"), "val": ("break",), "test": ("no video",)}
    held = {}
    for split, kinds in victims.items():
        items = data.select(split)[::3][: len(kinds)]
        held[split] = {item.path for item in items}
        for item, kind in zip(items, kinds, strict=True):
            damage(Path(item.path), kind)
    overrides = ("data=manifest", f"data.path={tmp_path / 'data.csv'}", "data.max_bad=0.2", "trainer.max_epochs=2")
    done = train_py(*overrides, f"hydra.run.dir={tmp_path / 'run'}", *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    listed = {row["path"]: row["reason"] for row in rows_of(tmp_path / "run" / "bad_videos.csv")}
    assert set(listed) == held["train"] | held["val"]
    logged = [
        line.rpartition(": ")[2] for line in done.stdout.splitlines() if line.startswith("unreadable video, left out")
    ]
    assert sorted(logged) == sorted(listed)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["num_failed"] == len(held["val"])
    evaluated = stvid("evaluate", tmp_path / "run", "--workers", "0", "--json", tmp_path / "test.json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads((tmp_path / "test.json").read_text())["num_failed"] == len(held["test"])
    assert all(path in evaluated.stdout + evaluated.stderr for path in held["test"])


@pytest.mark.parametrize("balance", ["classes", "loss"])
def test_a_balanced_run_can_be_evaluated(video_folder, tmp_path, balance):
    done = squares(video_folder, tmp_path / "run", "trainer.max_epochs=1", f"data.balance={balance}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "result.json").is_file()


def test_the_runs_of_a_sweep_are_in_one_folder_with_a_summary(video_folder, tmp_path):
    sweep = tmp_path / "sweep"
    done = train_py(
        *("-m", "model=conv3d,cnn_lstm", "optimizer.lr=1e-3,3e-3", "trainer.max_epochs=1", f"hydra.sweep.dir={sweep}"),
        *("data=folder", f"data.root={video_folder}"),
        *TINY,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = rows_of(sweep / "summary.csv")
    assert {(row["model"], float(row["optimizer.lr"])) for row in summary} == {
        (model, lr) for model in ("conv3d", "cnn_lstm") for lr in (1e-3, 3e-3)
    }
    accuracies = [float(row["video_accuracy"]) for row in summary]
    assert accuracies == sorted(accuracies, reverse=True)
    for row in summary:
        config = yaml.safe_load((sweep / row["run"] / "config.yaml").read_text())
        assert config["optimizer"]["lr"] == float(row["optimizer.lr"])
        assert not (sweep / row["run"] / "report.html").exists(), "`stvid report SWEEP/0` draws it on demand"
        assert row["model"].replace("_", "") in config["model"]["_target_"].lower()
    assert "summary.csv" in done.stdout


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["data=folder"], ["data.root must be given"]),
        (["data=folder", "data.root=/nowhere"], ["/nowhere does not exist"]),
        (["data=manifest", "data.path=/nowhere.csv"], ["/nowhere.csv does not exist"]),
        (["clip.num_frame=8"], ["unknown config key clip.num_frame", "clip.num_frames"]),
        (["modell=conv3d"], ["modell", "model"]),
        (["model=conv4d"], ["conv4d", "conv3d", "cnn_lstm"]),
        (["+data.rot=x"], ["unknown config key data.rot", "root"]),
        (["+model.width=3"], ["model.width", "widths"]),
        (["clip.num_frames=0"], ["clip.num_frames (=0) must be at least 1"]),
        (["clip.num_frames=many"], ["clip.num_frames", "many"]),
        (["trainer.precision=12"], ["precision"]),
        (["trainer.accelerator=quantum"], ["quantum", "cpu"]),
        (["data.batch_size=big"], ["data.batch_size (=big)", "at least 1, or auto"]),
        (["seed=-1"], ["seed (=-1)", "from 0"]),
        (["loss.label_smoothing=high"], ["loss.label_smoothing (='high') must be float"]),
        (["trainer.precision=64-true"], ["trainer.precision (=64-true)", "bf16-mixed"]),
        (
            ["model=cnn_lstm", "model.encoder=vit_b_16"],
            ["model.encoder (=vit_b_16) takes images of 224 x 224 pixels only, not 32 x 32", "clip.size=224"],
        ),
        (["model=cnn_lstm", "model.encoder=resnet81"], ["resnet81", "resnet18"]),
        (["sweep=optuna"], ["sweep=optuna is for several runs: python", "train.py -m "]),
        (["seed=0,1"], ["seed=0,1: several values need -m"]),
        (["optimizer.groups={haed: {lr: 1e-2}}"], ["'haed' matches no parameter"]),
        (["model.dropout=yes"], ["model.dropout (='yes')", "float"]),
    ],
    ids=lambda value: " ".join(value) if value and "=" in value[0] else "",
)
def test_a_wrong_override_is_one_message_and_exit_code_2(overrides, messages, tmp_path, video_folder):
    if not any(text.startswith("data=") for text in overrides):
        overrides = ["data=folder", f"data.root={video_folder}", *overrides]
    done = train_py(*TINY, f"hydra.run.dir={tmp_path / 'run'}", *overrides)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert all(message in done.stderr for message in messages), done.stderr
    assert not (tmp_path / "run").exists(), "an empty run folder was left behind"


def test_the_first_line_is_printed_before_the_videos_are_read(tmp_path):
    run, videos = tmp_path / "run", tmp_path / "videos"
    for name in (f"{split}/{label}" for split in ("train", "val") for label in ("run", "sit")):
        (videos / name).mkdir(parents=True)
        (videos / name / f"{name.replace('/', '_')}.mp4").write_text("no video")
    done = train_py("data=folder", f"data.root={videos}", f"hydra.run.dir={run}", *TINY)
    assert done.stdout.startswith(f"training Conv3D on {videos}; run folder {run}\n")
    assert "4 of 4 videos cannot be read" in done.stderr


def test_a_gpu_that_is_not_there_is_told_before_the_data_set_is_read(video_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    done = squares(video_folder, tmp_path / "run", "trainer=gpu", "trainer.accelerator=gpu")
    assert done.returncode == 2
    assert "trainer.accelerator (=gpu): PyTorch finds no such device" in done.stderr
    assert "training videos" not in done.stdout


def test_augmentation_on_a_gpu_that_does_not_train_is_told(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_accelerator("auto", augment_device="auto")
    with pytest.raises(InputError, match=r"augment.device \(=gpu\): this run trains on a CPU.*augment.device=auto"):
        check_accelerator("auto", augment_device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_accelerator("auto", augment_device="gpu")


def test_importing_stvid_training_leaves_the_warning_filters_alone():
    before = list(warnings.filters)
    importlib.reload(training_package)
    assert warnings.filters == before
    with warnings.catch_warnings(record=True) as displayed:
        warnings.simplefilter("always")
        training_package.ignore_expected_warnings()
        warnings.warn("It is recommended to use `self.log(..., sync_dist=True)`", stacklevel=1)
        warnings.warn("another warning", stacklevel=1)
    assert [str(warning.message) for warning in displayed] == ["another warning"]


def test_a_data_set_with_one_class_is_refused_before_training(tmp_path):
    videos = make_folder(tmp_path / "videos", videos=4, classes=("waving",))
    for many in ((), ("-m", "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}")):
        done = train_py(*many, "data=folder", f"data.root={videos}", f"hydra.run.dir={tmp_path / 'run'}", *TINY)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "one class, 'waving'" in done.stderr
        assert str(videos) in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_folder_is_never_overwritten(run_folder, video_folder):
    before = (run_folder / "checkpoints" / "best.ckpt").read_bytes()
    done = squares(video_folder, run_folder)
    assert done.returncode == 2
    assert "holds a run already" in done.stderr
    assert (run_folder / "checkpoints" / "best.ckpt").read_bytes() == before


def test_an_output_folder_that_cannot_be_written_is_an_error(video_folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = squares(video_folder, tmp_path / "file" / "run")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "file") in done.stderr


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    done = train_py(f"resume={tmp_path / 'typo'}")
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    assert not (tmp_path / "typo").exists()


def test_a_sweep_has_one_device(video_folder, tmp_path):
    done = train_py(
        *("-m", "seed=0,1", "trainer.devices=2", f"hydra.sweep.dir={tmp_path / 'sweep'}"),
        *("data=folder", f"data.root={video_folder}"),
        *TINY,
    )
    assert done.returncode == 2
    assert "trainer.devices (=2): in a sweep" in done.stderr


def test_overrides_with_resume_are_refused(run_folder):
    done = train_py(f"resume={run_folder}", "optimizer.lr=1")
    assert done.returncode == 2
    assert "leave out optimizer.lr=1" in done.stderr


def test_train_py_stays_short():
    assert len((ROOT / "train.py").read_text().splitlines()) <= 200


def test_the_installed_command_trains(video_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("train", "data=folder", f"data.root={video_folder}", "trainer.max_epochs=1", *TINY)
    done = in_process(["stvid", *arguments], main)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "outputs").iterdir()
    assert run.name.endswith("_conv3d")
    assert (run / "result.json").is_file()


@pytest.mark.parametrize(("every", "validated", "checkpoint"), [(2, ["2"], "best.ckpt"), (5, [], "last.ckpt")])
def test_epochs_without_validation_have_empty_cells_and_a_checkpoint(
    video_folder, tmp_path, every, validated, checkpoint
):
    run = tmp_path / "run"
    done = squares(video_folder, run, "trainer.max_epochs=3", f"trainer.check_val_every_n_epoch={every}")
    assert done.returncode == 0, done.stderr
    assert [row["epoch"] for row in rows_of(run / "metrics.csv") if row["val_loss"]] == validated
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert json.loads((run / "result.json").read_text())["checkpoint"].endswith(checkpoint)


def test_a_sweep_continues_after_a_failed_run_and_names_it(video_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = ("-m", "data=folder", f"data.root={video_folder}", *TINY, "trainer.max_epochs=1")
    overrides += ("optimizer.groups={haed: {lr: 1e-2}},null",)
    done = train_py(*overrides)
    assert done.returncode == 2
    assert "'haed' matches no parameter" in done.stderr
    (sweep,) = (tmp_path / "outputs").iterdir()
    rows = {row["optimizer.groups"]: row["status"] for row in rows_of(sweep / "summary.csv")}
    assert rows.pop("null") == "done"
    assert all("'haed' matches no parameter" in status for status in rows.values())
