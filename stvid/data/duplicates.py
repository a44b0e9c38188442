"""Which files hold the same bytes under different names."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from stvid.progress import Bar
from stvid.video.errors import VideoError
from stvid.video.images import list_images

_CHUNK = 1 << 20  # bytes


def content_keys(paths: Sequence[str], *, progress: bool = True) -> dict[str, str]:
    """A key for each path, equal where the content is; paths that cannot be read have none.

    Only what has the same size as something else is read. A folder of images has the names and bytes of its images
    as content.

    Args:
        paths: video files or folders of images; links to one file are that file.
        progress: show a bar if there is anything to read.
    """
    places: dict[str, list[str]] = defaultdict(list)  # file on disk -> its paths
    sizes: dict[tuple, list[str]] = defaultdict(list)  # size -> files on disk
    for path in dict.fromkeys(paths):
        with suppress(OSError, VideoError):
            file, size = file_key(path), _size(path)
            if file not in places:
                sizes[size].append(file)
            places[file].append(path)
    keys = {file: file for file in places}
    todo = [file for files in sizes.values() if len(files) > 1 for file in files]
    with Bar("comparing files of one size", total=len(todo), unit="files", shown=progress) as bar:
        for file in todo:
            with suppress(OSError, VideoError):  # gone or locked meanwhile: then it equals nothing but itself
                keys[file] = _digest(places[file][0])
            bar.advance()
    return {path: keys[file] for file, found in places.items() for path in found}


def duplicates(keys: dict[str, str]) -> list[list[str]]:
    """Paths with the same content, of at least two files on disk; links are left out.

    Args:
        keys: what `content_keys` returned.
    """
    together: dict[str, dict[str, str]] = defaultdict(dict)  # content -> file on disk -> its first path
    for path, key in keys.items():
        with suppress(OSError):
            together[key].setdefault(file_key(path), path)
    return [list(found.values()) for found in together.values() if len(found) > 1]


def file_key(path: str) -> str:
    """The same for every name that one file on disk has, symbolic and hard links included. Raises OSError."""
    status = os.stat(path)
    return f"file {status.st_dev} {status.st_ino}"


def _size(path: str) -> tuple:
    if not os.path.isdir(path):
        return ("file", os.path.getsize(path))
    images = list_images(path)
    return ("images", len(images), sum(image.stat().st_size for image in images))


def _digest(path: str) -> str:
    found = hashlib.blake2b(digest_size=20)
    if not os.path.isdir(path):
        for chunk in _chunks(path):
            found.update(chunk)
        return f"bytes {found.hexdigest()}"
    for image in list_images(path):
        found.update(b"%s\0%d\0" % (os.fsencode(image.name), image.stat().st_size))
        for chunk in _chunks(image):
            found.update(chunk)
    return f"images {found.hexdigest()}"


def _chunks(path: str | Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
