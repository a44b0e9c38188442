"""The tables of docs/benchmarks.md that need no trained run, one after the other, in short form.

    python -m benchmarks                        perhaps 15 minutes on two cores (not measured), with rendered videos
    python -m benchmarks --data DIR             the same with a folder that has one folder of videos per class
    python -m benchmarks --only loading step    some of them

Every table is printed by a script of this folder with smaller numbers of steps or rounds; run that script by itself for
the full figures. The ratios are of loops that alternate within one process or run, so they compare on a shared machine;
the times do not. Exits with 1 if a script fails or misses its target, and says which.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stvid.data.synthetic.actions import actions
from stvid.run.provenance import hardware, versions

HERE = Path(__file__).resolve().parent
DATA = "{data}"  # in a command: the folder of videos
TABLES = {
    "loading": ["loading.py", "--data", DATA, "--batches", "8", "--rounds", "3", "--big", "1"],
    "peers": ["peers.py", "--data", DATA, "--batches", "4", "--rounds", "3", "--big", "1"],
    "step": ["step.py", "--steps", "2", "--rounds", "2"],
    "memory": ["memory.py", "--models", "conv3d", "cnn_lstm", "--precisions", "32-true"],
    "evaluation": ["views.py", "--rounds", "3"],
    "prediction": ["export.py", DATA, "--models", "conv3d", "small, LSTM", "--rounds", "3"],
    "streaming": ["streaming.py", "--frames", "2000"],
    "start-up": ["startup.py", "--rounds", "3"],
    "features": ["features.py", "data=folder", f"data.root={DATA}", "trainer.max_epochs=3"],
}


def render(folder: Path) -> None:
    """Some videos of the built-in data set, in a folder per class."""
    manifest = actions(root=folder / "rendered", num_train=6, num_val=2, num_test=2, num_frames=96, size=240)
    for item in manifest.items:
        target = folder / "videos" / item.label / f"{item.split}_{Path(item.path).name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(item.path, target)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="a folder with one folder of videos per class; default: rendered videos")
    names = ", ".join(TABLES)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES), metavar="NAME", help=f"of {names}")
    options = parser.parse_args()
    found = {"date": str(datetime.date.today())} | hardware() | versions()
    print(", ".join(f"{name} {value}" for name, value in found.items()), flush=True)
    began, failed = time.monotonic(), []
    with tempfile.TemporaryDirectory() as temporary:
        data = options.data
        if data is None:
            render(Path(temporary))
            data = str(Path(temporary) / "videos")
        for name in options.only:
            command = [part.replace(DATA, data) for part in TABLES[name]]
            print(f"\n## {name}\n\n`python benchmarks/{' '.join(TABLES[name])}`\n", flush=True)
            start = time.monotonic()
            script = [sys.executable, str(HERE / command[0]), *command[1:]]
            finished = subprocess.run(script, stderr=subprocess.PIPE, text=True)
            print(f"\n{time.monotonic() - start:.0f} s", flush=True)
            if finished.returncode != 0:
                print("\n".join(finished.stderr.strip().splitlines()[-5:]), flush=True)
                failed.append(name)
    print(f"\n{(time.monotonic() - began) / 60:.1f} minutes in all")
    if failed:
        raise SystemExit(f"failed, or missed a target: {', '.join(failed)}")


if __name__ == "__main__":
    main()
