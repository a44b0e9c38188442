"""Recordings have the frames' own times, and are whole or absent."""

import errno

import numpy as np
import pytest

from stvid.video import recording
from stvid.video.probe import probe
from stvid.video.reader import read_frames
from stvid.video.recording import open_recording


def pictures(count, *, size=(48, 64)):
    """Grey pictures of different levels."""
    return [np.full((*size, 3), 20 + 10 * i, np.uint8) for i in range(count)]


def test_frames_keep_their_own_times(tmp_path):
    path, times = tmp_path / "x.mp4", [3.0, 3.04, 3.05, 3.5, 7.0, 7.001]
    with open_recording(path, fps=25) as record:
        for picture, seconds in zip(pictures(6), times, strict=True):
            record(picture, seconds)
    info = probe(path)
    assert info.timestamps == pytest.approx([seconds - 3 for seconds in times], abs=1e-4)
    frames = read_frames(path, range(6), info=info)
    for i in range(6):
        assert abs(frames[i].float().mean() - (20 + 10 * i)) < 3


def test_a_frame_that_is_not_later_is_left_out(tmp_path):
    with open_recording(tmp_path / "x.mp4", fps=25) as record:
        for picture, seconds in zip(pictures(4), [0.0, 0.04, 0.04, 0.08], strict=True):
            record(picture, seconds)
    assert probe(tmp_path / "x.mp4").num_frames == 3


@pytest.mark.parametrize("size", [(47, 63), (1, 1), (17, 2)])
def test_odd_sizes_are_recorded(tmp_path, size):
    with open_recording(tmp_path / "x.mp4", fps=25) as record:
        record(pictures(1, size=size)[0], 0.0)
    info = probe(tmp_path / "x.mp4")
    assert (info.height, info.width) == tuple(max(side // 2 * 2, 2) for side in size)


def test_frames_of_another_size_are_resized(tmp_path):
    with open_recording(tmp_path / "x.mp4", fps=25) as record:
        for i, size in enumerate([(48, 64), (96, 128), (20, 30)]):
            record(pictures(1, size=size)[0], i / 25)
    info = probe(tmp_path / "x.mp4")
    assert (info.num_frames, info.height, info.width) == (3, 48, 64)


def test_without_frames_there_is_no_file(tmp_path):
    with open_recording(tmp_path / "x.mp4", fps=25):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    written = recording.open_encoder

    def full(*arguments, **options):
        with written(*arguments, **options):
            pass
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(recording, "open_encoder", full)
    with (
        pytest.raises(OSError, match="No space left") as error,
        open_recording(tmp_path / "x.mp4", fps=25) as record,
    ):
        record(pictures(1)[0], 0.0)
    assert error.value.filename == str(tmp_path / "x.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_has_appeared_meanwhile_is_not_replaced(tmp_path, caplog):
    path, taken = tmp_path / "x.mp4", tmp_path / "x-2.mp4"
    taken.mkdir()
    with open_recording(path, fps=25) as record:
        record(pictures(1)[0], 0.0)
        path.write_text("precious")
    assert path.read_text() == "precious"
    assert probe(tmp_path / "x-3.mp4").num_frames == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x-2.mp4", "x-3.mp4", "x.mp4"]
    assert f"{path} has appeared meanwhile and is not replaced; the new file is {tmp_path / 'x-3.mp4'}" in caplog.text
