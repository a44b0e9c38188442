"""Kills runs (SIGKILL), resumes them, and compares them, bit for bit, with a run that was never killed.

python benchmarks/resume.py                     20 kills, 5 in each of four runs
python benchmarks/resume.py --kills 3 --each 3

Both families, on the CPU, with dropout, mixup, cutmix, an average of the weights, gradient accumulation, checkpoints
every 2 steps and worker processes that read videos. Kills come at random times; every second one waits until a
checkpoint is being written. The benchmark compares all tensors of `best.ckpt` and `last.ckpt` (weights, average,
optimizer), `metrics.csv` without its times, and the numbers of `result.json`. It exits with 1 if any differs.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import random
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process would wait for threads that only its parent has

import torch

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
TIMED = ("seconds", "clips_per_second", "memory_gib", "waiting", "free_clips_per_second")
RESULTS = ("video_accuracy", "clip_accuracy", "loss", "ece", "confusion", "epoch")
SMALL = (
    *("data.num_train=4", "data.num_val=2", "data.num_test=1", "data.num_frames=16", "data.size=48"),
    *("data.batch_size=2", "data.num_workers=1", "clip.num_frames=4", "clip.size=32", "trainer.accelerator=cpu"),
    *("trainer.max_epochs=3", "trainer.accumulate_grad_batches=2", "save_every=2", "ema=0.9", "mixing=both"),
    *("model.dropout=0.3", "optimizer.schedule=one_cycle", "early_stopping=2"),
)


def train(arguments: list[str], log: Path) -> None:
    """`python train.py ARGUMENTS`, in a process that has its imports already."""
    os.setsid()  # a group with its workers, which is killed together
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [str(TRAIN), *arguments]
    runpy.run_path(str(TRAIN), run_name="__main__")


def start(arguments: list[str], log: Path) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=train, args=(arguments, log))
    process.start()
    return process


def train_to_end(arguments: list[str], log: Path) -> float:
    """Trains without a kill. Returns the seconds that it took."""
    start_time = time.monotonic()
    process = start(arguments, log)
    process.join()
    if process.exitcode:
        raise SystemExit(f"exit code {process.exitcode} of {' '.join(arguments)}\n{log.read_text()}")
    return time.monotonic() - start_time


def train_and_kill(arguments: list[str], log: Path, folder: Path, *, after: float, writing: bool) -> str | None:
    """Trains and kills the run.

    Args:
        arguments, log: of `train`.
        folder: of the checkpoints.
        after: seconds until the kill.
        writing: wait for the next checkpoint that is being written.

    Returns:
        `writing` or `anything else`: what the run did when it was killed; None if it ended before.
    """
    process = start(arguments, log)
    time.sleep(min(after, 0.5))
    deadline = time.monotonic() + after
    while process.is_alive() and time.monotonic() < deadline:
        if not writing:
            time.sleep(0.01)
    while writing and process.is_alive() and not partial_files(folder):
        pass
    if not process.is_alive():
        return None
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return "writing" if partial_files(folder) else "anything else"


def partial_files(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if name.endswith(".partial")]
    except FileNotFoundError:
        return []


def differences(run: Path, reference: Path) -> list[str]:
    """What differs between two runs."""
    different = []
    for name in ("best.ckpt", "last.ckpt"):
        a, b = (dict(leaves(read_checkpoint(folder / "checkpoints" / name))) for folder in (run, reference))
        different += [f"{name}: {key}" for key in a.keys() | b.keys() if not equal(a.get(key), b.get(key))]
    a, b = (read_metrics(folder / "metrics.csv") for folder in (run, reference))
    different += ["metrics.csv"] * (a != b)
    a, b = (json.loads((folder / "result.json").read_text()) for folder in (run, reference))
    return different + [f"result.json: {key}" for key in RESULTS if a[key] != b[key]]


def read_checkpoint(path: Path) -> dict:
    content = torch.load(path, weights_only=True)
    keys = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "totals")
    return {key: content.get(key) for key in (*keys, "epoch", "global_step")}


def leaves(node: object, place: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(node, dict):
        for key, child in node.items():
            yield from leaves(child, f"{place}/{key}")
    elif isinstance(node, list | tuple):
        for i, child in enumerate(node):
            yield from leaves(child, f"{place}/{i}")
    else:
        yield place, node


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b


def read_metrics(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMED} for row in csv.DictReader(file)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--each", type=int, default=5, help="kills in one run (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the random times")
    options = parser.parse_args()
    rng, failures, num_kills = random.Random(options.seed), 0, 0
    sys.path.insert(0, str(TRAIN.parent))
    import stvid.cli
    import stvid.commands.cost
    import stvid.training.callbacks  # noqa: F401

    print(f"{'model':<10}{'killed while':<40}{'equal':>8}")
    with tempfile.TemporaryDirectory() as folder:
        folder, seconds = Path(folder), {}
        common = [*SMALL, f"data.root={folder / 'actions'}"]
        while num_kills < options.kills:
            model = ("conv3d", "cnn_lstm")[num_kills // options.each % 2]
            reference, run, log = folder / model, folder / f"{model}_{num_kills}", folder / f"{model}.log"
            new_run = [*common, f"model={model}"]
            if model not in seconds:
                train_to_end([*new_run, f"hydra.run.dir={reference}"], log)  # also renders the videos
                seconds[model] = train_to_end([*new_run, f"hydra.run.dir={folder / model}_again"], log)
            arguments, states = [*new_run, f"hydra.run.dir={run}"], []
            while len(states) < options.each and num_kills + len(states) < options.kills:
                after, writing = rng.uniform(0, seconds[model] * 0.6), len(states) % 2 == 1
                state = train_and_kill(arguments, log, run / "checkpoints", after=after, writing=writing)
                if (run / "config.yaml").exists():
                    arguments = [f"resume={run}"]
                if state is None:  # the run ended before the kill
                    break
                states.append(state)
            num_kills += len(states)
            train_to_end(arguments, log)
            different = differences(run, reference)
            failures += bool(different)
            counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
            print(f"{model:<10}{counts:<40}{'no' if different else 'yes':>8}")
            print(*(f"  {place}" for place in different[:5]), sep="\n", end="\n" if different else "")
    print(f"{num_kills} kills, {failures} runs differ")
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
