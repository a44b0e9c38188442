"""This code against an earlier commit of it: speed and memory of a training and of an encoding pass, in turns.

    python benchmarks/against.py COMMIT --data DIR                 a folder with one folder of videos per class
    python benchmarks/against.py COMMIT --data DIR --rounds 5 --jobs conv3d

COMMIT is checked out beside this one, in a temporary worktree. Each job is the same command with both (A B A B):

- encoding: features of the videos of DIR by `experiment=small_real`'s encoder, image size and frames; seconds as the
  log states them;
- conv3d: `python train.py model=conv3d` on the built-in data set, rendered beforehand; clips/s of all epochs but the
  first.

Prints the median of each over the rounds, their ratio, the CPU time, and the ratio of the resident peaks.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

ROOT = Path(__file__).resolve().parents[1]
COMMON = ("report=false", "logger=none", "seed=0")
JOBS = {
    "encoding": (
        *("experiment=small_real", "data=folder", "trainer.max_epochs=1", "clip.short=pad", "clip.num_frames=32"),
        *(
            "clip.fps=8",
            "clip.frame_stride=null",
            "data.whole_video=false",
            "data.passes=1",
            "data.num_clips=1",
            "refit=false",
        ),
    ),
    "conv3d": ("model=conv3d", "trainer.max_epochs=4"),
}
TARGETS = {"encoding": 1.5, "conv3d": 1.1}  # times the speed of the earlier commit
MAX_MEMORY = 1.1  # times its resident peak


def encoding_speed(run: Path) -> float:
    """Clips/s of all encoding passes."""
    log = (run / "train.log").read_text(encoding="utf-8")
    clips = sum(int(number) for number in re.findall(r"\d+ cached, (\d+) to encode", log))
    return clips / sum(float(seconds) for seconds in re.findall(r"encoded in ([\d.]+) s", log))


def training_speed(run: Path) -> float:
    """Clips/s of the epochs from the second one on."""
    with (run / "metrics.csv").open(newline="") as file:
        return mean(float(row["clips_per_second"]) for row in list(csv.DictReader(file))[1:])


SPEEDS: dict[str, Callable[[Path], float]] = {"encoding": encoding_speed, "conv3d": training_speed}


def train(code: Path, job: str, data: Path, run: Path) -> tuple[float, float, float]:
    """Clips/s, CPU seconds and resident peak in MB of one command; the features are removed afterwards."""
    overrides = [*JOBS[job], *COMMON, f"hydra.run.dir={run}"]
    if job == "encoding":
        overrides.append(f"data.root={data}")
    command = [sys.executable, str(code / "train.py"), *overrides]
    environment = {**os.environ, "PYTHONPATH": str(code)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read().decode(errors="replace")
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{errors[-2000:]}")
    shutil.rmtree(data / ".stvid_features", ignore_errors=True)
    return SPEEDS[job](run), used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="of this repository")
    parser.add_argument("--data", required=True, help="a folder with one folder of videos per class; it is copied")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    options = parser.parse_args()
    missed = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        earlier = work / "earlier"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", earlier, options.commit], check=True)
        shutil.copytree(options.data, work / "videos")
        try:
            print("| job | code | clips/s | CPU s | resident peak, MB |\n|---|---|---|---|---|")
            for job in options.jobs:
                found: dict[str, list[tuple[float, float, float]]] = {options.commit: [], "this": []}
                for number in range(options.rounds):
                    for name, code in ((options.commit, earlier), ("this", ROOT)):
                        found[name].append(train(code, job, work / "videos", work / f"{job}_{name}_{number}"))
                middle = {name: [median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
                for name, values in middle.items():
                    print(f"| {job} | {name} | " + " | ".join(f"{value:.4g}" for value in values) + " |", flush=True)
                (before, _, peak_before), (after, _, peak_after) = middle.values()
                speed, memory = after / before, peak_after / peak_before
                cells = (f"{speed:.2f} (wanted {TARGETS[job]})", "", f"{memory:.2f} (at most {MAX_MEMORY})")
                print(f"| {job} | ratio | " + " | ".join(cells) + " |", flush=True)
                if speed < TARGETS[job] or memory > MAX_MEMORY:
                    missed.append(job)
        finally:
            subprocess.run([*git, "remove", "--force", earlier], check=True)
    if missed:
        raise SystemExit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
