"""The built-in data set: rendered people sit down, raise their arms, walk and pick things up, also in reverse.

Eight classes in four pairs. The second class of a pair is the first one in reverse order (rendered with other random
values). So single frames, or frames without their order, do not contain the class. A model that separates the classes
of a pair has learned motion.

The videos are rendered on first use, as H.264 files. Each depends only on (seed, split, class, index).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stvid.data.manifest import Item, Manifest
from stvid.data.synthetic.figures import Figure, sample_figure
from stvid.data.synthetic.motions import MOTIONS
from stvid.data.synthetic.root import MARKER, check_root
from stvid.data.synthetic.scenes import render_scene
from stvid.device import num_cores
from stvid.errors import InputError
from stvid.progress import Bar
from stvid.video.writer import write_video

log = logging.getLogger(__name__)
RENDERER_VERSION = 2  # raise it with every change of the pixels: each version has its own files
FPS = 24
# class -> (rendered motion, whether its frames are reversed)
RENDITIONS: dict[str, tuple[str, bool]] = {
    "sit_down": ("sit_down", False),
    "stand_up": ("sit_down", True),
    "raise_arms": ("raise_arms", False),
    "lower_arms": ("raise_arms", True),
    "walk_forward": ("walk_forward", False),
    "walk_backward": ("walk_forward", True),
    "pick_up": ("pick_up", False),
    "put_down": ("pick_up", True),
}
CLASSES = tuple(RENDITIONS)


def actions(
    *,
    root: str | os.PathLike,
    num_train: int = 100,
    num_val: int = 16,
    num_test: int = 25,
    num_frames: int = 48,
    size: int = 80,
    seed: int = 0,
    num_workers: int | None = None,
) -> Manifest:
    """The built-in data set, rendered below `root` if necessary.

    An interrupted rendering continues where it stopped. Videos are grouped by figure.

    Args:
        root: folder of rendered data sets, each in a subfolder named by a hash of its parameters, and nothing
            else.
        num_train: training videos per class, at least 1.
        num_val: validation videos per class, at least 1.
        num_test: test videos per class, at least 1.
        num_frames: frames of each video (24 per second), at least 16.
        size: height and width in pixels, even, at least 32.
        seed: of all random values, at least 0.
        num_workers: rendering processes; None: one per CPU core; 1 renders in this process.

    Raises:
        InputError: a parameter is out of its range, or the root holds other files.
    """
    _check_at_least(num_train=(num_train, 1), num_val=(num_val, 1), num_test=(num_test, 1))
    _check_at_least(num_frames=(num_frames, 16), size=(size, 32), seed=(seed, 0))
    if size % 2:
        raise InputError(f"size (={size}) must be even: H.264 stores one colour for 2 x 2 pixels")

    counts = {"train": num_train, "val": num_val, "test": num_test}
    parameters = {"version": RENDERER_VERSION, **counts, "num_frames": num_frames, "size": size, "seed": seed}
    root = Path(root).expanduser().absolute()
    check_root(root)
    folder = root / hashlib.sha256(json.dumps(parameters).encode()).hexdigest()[:12]
    table = folder / "manifest.csv"
    jobs = [
        _Job(folder=str(folder), split=split, label=label, index=index, num_frames=num_frames, size=size, seed=seed)
        for split, count in counts.items()
        for label in CLASSES
        for index in range(count)
    ]
    missing = [job for job in jobs if not job.path.exists()]
    if missing or not table.exists():
        log.info("rendering %d videos into %s", len(missing), folder)
        root.mkdir(parents=True, exist_ok=True)
        (root / MARKER).touch()
        _render_all(missing, num_workers)
        Manifest(items=tuple(job.item for job in jobs), class_names=CLASSES).write_csv(
            table
        )  # last, as a mark of completion
    return Manifest.read_csv(table, class_names=CLASSES)


def render_video(
    *, label: str, figure: Figure, rng: np.random.Generator, num_frames: int = 48, size: int = 80
) -> np.ndarray:
    """Renders one video of a class: uint8 `T x size x size x 3`.

    For equal states of `rng`, the videos of the two classes of a pair are the reverse of each other.
    """
    motion_name, is_reversed = RENDITIONS[label]
    motion = MOTIONS[motion_name](figure, rng, num_frames)
    frames_THWC = render_scene(figure, motion, rng, size)
    return frames_THWC[::-1] if is_reversed else frames_THWC


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One video to render, with all parameters that affect it."""

    folder: str
    split: str
    label: str
    index: int
    num_frames: int
    size: int
    seed: int

    @property
    def group(self) -> str:
        """The figure; each performs every action once, in one split."""
        return f"{self.split}-{self.index:04d}"

    @property
    def path(self) -> Path:
        return Path(self.folder, self.split, self.label, f"{self.label}_{self.index:04d}.mp4")

    @property
    def item(self) -> Item:
        return Item(path=str(self.path), label=self.label, split=self.split, group=self.group)


def _render_job(job: _Job) -> None:
    figure = sample_figure(seeded_generator(job.seed, "figure", job.group))
    rng = seeded_generator(job.seed, "video", job.split, job.label, str(job.index))
    frames_THWC = render_video(label=job.label, figure=figure, rng=rng, num_frames=job.num_frames, size=job.size)
    write_video(job.path, frames_THWC, fps=FPS)


def seeded_generator(seed: int, *names: str) -> np.random.Generator:
    """A generator seeded by seed and names; equal in all processes, unlike one seeded by `hash`."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def _render_all(jobs: Sequence[_Job], num_workers: int | None) -> None:
    num_workers = min(num_workers or num_cores(), len(jobs))
    with Bar("rendering actions", total=len(jobs), unit="videos") as bar:
        if num_workers <= 1:
            for job in jobs:
                _render_job(job)
                bar.advance()
            return
        with ProcessPoolExecutor(num_workers) as pool:
            for _ in pool.map(_render_job, jobs, chunksize=4):
                bar.advance()


def _check_at_least(**values_and_minima: tuple[int, int]) -> None:
    for name, (value, minimum) in values_and_minima.items():
        if value < minimum:
            raise InputError(f"{name} (={value}) must be at least {minimum}")
