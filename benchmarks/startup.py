"""Start-up times: how long a user waits for the first line of output.

python benchmarks/startup.py

Three ratios, each of processes that are run in turns (median of the pairs' ratios):
- `python train.py`, until its first line, against importing torch, torchvision, Lightning: at most 1.5;
- `python train.py` with a mistyped option, until it exits, against the same: at most 1.5;
- `stvid predict` on a conv3d run, until it opens the first file, against `import torch, av`: at most 1.3.

And one time: `python train.py --help`, at most 1 second.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stvid.models.base import VideoModel

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


def time_to_exit(command: list[str], *, code: int = 0) -> float:
    """Seconds until a command exits with an exit code."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode != code:
        sys.exit(f"{command} exited with {done.returncode} instead of {code}:\n{done.stderr}")
    return seconds


def time_to_first_line(command: list[str]) -> float:
    """Seconds until a command prints a line on stdout; then it is killed."""
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        seconds = time.perf_counter() - start
        process.kill()
        if not line:
            sys.exit(f"{command} printed nothing:\n{process.stderr.read()}")
    return seconds


def compare(name: str, measure: Callable[[], float], imports: str, limit: float, rounds: int) -> bool:
    """Prints a row. Returns whether the ratio of a measured time and the time of imports is within its limit."""
    python = [sys.executable, "-c", imports]
    pairs = [(measure(), time_to_exit(python)) for _ in range(rounds + 1)][1:]  # the first one fills caches
    ratio = statistics.median(seconds / of_imports for seconds, of_imports in pairs)
    seconds, of_imports = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"{name:<48}{seconds:8.2f} s   {imports:<48}{of_imports:8.2f} s   ratio {ratio:.2f} (at most {limit})")
    return ratio <= limit


def make_run(folder: Path) -> tuple[Path, Path]:
    """An untrained conv3d run, and a video file that is never decoded."""
    from stvid.models.conv3d import Conv3D

    save_untrained(Conv3D(num_classes=2), folder / "untrained.ckpt")
    video = folder / "video.mp4"
    video.write_bytes(b"\0" * 1000)
    return folder / "untrained.ckpt", video


def save_untrained(model: VideoModel, path: Path, **settings: object) -> None:
    """Saves a model for two classes as a checkpoint; `settings` are arguments it was made with."""
    import torch

    from stvid.clip import ClipSpec
    from stvid.run.checkpoint import checkpoint_record

    kind = type(model)
    config = {
        "model": {"_target_": f"{kind.__module__}.{kind.__qualname__}", **settings},
        "trainer": {"precision": "32-true"},
        "data": {"datamodule": {"batch_size": 16}},
    }
    stvid_record = checkpoint_record(
        config=config, clip=ClipSpec(), class_names=("a", "b"), protocol={"num_clips": 1, "num_crops": 1}
    )
    progress = {"current": {"ready": 1, "processed": 1}}
    content = {
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
        "stvid": stvid_record,
        "epoch": 0,
        "global_step": 1,
        "loops": {"fit_loop": {"epoch_progress": progress, "epoch_loop.batch_progress": progress}},
    }
    torch.save(content, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of processes (default: 5)")
    options = parser.parse_args()
    train = [sys.executable, "train.py"]
    with tempfile.TemporaryDirectory() as folder:
        run, video = make_run(Path(folder))
        options_of_run = [f"data.root={folder}/videos", f"hydra.run.dir={folder}/run"]
        predict = [sys.executable, "-c", FIRST_FILE, str(run), str(video), "--workers", "0"]
        rows = [
            ("python train.py, first line", lambda: time_to_first_line([*train, *options_of_run]), HEAVY, 1.5),
            (f"python train.py {MISTAKE}", lambda: time_to_exit([*train, MISTAKE], code=2), HEAVY, 1.5),
            ("stvid predict, until it opens the first file", lambda: time_to_exit(predict), LIGHT, 1.3),
        ]
        is_fast = [compare(*row, options.rounds) for row in rows]
    seconds = statistics.median(time_to_exit([*train, "--help"]) for _ in range(options.rounds))
    print(f"{'python train.py --help':<48}{seconds:8.2f} s   (at most 1 s)")
    sys.exit(0 if all(is_fast) and seconds <= 1 else 1)


if __name__ == "__main__":
    main()
