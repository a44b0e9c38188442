"""The data set that is checked before torch is imported is the one that is trained on, and is read once."""

import gc

import pytest

from stvid.data import datamodule, manifest
from stvid.errors import InputError
from stvid.run import data_set
from stvid.run.config import compose_config

LINE = "no column split, so a stratified split was made"


@pytest.fixture
def table(video_folder, tmp_path):
    """A table without a split of the videos of two classes."""
    videos = [video for name in ("to_left", "to_right") for video in sorted((video_folder / name).glob("*.mp4"))]
    path = tmp_path / "videos.csv"
    path.write_text("path,label\n" + "".join(f"{video},{video.parent.name}\n" for video in videos))
    return path


@pytest.fixture
def reads(monkeypatch):
    """The paths of the tables that are read from now on."""
    paths, read = [], manifest.read_table
    monkeypatch.setattr(manifest, "read_table", lambda path, **options: paths.append(path) or read(path, **options))
    return paths


def config_of(table, *overrides):
    fixed = ["data=manifest", f"data.path={table}", "data.num_workers=0", "clip.num_frames=4"]
    return compose_config([*fixed, *overrides], needs_data=True)


def test_a_checked_data_set_is_read_once_and_its_lines_are_logged_once(table, reads, caplog):
    data_set.check_training_data(config_of(table))  # Hydra sets the level of the log later
    caplog.set_level("INFO", logger="stvid")
    data = data_set.load_training_data(config_of(table, "data.batch_size=3"))
    assert len(reads) == 1
    assert caplog.text.count(LINE) == 1
    expected = manifest.read_manifest(path=str(table))
    assert data.manifest == expected
    assert len(data.train) == len(expected.select("train")), "its videos are probed"
    data_set.load_training_data(config_of(table))
    assert len(reads) == 3, "another training in this process reads the table again"


def test_another_data_set_than_the_checked_one_is_read(table, reads):
    data_set.check_training_data(config_of(table))
    data = data_set.load_training_data(config_of(table, "data.split_seed=1"))
    assert len(reads) == 2
    assert data.manifest == manifest.read_manifest(path=str(table), seed=1)


def test_a_process_that_logs_errors_only_stays_silent(table, caplog):
    data_set.check_training_data(config_of(table))
    caplog.set_level("ERROR", logger="stvid")  # as every process but the main one has it
    data_set.load_training_data(config_of(table))
    assert LINE not in caplog.text


def test_of_many_lines_none_is_lost(table, monkeypatch, caplog):
    read = manifest.read_table

    def read_with_warnings(path, **options):
        for number in range(1500):
            manifest.log.warning("line %d", number)
        return read(path, **options)

    monkeypatch.setattr(manifest, "read_table", read_with_warnings)
    data_set.check_training_data(config_of(table))
    monkeypatch.undo()
    data_set.load_training_data(config_of(table))
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("line ")]
    assert lines == [f"line {number}" for number in range(1500)]


def test_a_data_set_that_is_refused_is_not_kept_and_leaves_garbage_collection_as_it_was(tmp_path):
    (tmp_path / "videos.csv").write_text("path,label,split\nx.mp4,a,train\n")
    with pytest.raises(InputError, match="none of the 1 videos exist"):
        data_set.check_training_data(config_of(tmp_path / "videos.csv"))
    assert data_set._checked is None
    assert gc.isenabled()


def test_garbage_is_collected_while_videos_are_probed(table, monkeypatch):
    enabled, probe_items = [], datamodule.probe_items
    monkeypatch.setattr(
        datamodule, "probe_items", lambda *a, **options: enabled.append(gc.isenabled()) or probe_items(*a, **options)
    )
    data_set.load_training_data(config_of(table))
    assert enabled == [True]
