"""Finds the actions in an hour of video: how fast, in how much memory, and how right.

    python benchmarks/long_video.py RUN --background background     a run with the clips of benchmarks/stitched.py
    python benchmarks/long_video.py RUN                             a run with the built-in data set: pauses are unknown
    python benchmarks/long_video.py RUN --split val --minutes 10 --threshold 0.6    other options: of stvid predict

Renders the video with the figures of a split, none of which was trained on (or takes `--video`, whose actions are in
the .json beside it), and runs `stvid predict --segments` in a fresh process. Prints

- seconds from the start of the command to its end, times real time, CPU seconds and the share of decoding in them;
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
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stitched import write_stitched

import stvid
from stvid.deploy.segments import UNKNOWN
from stvid.video.playback import iter_frames

BOUNDARY_SECONDS = 0.5


def length(part: dict) -> float:
    return part["end"] - part["start"]


def overlap(a: dict, b: dict) -> float:
    return max(0.0, min(a["end"], b["end"]) - max(a["start"], b["start"]))


def score(actions: list[dict], segments: list[dict], idle_classes: set[str]) -> dict[str, float]:
    """The shares of the docstring above, of dictionaries `{"start", "end", "class"}` with times in seconds."""
    found = [segment for segment in segments if segment["class"] not in idle_classes]
    right = near = extra = 0
    for action in actions:
        same = [segment for segment in found if segment["class"] == action["class"]]
        right += sum(overlap(action, segment) for segment in same) >= length(action) / 2
        for edge in ("start", "end"):
            near += any(abs(segment[edge] - action[edge]) <= BOUNDARY_SECONDS for segment in same)
    for segment in found:
        same = [action for action in actions if action["class"] == segment["class"]]
        extra += not any(overlap(action, segment) > 0 for action in same)
    busy = sum(map(length, actions))
    idle = segments[-1]["end"] - segments[0]["start"] - busy
    wrong = sum(map(length, found)) - sum(overlap(action, segment) for action in actions for segment in found)
    return {
        "actions": right / len(actions),
        "boundaries": near / (2 * len(actions)),
        "idle": 1 - wrong / idle,
        "extra": extra / len(actions),
    }


def resident_mib(pid: int) -> float:
    """Memory of a process (Linux); 0 when it has ended."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0.0
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if len(pages) > 1 else 0.0


def read_share(pid: int, video: Path) -> float:
    """How much of the file a process has read (Linux): 0 to 1; 0 if it is not open."""
    for entry in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            if entry.resolve() == video:
                position = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text().split()[1]
                return int(position) / video.stat().st_size
        except OSError:  # closed meanwhile
            continue
    return 0.0


def growth(memory: list[tuple[float, float]], share: float) -> float:
    """Largest memory since `share` of the file was read, minus that at this moment; (share read, MiB) over time.

    The file is read twice: `probe` reads its packets, then it is decoded.
    """
    opened = [moment for moment in memory if moment[0] > 0]
    again = max((i for i in range(1, len(opened)) if opened[i][0] < opened[i - 1][0]), default=0)
    later = [mib for read, mib in opened[again:] if read >= share]
    return max(later) - later[0]


def cpu_of_children() -> float:
    """CPU seconds of the ended child processes of this process."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def predict(run: str, video: Path, more: list[str]) -> dict:
    """Runs `stvid predict --segments` in a new process; its memory is read ten times a second."""
    duration, video = stvid.probe(video).duration, video.resolve()
    output = video.with_suffix(".segments.json")
    command = [sys.executable, "-m", "stvid", "predict", run, str(video), "--segments", "--json", str(output), *more]
    start, before, memory = time.perf_counter(), cpu_of_children(), []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        memory.append((read_share(process.pid, video), resident_mib(process.pid)))
        time.sleep(0.1)
    seconds, cpu = time.perf_counter() - start, cpu_of_children() - before
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)} exited with {process.returncode}")
    return {
        "segments": json.loads(output.read_text())[0]["segments"],
        "seconds": seconds,
        "times_real_time": duration / seconds,
        "cpu_seconds": cpu,
        "decoding": decode(video) / cpu,
        "growth_mib": growth(memory, min(60 / duration, 0.5)),
    }


def decode(video: Path) -> float:
    """CPU seconds of decoding all frames."""
    start = time.process_time()
    for _ in iter_frames(video, info=stvid.probe(video)):
        pass
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--split", choices=["val", "test"], default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--video", type=Path, help="keep the video here, or take it from here")
    parser.add_argument("--background", nargs="*", default=[], help="classes in which nothing happens")
    options, more = parser.parse_known_args()  # more: for stvid predict
    for name in options.background:
        more += ["--background", name]
    with tempfile.TemporaryDirectory() as folder:
        video = options.video or Path(folder, "long.mp4")
        if not video.exists():
            write_stitched(video, minutes=options.minutes, split=options.split, seed=options.seed)
        measured, actions = predict(options.run, video, more), json.loads(video.with_suffix(".json").read_text())
    segments = measured.pop("segments")
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
