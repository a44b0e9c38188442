"""A file or class name may be any bytes that the file system allows; every table of a run keeps it unchanged."""

import csv
import json

import numpy as np
import pytest
from conftest import TINY, make_folder, train_py
from omegaconf import OmegaConf

from stvid.data.feature_cache import FeatureCache
from stvid.data.feature_entries import CachedFeatures
from stvid.data.layouts.class_folders import folder
from stvid.data.manifest import Item, Manifest
from stvid.evaluation.results import PredictionRow, read_predictions, write_predictions
from stvid.run.config import escape_interpolations
from stvid.run.folder import RunFolder
from stvid.run.start import save_run
from stvid.run.stored_run import stored_manifest
from stvid.training.callbacks.bad_videos import BadVideos, read_bad_videos

NAMES = (
    *(" lead", "trail ", "  both  ", " ", "   ", "\t", "\ttab\t", "\u00a0wide\u2003"),
    *("a,b", ",", ";", 'q"uote', '"', '""', '"quoted"', "'", "' a', \"b\""),
    *("line\nbreak", "\n", "\r", "cr\rhere", "crlf\r\nboth\r\n", "\x0b", "\x0c", "\x85", "\u2028", "\x01", "\x7f"),
    *("b\udce9ta", "\udcff\udcfe", "\udce9 ", " \udce9", "é", "e\u0301", "\ufeffbom", "日本", "😀", "\u200b"),
    *("0", "7", "007", "1e3", "-1", "0x1f", "1_000", "nan", "inf", "²", "٣", "12:30", "2020-01-01"),
    *("None", "null", "true", "no", "~", "-", "--", "...", "???", "path", "label", "train", "#", "# a", "a #b", "%s"),
    *(
        "a\\b",
        "\\",
        "a\\",
        "\\\\",
        "=1+1",
        "${x}",
        "a${b.c}\\",
        "\\${x}",
        "${",
        "$",
        "{a}",
        "[b]",
        "a: b",
        "- a",
        "*",
        "&a",
    ),
)


@pytest.fixture
def videos(tmp_path):
    """One folder per name that the file system allows, with three videos, two of them with odd names."""
    for name in NAMES:
        for video in (f"{name}0.mp4", f"1{name}.mp4", "2.mp4"):
            try:
                (tmp_path / "videos" / name).mkdir(parents=True, exist_ok=True)
                (tmp_path / "videos" / name / video).touch()
            except (OSError, UnicodeEncodeError):
                continue
    return tmp_path / "videos"


@pytest.mark.parametrize("beside", [True, False], ids=["relative paths", "absolute paths"])
def test_a_manifest_keeps_any_name(videos, tmp_path, beside):
    listed = folder(root=str(videos))
    groups = [*NAMES, None]
    items = [
        Item(path=i.path, label=i.label, split=i.split, start=0.1, end=1 / 3 + n, group=groups[n % len(groups)])
        for n, i in enumerate(listed.items)
    ]
    data = Manifest(items=tuple(items), class_names=listed.class_names[::-1])
    table = (videos if beside else tmp_path / "elsewhere") / "m.csv"
    table.parent.mkdir(exist_ok=True)
    data.write_csv(table)
    assert Manifest.read_csv(table, class_names=data.class_names) == data
    with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [item.label for item in items]


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_keeps_a_single_odd_class(tmp_path, name):
    """A column that holds only numbers would be read as numbers, which many names together hide."""
    item = Item(path=str(tmp_path / name), label=name, split="train", group=name)
    data = Manifest(items=(item,), class_names=(name, "other"))
    data.write_csv(tmp_path / "m.csv")
    assert Manifest.read_csv(tmp_path / "m.csv", class_names=(name, "other")) == data


def test_predictions_keep_any_name(tmp_path):
    p = tuple(1 / len(NAMES) for _ in NAMES)
    predictions = [
        PredictionRow(
            path=f"/{name}", group=name, label=name, predicted=NAMES[-n], views=1, views_right=0, probabilities=p
        )
        for n, name in enumerate(NAMES)
    ]
    predictions.append(PredictionRow(path="/x", label=NAMES[0], failed="empty"))
    write_predictions(tmp_path / "p.csv", predictions, NAMES)
    read = read_predictions(tmp_path / "p.csv", NAMES)
    assert [{**vars(row), "probabilities": None} for row in read] == [
        {**vars(row), "probabilities": None} for row in predictions
    ]


def test_bad_videos_keep_any_name(tmp_path, monkeypatch):
    # pytest-xdist cannot send captured log lines that are not valid text
    monkeypatch.setattr("stvid.training.callbacks.bad_videos.log.disabled", True)
    known = {f"/{name}/{name}": "missing" for name in NAMES}
    trainer = type("Trainer", (), {"is_global_zero": True})
    BadVideos(path=tmp_path / "bad.csv", max_bad=len(known), known=known).on_fit_start(trainer, None)
    assert read_bad_videos(tmp_path / "bad.csv") == known


@pytest.mark.parametrize("name", [name for name in NAMES if name != "\x85"])  # which PyYAML reads as a line break
def test_a_config_keeps_any_name(tmp_path, name):
    OmegaConf.save(OmegaConf.create(escape_interpolations({"class_names": [name]})), tmp_path / "c.yaml")
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "c.yaml"), resolve=True) == {"class_names": [name]}


@pytest.mark.parametrize("names", [("1", "0"), ("${x}", "???", "2")])
def test_a_run_keeps_the_order_of_its_classes(tmp_path, names):
    items = tuple(Item(path=f"/{name}", label=name, split="train") for name in names)
    save_run(
        RunFolder(tmp_path),
        {"class_names": list(names), "data": {"max_bad": 1}},
        Manifest(items=items, class_names=names),
    )
    assert stored_manifest(run=str(tmp_path)) == Manifest(items=items, class_names=names)


def test_cached_features_keep_any_label(tmp_path):
    store = FeatureCache(tmp_path, {})
    with store.writer() as add:
        for number, name in enumerate(NAMES):
            add(str(number), CachedFeatures(features_VTF=np.zeros((1, 1, 1), np.float32), label=name))
    assert [store[str(number)].label for number in range(len(NAMES))] == list(NAMES)


def test_a_run_with_odd_classes_trains_and_resumes(tmp_path):
    names = sorted(["${x}", "???", " lead", "1e3", "\udce9"])
    try:
        root = make_folder(tmp_path / "videos", videos=4, classes=names)
    except (OSError, UnicodeEncodeError):
        pytest.skip("this file system does not take such names")
    run = tmp_path / "run"
    overrides = ("data=folder", f"data.root={root}", "trainer.max_epochs=1", "augment=none", "report=false", *TINY)
    for arguments in (
        (*overrides, f"hydra.run.dir={run}"),
        (f"resume={run}", "trainer.max_epochs=2", "allow_changes=true"),
        (f"resume={run}",),
    ):
        done = train_py(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "is finished" in done.stdout
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert result["class_names"] == names
    assert {item.label for item in Manifest.read_csv(run / "manifest.csv", class_names=names).items} == set(names)
    assert {row.label for row in read_predictions(run / "predictions.csv", names)} == set(names)
