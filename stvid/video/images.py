"""Folders of images as videos (Pillow): every kind of picture becomes uint8 RGB, upright."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stvid.errors import CHANGED, EMPTY, MISSING, TRUNCATED, UNREADABLE, VideoError
from stvid.video.types import IMAGE_EXTENSIONS, VideoInfo, check_pixels, frame_limit
from stvid.video.workers import report_progress

# The content of a file decides, not its name. Formats that start other programs (EPS) or open other files are left out.
_AVIF = ("AVIF",) if importlib.util.find_spec("PIL.AvifImagePlugin") else ()
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "TIFF", "GIF", "JPEG2000", *_AVIF)
_SUBFILE, _BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLE_FORMAT = 254, 258, 262, 274, 339  # tags of EXIF and TIFF
_SWAPPED = (5, 6, 7, 8)  # orientations that exchange height and width
_CHECK_DIGITS = 4
_START_OF_SCAN = b"\xff\xda"  # a marker of JPEG
_MAX_SCANS = 100  # of a JPEG in memory: each goes through the whole picture; encoders write up to a dozen
_PILLOW_ERRORS = (  # what Pillow raises for damaged files
    *(OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, EOFError, struct.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The images directly in a folder, in natural order: `9.jpg` comes before `10.jpg`.

    Raises:
        VideoError: missing; empty, where there is no image.
    """
    try:
        images = [
            Path(entry.path)
            for entry in os.scandir(folder)
            if not entry.name.startswith(".") and os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS
        ]
    except FileNotFoundError as error:
        raise VideoError(folder, MISSING) from error
    except OSError as error:
        raise VideoError(folder, UNREADABLE, str(error)) from error
    if not images:
        raise VideoError(folder, EMPTY, "a folder without images")
    return sorted(images, key=_natural_key)


def _natural_key(path: Path) -> tuple:
    parts = re.split(r"(\d+)", path.name)
    return (*((int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)), (0, path.name))


def images_identity(folder: str | os.PathLike[str], images: Sequence[Path]) -> str:
    """Four hexadecimal digits for each image, a checksum of its name, size and time of change.

    Raises:
        VideoError: unreadable, where an image cannot be accessed.
    """
    try:
        return "".join(_check_digits(image, os.stat(image)) for image in images)
    except OSError as error:
        raise VideoError(folder, UNREADABLE, str(error)) from error


def _check_digits(image: Path, status: os.stat_result) -> str:
    text = f"{image.name} {status.st_size} {status.st_mtime_ns}"
    return f"{zlib.crc32(os.fsencode(text)) & 0xFFFF:0{_CHECK_DIGITS}x}"


def image_size(
    folder: str | os.PathLike[str], images: Sequence[Path], *, decode_all: bool, max_pixels: int
) -> tuple[int, int]:
    """Height and width of the first image, upright; with `decode_all`, all images are decoded as a check.

    Raises:
        VideoError: unreadable, where an image is, or has more than `max_pixels`.
    """
    height, width = _read_image(folder, images[0], max_pixels=max_pixels).shape[:2]
    for image in images[1:] if decode_all else ():
        report_progress()
        _read_image(folder, image, max_pixels=max_pixels)
    return height, width


def read_images(
    folder: str | os.PathLike[str],
    distinct: Sequence[int],
    *,
    info: VideoInfo,
    size: tuple[int, int],
    shrunk: bool,
    max_pixels: int | None = None,
) -> torch.Tensor:
    """uint8 (T, H, W, C) of sorted, distinct indices; images of another size are resized to `size` (height, width).

    Args:
        folder: of the images.
        distinct: numbers of the images.
        info: the result of `probe`.
        size: of the result.
        shrunk: `size` is smaller than the images; JPEGs are then decoded at a fraction of their size.
        max_pixels: see `frame_limit`.

    Raises:
        VideoError: unreadable; truncated, where the folder has fewer images than when it was probed; changed, where it
            has more, or where an image is another one.
    """
    frames_THWC = torch.empty((len(distinct), *size, 3), dtype=torch.uint8)
    pictures = iter_images(folder, distinct, info=info, size=size, shrunk=shrunk, max_pixels=max_pixels)
    for place, (_, picture) in enumerate(pictures):
        frames_THWC[place] = torch.from_numpy(picture)
    return frames_THWC


def iter_images(
    folder: str | os.PathLike[str],
    distinct: Iterable[int],
    *,
    info: VideoInfo,
    size: tuple[int, int],
    shrunk: bool,
    max_pixels: int | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (number, uint8 H x W x 3) of the images, one after the other; see `read_images`."""
    images = list_images(folder)
    if len(images) != info.num_frames:
        reason = TRUNCATED if len(images) < info.num_frames else CHANGED
        raise VideoError(folder, reason, f"{len(images)} images, {info.num_frames} were there when it was probed")
    limit = frame_limit(info, max_pixels)
    for index in distinct:
        report_progress()
        digits = info.identity[_CHECK_DIGITS * index :][:_CHECK_DIGITS]
        picture = _read_image(folder, images[index], max_pixels=limit, size=size, shrunk=shrunk, digits=digits)
        yield index, picture


def decode_jpeg(content: bytes, *, name: str, max_pixels: int) -> np.ndarray:
    """uint8 H x W x 3, upright, of a JPEG in memory; `name`: of the picture, for messages.

    Raises:
        VideoError: unreadable: no JPEG, damaged or truncated, more than `max_pixels`, more than 100 scans.
    """
    if not content.startswith(b"\xff\xd8"):
        raise VideoError(name, UNREADABLE, "it is no JPEG")
    if content.count(_START_OF_SCAN) > _MAX_SCANS:  # compressed pixels do not contain it
        raise VideoError(name, UNREADABLE, f"it has more than {_MAX_SCANS} scans, which would take very long to decode")
    with _damage_is_unreadable(name, Path("JPEG")):
        file = Image.open(io.BytesIO(content), formats=("JPEG",))
    return _upright_pixels(name, Path("JPEG"), file, max_pixels=max_pixels, size=None, shrunk=False)


def _read_image(
    folder: str | os.PathLike[str],
    image: Path,
    *,
    max_pixels: int,
    size: tuple[int, int] | None = None,
    shrunk: bool = False,
    digits: str = "",
) -> np.ndarray:
    """uint8 H x W x 3, upright."""
    with contextlib.ExitStack() as stack:
        with _damage_is_unreadable(folder, image):
            content = stack.enter_context(open(image, "rb"))
            status = os.fstat(content.fileno())
        if digits and digits != _check_digits(image, status):
            raise VideoError(folder, CHANGED, f"{image.name} is not the image that was there when it was probed")
        with _damage_is_unreadable(folder, image):
            file = stack.enter_context(Image.open(content, formats=_FORMATS))
        return _upright_pixels(folder, image, file, max_pixels=max_pixels, size=size, shrunk=shrunk)


@contextlib.contextmanager
def _damage_is_unreadable(folder: str | os.PathLike[str], image: Path) -> Iterator[None]:
    """Around calls of Pillow: what it raises for a damaged image becomes a VideoError."""
    try:
        yield
    except _PILLOW_ERRORS as error:
        raise VideoError(folder, UNREADABLE, f"{image.name}: {error}") from error


def _upright_pixels(
    folder: str | os.PathLike[str],
    image: Path,
    file: Image.Image,
    *,
    max_pixels: int,
    size: tuple[int, int] | None,
    shrunk: bool,
) -> np.ndarray:
    check_pixels(folder, file.height, file.width, max_pixels=max_pixels, name=image.name)
    with _damage_is_unreadable(folder, image):
        num_pictures = _num_pictures(file)
    if num_pictures > 1:
        raise VideoError(folder, UNREADABLE, f"{image.name} holds {num_pictures} pictures: save each as its own file")
    orientation = _orientation(file)
    # the size before turning; a TIFF has its size after turning
    target = size[::-1] if size and orientation not in _SWAPPED else size
    box = None
    if shrunk and target:  # a JPEG decodes faster at a half, a quarter, an eighth
        with _damage_is_unreadable(folder, image):
            drafted = file.draft("RGB", (2 * target[0], 2 * target[1]))
        box = drafted and drafted[1]
    picture = _to_rgb(folder, image, file)
    if target and picture.size != target:
        picture = picture.resize(target, Image.Resampling.BILINEAR, box=box)
    if orientation != 1:
        picture = picture.transpose(_TRANSPOSE[orientation])
    return np.array(picture)


_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(file: Image.Image) -> int:
    """EXIF orientation, 1 to 8, that is still to be applied; 1 where it is missing or damaged."""
    if file.format == "TIFF":  # Pillow turns a TIFF itself when it loads it
        return 1
    try:
        orientation = file.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow's reader of EXIF raises anything for damaged data; the picture may still be good
        return 1
    return orientation if orientation in _TRANSPOSE else 1


def _num_pictures(file: Image.Image) -> int:
    """1; more for an animation, or a TIFF of several pages. Previews are not counted."""
    num_pictures = getattr(file, "n_frames", 1)
    if file.format == "MPO":  # the JPEG of a camera, with a preview or a depth map
        return 1
    if file.format == "TIFF" and num_pictures > 1:
        num_previews = 0
        for page in range(1, num_pictures):
            file.seek(page)
            num_previews += file.tag_v2.get(_SUBFILE, 0) & 1  # type: ignore[attr-defined] # of TIFF files
        file.seek(0)
        num_pictures -= num_previews
    return num_pictures


def _to_rgb(folder: str | os.PathLike[str], image: Path, file: Image.Image) -> Image.Image:
    """8-bit RGB: 16-bit grey is scaled from its whole range, transparent pixels lie on black."""
    if file.mode == "F" or file.mode.startswith("I"):
        return Image.fromarray(_deep_grey(folder, image, file)).convert("RGB")
    if "A" in file.mode or "a" in file.mode or "transparency" in file.info:
        with _damage_is_unreadable(folder, image):
            picture = file.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture).convert("RGB")
    with _damage_is_unreadable(folder, image):
        return file.convert("RGB")


def _deep_grey(folder: str | os.PathLike[str], image: Path, file: Image.Image) -> np.ndarray:
    """uint8 H x W of unsigned integers of up to 16 bits."""
    tags = getattr(file, "tag_v2", {})
    with _damage_is_unreadable(folder, image):  # a tag may hold anything, or nothing
        bits, sample_format = (
            int(np.ravel(tags.get(tag, default))[0]) for tag, default in ((_BITS, 16), (_SAMPLE_FORMAT, 1))
        )
        white_is_zero = tags.get(_PHOTOMETRIC) == 0
    if file.mode == "F" or not 8 < bits <= 16 or sample_format != 1:
        kind = "floating-point" if file.mode == "F" else f"signed or {bits}-bit"
        raise VideoError(
            folder, UNREADABLE, f"{image.name} has {kind} pixels, whose range is unknown: save it with 8 or 16 bits"
        )
    highest = 2**bits - 1
    with _damage_is_unreadable(folder, image):
        file.load()
    grey = (np.asarray(file).astype(np.uint32) * 255 + highest // 2) // highest
    return (255 - grey if white_is_zero else grey).astype(np.uint8)
