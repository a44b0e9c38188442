"""Runs that are killed (SIGKILL) and go on: are they, to the last bit, the run that was never killed?

python benchmarks/resume.py                     20 kills, 5 in each of four runs
python benchmarks/resume.py --kills 3 --each 3

Both families, on the CPU, with dropout, mixup, cutmix, an average of the weights, gradient accumulation, checkpoints
every 2 steps and readers in processes of their own. A kill comes at a random moment of what is left of the run, every
other one as soon as a checkpoint is being written. Compared are all tensors of `best.ckpt` and `last.ckpt` (weights,
average, optimizer), `metrics.csv` but for its times, and the numbers of `result.json`. Exits with 1 where one differs.
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
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # who forks with threads of its own leaves processes that wait for them

import torch

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
TIMED = ("seconds", "clips_per_second", "memory_gib", "waiting")
RESULTS = ("video_accuracy", "clip_accuracy", "loss", "ece", "confusion", "epoch")
SMALL = (
    *("data.num_train=4", "data.num_val=2", "data.num_test=1", "data.num_frames=16", "data.size=48"),
    *("data.batch_size=2", "data.num_workers=1", "clip.num_frames=4", "clip.size=32", "trainer.accelerator=cpu"),
    *("trainer.max_epochs=3", "trainer.accumulate_grad_batches=2", "save_every=2", "ema=0.9", "mixing=both"),
    *("model.dropout=0.3", "optimizer.schedule=one_cycle", "early_stopping=2"),
)


def train(arguments: list[str], log: Path) -> None:
    """One process: what `python train.py ARGUMENTS` does, without the seconds of its imports."""
    os.setsid()  # with its readers a group that is killed together
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [str(TRAIN), *arguments]
    runpy.run_path(str(TRAIN), run_name="__main__")


def start(arguments: list[str], log: Path) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=train, args=(arguments, log))
    process.start()
    return process


def whole(arguments: list[str], log: Path) -> float:
    """Trains to the end; seconds that it took."""
    began = time.monotonic()
    process = start(arguments, log)
    process.join()
    if process.exitcode:
        raise SystemExit(f"exit code {process.exitcode} of {' '.join(arguments)}\n{log.read_text()}")
    return time.monotonic() - began


def kill(arguments: list[str], log: Path, folder: Path, *, after: float, writing: bool) -> str | None:
    """Trains, and kills it some seconds later, if need be as soon as it writes; what it was killed in, if it was."""
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
    found = []
    for name in ("best.ckpt", "last.ckpt"):
        mine, other = (dict(leaves(read(folder / "checkpoints" / name))) for folder in (run, reference))
        found += [f"{name}: {key}" for key in mine.keys() | other.keys() if not same(mine.get(key), other.get(key))]
    mine, other = (rows(folder / "metrics.csv") for folder in (run, reference))
    found += ["metrics.csv"] * (mine != other)
    mine, other = (json.loads((folder / "result.json").read_text()) for folder in (run, reference))
    return found + [f"result.json: {key}" for key in RESULTS if mine[key] != other[key]]


def read(path: Path) -> dict:
    content = torch.load(path, weights_only=True)
    wanted = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "totals")
    return {key: content.get(key) for key in (*wanted, "epoch", "global_step")}


def leaves(node: object, place: str = ""):
    if isinstance(node, dict):
        for key, below in node.items():
            yield from leaves(below, f"{place}/{key}")
    elif isinstance(node, list | tuple):
        for i, below in enumerate(node):
            yield from leaves(below, f"{place}/{i}")
    else:
        yield place, node


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


def rows(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMED} for row in csv.DictReader(file)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--each", type=int, default=5, help="kills in one run (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    chance, failures, kills = random.Random(options.seed), 0, 0
    sys.path.insert(0, str(TRAIN.parent))
    import stvid.cli
    import stvid.commands.cost
    import stvid.training.callbacks  # noqa: F401

    print(f"{'model':<10}{'killed while':<40}{'equal':>8}")
    with tempfile.TemporaryDirectory() as folder:
        folder, took = Path(folder), {}
        common = [*SMALL, f"data.root={folder / 'actions'}"]
        while kills < options.kills:
            model = ("conv3d", "cnn_lstm")[kills // options.each % 2]
            reference, run, log = folder / model, folder / f"{model}_{kills}", folder / f"{model}.log"
            if model not in took:
                fresh = [*common, f"model={model}", f"hydra.run.dir={reference}"]
                whole(fresh, log)  # renders the videos, too
                took[model] = whole([*fresh[:-1], f"hydra.run.dir={folder / model}_again"], log)
            times, arguments = [], [*common, f"model={model}", f"hydra.run.dir={run}"]
            while len(times) < options.each and kills + len(times) < options.kills:
                after, writing = chance.uniform(0, took[model] * 0.6), len(times) % 2 == 1
                killed = kill(arguments, log, run / "checkpoints", after=after, writing=writing)
                if (run / "config.yaml").exists():
                    arguments = [f"resume={run}"]
                if killed is None:  # it was quicker
                    break
                times.append(killed)
            kills += len(times)
            whole(arguments, log)
            found = differences(run, reference)
            failures += bool(found)
            shown = ", ".join(f"{times.count(what)} {what}" for what in sorted(set(times)))
            print(f"{model:<10}{shown:<40}{'no' if found else 'yes':>8}", *found[:5], sep="\n  " if found else "")
    print(f"{kills} kills, {failures} runs differ")
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
