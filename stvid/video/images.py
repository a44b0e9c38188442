"""A folder of images as a video: each image a frame, in the order that a person would give their names."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from stvid.errors import EMPTY, MISSING, TRUNCATED, UNREADABLE, VideoError

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"))


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The images directly in a folder; numbers in their names count as numbers: `9.jpg` comes before `10.jpg`.

    Raises:
        VideoError: missing; empty, where there is no image.
    """
    try:
        found = [
            Path(entry.path)
            for entry in os.scandir(folder)
            if not entry.name.startswith(".") and os.path.splitext(entry.name)[1].lower() in EXTENSIONS
        ]
    except FileNotFoundError as error:
        raise VideoError(folder, MISSING) from error
    except OSError as error:
        raise VideoError(folder, UNREADABLE, str(error)) from error
    if not found:
        raise VideoError(folder, EMPTY, "a folder without images")
    return sorted(found, key=_as_a_person_would)


def _as_a_person_would(path: Path) -> tuple:
    parts = re.split(r"(\d+)", path.name)
    return (*((int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)), (0, path.name))


def image_size(folder: str | os.PathLike[str], images: Sequence[Path], *, decode_all: bool) -> tuple[int, int]:
    """Height and width of the first image; with `decode_all`, once all of them have been decoded.

    Raises:
        VideoError: unreadable, where an image is.
    """
    height, width = _pixels(folder, images[0]).shape[:2]
    for image in images[1:] if decode_all else ():
        _pixels(folder, image)
    return height, width


def read_images(
    folder: str | os.PathLike[str], distinct: Sequence[int], *, num_frames: int, size: tuple[int, int], shrunk: bool
) -> torch.Tensor:
    """uint8 (T, H, W, C) of sorted, distinct indices; images of another size are brought to `size` (height, width).

    Raises:
        VideoError: unreadable; truncated, where the folder has fewer images than `num_frames` says.
    """
    images = list_images(folder)
    if len(images) < num_frames:
        raise VideoError(folder, TRUNCATED, f"{len(images)} images, {num_frames} were there when it was probed")
    frames_THWC = torch.empty((len(distinct), *size, 3), dtype=torch.uint8)
    for place, index in enumerate(distinct):
        frames_THWC[place] = torch.from_numpy(_pixels(folder, images[index], size=size, shrunk=shrunk))
    return frames_THWC


def _pixels(
    folder: str | os.PathLike[str], image: Path, *, size: tuple[int, int] | None = None, shrunk: bool = False
) -> np.ndarray:
    """uint8 H x W x 3."""
    try:
        with Image.open(image) as file:
            if shrunk:
                file.draft("RGB", (2 * size[1], 2 * size[0]))  # a JPEG can be decoded at a half, a quarter, an eighth
            picture = file.convert("RGB")
        if size and picture.size != size[::-1]:
            picture = picture.resize(size[::-1], Image.Resampling.BILINEAR)
        return np.array(picture)
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise VideoError(folder, UNREADABLE, f"{image.name}: {error}") from error
