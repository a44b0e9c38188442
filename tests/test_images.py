"""Folders of images: kinds of pictures, orientation, limits, and images that change."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numbered import as_thwc
from PIL import Image

from stvid.errors import CHANGED, UNREADABLE, VideoError
from stvid.video.probe import probe
from stvid.video.reader import read_frames

SWAPPED = {  # EXIF orientation: the picture that is shown
    1: lambda picture: picture,
    2: lambda picture: picture[:, ::-1],
    3: lambda picture: picture[::-1, ::-1],
    4: lambda picture: picture[::-1],
    5: lambda picture: picture.transpose(1, 0, 2),
    6: lambda picture: np.rot90(picture, -1),
    7: lambda picture: picture[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90,
}
BLOCKS = np.kron(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[9, 9, 9], [90, 90, 90], [250, 250, 250]]]), 1)
PICTURE = BLOCKS.astype(np.uint8).repeat(32, 0).repeat(32, 1)  # 64 x 96
DEEP = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)


def folder_of(folder: Path, image: Image.Image, *, end: str = "png", **options) -> Path:
    folder.mkdir(exist_ok=True)
    image.save(folder / f"0.{end}", **options)
    return folder


def first(folder: Path, **options) -> np.ndarray:
    return as_thwc(read_frames(folder, [0], **options))[0]


def refusal(folder: Path, **options) -> VideoError:
    with pytest.raises(VideoError) as caught:
        probe(folder, **options)
    assert caught.value.reason == UNREADABLE
    return caught.value


@pytest.mark.parametrize("orientation", SWAPPED)
@pytest.mark.parametrize("end", ["jpg", "png", "tif", "webp"])
def test_images_are_upright_by_their_exif_orientation(tmp_path, end, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"quality": 95, "subsampling": 0} if end == "jpg" else {"lossless": True} if end == "webp" else {}
    folder = folder_of(tmp_path / "v", Image.fromarray(PICTURE), end=end, exif=exif, **lossless)
    expected = SWAPPED[orientation](PICTURE)
    info = probe(folder)
    assert (info.height, info.width) == expected.shape[:2]
    assert np.abs(first(folder, info=info).astype(int) - expected).max() <= (3 if end == "jpg" else 0)
    shrunk = first(folder, info=info, short_side=16).astype(int)
    full = Image.fromarray(np.ascontiguousarray(expected)).resize(shrunk.shape[1::-1], Image.Resampling.BILINEAR)
    assert np.abs(shrunk - np.asarray(full)).mean() < 6


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_a_jpeg_that_is_decoded_at_a_fraction_is_the_same_picture(tmp_path, mode):
    y, x = np.mgrid[:101, :150]
    smooth = np.stack([x + y, 250 - x, 2 * y], axis=-1).astype(np.uint8)
    folder = folder_of(tmp_path / "v", Image.fromarray(smooth).convert(mode), end="jpg", quality=95)
    full = Image.fromarray(first(folder)).resize((30, 20), Image.Resampling.BILINEAR)
    assert np.abs(first(folder, short_side=20).astype(int) - np.asarray(full)).mean() < 1


@pytest.mark.parametrize("end", ["png", "tif"])
def test_sixteen_bits_are_scaled_from_their_whole_range(tmp_path, end):
    picture = first(folder_of(tmp_path / "v", Image.fromarray(DEEP), end=end))
    assert np.array_equal(picture, np.round(DEEP / 257).astype(np.uint8)[..., None].repeat(3, 2))


def test_white_may_be_zero(tmp_path):
    folder = folder_of(tmp_path / "v", Image.fromarray(DEEP), end="tif", tiffinfo={262: 0})
    assert np.array_equal(first(folder)[..., 0], 255 - np.round(DEEP / 257))


def test_other_modes_become_their_colours(tmp_path):
    ramp = np.arange(0, 256, 4, dtype=np.uint8)[None].repeat(48, 0)
    grey = Image.fromarray(ramp)
    alpha = Image.merge("LA", (grey, Image.fromarray(255 - ramp)))
    colour = Image.fromarray(PICTURE).convert("RGBA")
    colour.putalpha(51)
    palette = Image.fromarray(PICTURE).quantize(16)
    images = {
        "bits": (grey.convert("1"), np.asarray(grey.convert("1")) * 255),
        "palette": (palette, np.asarray(palette.convert("RGB"))),
        "see-through grey": (alpha, np.round(ramp.astype(float) * (255 - ramp) / 255)),
        "see-through colour": (colour, np.round(PICTURE / 5)),
    }
    for name, (image, expected) in images.items():
        actual = first(folder_of(tmp_path / name, image)).astype(int)
        expected = expected if expected.ndim == 3 else expected[..., None]
        assert np.abs(actual - expected).max() <= 1, name


def test_a_transparent_colour_is_black(tmp_path):
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    assert not first(folder_of(tmp_path / "v", palette, transparency=1)).any()


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_known_range_are_refused(tmp_path, dtype):
    error = refusal(folder_of(tmp_path / "v", Image.fromarray(np.ones((8, 8), dtype)), end="tif"))
    assert "8 or 16 bits" in error.detail


@pytest.mark.parametrize("end", ["tif", "png", "webp"])
def test_several_pictures_in_one_file_are_refused(tmp_path, end):
    images = [Image.fromarray(np.roll(PICTURE, 8 * i, 1)) for i in range(3)]
    error = refusal(folder_of(tmp_path / "v", images[0], end=end, save_all=True, append_images=images[1:]))
    assert "holds 3 pictures" in error.detail


def test_a_preview_in_a_tiff_does_not_count(tmp_path):
    preview = Image.fromarray(PICTURE[::4, ::4].copy())
    preview.encoderinfo = {"tiffinfo": {254: 1}}
    folder = folder_of(tmp_path / "v", Image.fromarray(PICTURE), end="tif", save_all=True, append_images=[preview])
    with Image.open(folder / "0.tif") as file:
        assert file.n_frames == 2
    assert np.array_equal(first(folder), PICTURE)


def test_only_formats_of_images_are_opened(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "v", Image.fromarray(PICTURE))
    Image.fromarray(PICTURE).save(tmp_path / "x.eps")
    os.replace(tmp_path / "x.eps", folder / "0.png")
    refusal(folder)


def test_a_tiff_without_its_width_is_unreadable(tmp_path):
    file = folder_of(tmp_path / "v", Image.fromarray(PICTURE), end="tif") / "0.tif"
    content = file.read_bytes()
    at = content.index(b"\x00\x01\x04\x00\x01\x00\x00\x00\x60")  # tag 256: 96 pixels
    file.write_bytes(content[:at] + b"\xff" + content[at + 1 :])
    refusal(tmp_path / "v")


def test_damaged_exif_does_not_cost_the_picture(tmp_path):
    folder = folder_of(tmp_path / "v", Image.fromarray(PICTURE), exif=b"Exif\0\0MM\0*\0\0\xff\xff\xff\xff")
    assert np.array_equal(first(folder), PICTURE)


def test_large_images_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "v", Image.fromarray(PICTURE))
    monkeypatch.setattr(Image.Image, "convert", None)
    error = refusal(folder, max_pixels=64 * 96 - 1)
    assert "96 x 64 = 6144 pixels, more than data.max_pixels=6143" in error.detail


def test_the_limit_of_pillow_is_a_video_error(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "v", Image.fromarray(PICTURE))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PICTURE.size // 9)
    assert "decompression bomb" in refusal(folder).detail


def test_between_the_limits_of_pillow_data_max_pixels_decides(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "v", Image.fromarray(PICTURE))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PICTURE.size // 3 - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        assert probe(folder, max_pixels=PICTURE.size // 3).width == 96
    with pytest.warns(Image.DecompressionBombWarning):
        assert "data.max_pixels" in refusal(folder, max_pixels=PICTURE.size // 3 - 1).detail


@pytest.mark.parametrize("name", ["_check_digits", "_to_rgb", "_orientation"])
def test_a_mistake_in_our_own_code_is_no_damaged_image(tmp_path, monkeypatch, name):
    def broken(*arguments):
        raise TypeError("a mistake")

    folder = folder_of(tmp_path / "v", Image.fromarray(PICTURE))
    info = probe(folder)
    monkeypatch.setattr(f"stvid.video.images.{name}", broken)
    with pytest.raises(TypeError, match="a mistake"):
        read_frames(folder, [0], info=info)


def test_an_image_that_is_replaced_is_told_and_the_others_are_read(tmp_path):
    folder = tmp_path / "v"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(folder / f"{i}.png")
    info = probe(folder)
    status = os.stat(folder / "5.png")
    Image.fromarray(np.full((8, 8, 3), 77, np.uint8)).save(tmp_path / "other.png")
    os.utime(tmp_path / "other.png", ns=(0, status.st_mtime_ns - 10**9))  # older than the one before
    os.replace(tmp_path / "other.png", folder / "5.png")
    assert read_frames(folder, [4, 6], info=info).unique().tolist() == [4, 6]
    for changed in ([5], [4, 5]):
        with pytest.raises(VideoError, match="5.png") as caught:
            read_frames(folder, changed, info=info)
        assert caught.value.reason == CHANGED
    (folder / "12.png").write_bytes((folder / "4.png").read_bytes())
    with pytest.raises(VideoError, match="13 images, 12 were"):
        read_frames(folder, [4], info=info)
    assert read_frames(folder, [5], info=probe(folder)).unique().tolist() == [77]
