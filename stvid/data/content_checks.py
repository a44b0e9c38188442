"""Checks on the content of a data set: duplicate files, and shortcuts (size or length that already tells the class)."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from stvid.errors import VideoError
from stvid.progress import Bar
from stvid.video.decoding import list_images
from stvid.video.types import VideoInfo

_CHUNK = 1 << 20  # bytes
# Bytes a frame are not among them: moving pictures need more bytes, so they do say something about the action.
FEATURES = (
    ("aspect ratio",),
    ("size",),
    ("length",),
    ("frame rate",),
    ("codec",),
    ("aspect ratio", "length"),
    ("size", "length"),
)
MAX_VIDEOS = 5000  # a sample of so many decides: distances of all to all
SHUFFLES = 499
SIGNIFICANT = 0.01
NOTABLE = 0.1  # of the way from chance to certainty; with many videos, less than that can be significant too


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


def find_shortcuts(
    *,
    infos: Sequence[VideoInfo],
    lengths: Sequence[int],
    labels: Sequence[str],
    groups: Sequence[Hashable],
    seed: int = 0,
) -> list[dict]:
    """Guesses every video's class from the most similar videos of other groups, seeing nothing but such facts.

    The guess is the most frequent class among the nearest neighbours (5 to 9 of them, by standardised logarithms); of
    equally frequent ones, that of the nearest. Accuracy is compared with the accuracies under shuffled labels. The
    shuffles keep groups together, since the videos of a group are not as many independent observations. As several
    sets of features are tried, each p-value is that of the best of them all (Westfall and Young's max-T), so that the
    chance to call anything suspicious where nothing is stays at 1 %.

    Args:
        infos: facts of each video's file.
        lengths: frames of each video; of its part, where it is a part of a file.
        labels: class of each.
        groups: group of each; who has none is a group of his own.
        seed: of the shuffles, and of the sample that is taken of more than 5000 videos.

    Returns:
        For each set of `FEATURES` {features, accuracy, chance, p_value, suspicious}; nothing where there is only one
        class or group. `chance` is the share of the largest class: what is right without looking at anything.
        `suspicious`: p-value at most 0.01, and at least a tenth of the way from chance to certainty.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(labels))[:MAX_VIDEOS])
    labels_N = _numbered([labels[i] for i in chosen])
    groups_N = _numbered([groups[i] for i in chosen])
    if len(chosen) == 0 or labels_N.max() == 0 or groups_N.max() == 0:
        return []
    columns = _columns([infos[i] for i in chosen], [lengths[i] for i in chosen])
    num_neighbours = int(np.clip(np.sqrt(len(chosen) / (labels_N.max() + 1)), 5, 9))
    neighbours = {
        features: _nearest(np.concatenate([columns[name] for name in features], axis=1), groups_N, num_neighbours, rng)
        for features in FEATURES
        if any(np.ptp(columns[name], axis=0).any() for name in features)  # what is the same everywhere tells nothing
    }
    by_chance = [
        max((_accuracy(found_NK, shuffled_N) for found_NK in neighbours.values()), default=0.0)
        for shuffled_N in (_shuffled(labels_N, groups_N, rng) for _ in range(SHUFFLES))
    ]
    chance = float(np.bincount(labels_N).max() / len(labels_N))
    return [
        _verdict(features, neighbours.get(features), labels_N, chance, np.array(by_chance)) for features in FEATURES
    ]


def _verdict(
    features: tuple[str, ...],
    neighbours_NK: np.ndarray | None,
    labels_N: np.ndarray,
    chance: float,
    by_chance: np.ndarray,
) -> dict:
    accuracy, p_value = chance, 1.0
    if neighbours_NK is not None:
        accuracy = _accuracy(neighbours_NK, labels_N)
        p_value = float((1 + (by_chance >= accuracy).sum()) / (1 + len(by_chance)))
    notable = accuracy >= chance + NOTABLE * (1 - chance)
    return {
        "features": list(features),
        "accuracy": accuracy,
        "chance": chance,
        "p_value": p_value,
        "suspicious": p_value <= SIGNIFICANT and notable,
    }


def _numbered(names: Sequence[Hashable]) -> np.ndarray:
    """int64 N: 0 for the first name and all that equal it, 1 for the next ..."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def _columns(infos: Sequence[VideoInfo], lengths: Sequence[int]) -> dict[str, np.ndarray]:
    """The facts as float64 N x F, each column with mean 0 and deviation 1 (or all 0)."""
    codecs_N = _numbered([info.codec for info in infos])
    columns = {
        "aspect ratio": np.log([[info.width / info.height] for info in infos]),
        "size": np.log([[info.width, info.height] for info in infos]),
        "length": np.log([[length] for length in lengths]),
        "frame rate": np.log([[info.fps] for info in infos]),
        "codec": (codecs_N[:, None] == np.arange(codecs_N.max() + 1)).astype(float),
    }
    return {
        name: (x_NF - x_NF.mean(0)) / np.where(x_NF.std(0) > 1e-9, x_NF.std(0), np.inf)
        for name, x_NF in columns.items()
    }


def _nearest(
    x_NF: np.ndarray, groups_N: np.ndarray, num_neighbours: int, rng: np.random.Generator, rows: int = 256
) -> np.ndarray:
    """int64 N x K: each video's nearest of other groups, nearest first; -1 where other groups have not as many.

    Many videos have the very same facts; a little noise makes the choice among them a fair one.
    """
    x_NF = x_NF + 1e-6 * rng.standard_normal(x_NF.shape)
    num_neighbours = min(num_neighbours, len(x_NF))
    found = []
    for first in range(0, len(x_NF), rows):
        block = slice(first, first + rows)
        distances = sum((x_NF[block, None, f] - x_NF[None, :, f]) ** 2 for f in range(x_NF.shape[1]))
        distances[groups_N[block, None] == groups_N[None]] = np.inf
        near = np.argpartition(distances, num_neighbours - 1, axis=1)[:, :num_neighbours]
        far = np.take_along_axis(distances, near, axis=1)
        order = np.argsort(far, axis=1)
        near = np.where(np.isinf(far), -1, near)
        found.append(np.take_along_axis(near, order, axis=1))
    return np.concatenate(found)


def _accuracy(neighbours_NK: np.ndarray, labels_N: np.ndarray) -> float:
    """Share of videos whose class is the most frequent one among their neighbours."""
    classes_KN = np.where(neighbours_NK.T >= 0, labels_N[neighbours_NK.T], -1)
    votes_KN = np.zeros(classes_KN.shape, dtype=np.int8)
    for other_N in classes_KN:
        votes_KN += classes_KN == other_N
    votes_KN[classes_KN < 0] = 0
    guesses_N = classes_KN[votes_KN.argmax(0), np.arange(len(labels_N))]
    return float((guesses_N == labels_N).mean())


def _shuffled(labels_N: np.ndarray, groups_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels dealt out anew, a group's together: one group's labels, in any order, go to another as far as sizes allow.

    Where every video is a group of its own, that is a plain permutation.
    """
    places_N = np.argsort(groups_N, kind="stable")
    turns_N = rng.permutation(groups_N.max() + 1)[groups_N]
    shuffled_N = np.empty_like(labels_N)
    shuffled_N[places_N] = labels_N[np.lexsort((rng.random(len(labels_N)), turns_N))]
    return shuffled_N
