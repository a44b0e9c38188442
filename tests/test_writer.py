"""The writer: what goes in comes out, whole or not at all."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest

from stvid.video.writer import write_video


def smooth_frames(num_frames: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Grey frames, each of one brightness that grows with its index."""
    level_T = np.linspace(20, 220, num_frames).astype(np.uint8)
    return np.broadcast_to(level_T[:, None, None, None], (num_frames, height, width, 3)).copy()


def decode(path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_frames_come_back_in_order_and_nearly_unchanged(tmp_path):
    frames = smooth_frames(30)
    write_video(tmp_path / "grey.mp4", frames, fps=24)
    assert np.abs(decode(tmp_path / "grey.mp4").astype(int) - frames).max() <= 3


@pytest.mark.parametrize("fps", [24, 12.5, Fraction(30000, 1001)])
def test_the_file_says_what_was_asked(tmp_path, fps):
    still = np.full((25, 32, 48, 3), 100, np.uint8)  # an encoder starts a scene of its own accord where much changes
    write_video(tmp_path / "video.mp4", still, fps=fps, gop=10)
    with av.open(str(tmp_path / "video.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.height, stream.width, stream.frames) == (32, 48, 25)
        assert stream.average_rate == Fraction(fps)
        packets = [packet for packet in container.demux(stream) if packet.size]
    assert [i for i, packet in enumerate(packets) if packet.is_keyframe] == [0, 10, 20]
    assert all(packet.pts == packet.dts for packet in packets), "without B-frames, coded order is shown order"


def test_b_frames_on_request(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (1, 32, 48, 3), dtype=np.uint8)
    moving = np.concatenate([np.roll(noise, shift, axis=2) for shift in range(24)])
    write_video(tmp_path / "video.mp4", moving, fps=24, b_frames=2)
    with av.open(str(tmp_path / "video.mp4")) as container:
        assert any(packet.pts != packet.dts for packet in container.demux(video=0) if packet.size)
    assert len(decode(tmp_path / "video.mp4")) == 24


def test_the_same_frames_make_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_video(tmp_path / name / "video.mp4", smooth_frames(10), fps=24)
    assert (tmp_path / "a/video.mp4").read_bytes() == (tmp_path / "b/video.mp4").read_bytes()


def test_views_of_arrays_are_encoded_as_they_look(tmp_path):
    frames = smooth_frames(10)
    write_video(tmp_path / "video.mp4", frames[::-1], fps=24)
    assert np.abs(decode(tmp_path / "video.mp4").astype(int) - frames[::-1]).max() <= 3


def test_a_failure_leaves_the_old_file_and_no_scraps(tmp_path):
    path = tmp_path / "video.mp4"
    path.write_bytes(b"old")
    with pytest.raises(av.error.FFmpegError):
        write_video(path, smooth_frames(3), fps=24, preset="no such preset")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((3, 32, 32, 3), np.float32), r"dtype float32\) must be uint8"),
        (np.zeros((3, 3, 32, 32), np.uint8), r"shape \(3, 3, 32, 32\)\) must have the shape T x H x W x 3"),
        (np.zeros((32, 32, 3), np.uint8), "must have the shape"),
        (np.zeros((0, 32, 32, 3), np.uint8), "at least one frame"),
        (np.zeros((3, 31, 32, 3), np.uint8), r"height 31, width 32\) must be even"),
        (np.zeros((3, 32, 33, 3), np.uint8), r"height 32, width 33\) must be even"),
    ],
)
def test_frames_that_cannot_be_encoded_are_refused_with_what_was_found(tmp_path, frames, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "video.mp4", frames, fps=24)
    assert list(tmp_path.iterdir()) == []


def test_fps_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match=r"fps \(=0\)"):
        write_video(tmp_path / "video.mp4", smooth_frames(2), fps=0)


@pytest.mark.skipif(os.name == "nt", reason="names of Unix")
def test_a_name_that_looks_like_a_protocol_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video("12:30.mp4", smooth_frames(3), fps=25)
    assert len(decode(tmp_path / "12:30.mp4")) == 3
