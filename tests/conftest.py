"""Small videos made on the spot, and a run trained on them."""

import contextlib
import io
import os
import runpy
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

# files are tested by several processes at once, which would fight over the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["COLUMNS"] = "120"  # width of printed tables, wherever the tests run

import numpy as np
import pytest
from filelock import FileLock

from stvid.video.writer import write_video

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = Path(os.environ.get("STVID_TEST_DATA", ROOT.parent / "shared" / "data"))
TINY = ("data.num_workers=0", "data.batch_size=4", "clip.num_frames=4", "clip.size=32", "trainer.accelerator=cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests that take minutes come first, so that nobody waits for them in the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def moving_square(*, to_right: bool, seed: int, num_frames: int = 12, size: int = 48) -> np.ndarray:
    """uint8 T x H x W x 3: a bright square that crosses a dim picture from one side to the other."""
    rng = np.random.default_rng(seed)
    frames = np.tile(rng.integers(20, 60, (1, size, size, 3), dtype=np.uint8), (num_frames, 1, 1, 1))
    top = int(rng.integers(4, size - 16))
    for i in range(num_frames):
        left = round(i * (size - 12) / (num_frames - 1))
        left = left if to_right else size - 12 - left
        frames[i, top : top + 12, left : left + 12] = 230
    return frames


def make_folder(root: Path, *, videos: int = 8, classes=("to_left", "to_right"), num_frames: int = 12) -> Path:
    """`root/CLASS/NUMBER.mp4`."""
    for label in classes:
        (root / label).mkdir(parents=True, exist_ok=True)
        for i in range(videos):
            frames = moving_square(to_right=label == "to_right", seed=i, num_frames=num_frames)
            write_video(root / label / f"{i:02d}.mp4", frames, fps=12)
    return root


def break_half_way(path: Path) -> None:
    """Spoils the second half of an mp4's frames; its index stays, so that it still promises them all."""
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    size = int.from_bytes(content[start - 8 : start - 4], "big") - 8
    content[start + size // 2 : start + size] = b"\xff" * (size - size // 2)
    path.write_bytes(content)


def stvid(*arguments: str, cwd: Path = ROOT, program: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Runs `stvid ARGUMENTS` (or another program) and returns what it printed."""
    command = [*(program or (sys.executable, "-c", "from stvid.cli import main; main()")), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)


def in_process(arguments: Sequence[str], run: Callable[[], object]) -> subprocess.CompletedProcess:
    """What a program would print and exit with, without the seconds that a new process needs for its imports."""
    out, err, code, argv, orig_argv = io.StringIO(), io.StringIO(), 0, sys.argv, sys.orig_argv
    try:
        sys.argv = list(map(str, arguments))
        sys.orig_argv = [sys.executable, *sys.argv]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run()
    except SystemExit as stop:
        code = stop.code or 0
    except Exception:
        err.write(traceback.format_exc())
        code = 1
    finally:
        sys.argv, sys.orig_argv = argv, orig_argv
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def train_py(*overrides: str) -> subprocess.CompletedProcess:
    """`python train.py OVERRIDES`, in this process."""
    script = str(ROOT / "train.py")
    return in_process([script, *overrides], lambda: runpy.run_path(script, run_name="__main__"))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory, worker_id) -> Path:
    """A folder that all processes of this test session share."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def video_folder(shared_folder) -> Path:
    folder = shared_folder / "videos" / "squares"
    with FileLock(shared_folder / "videos.lock"):
        return folder if folder.exists() else make_folder(folder)


@pytest.fixture(scope="session")
def prepared(video_folder, shared_folder) -> Path:
    """What `stvid prepare --tar-size 8kB` makes of the moving squares: manifest.csv, videos/, and shards/ with tars."""
    out = shared_folder / "prepared"
    with FileLock(shared_folder / "prepared.lock"):
        if not (out / "shards" / "index.jsonl").exists():
            from stvid.clip import ClipSpec
            from stvid.data.layouts.class_folders import folder
            from stvid.data.prepare import prepare

            clip = ClipSpec(num_frames=4, frame_stride=2, size=32)
            prepare(folder(root=str(video_folder)), out=out, clip=clip, short_side=40, num_workers=0, tar_size=8000)
    return out


@pytest.fixture
def shard_folder(prepared, tmp_path) -> Path:
    """A copy of the tars and their index."""
    return Path(shutil.copytree(prepared / "shards", tmp_path / "shards"))


@pytest.fixture(scope="session")
def run_folder(video_folder, shared_folder, tmp_path_factory) -> Path:
    """A run of three epochs on the moving squares: trained once, copied for each process."""
    run = shared_folder / "first"
    with FileLock(shared_folder / "first.lock"):
        if not run.exists():
            data = ("data=folder", f"data.root={video_folder}", "augment=none", *TINY)
            training = ("trainer.max_epochs=3", "trainer.precision=32")  # auto is bf16 on some CPUs
            done = stvid(*data, *training, f"hydra.run.dir={run}", program=(sys.executable, str(ROOT / "train.py")))
            assert done.returncode == 0, done.stdout + done.stderr
    return Path(shutil.copytree(run, tmp_path_factory.mktemp("runs") / "first"))


@pytest.fixture(scope="session")
def recognizer(run_folder):
    """The model of `run_folder`."""
    from stvid.recognizer import load

    return load(run_folder, device="cpu")


@pytest.fixture(scope="session")
def video(tmp_path_factory) -> Path:
    """48 frames at 12 frames/s: a square that moves to the left, to the right, to the left, to the right."""
    path = tmp_path_factory.mktemp("video") / "square.mp4"
    parts = [moving_square(to_right=bool(i % 2), seed=i, num_frames=12) for i in range(4)]
    write_video(path, np.concatenate(parts), fps=12)
    return path


@pytest.fixture(scope="session")
def exported(run_folder, shared_folder, tmp_path_factory) -> Path:
    """A folder with what `stvid export` writes for the run and what it prints: model.onnx, report.json, printed.txt."""
    pytest.importorskip("onnxscript")
    folder = shared_folder / "exported"
    with FileLock(shared_folder / "exported.lock"):
        if not folder.exists():
            from stvid.cli import main

            new = tmp_path_factory.mktemp("exported")
            command = ["stvid", "export", run_folder, "--out", new / "model.onnx", "--json", new / "report.json"]
            done = in_process(command, main)
            assert done.returncode == 0, done.stderr
            (new / "printed.txt").write_text(done.stdout, encoding="utf-8")
            new.rename(folder)
    return folder


@pytest.fixture(scope="session")
def onnx_file(exported) -> Path:
    """The run's model as `stvid export` writes it."""
    return exported / "model.onnx"
