"""A pass over a video gives the frames of `read_frames`, in order, and no more of them than are wanted."""

import dataclasses

import numpy as np
import pytest
import torch
from numbered import as_thwc, decoded, turned, write_video
from PIL import Image

from stvid.errors import CHANGED, TRUNCATED, VideoError
from stvid.video import playback
from stvid.video.playback import Request, clock_start, iter_frames, iter_requests
from stvid.video.probe import probe
from stvid.video.reader import read_frames


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"bframes": 2}),
        ("a.avi", {"codec": "mpeg4", "bframes": 2}),
        ("a.mkv", {"codec": "vp9", "size": (70, 90)}),
        ("a.mov", {"codec": "mjpeg"}),
    ],
)
def test_the_frames_are_those_of_a_decoder_run_from_the_first(tmp_path, name, options):
    path = write_video(tmp_path / name, **options)
    info = probe(path)
    numbers, frames = zip(*iter_frames(path, info=info), strict=True)
    assert list(numbers) == list(range(60))
    np.testing.assert_array_equal(as_thwc(torch.stack(frames)), np.stack(decoded(path)))


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, 1), (0, 1, 1, 0)])
def test_frames_are_upright_and_shrunk_as_those_of_read_frames(tmp_path, matrix):
    path = turned(write_video(tmp_path / "a.mp4"), matrix)
    info = probe(path)
    for short_side in (None, 40):
        _, frames = zip(*iter_frames(path, info=info, short_side=short_side), strict=True)
        assert torch.equal(torch.stack(frames), read_frames(path, range(60), info=info, short_side=short_side))


def folder_of_images(path, num_images=12):
    path.mkdir()
    rng = np.random.default_rng(0)
    for i in range(num_images):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path / f"{i}.png")
    return path


@pytest.mark.parametrize("kind", ["images", "file"])
def test_two_requests_are_served_in_one_pass(tmp_path, kind):
    path = folder_of_images(tmp_path / "images") if kind == "images" else write_video(tmp_path / "a.mp4")
    info = probe(path)
    requests = [Request([1, 3, 9]), Request([0, 3, 4, 10], short_side=16)]
    found = list(iter_requests(path, requests, info=info))
    assert [entry[:2] for entry in found] == [(1, 0), (0, 1), (0, 3), (1, 3), (1, 4), (0, 9), (1, 10)]
    for i, request in enumerate(requests):
        frames = torch.stack([frame for number, _, frame in found if number == i])
        assert torch.equal(frames, read_frames(path, request.indices, info=info, short_side=request.short_side))


def test_nothing_is_decoded_behind_the_last_frame_that_is_wanted(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4")
    count, decode = [], playback.decode
    monkeypatch.setattr(playback, "decode", lambda *args: (count.append(1) or frame for frame in decode(*args)))
    assert [number for number, _ in iter_frames(path, info=probe(path), indices=[2, 7])] == [2, 7]
    assert len(count) == 8
    assert not list(iter_frames(path, info=probe(path), indices=[]))


def test_a_file_that_ends_early_is_truncated_after_its_last_frame(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    frames = iter_frames(path, info=dataclasses.replace(probe(path), num_frames=70))
    for i in range(60):
        assert next(frames)[0] == i
    with pytest.raises(VideoError, match="frame 60 of 70 was requested, it ends after 60") as error:
        next(frames)
    assert error.value.reason == TRUNCATED


def test_a_file_that_was_replaced_is_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    info = probe(path)
    write_video(path, num_frames=50)
    with pytest.raises(VideoError) as error:
        next(iter_frames(path, info=info))
    assert error.value.reason == CHANGED


def test_the_clock_of_a_player_starts_with_the_file(tmp_path):
    late = write_video(tmp_path / "a.mkv", times=[5000 + 40 * i for i in range(60)])
    assert clock_start(late, max_pixels=10**6) == pytest.approx(5.0)
    assert probe(late).start == pytest.approx(5.0)
    assert clock_start(write_video(tmp_path / "b.mp4"), max_pixels=10**6) == 0
    assert clock_start(folder_of_images(tmp_path / "images"), max_pixels=10**6) == 0
