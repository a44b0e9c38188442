"""Content checks of a data set: duplicate files, and shortcuts (a size or length that predicts the class)."""

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
from stvid.video.images import list_images
from stvid.video.shard_index import find_member, video_size
from stvid.video.shard_reader import open_member
from stvid.video.types import VideoInfo

_CHUNK = 1 << 20  # bytes
# Bytes per frame are excluded: more motion needs more bytes, so they are related to the action itself.
FEATURES = (
    ("aspect ratio",),
    ("size",),
    ("length",),
    ("frame rate",),
    ("codec",),
    ("aspect ratio", "length"),
    ("size", "length"),
)
MAX_VIDEOS = 5000  # size of the random sample: all pairwise distances are computed
NUM_SHUFFLES = 499
MAX_P_VALUE = 0.01
MIN_GAIN = 0.1  # of the way from the majority rate to 1; with many videos, tiny gains are significant too


def content_keys(paths: Sequence[str], *, progress: bool = True) -> dict[str, str]:
    """A key for each readable path; equal keys mean equal content.

    Only files of equal size are read. The content of a folder of images is the names and bytes of its images.

    Args:
        paths: video files or folders of images; links to one file count as one file.
        progress: show a progress bar if there are files to read.
    """
    paths_of: dict[str, list[str]] = defaultdict(list)  # file on disk -> its paths
    files_of_size: dict[tuple, list[str]] = defaultdict(list)  # size -> files on disk
    for path in dict.fromkeys(paths):
        with suppress(OSError, VideoError):
            file, size = file_key(path), _size(path)
            if file not in paths_of:
                files_of_size[size].append(file)
            paths_of[file].append(path)
    keys = {file: file for file in paths_of}
    todo = [file for files in files_of_size.values() if len(files) > 1 for file in files]
    with Bar("comparing files of one size", total=len(todo), unit="files", shown=progress) as bar:
        for file in todo:
            with suppress(OSError, VideoError):  # removed or locked meanwhile: unique
                keys[file] = _hash_content(paths_of[file][0])
            bar.advance()
    return {path: keys[file] for file, same in paths_of.items() for path in same}


def find_duplicates(keys: dict[str, str]) -> list[list[str]]:
    """Lists of paths with the same content, each of at least two files on disk; links are ignored.

    Args:
        keys: the result of `content_keys`.
    """
    files_of: dict[str, dict[str, str]] = defaultdict(dict)  # content -> file on disk -> its first path
    for path, key in keys.items():
        with suppress(OSError):
            files_of[key].setdefault(file_key(path), path)
    return [list(files.values()) for files in files_of.values() if len(files) > 1]


def file_key(path: str) -> str:
    """Identifies a file on disk: equal for all its symbolic and hard links; or a video of a tar. Raises OSError."""
    if find_member(path) is not None:
        return f"member {os.path.abspath(path)}"
    status = os.stat(path)
    return f"file {status.st_dev} {status.st_ino}"


def _size(path: str) -> tuple:
    if not os.path.isdir(path):
        return ("file", video_size(path))
    images = list_images(path)
    return ("images", len(images), sum(image.stat().st_size for image in images))


def _hash_content(path: str) -> str:
    content_hash = hashlib.blake2b(digest_size=20)
    if not os.path.isdir(path):
        for chunk in _chunks(path):
            content_hash.update(chunk)
        return f"bytes {content_hash.hexdigest()}"
    for image in list_images(path):
        content_hash.update(b"%s\0%d\0" % (os.fsencode(image.name), image.stat().st_size))
        for chunk in _chunks(image):
            content_hash.update(chunk)
    return f"images {content_hash.hexdigest()}"


def _chunks(path: str | Path) -> Iterator[bytes]:
    member = find_member(path)
    with open(path, "rb") if member is None else open_member(path, member) as file:
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
    """Tests whether file properties alone predict the class, by k-nearest-neighbour classification.

    The neighbours of a video are the 5 to 9 nearest videos of other groups, by standardised logarithms of the
    properties. The most frequent class among them is predicted; ties go to the nearest. Accuracy is compared with the
    accuracies under shuffled labels. Shuffles keep groups together, since the videos of a group are not independent.
    Since several sets of properties are tested, the p-values use the maximum over all sets (max-T of Westfall and
    Young): the probability of any false alarm is 1 %.

    Args:
        infos: properties of each video's file.
        lengths: frames of each item.
        labels: class of each item.
        groups: group of each item; an item without a group needs a unique value.
        seed: of the shuffles, and of the random sample if there are more than 5000 videos.

    Returns:
        For each set of `FEATURES` {features, accuracy, chance, p_value, suspicious}; empty if there is only one class
        or group. `chance` is the fraction of the largest class. `suspicious`: p-value at most 0.01, and accuracy at
        least a tenth of the way from `chance` to 1.
    """
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.permutation(len(labels))[:MAX_VIDEOS])
    labels_N = _to_indices([labels[i] for i in sample])
    groups_N = _to_indices([groups[i] for i in sample])
    if len(sample) == 0 or labels_N.max() == 0 or groups_N.max() == 0:
        return []
    columns = _standardized_columns([infos[i] for i in sample], [lengths[i] for i in sample])
    num_neighbours = int(np.clip(np.sqrt(len(sample) / (labels_N.max() + 1)), 5, 9))
    neighbours = {
        features: _find_neighbours(
            np.concatenate([columns[name] for name in features], axis=1), groups_N, num_neighbours, rng
        )
        for features in FEATURES
        if any(np.ptp(columns[name], axis=0).any() for name in features)  # a constant predicts nothing
    }
    shuffled_accuracies = [
        max((_accuracy(neighbours_NK, shuffled_N) for neighbours_NK in neighbours.values()), default=0.0)
        for shuffled_N in (_shuffle_labels(labels_N, groups_N, rng) for _ in range(NUM_SHUFFLES))
    ]
    return [
        _test_features(features, neighbours.get(features), labels_N, np.array(shuffled_accuracies))
        for features in FEATURES
    ]


def _test_features(
    features: tuple[str, ...], neighbours_NK: np.ndarray | None, labels_N: np.ndarray, shuffled_accuracies: np.ndarray
) -> dict:
    majority = float(np.bincount(labels_N).max() / len(labels_N))
    accuracy, p_value = majority, 1.0
    if neighbours_NK is not None:
        accuracy = _accuracy(neighbours_NK, labels_N)
        p_value = float((1 + (shuffled_accuracies >= accuracy).sum()) / (1 + len(shuffled_accuracies)))
    return {
        "features": list(features),
        "accuracy": accuracy,
        "chance": majority,
        "p_value": p_value,
        "suspicious": p_value <= MAX_P_VALUE and accuracy >= majority + MIN_GAIN * (1 - majority),
    }


def _to_indices(names: Sequence[Hashable]) -> np.ndarray:
    """int64 N: equal names get equal numbers, from 0 in order of appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def _standardized_columns(infos: Sequence[VideoInfo], lengths: Sequence[int]) -> dict[str, np.ndarray]:
    """The properties as float64 N x F, each column with mean 0 and standard deviation 1 (or all 0)."""
    codecs_N = _to_indices([info.codec for info in infos])
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


def _find_neighbours(
    x_NF: np.ndarray, groups_N: np.ndarray, num_neighbours: int, rng: np.random.Generator, rows: int = 256
) -> np.ndarray:
    """int64 N x K: each video's nearest videos of other groups, nearest first; -1 if there are fewer than K.

    Many videos have identical properties; a little noise breaks ties at random.
    """
    x_NF = x_NF + 1e-6 * rng.standard_normal(x_NF.shape)
    num_neighbours = min(num_neighbours, len(x_NF))
    blocks = []
    for first in range(0, len(x_NF), rows):
        block = slice(first, first + rows)
        distances = sum((x_NF[block, None, f] - x_NF[None, :, f]) ** 2 for f in range(x_NF.shape[1]))
        distances[groups_N[block, None] == groups_N[None]] = np.inf
        near = np.argpartition(distances, num_neighbours - 1, axis=1)[:, :num_neighbours]
        near_distances = np.take_along_axis(distances, near, axis=1)
        order = np.argsort(near_distances, axis=1)
        near = np.where(np.isinf(near_distances), -1, near)
        blocks.append(np.take_along_axis(near, order, axis=1))
    return np.concatenate(blocks)


def _accuracy(neighbours_NK: np.ndarray, labels_N: np.ndarray) -> float:
    """Fraction of videos whose class is the most frequent one among their neighbours."""
    classes_KN = np.where(neighbours_NK.T >= 0, labels_N[neighbours_NK.T], -1)
    votes_KN = np.zeros(classes_KN.shape, dtype=np.int8)
    for other_N in classes_KN:
        votes_KN += classes_KN == other_N
    votes_KN[classes_KN < 0] = 0
    predicted_N = classes_KN[votes_KN.argmax(0), np.arange(len(labels_N))]
    return float((predicted_N == labels_N).mean())


def _shuffle_labels(labels_N: np.ndarray, groups_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Permutes labels by groups: as far as sizes allow, the labels of one group go to another group, in any order.

    If every video is a group, this is a plain permutation.
    """
    places_N = np.argsort(groups_N, kind="stable")
    group_order_N = rng.permutation(groups_N.max() + 1)[groups_N]
    shuffled_N = np.empty_like(labels_N)
    shuffled_N[places_N] = labels_N[np.lexsort((rng.random(len(labels_N)), group_order_N))]
    return shuffled_N
