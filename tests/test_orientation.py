"""Display matrices: all eight orientations are shown upright, by every way to read a video."""

from __future__ import annotations

import numpy as np
import pytest
from numbered import as_thwc, decoded, turned, write_video

from stvid.video.probe import probe
from stvid.video.reader import is_installed, read_frames
from stvid.video.transcode import FrameRange, transcode

# a, b, c, d of x' = a x + c y, y' = b x + d y (y points downwards), and the picture that a player shows
ORIENTATIONS = {
    "upright": ((1, 0, 0, 1), lambda picture: picture),
    "clockwise": ((0, 1, -1, 0), lambda picture: np.rot90(picture, -1)),
    "upside down": ((-1, 0, 0, -1), lambda picture: picture[::-1, ::-1]),
    "counterclockwise": ((0, -1, 1, 0), np.rot90),
    "left and right": ((-1, 0, 0, 1), lambda picture: picture[:, ::-1]),
    "top and bottom": ((1, 0, 0, -1), lambda picture: picture[::-1]),
    "transposed": ((0, 1, 1, 0), lambda picture: picture.transpose(1, 0, 2)),
    "transverse": ((0, -1, -1, 0), lambda picture: picture[::-1, ::-1].transpose(1, 0, 2)),
}


@pytest.fixture(params=ORIENTATIONS)
def recording(request, tmp_path):
    """A file with a display matrix, and its pictures as they should be shown."""
    matrix, show = ORIENTATIONS[request.param]
    path = write_video(tmp_path / "video.mp4", num_frames=6)
    expected = np.stack([show(picture) for picture in decoded(path)])
    return turned(path, matrix), expected


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_every_orientation_is_upright(recording, backend):
    path, expected = recording
    if not is_installed(backend):
        pytest.skip(f"{backend} is not installed")
    info = probe(path)
    assert (info.height, info.width) == expected.shape[1:3]
    assert np.array_equal(as_thwc(read_frames(path, range(6), info=info, backend=backend)), expected)


def test_shrunk_frames_and_copies_are_upright(recording, tmp_path):
    path, expected = recording
    info = probe(path)
    shrunk = as_thwc(read_frames(path, [5], info=info, short_side=48))[0]
    halved = expected[5].reshape(expected.shape[1] // 2, 2, expected.shape[2] // 2, 2, 3).mean((1, 3))
    assert np.abs(shrunk - halved).mean() < 4
    target = tmp_path / "copy.mp4"
    transcode(path, [FrameRange(target=target, first=0, num_frames=6)], info=info, short_side=96, gop=8, crf=10)
    copy = probe(target)
    assert (copy.rotation, copy.mirrored) == (0, False)
    assert np.abs(as_thwc(read_frames(target, range(6))).astype(int) - expected).mean() < 4


@pytest.mark.parametrize(
    ("matrix", "rotation", "mirrored"),
    [
        ((2, 0, 0, 2), 0, False),
        ((0, 3, -1, 0), 270, False),
        ((-4, 1, 1, 3), 0, True),
        ((3, -2, 2, 3), 0, False),
        ((2, -3, 3, 2), 90, False),
        ((0, 0, 0, 0), 0, False),
    ],
    ids=["scaled", "stretched", "almost mirrored", "34 degrees", "56 degrees", "zero"],
)
def test_other_matrices_are_the_nearest_orientation(tmp_path, matrix, rotation, mirrored):
    info = probe(turned(write_video(tmp_path / "video.mp4", num_frames=2), matrix))
    assert (info.rotation, info.mirrored) == (rotation, mirrored)
