"""A run folder from a stranger, or from a failing disk: no hang, no file outside is touched, no wrong page."""

import json
import logging
import os
import shutil
import zipfile

import numpy as np
import pytest
import torch
from test_damage import changed

from stvid.checks import parse_json, read_json, text
from stvid.data.feature_cache import FeatureCache
from stvid.data.feature_entries import CachedFeatures
from stvid.data.manifest import Manifest
from stvid.errors import InputError
from stvid.evaluation.evaluation_run import EvaluationOptions, evaluate_run
from stvid.evaluation.results import read_evaluation, read_predictions
from stvid.files import LogFile, system_lock
from stvid.report.report import report_of_run
from stvid.run.checkpoint import check_training_state, load_checkpoint
from stvid.run.folder import RunFolder, finished_runs
from stvid.run.lock import locked_folder
from stvid.run.relocation import relocate_run
from stvid.run.results import COUNT, read_result
from stvid.run.stored import read_config
from stvid.sweep.settings import read_sweep
from stvid.sweep.trials import read_trials
from stvid.training.callbacks.bad_videos import read_bad_videos
from stvid.training.callbacks.progress import read_epochs
from stvid.video.probe import probe_all
from stvid.video.probe_cache import ProbeCache
from stvid.video.types import file_identity


@pytest.fixture
def run(run_folder, tmp_path):
    """A run as training leaves it: other tests evaluate theirs."""
    return shutil.copytree(run_folder, tmp_path / "run", ignore=shutil.ignore_patterns("evaluate", "calibration.json"))


def make_pipe(path):
    os.mkfifo(path)


def make_sparse(path):
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no space on the disk


SPECIAL = [make_sparse] + [make_pipe] * hasattr(os, "mkfifo")
READERS = {
    "calibration.json": load_checkpoint,
    "result.json": read_result,
    "predictions.csv": lambda run: read_predictions(run / "predictions.csv", ["to_left", "to_right"]),
    "metrics.csv": lambda run: read_epochs(run / "metrics.csv"),
    "bad_videos.csv": lambda run: read_bad_videos(run / "bad_videos.csv"),
    "manifest.csv": lambda run: Manifest.read_csv(run / "manifest.csv", class_names=["to_left", "to_right"]),
    "config.yaml": lambda run: read_config(run / "config.yaml"),
    "sweep.yaml": read_sweep,
    "trials.json": lambda run: read_trials(run, None),
}


@pytest.mark.parametrize("make", SPECIAL)
def test_pipes_and_endless_files_are_refused(make, run):
    for name, read in READERS.items():
        (run / name).unlink(missing_ok=True)
        make(run / name)
        with pytest.raises(InputError, match=name):
            read(run)
        (run / name).unlink()


@pytest.mark.parametrize("make", SPECIAL)
def test_pipes_and_endless_files_are_no_caches(make, tmp_path):
    make(tmp_path / "probe.json")
    assert not len(ProbeCache(tmp_path / "probe.json"))
    cache = FeatureCache(tmp_path, {})
    make(cache.path)
    make(cache.path.with_name(f"{cache.path.stem}.1.part.h5"))
    assert cache.find("key") is None
    with cache.writer() as add:
        add("key", CachedFeatures(features_VTF=np.ones((1, 2, 3), np.float32), label="a"))
    assert cache.find("key").label == "a"


def test_links_that_lead_nowhere_and_folders_are_no_features(tmp_path):
    cache = FeatureCache(tmp_path, {})
    cache.path.with_name(f"{cache.path.stem}.1.part.h5").symlink_to(tmp_path / "gone")
    assert cache.find("key") is None
    cache.close()
    cache.path.mkdir()
    with pytest.raises(InputError, match="is a folder"):
        cache.find("key")


@pytest.mark.parametrize("content", ['{"a": 1, "a": 2}', '{"b": {"a": 1, "a": 1}}'])
def test_a_key_that_is_there_twice_is_refused(content):
    with pytest.raises(ValueError, match="twice"):
        parse_json(content)


@pytest.mark.parametrize(("content", "check"), [("1" + "0" * 400, COUNT), ('"\\ud800"', text())])
def test_values_that_no_other_code_can_take_are_refused(content, check, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=r"x\.json"):
        read_json(tmp_path / "x.json", check, remedy="")


def with_pickle(path, change):
    """Replaces the pickle in a checkpoint."""
    with zipfile.ZipFile(path) as old:
        parts = {entry.filename: old.read(entry) for entry in old.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, part in parts.items():
            new.writestr(name, change(part) if name.endswith("data.pkl") else part)


def nested(content):
    """In the place of the model's class: a list in a list in a list, deeper than any recursion goes."""
    name = b"stvid.models.conv3d.Conv3D"
    text_of_name = b"X" + len(name).to_bytes(4, "little") + name
    assert text_of_name in content
    return content.replace(text_of_name, b"]" * 50_000 + b"a" * 49_999, 1)


def weights(change):
    return changed(lambda c: c.update(state_dict={name: change(value) for name, value in c["state_dict"].items()}))


def in_itself(content):
    endless: list = []
    endless.append(endless)
    content["stvid"]["config"]["optimizer"] = endless


def doubled(content):
    values = ["x"] * 4
    for _ in range(40):
        values = [values] * 4
    content["optimizer_states"] = values


CHECKPOINTS = {
    # bytearray(2**40), in 20 bytes
    "bytearray": lambda path: with_pickle(
        path, lambda _: b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85R."
    ),
    "nested": lambda path: with_pickle(path, nested),
    "in itself": changed(in_itself),
    "doubled 40 times": changed(doubled),
    "no numbers": weights(lambda value: value.to("meta")),
    "complex": weights(lambda value: value.to(torch.complex64)),
    "whole numbers": weights(lambda value: value.to(torch.int8)),
    "no settings": changed(lambda c: c["stvid"]["config"].pop("trainer")),
    "no size": changed(lambda c: c["stvid"]["clip"].pop("size")),
    "size of a half": changed(lambda c: c["stvid"]["clip"].update(size=[32, 32.5])),
    "batch of 0": changed(lambda c: c["stvid"]["config"]["data"]["datamodule"].update(batch_size=0)),
    "pixels": changed(lambda c: c["stvid"]["config"]["data"]["datamodule"].update(max_pixels="all")),
    "views": changed(
        lambda c: (c["stvid"]["clip"].update(num_frames=2**16), c["stvid"]["protocol"].update(num_clips=99))
    ),
    "rate": changed(lambda c: c["stvid"]["clip"].update(frame_stride=None, fps=5e-324)),
}


@pytest.mark.parametrize("change", CHECKPOINTS)
def test_a_hostile_checkpoint_is_one_message(change, run):
    CHECKPOINTS[change](run / "checkpoints" / "best.ckpt")
    with pytest.raises(InputError, match=r"best\.ckpt"):
        load_checkpoint(run)


STATES = {
    "no optimizer": lambda c: c.update(optimizer_states=[]),
    "text": lambda c: c.update(optimizer_states="x"),
    "schedule": lambda c: c["lr_schedulers"][0].update(last_epoch="x"),
    "callbacks": lambda c: c.update(callbacks=[1]),
    "version": lambda c: c.update({"pytorch-lightning_version": "new"}),
}


@pytest.mark.parametrize("change", STATES)
def test_a_checkpoint_without_the_state_of_its_training_is_not_resumed(change, run):
    path = run / "checkpoints" / "last.ckpt"
    check_training_state(path)
    changed(STATES[change])(path)
    with pytest.raises(InputError, match=r"last\.ckpt cannot be resumed from"):
        check_training_state(path)


@pytest.mark.parametrize("name", ["checkpoints", "evaluate", "tensorboard", "train.log", "journal.log", "new"])
def test_a_training_writes_nothing_behind_a_link(name, run, tmp_path):
    outside, place = tmp_path / "outside", run / name
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    outside.write_text("mine") if name.endswith(".log") else outside.mkdir()
    place.symlink_to(outside)
    with pytest.raises(InputError, match="leads out of"), locked_folder(RunFolder(run)):
        raise AssertionError
    place.unlink()
    with locked_folder(RunFolder(run)):  # files are replaced, not written through
        pass


def test_an_evaluation_writes_nothing_behind_a_link(run, tmp_path):
    (run / "evaluate").mkdir()
    (run / "evaluate" / "test").symlink_to(tmp_path)
    with pytest.raises(InputError, match="leads out of"):
        evaluate_run(run, EvaluationOptions(num_workers=0))


def test_a_whole_run_behind_a_link_is_fine(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    with locked_folder(RunFolder(tmp_path / "link")):
        assert (run / ".lock.json").exists()


def test_logs_and_locks_do_not_touch_what_is_behind_a_link(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "link").symlink_to(mine)
    handler = LogFile(tmp_path / "link", encoding="utf-8")
    handler.emit(logging.makeLogRecord({"msg": "a name that a stranger chose"}))
    handler.close()
    with system_lock(tmp_path / "link") as failure:
        assert "is a link" in failure
    assert mine.read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_in_the_place_of_a_log_does_not_hang(run):
    (run / "train.log").unlink()
    make_pipe(run / "train.log")
    LogFile(run / "train.log", encoding="utf-8").close()
    with pytest.raises(InputError, match=r"train\.log is neither a file nor a folder"), locked_folder(RunFolder(run)):
        raise AssertionError


def rewrite_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


DISAGREEING = {
    "accuracy": lambda r: r.update(video_accuracy=1.0 if r["video_accuracy"] < 1 else 0.5),
    "clip accuracy": lambda r: r.update(clip_accuracy=0.123),
    "number": lambda r: r.update(num_videos=r["num_videos"] + 1),
    "confusion": lambda r: r.update(confusion=[row[::-1] for row in r["confusion"]]),
}


@pytest.mark.parametrize("change", DISAGREEING)
def test_a_result_and_predictions_of_two_evaluations_are_refused(change, run):
    report_of_run(load_checkpoint(run))
    rewrite_json(run / "result.json", DISAGREEING[change])
    with pytest.raises(InputError, match=r"result\.json"):
        report_of_run(load_checkpoint(run))
    with pytest.raises(InputError, match=r"result\.json"):
        read_evaluation(run, "val")


def test_a_prediction_that_is_not_the_most_probable_class_is_refused(run):
    predictions = run / "predictions.csv"
    content = predictions.read_text(encoding="utf-8").replace(",p_to_left,p_to_right", ",p_to_right,p_to_left")
    predictions.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="is not the most probable class"):
        read_predictions(predictions, ["to_left", "to_right"])


def test_a_result_of_another_model_is_refused(run):
    changed(lambda c: c["stvid"].update(class_names=["a", "b"]))(run / "checkpoints" / "best.ckpt")
    with pytest.raises(InputError, match="of another model"):
        report_of_run(load_checkpoint(run))


PAGE = {
    "no model": lambda r: r.update(config={}),
    "model": lambda r: r["config"].update(model=3),
    "root": lambda r: r["config"]["data"].update(root=3),
    "scale": lambda r: r["config"]["augment"].update(scale=[]),
    "no seed": lambda r: r.pop("seed"),
    "no machine": lambda r: r["hardware"].pop("machine"),
    "encoding": lambda r: r.update(encoding_seconds="long"),
    "no checkpoint": lambda r: r.update(checkpoint=""),
    "no rate": lambda r: r["protocol"].pop("frame_stride"),
    "no size": lambda r: r["protocol"].pop("size"),
    "no bins": lambda r: r.update(reliability=[]),
    "bins": lambda r: [part.update(num_videos=1, accuracy=None) for part in r["reliability"]],
}


@pytest.mark.parametrize("change", PAGE)
def test_what_a_page_cannot_show_is_refused(change, run):
    rewrite_json(run / "result.json", PAGE[change])
    with pytest.raises(InputError, match=r"result\.json is damaged or was changed"):
        report_of_run(load_checkpoint(run))


def test_a_page_shows_the_config_of_the_checkpoint_and_no_other_file(run, tmp_path):
    (tmp_path / "secrets.yaml").write_text("token: 1234\n")
    (run / "config.yaml").unlink()
    (run / "config.yaml").symlink_to(tmp_path / "secrets.yaml")
    config = report_of_run(load_checkpoint(run)).config
    assert "token" not in config
    assert "max_epochs: 3" in config


MANIFESTS = {
    "no videos": "path,label,split,bytes\n",
    "digits": f"path,label,split,bytes\nx.mp4,to_left,train,{'9' * 5000}\n",
    "long name": f"path,label,split,bytes\n{'x' * 5000},to_left,train,9\n",
}


@pytest.mark.parametrize("content", MANIFESTS)
def test_a_manifest_that_cannot_be_moved_is_one_message(content, run, tmp_path):
    (run / "manifest.csv").write_text(MANIFESTS[content])
    with pytest.raises(InputError, match="videos"):
        relocate_run(RunFolder(run), tmp_path, splits=("train",), option="data.root")


def test_times_beyond_any_video_are_refused(tmp_path):
    (tmp_path / "m.csv").write_text("path,label,split,start,end\nx.mp4,a,train,1e308,1.1e308\n")
    with pytest.raises(InputError, match="start is '1e308', must be seconds"):
        Manifest.read_csv(tmp_path / "m.csv")


def test_only_numbers_are_trials(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "0")
    (tmp_path / "\u00b2").mkdir()  # a digit, but no number
    assert finished_runs(tmp_path) == [tmp_path / "0"]


NOT_A_NUMBER, INFINITE = float("nan"), float("inf")
IMPOSSIBLE = {  # of a video with 16 frames
    "timestamps": [
        [],
        [0.0] * 15,
        [1.0] * 16,
        [0.0, NOT_A_NUMBER] * 8,
        [0.0] * 15 + [INFINITE],
        [0.0] * 15 + [10**400],
        [0.0] + ["1"] * 15,
        {},
    ],
    "keyframes": [[10**9], [0, 0], [0, 5, 3], [1, 5], [0.0], [False], ["0"], 0],
    "rotation": [45, 90.0, -90, None],
    "num_frames": [2**31, 0, 16.0, "16", True],
    "fps": ["25", 10**400, 0.0, INFINITE, NOT_A_NUMBER, None, True],
    "duration": [1e9, 10**400, -(10**400), NOT_A_NUMBER, [0.64]],
    "first_pts": [None, 2**63, 10**400, 0.5, "0", False],
    "start": [INFINITE, 10**400, NOT_A_NUMBER, "0"],
    "height": [0, 2**31, 64.0],
    "width": [-1, None],
    "num_damaged": [-1, 10**400, 17, 0.0, True],
    "decoded": [1, None, "true"],
    "mirrored": [0],
    "b_frames_in_order": [0],
    "codec": [1, None, "h\u0117"],
    "pixel_format": [1, ["yuv420p"]],
    "identity": [5, None],
    "colour": ["red"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key in IMPOSSIBLE for value in IMPOSSIBLE[key]])
def test_entries_of_a_probe_cache_that_no_probe_has_made_are_not_used(key, value, video_folder, tmp_path, caplog):
    videos = [video_folder / "to_left" / name for name in ("00.mp4", "01.mp4")]
    cache = tmp_path / "cache.jsonl"
    first, other = probe_all(videos, num_workers=0, cache=cache, progress=False)
    head, line, rest = cache.read_text().splitlines()
    name, values = line.split("\t")
    identity, values = json.loads(values)
    cache.write_text("\n".join([head, f"{name}\t{json.dumps([identity, {**values, key: value}])}", rest, ""]))
    known = ProbeCache(cache)
    assert known.get(str(videos[0]), identity) is None
    assert "cannot be used everywhere" in caplog.text
    assert known.get(str(videos[1]), file_identity(videos[1])) == other
    assert probe_all(videos, num_workers=0, cache=cache, progress=False) == [first, other]
    assert sorted(cache.read_text().splitlines()[1:]) == sorted([line, rest]), "the file is mended"
