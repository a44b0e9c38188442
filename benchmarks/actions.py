"""Does the built-in data set need time, and how well is it learned?

    python benchmarks/actions.py                       both families, three seeds: about 25 minutes on two CPU cores
    python benchmarks/actions.py --models conv3d --seeds 0

For each model and seed: seconds of training, video accuracy on val and on the unseen figures of test, and that of
`stvid evaluate --audit`: frozen, shuffled, reversed, at half and at double speed. Any order of frames shows the same
pictures, so a model that looked at pictures alone would keep its accuracy; chance between an action and its mirror is
0.5. The last column is the share of reversed videos that are taken for the mirror of their action.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from stvid.data.sampling import PLAYBACKS
from stvid.data.synthetic.actions import CLASSES, RENDITIONS
from stvid.evaluation.evaluation_run import EvaluationOptions, evaluate_run

ROOT = Path(__file__).resolve().parents[1]


def measure(model: str, seed: int, folder: Path, overrides: list[str]) -> list[str]:
    run = folder / f"{model}_{seed}"
    command = [sys.executable, ROOT / "train.py", f"model={model}", f"seed={seed}", f"hydra.run.dir={run}", *overrides]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    trained = json.loads((run / "result.json").read_text())
    result = evaluate_run(run, EvaluationOptions(audit=True)).result
    played = result["audit"]
    return [
        *(model, str(seed), f"{trained['training_seconds']:.0f}", f"{trained['video_accuracy']:.3f}"),
        *(f"{item['video_accuracy']:.3f}" for item in (result, *played.values())),
        f"{mirrored(played['reversed']['confusion']):.3f}",
    ]


def mirrored(confusion: list[list[int]]) -> float:
    """Share of the videos that are taken for the mirror of their action."""
    other = {(motion, backwards): name for name, (motion, backwards) in RENDITIONS.items()}
    pairs = [(i, CLASSES.index(other[motion, not b])) for i, (motion, b) in enumerate(RENDITIONS.values())]
    return sum(confusion[truth][mirror] for truth, mirror in pairs) / sum(map(sum, confusion))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["conv3d", "cnn_lstm"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--overrides", nargs="*", default=[], help="for train.py, for example trainer.max_epochs=4")
    options = parser.parse_args()
    missed = []
    print("| model | seed | training s | val | test | " + " | ".join(PLAYBACKS[1:]) + " | mirrored |")
    print("|---|---|---|---|---|---|" + "---|" * len(PLAYBACKS[1:]))
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            for seed in options.seeds:
                cells = measure(model, seed, Path(folder), options.overrides)
                print("| " + " | ".join(cells) + " |", flush=True)
                val, test, frozen, shuffled, _, _, _, mirror = map(float, cells[3:])
                if val < 0.95 or test < 0.93 or max(frozen, shuffled) > 0.60 or mirror < 0.9:
                    missed.append(f"{model} {seed}")
    if missed:
        wanted = "val >= 0.95, test >= 0.93, frozen and shuffled <= 0.60, mirrored >= 0.9"
        raise SystemExit(f"not {wanted}: {', '.join(missed)}")


if __name__ == "__main__":
    main()
