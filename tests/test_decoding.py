"""A folder of images is read as a video."""

import numpy as np
import pytest
from PIL import Image

from stvid.errors import EMPTY, TRUNCATED, UNREADABLE, VideoError
from stvid.video.probe import probe, probe_all
from stvid.video.reader import read_frames


def make_images(folder, *, num_frames=12, size=(24, 32), extension="png", name="{}"):
    """Image i has the grey level 20 i; names are not padded with zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(num_frames):
        Image.fromarray(np.full((*size, 3), 20 * i, np.uint8)).save(folder / f"{name.format(i)}.{extension}")
    return folder


def levels(frames):
    return [round(float(frame.float().mean()) / 20) for frame in frames]


def reason(call):
    with pytest.raises(VideoError) as caught:
        call()
    return caught.value.reason


@pytest.mark.parametrize("extension", ["png", "jpg", "bmp", "webp", "tif", "JPG"])
def test_images_are_frames_in_the_order_of_their_numbers(tmp_path, extension):
    folder = make_images(tmp_path / "a video", extension=extension, name="frame {}")
    (folder / "notes.txt").write_text("no image")
    info = probe(folder)
    assert (info.num_frames, info.height, info.width, info.codec) == (12, 24, 32, "images")
    frames = read_frames(folder, [11, 0, 2, 2, 9], info=info)
    assert frames.shape == (5, 3, 24, 32)
    assert levels(frames) == [11, 0, 2, 2, 9]


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_they_are_read_smaller_where_that_was_asked_for(tmp_path, extension):
    frames = read_frames(make_images(tmp_path / "v", size=(240, 320), extension=extension), [3, 4], short_side=30)
    assert frames.shape == (2, 3, 30, 40)
    assert levels(frames) == [3, 4]


def test_an_image_of_another_size_is_brought_to_the_first_ones(tmp_path):
    folder = make_images(tmp_path / "v")
    Image.new("L", (99, 50), 100).save(folder / "5.png")  # grey, too
    frames = read_frames(folder, [4, 5])
    assert frames.shape == (2, 3, 24, 32)
    assert levels(frames) == [4, 5]


def test_a_damaged_image_is_found_when_all_are_decoded_or_it_is_read(tmp_path):
    folder = make_images(tmp_path / "v")
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:40])
    assert reason(lambda: probe(folder)) == UNREADABLE
    info = probe(folder, decode_all=False)
    assert levels(read_frames(folder, [4], info=info)) == [4]
    assert reason(lambda: read_frames(folder, [5], info=info)) == UNREADABLE


def test_an_image_that_was_changed_in_its_place_is_looked_at_again(tmp_path):
    folder, cache = make_images(tmp_path / "v"), tmp_path / "cache.json"
    known = {"num_workers": 1, "cache": cache, "progress": False}
    assert probe_all([folder], **known)[0].num_frames == 12
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:40])
    assert probe_all([folder], **known)[0].reason == UNREADABLE


def test_images_that_went_away_are_missed(tmp_path):
    folder = make_images(tmp_path / "v")
    info = probe(folder)
    (folder / "0.png").unlink()
    assert reason(lambda: read_frames(folder, [3], info=info)) == TRUNCATED


def test_a_folder_without_images_is_empty_and_others_are_not_touched_by_it(tmp_path):
    (tmp_path / "none").mkdir()
    results = probe_all([tmp_path / "none", make_images(tmp_path / "v")], num_workers=1, progress=False)
    assert results[0].reason == EMPTY
    assert results[1].num_frames == 12
