"""Does the built-in data set need time, and how well is it learned?

    python benchmarks/actions.py                       both families, three seeds: about 25 minutes on two CPU cores
    python benchmarks/actions.py --models conv3d --seeds 0

For each model and seed: seconds of training, video accuracy on val and on the unseen figures of test, and again with
the frames of every clip shuffled and reversed. Any order of frames shows the same pictures, so a model that looked at
pictures alone would keep its accuracy; chance between an action and its mirror is 0.5.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from stvid.checkpoint import load
from stvid.data.sampling import ORDERS
from stvid.evaluation.evaluate import evaluate, held_out

ROOT = Path(__file__).resolve().parents[1]


def measure(model: str, seed: int, folder: Path, overrides: list[str]) -> list[str]:
    run = folder / f"{model}_{seed}"
    command = [sys.executable, ROOT / "train.py", f"model={model}", f"seed={seed}", f"hydra.run.dir={run}", *overrides]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    trained = json.loads((run / "result.json").read_text())
    data = held_out(load(run), split="test")
    accuracies = [evaluate(load(run), data, split="test", order=order)[0]["video_accuracy"] for order in ORDERS]
    return [
        *(model, str(seed), f"{trained['training_seconds']:.0f}", f"{trained['video_accuracy']:.3f}"),
        *(f"{accuracy:.3f}" for accuracy in accuracies),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["conv3d", "cnn_lstm"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--overrides", nargs="*", default=[], help="for train.py, for example trainer.max_epochs=4")
    options = parser.parse_args()
    missed = []
    print("| model | seed | training s | val | test | " + " | ".join(f"test {order}" for order in ORDERS[1:]) + " |")
    print("|---|---|---|---|---|" + "---|" * len(ORDERS[1:]))
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            for seed in options.seeds:
                cells = measure(model, seed, Path(folder), options.overrides)
                print("| " + " | ".join(cells) + " |", flush=True)
                val, test, backwards, shuffled = map(float, cells[3:])
                if val < 0.95 or test < 0.93 or backwards >= 0.10 or shuffled > 0.60:
                    missed.append(f"{model} {seed}")
    if missed:
        raise SystemExit(f"not val >= 0.95, test >= 0.93, reversed < 0.10, shuffled <= 0.60: {', '.join(missed)}")


if __name__ == "__main__":
    main()
