"""Finds the actions in an hour of video: how fast, in how much memory, and how right.

    python benchmarks/long_video.py RUN --background background         a run on the clips of benchmarks/stitched.py
    python benchmarks/long_video.py RUN                                 a run on the built-in data set: pauses are unknown
    python benchmarks/long_video.py RUN --split val --seed 1 --minutes 10 --options threshold=0.6

Renders the video with the figures of a split, none of which was trained on (or takes `--video`, whose actions are in
the .json beside it), and calls `Recognizer.segments` in a fresh process. Prints

- seconds, times real time, and the share of decoding in the CPU time;
- the growth of the memory (RSS) from the first minute of the video to the end;
- actions: share for which segments of the right class overlap at least half of the action;
- boundaries: share of the starts and ends of actions with a start or end of a segment of their class within 0.5 s;
- idle: share of the time between the actions that is unknown or background;
- extra: segments of a class that overlap no action of this class.

Exits with 1 if one of them misses its target.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from stitched import write_stitched

from stvid.deploy.segments import UNKNOWN, Segment

BOUNDARY_SECONDS = 0.5


def overlap(a_start: float, a_end: float, b_start: float, b_end: float) -> float:
    return max(0.0, min(a_end, b_end) - max(a_start, b_start))


def score(actions: list[dict], segments: list[Segment], idle_classes: set[str]) -> dict[str, float]:
    """The shares of the docstring above; times in seconds."""
    found = [segment for segment in segments if segment.label not in idle_classes]
    right = near = 0
    for action in actions:
        same = [segment for segment in found if segment.label == action["class"]]
        seconds = sum(overlap(action["start"], action["end"], segment.start, segment.end) for segment in same)
        right += seconds >= (action["end"] - action["start"]) / 2
        for name in ("start", "end"):
            near += any(abs(getattr(segment, name) - action[name]) <= BOUNDARY_SECONDS for segment in same)
    busy = sum(action["end"] - action["start"] for action in actions)
    wrong = sum(s.end - s.start for s in found) - sum(
        overlap(action["start"], action["end"], s.start, s.end) for s in found for action in actions
    )
    extra = sum(
        not any(
            a["class"] == segment.label and overlap(a["start"], a["end"], segment.start, segment.end) > 0
            for a in actions
        )
        for segment in found
    )
    idle = segments[-1].end - segments[0].start - busy
    return {
        "actions": right / len(actions),
        "boundaries": near / (2 * len(actions)),
        "idle": 1 - wrong / idle,
        "extra": extra / len(actions),
    }


def resident_mib() -> float:
    """Memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def find_segments(run: str, video: str, options: dict) -> dict:
    """Calls `Recognizer.segments` and measures it; the memory is read ten times a second."""
    import stvid
    from stvid.video.playback import iter_frames

    info, recognizer = stvid.probe(video), stvid.load(run)
    memory, done = [], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            memory.append((time.perf_counter(), resident_mib()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start, cpu = time.perf_counter(), time.process_time()
    segments = recognizer.segments(video, **options)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    done.set()
    watcher.join()
    after_first_minute = start + seconds * 60 / info.duration
    baseline = next(mib for moment, mib in memory if moment >= after_first_minute)
    decoding = time.process_time()
    for _ in iter_frames(video, info=info, max_pixels=recognizer.trained.max_pixels):
        pass
    decoding = time.process_time() - decoding
    return {
        "segments": [[segment.start, segment.end, segment.label, segment.probability] for segment in segments],
        "seconds": seconds,
        "cpu_seconds": cpu,
        "times_real_time": info.duration / seconds,
        "decoding": decoding / cpu,
        "growth_mib": max(mib for moment, mib in memory if moment >= after_first_minute) - baseline,
    }


def parse_option(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    return name, json.loads(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--split", choices=["val", "test"], default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--video", type=Path, help="keep the video here, or take it from here")
    parser.add_argument("--background", nargs="*", default=[], help="classes in which nothing happens")
    parser.add_argument("--options", nargs="*", default=[], type=parse_option, help="of Recognizer.segments: hop=0.5")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        given = dict(options.options) | ({"background": options.background} if options.background else {})
        print(json.dumps(find_segments(options.run, str(options.video), given)))
        return
    with tempfile.TemporaryDirectory() as folder:
        video = options.video or Path(folder, "long.mp4")
        if not video.exists():
            write_stitched(video, minutes=options.minutes, split=options.split, seed=options.seed)
        arguments = [*sys.argv[1:], "--child", "--video", str(video)]
        child = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
        measured, actions = json.loads(child.stdout), json.loads(video.with_suffix(".json").read_text())
    segments = [
        Segment(start=start, end=end, label=label, probability=probability)
        for start, end, label, probability in measured.pop("segments")
    ]
    report(measured | score(actions, segments, {UNKNOWN, *options.background}), len(actions), len(segments))


def report(result: dict[str, float], num_actions: int, num_segments: int) -> None:
    print(f"{num_actions} actions, {num_segments} segments")
    targets = {"times_real_time": 10, "growth_mib": -100, "actions": 0.9, "boundaries": 0.9, "idle": 0.9}
    missed = []
    for name, value in result.items():
        target = targets.get(name)
        limit = "" if target is None else f"   (at {'least' if target > 0 else 'most'} {abs(target)})"
        print(f"{name:<16}{value:10.3f}{limit}")
        if target is not None and (value < target if target > 0 else value > -target):
            missed.append(name)
    if missed:
        raise SystemExit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
