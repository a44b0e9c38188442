"""Videos that were moved after a training: the run finds the same files elsewhere, and says what is missing."""

import json
import logging
import os
import shutil

import pytest
from conftest import in_process, make_folder, train_py
from omegaconf import OmegaConf
from PIL import Image

from stvid.cli import main
from stvid.data.manifest import Item, Manifest
from stvid.errors import InputError
from stvid.run.folder import RunFolder
from stvid.run.relocation import find_moved, relocate_run, video_sizes
from stvid.run.start import _relocate
from stvid.run.stored_run import stored_manifest
from stvid.video.probe import probe

NAMES = [f"{split}/{label}/{i}.mp4" for split in ("train", "val", "test") for label in ("run", "sit") for i in range(3)]


@pytest.fixture
def data(tmp_path):
    """Files of different sizes."""
    for size, name in enumerate(NAMES, start=1):
        (tmp_path / "old" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "old" / name).write_bytes(b"x" * size)
    return tmp_path / "old"


@pytest.fixture
def run(data, tmp_path):
    items = [
        Item(path=str(data / name), label=name.split("/")[1], split=name.split("/")[0], group=f"g,{name}", start=0.5)
        for name in NAMES
    ]
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    sizes = video_sizes([item.path for item in items], {})
    Manifest(items=tuple(items), class_names=("run", "sit")).write_csv(folder.manifest_csv, sizes=sizes)
    return folder


def test_sizes_are_those_of_the_probe_and_only_other_files_are_looked_up(tmp_path, monkeypatch):
    make_folder(tmp_path / "videos", videos=2, classes=("a",))
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    known, other = sorted(map(str, tmp_path.glob("videos/a/*.mp4")))
    paths = [known, other, str(tmp_path / "images"), str(tmp_path / "missing.mp4")]
    infos = {path: probe(path) for path in (known, str(tmp_path / "images"))}
    expected = {path: os.path.getsize(path) for path in paths[:2]}
    expected[paths[2]] = sum(path.stat().st_size for path in (tmp_path / "images").iterdir())
    looked_up, look_up = [], os.stat
    monkeypatch.setattr(
        "os.stat", lambda path, *args, **kwargs: looked_up.append(path) or look_up(path, *args, **kwargs)
    )
    sizes = video_sizes(paths, infos)
    monkeypatch.undo()
    assert sizes == expected
    assert looked_up == paths[1:]


def relocate(run, root, splits=("train", "val", "test")):
    relocate_run(run, root, splits=splits, option="--data-root")
    return Manifest.read_csv(run.manifest_csv)


@pytest.mark.parametrize("below", ["", "archive/set"])
def test_a_folder_that_was_moved_is_found_again(run, data, tmp_path, below, caplog):
    before = Manifest.read_csv(run.manifest_csv)
    new = tmp_path / "disk" / "new"
    (new / below).parent.mkdir(parents=True)
    shutil.move(data, new / below)
    with caplog.at_level(logging.INFO):
        after = relocate(run, new / below)
    assert [item.path for item in after.items] == [str(new / below / name) for name in NAMES]
    assert [item.group for item in after.items] == [item.group for item in before.items]
    assert "18 of 18 videos are now read from" in caplog.text
    text = run.manifest_csv.read_bytes()
    assert relocate(run, new / below) == after, "again: nothing to do"
    assert run.manifest_csv.read_bytes() == text


def test_videos_that_were_moved_back_into_the_run_have_relative_paths(run, data):
    shutil.move(data, run.path / "videos")
    relocate(run, run.path / "videos")
    assert "\r\nvideos/train/run/0.mp4," in run.manifest_csv.read_bytes().decode()


def test_a_part_that_was_moved_is_found_and_the_rest_stays(run, data, tmp_path):
    for split in ("train", "val"):
        shutil.move(data / split, tmp_path / "new" / split)
    paths = [item.path for item in relocate(run, tmp_path / "new").items]
    assert paths == [str((data if name.startswith("test") else tmp_path / "new") / name) for name in NAMES]


def test_files_in_other_folders_are_found_by_name_and_size(run, data, tmp_path):
    shutil.move(data / "val" / "run", tmp_path / "new" / "more" / "run")
    shutil.move(data, tmp_path / "new" / "set")
    paths = [item.path for item in relocate(run, tmp_path / "new").items]
    assert str(tmp_path / "new" / "more" / "run" / "1.mp4") in paths
    assert all(map(os.path.exists, paths))


def test_folders_of_images_in_other_folders_are_found_by_name_and_size(tmp_path):
    paths = [tmp_path / "old" / label / f"v{i}" for label in ("run", "sit") for i in range(3)]
    for size, path in enumerate(paths, start=1):
        path.mkdir(parents=True)
        (path / "0.jpg").write_bytes(b"x" * size)
    sizes = video_sizes([str(path) for path in paths], {})
    shutil.move(paths[0], tmp_path / "new" / "more" / "run" / "v0")
    shutil.move(tmp_path / "old", tmp_path / "new" / "set")
    moved = find_moved(sizes, tmp_path / "new")
    assert moved[str(paths[0])] == str(tmp_path / "new" / "more" / "run" / "v0")
    assert len(moved) == 6


def test_another_process_of_a_run_reads_the_new_places_and_writes_nothing(run, data, tmp_path, monkeypatch):
    """Of several processes, one may read the table before the main one changes it."""
    shutil.move(data, tmp_path / "new")
    run.config_yaml.write_text("class_names: [run, sit]\ndata: {max_bad: 0}\n")
    before = run.manifest_csv.read_bytes()
    monkeypatch.setenv("RANK", "1")
    _relocate(run, OmegaConf.create({"data": {"root": str(tmp_path / "new")}}), [f"data.root={tmp_path / 'new'}"])
    assert run.manifest_csv.read_bytes() == before
    items = stored_manifest(run=str(run.path), data_root=str(tmp_path / "new")).items
    assert [item.path for item in items] == [str(tmp_path / "new" / name) for name in NAMES]


def test_what_is_missing_is_counted_and_named_and_nothing_is_changed(run, data, tmp_path):
    shutil.move(data / "train", tmp_path / "new" / "train")
    (data / "val" / "run" / "0.mp4").unlink()
    (tmp_path / "new" / "train" / "sit" / "2.mp4").write_bytes(b"another video")
    before = run.manifest_csv.read_bytes()
    with pytest.raises(InputError) as error:
        relocate(run, tmp_path / "new")
    expected = ["18 videos", "5 are below", "11 at their old place", "2 that are needed", f"{data}/train/sit/2.mp4"]
    assert all(word in str(error.value) for word in expected), str(error.value)
    assert run.manifest_csv.read_bytes() == before
    assert len(relocate(run, tmp_path / "new", splits=("test",)).items) == 18, "an evaluation needs its split only"


def test_a_folder_without_the_videos_is_an_error(run, data, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="0 are below .*empty, 18 at their old place"):
        relocate(run, tmp_path / "empty")
    with pytest.raises(InputError, match="--data-root .*nowhere does not exist"):
        relocate(run, tmp_path / "nowhere")


def test_a_run_without_recorded_sizes_is_moved_by_name(run, data, tmp_path, caplog):
    manifest = Manifest.read_csv(run.manifest_csv)
    manifest.write_csv(run.manifest_csv)
    shutil.move(data, tmp_path / "new")
    with caplog.at_level(logging.INFO):
        assert relocate(run, tmp_path / "new").items[0].path == str(tmp_path / "new" / NAMES[0])
    assert "has not recorded their sizes" in caplog.text


def test_a_run_goes_on_and_is_evaluated_after_its_videos_were_moved(run_folder, video_folder, tmp_path):
    run, new = shutil.copytree(run_folder, tmp_path / "run"), shutil.copytree(video_folder, tmp_path / "new")
    table = run / "manifest.csv"
    assert table.read_text().splitlines()[0].endswith(",bytes")
    table.write_text(table.read_text().replace(str(video_folder), str(tmp_path / "gone")))
    resume = (f"resume={run}", "trainer.max_epochs=4", "allow_changes=true", "report=false")
    failed = train_py(*resume)
    assert failed.returncode == 2, failed.stderr
    assert f"resume={run} data.root=NEW_FOLDER" in failed.stderr.partition("Moved? Go on with")[2]
    failed = evaluate(run)
    assert failed.returncode == 2, failed.stderr
    assert f"Moved? Go on with stvid evaluate {run} --split val --data-root NEW_FOLDER" in failed.stderr

    before = table.read_bytes()
    done = evaluate(run, "--data-root", new, "--no-report")
    assert done.returncode == 0, done.stderr
    assert table.read_bytes() == before, "only resume changes a run"
    result = json.loads((run / "evaluate" / "val" / "result.json").read_text())
    assert result["num_seen"] == result["num_videos"] == 2, "the videos of val are those of the training"
    assert (run / "evaluate" / "val" / "predictions.csv").read_text().count(str(new)) == 2
    done = train_py(*resume[1:], f"resume={run}", f"data.root={new}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(new) in table.read_text()
    assert len((run / "metrics.csv").read_text().splitlines()) == 5


def evaluate(run, *options):
    arguments = ["evaluate", str(run), "--split", "val", *map(str, options)]
    return in_process(["stvid", *arguments], lambda: main(arguments))
