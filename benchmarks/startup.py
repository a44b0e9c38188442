"""Start-up times: how long a user waits for the first word.

python benchmarks/startup.py

Two ratios, each of whole processes that are run in turns (median of the pairs' ratios):
- `python train.py`, until it refuses a mistyped option, against importing torch, torchvision, Lightning: at most 1.5;
- `stvid predict` on a conv3d run, until it opens the first file, against `import torch, av`: at most 1.3.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = "import torch, torchvision, pytorch_lightning"
LIGHT = "import torch, av"
MISTAKE = "model.depth=1"  # conv3d has `depths`
# stops at the first attempt to open a video file
FIRST_FILE = """
import sys
import stvid.video.decoding as decoding
class Opened(BaseException): pass
def opened(*arguments, **options): raise Opened
decoding.av.open = opened
import stvid.video.probe as probe, stvid.video.workers as workers
workers.map_files = opened
probe.map_files = opened
from stvid.cli import main
try:
    main(["predict", *sys.argv[1:]])
except Opened:
    sys.exit(0)
sys.exit("no file was opened")
"""


def seconds(command: list[str], *, code: int) -> float:
    """Wall time of a command that ends with an exit code."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    spent = time.perf_counter() - began
    if done.returncode != code:
        sys.exit(f"{command} ended with {done.returncode} instead of {code}:\n{done.stderr}")
    return spent


def compare(name: str, command: list[str], code: int, imports: str, limit: float, rounds: int) -> bool:
    """Prints a row; whether the ratio is within its limit."""
    python = [sys.executable, "-c", imports]
    pairs = [(seconds(command, code=code), seconds(python, code=0)) for _ in range(rounds + 1)][1:]  # caches are warm
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"{name:<48}{ours:8.2f} s   {imports:<48}{theirs:8.2f} s   ratio {ratio:.2f} (at most {limit})")
    return ratio <= limit


def make_run(folder: Path) -> tuple[Path, Path]:
    """An untrained conv3d run, and a video file that is never decoded."""
    import torch

    from stvid.clip import ClipSpec
    from stvid.models.conv3d import Conv3D
    from stvid.run.checkpoint import record

    config = {
        "model": {"_target_": "stvid.models.conv3d.Conv3D"},
        "trainer": {"precision": "32-true"},
        "data": {"datamodule": {"batch_size": 16}},
    }
    model = Conv3D(num_classes=2)
    kept = record(config=config, clip=ClipSpec(), class_names=("a", "b"), protocol={"num_clips": 1, "num_crops": 1})
    progress = {"current": {"ready": 1, "processed": 1}}
    content = {
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
        "stvid": kept,
        "epoch": 0,
        "global_step": 1,
        "loops": {"fit_loop": {"epoch_progress": progress, "epoch_loop.batch_progress": progress}},
    }
    torch.save(content, folder / "untrained.ckpt")
    video = folder / "video.mp4"
    video.write_bytes(b"\0" * 1000)
    return folder / "untrained.ckpt", video


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of processes (default: 5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run, video = make_run(Path(folder))
        train = [sys.executable, "train.py", MISTAKE]
        predict = [sys.executable, "-c", FIRST_FILE, str(run), str(video), "--workers", "0"]
        fine = compare(f"python train.py {MISTAKE}", train, 2, HEAVY, 1.5, options.rounds)
        fine &= compare("stvid predict, until it opens the first file", predict, 0, LIGHT, 1.3, options.rounds)
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
