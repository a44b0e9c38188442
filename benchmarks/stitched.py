"""Renders long videos of the built-in actions with idle pauses between them, and clips cut from such videos.

    python benchmarks/stitched.py video FILE.mp4 --minutes 60 --split test     also writes the actions to FILE.json
    python benchmarks/stitched.py clips DIR                                    DIR/train/background/..., to train with

A video is a sequence of scenes of a minute. In a scene, one figure performs one motion forwards and backwards in turns:
it sits down, pauses, stands up, pauses, and so on. In a pause of 1 to 5 seconds it stays still in its last pose, while
camera, light and noise go on. So the picture jumps only between two scenes. Figures, rooms and times depend on
(seed, split, number of the scene); the splits share no figure.

A clip is as long as the clip of the default configs, and its class is the action in the middle of it, or `background`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import av
import numpy as np

from stvid.data.synthetic.actions import FPS, RENDITIONS, seeded_generator
from stvid.data.synthetic.figures import Motion, sample_figure
from stvid.data.synthetic.motions import MOTIONS
from stvid.data.synthetic.scenes import render_scene
from stvid.device import num_cores
from stvid.files import replacing
from stvid.progress import Bar
from stvid.video.writer import open_encoder, write_video

SIZE = 80  # pixels, height and width, as in the built-in data set
MOTION_FRAMES = 48
SCENE_SECONDS = 60
CLIP_SCENE_SECONDS = 20  # scenes that clips are cut from: many figures and rooms
CLIP_FRAMES = 31  # 16 frames with stride 2
BACKGROUND = "background"


@dataclass(frozen=True)
class Action:
    """One action: the frames from `start` to before `end`, and its class."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Scene:
    """What happens in one scene: the frame of the motion that each of its frames shows, and the actions."""

    motion: str
    order_T: np.ndarray
    actions: tuple[Action, ...]


def plan_scene(motion: Motion, name: str, rng: np.random.Generator, num_frames: int) -> Scene:
    """Lays out actions and pauses; the figure starts with a pause in the first or the last pose."""
    first, last = moving_frames(motion)
    forwards = np.arange(first, last + 1)
    names = {is_reversed: label for label, (kind, is_reversed) in RENDITIONS.items() if kind == name}
    is_reversed = bool(rng.random() < 0.5)
    order, actions = [], []
    start = 0
    while True:
        pause, length = int(rng.uniform(1.0, 5.0) * FPS), len(forwards)
        rest = num_frames - start
        if rest < pause + length + FPS:  # no time for another action and a pause of a second
            order.append(np.full(rest, last if is_reversed else first))
            return Scene(name, np.concatenate(order), tuple(actions))
        order += [np.full(pause, last if is_reversed else first), forwards[::-1] if is_reversed else forwards]
        actions.append(Action(start + pause, start + pause + length, names[is_reversed]))
        start, is_reversed = start + pause + length, not is_reversed


def moving_frames(motion: Motion, share: float = 0.03) -> tuple[int, int]:
    """The first and the last frame of the visible movement: more than `share` of its extent from both end poses."""
    joints_TN = np.concatenate(
        [motion.pelvis_T3, motion.hands_T23.reshape(-1, 6), motion.ankles_T23.reshape(-1, 6)], axis=1
    )
    from_first_T = np.abs(joints_TN - joints_TN[0]).max(axis=1)
    from_last_T = np.abs(joints_TN - joints_TN[-1]).max(axis=1)
    least = share * from_first_T.max()
    moving = np.flatnonzero((from_first_T > least) & (from_last_T > least))
    return int(moving[0]), int(moving[-1])


def in_order(motion: Motion, order_T: np.ndarray) -> Motion:
    """A motion with its frames in another order, with repetitions."""
    carried = motion.carried
    return replace(
        motion,
        pelvis_T3=motion.pelvis_T3[order_T],
        lean_T=motion.lean_T[order_T],
        ankles_T23=motion.ankles_T23[order_T],
        hands_T23=motion.hands_T23[order_T],
        toes_T2=motion.toes_T2[order_T],
        carried=None if carried is None else replace(carried, centre=carried.centre[order_T]),
    )


def render(job: tuple[int, str, int, int, int]) -> tuple[np.ndarray, tuple[Action, ...]]:
    """One scene of (seed, split, number, number of frames, size): uint8 `T x size x size x 3`, and its actions."""
    seed, split, number, num_frames, size = job
    rng = seeded_generator(seed, "stitched", split, str(number))
    figure = sample_figure(seeded_generator(seed, "figure", f"{split}-{number:04d}"))
    name = list(MOTIONS)[number % len(MOTIONS)]
    motion = MOTIONS[name](figure, rng, MOTION_FRAMES)
    scene = plan_scene(motion, name, rng, num_frames)
    frames_THWC = render_scene(figure, in_order(motion, scene.order_T), rng, size, sway_period=MOTION_FRAMES)
    return frames_THWC, scene.actions


def scenes(
    split: str, lengths: list[int], *, seed: int, size: int = SIZE
) -> Iterator[tuple[np.ndarray, tuple[Action, ...]]]:
    """Scenes with these numbers of frames, one after the other, rendered in several processes."""
    jobs = [(seed, split, number, length, size) for number, length in enumerate(lengths)]
    with ProcessPoolExecutor(num_cores()) as pool, Bar("rendering", total=len(jobs), unit="scenes") as bar:
        for start in range(0, len(jobs), num_cores()):  # few scenes in memory
            for scene in pool.map(render, jobs[start : start + num_cores()]):
                yield scene
                bar.advance()


def write_stitched(path: Path, *, minutes: float, split: str, seed: int = 0, size: int = SIZE) -> list[dict]:
    """Writes a video and, beside it, FILE.json: its actions `{"start", "end", "class"}` in seconds."""
    num_frames, longest, position, actions = round(minutes * 60 * FPS), SCENE_SECONDS * FPS, 0, []
    lengths = [min(longest, num_frames - start) for start in range(0, num_frames, longest)]
    path.parent.mkdir(parents=True, exist_ok=True)
    like = av.VideoFrame(size, size, "rgb24")
    with replacing(path) as partial, open_encoder(partial, like=like, fps=FPS, crf=18, gop=48) as encode:
        for frames_THWC, in_scene in scenes(split, lengths, seed=seed, size=size):
            for frame_HWC in frames_THWC:
                encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24"))
            for action in in_scene:
                start, end = (position + action.start) / FPS, (position + action.end) / FPS
                actions.append({"start": start, "end": end, "class": action.label})
            position += len(frames_THWC)
    path.with_suffix(".json").write_text(json.dumps(actions))
    return actions


def write_clips(folder: Path, *, counts: dict[str, int], seed: int) -> None:
    """Cuts clips for training: `counts` clips per class and split, and twice as many of the background."""
    for split, count in counts.items():
        wanted = Counter(dict.fromkeys(RENDITIONS, count) | {BACKGROUND: 2 * count})
        written: Counter = Counter()
        num_scenes = 4 * ceil(0.75 * count)  # a scene of one of four motions holds about 2 actions of each class
        for number, (frames_THWC, actions) in enumerate(
            scenes(split, [CLIP_SCENE_SECONDS * FPS] * num_scenes, seed=seed)
        ):
            rng = seeded_generator(seed, "clips", split, str(number))
            allowed = wanted | {BACKGROUND: ceil(wanted[BACKGROUND] * (number + 1) / num_scenes)}  # of many scenes
            for label, start in choose_clips(actions, len(frames_THWC), rng):
                if written[label] < allowed[label]:
                    path = folder / split / label / f"{label}_{written[label]:04d}.mp4"
                    write_video(path, frames_THWC[start : start + CLIP_FRAMES], fps=FPS)
                    written[label] += 1
        print(split, dict(written), flush=True)


def choose_clips(actions: tuple[Action, ...], num_frames: int, rng: np.random.Generator) -> Iterator[tuple[str, int]]:
    """One clip with its middle in each action, and one with its middle in each pause: (class, first frame)."""
    half = CLIP_FRAMES // 2  # frames on each side of the middle one
    edges = [0, *(edge for action in actions for edge in (action.start, action.end)), num_frames]
    labels = [BACKGROUND, *(label for action in actions for label in (action.label, BACKGROUND))]
    for i in rng.permutation(len(labels)):
        label, start, end = labels[i], edges[i], edges[i + 1]
        middle = int(rng.integers(max(start, half), min(end, num_frames - half)))
        yield label, middle - half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["video", "clips"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--split", choices=["train", "val", "test"], default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=SIZE, help=f"pixels of a video, even (default: {SIZE})")
    parser.add_argument("--train-clips", type=int, default=100, help="clips per class for training (default: 100)")
    options = parser.parse_args()
    if options.what == "video":
        actions = write_stitched(
            options.path, minutes=options.minutes, split=options.split, seed=options.seed, size=options.size
        )
        print(f"{len(actions)} actions in {options.minutes} minutes")
    else:
        write_clips(options.path, counts={"train": options.train_clips, "val": 16, "test": 25}, seed=options.seed)
        print(f"train it: python train.py {options.path} data.num_clips=1 model.weights=RUN trainer.max_epochs=8")


if __name__ == "__main__":
    main()
