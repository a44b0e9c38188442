"""Speed-up of training on the stored features of a frozen encoder, and whether the results stay the same.

    python benchmarks/features.py data=ut_interaction data.root=DIR

Trains twice with the same overrides (`OVERRIDES` below and the given ones): with `data.features=off` and with `auto`.
The mean speed excludes the first epoch, in which the data loading workers start. Requires the extra `lite`.
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
SPEED_COLUMNS = ("seconds", "clips_per_second", "memory_gib", "waiting", "free_clips_per_second")


def train(folder: Path, *overrides: str) -> list[dict[str, str]]:
    """Trains and returns the rows of `metrics.csv`."""
    command = [sys.executable, str(TRAIN), *OVERRIDES, *overrides, f"hydra.run.dir={folder}"]
    subprocess.run(command, check=True)
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    overrides = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        runs = {mode: train(Path(folder) / mode, *overrides, f"data.features={mode}") for mode in ("off", "auto")}
    print("\n| data.features | training clips/s from epoch 2 | val loss, last epoch | val video accuracy, last epoch |")
    print("|---|---|---|---|")
    speed = {mode: mean(float(row["clips_per_second"]) for row in rows[1:]) for mode, rows in runs.items()}
    for mode, rows in runs.items():
        print(f"| {mode} | {speed[mode]:.1f} | {rows[-1]['val_loss']} | {rows[-1]['val_video_accuracy']} |")
    results = [[{k: v for k, v in row.items() if k not in SPEED_COLUMNS} for row in rows] for rows in runs.values()]
    print(f"\n{speed['auto'] / speed['off']:.0f} times faster; every other column of metrics.csv is", end=" ")
    print("the same" if results[0] == results[1] else "NOT the same")


if __name__ == "__main__":
    main()
