"""The data set that is checked before torch is imported is the one that is trained on, and is read once."""

import gc

import pytest

from stvid.data import manifest
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
    assert LINE not in caplog.text
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


def test_a_data_set_that_fails_leaves_garbage_collection_as_it_was(tmp_path):
    (tmp_path / "videos.csv").write_text("path,label,split\nx.mp4,a,train\n")
    with pytest.raises(Exception, match="none of the 1 videos exist"):
        data_set.check_training_data(config_of(tmp_path / "videos.csv"))
    assert gc.isenabled()
