"""Breaks a machine in the ways that machines break, during real commands, and prints what happened.

    python benchmarks/drills.py                 every drill; about ten minutes
    python benchmarks/drills.py disk killed     those whose names contain one of these words

Each drill runs `train.py` or `stvid` on a few small videos as a new process and checks its exit code, its message and
what lies in the folders afterwards. The table of docs/reliability.md is this script's output. It needs Linux; full and
read-only disks and a small /dev/shm are mounts, which need root. It exits with 1 if a drill ended otherwise than it
should.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from stvid.video.writer import write_video

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
STVID = (sys.executable, "-m", "stvid")
TINY = (
    *("data.batch_size=4", "data.num_workers=0", "clip.num_frames=4", "clip.size=32", "trainer.accelerator=cpu"),
    *("trainer.max_epochs=3", "augment=none", "logger=none"),
)
LONG = ("trainer.max_epochs=100000", "report=false")
CACHED = ("model=cnn_lstm", "model.encoder=resnet18", "model.weights=null", "model.freeze=all", "model.hidden_size=8")


class Failed(AssertionError):
    """The command ended otherwise than it should."""


def check(condition: bool, message: str) -> None:
    if not condition:
        raise Failed(message)


def videos(folder: Path, *, per_class: int = 6, num_frames: int = 8) -> Path:
    """`folder/CLASS/NUMBER.mp4`: a square that moves to the left or to the right."""
    for label, step in (("left", -4), ("right", 4)):
        (folder / label).mkdir(parents=True)
        for number in range(per_class):
            frames = np.full((num_frames, 48, 48, 3), 5 * number, np.uint8)
            for i in range(num_frames):
                left = 18 + step * (i - num_frames // 2)
                frames[i, 18:30, max(left, 0) : left + 12] = 230
            write_video(folder / label / f"{number:02}.mp4", frames, fps=8)
    return folder


def train_command(root: Path, run: Path, *overrides: str) -> list[str]:
    data = ("data=folder", f"data.root={root}", f"hydra.run.dir={run}")
    return [sys.executable, str(TRAIN), *data, *TINY, *overrides]


def call(*command: str | Path, cwd: Path) -> tuple[int, str]:
    """Exit code and all that the command printed."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300
    )
    return done.returncode, done.stdout


def start(*command: str | Path, cwd: Path) -> subprocess.Popen:
    """The command in its own process group; it prints into `cwd/output.txt`."""
    with (cwd / "output.txt").open("w") as file:
        return subprocess.Popen(
            list(map(str, command)),
            cwd=cwd,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
        )


def wait_for(condition: Callable[[], bool], *, seconds: float = 120, process: subprocess.Popen | None = None) -> None:
    """Returns as soon as the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        check(time.monotonic() < end, "the moment for this drill did not come")
        check(process is None or process.poll() is None, "the command ended before the moment for this drill")
        time.sleep(0.002)


def finish(process: subprocess.Popen, *, cwd: Path) -> tuple[int, str]:
    code = process.wait(timeout=120)
    return code, (cwd / "output.txt").read_text(errors="replace")


@contextlib.contextmanager
def mounted(folder: Path, *, megabytes: float) -> Iterator[Path]:
    """A small disk of its own at `folder`."""
    folder.mkdir(exist_ok=True)
    size = f"size={round(megabytes * 1024)}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """The same folder, which nobody can write, not even root."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextlib.contextmanager
def full_disk_when(condition: Callable[[], bool], disk: Path) -> Iterator[Path]:
    """Fills the disk as soon as the condition holds; yields the file that fills it."""
    filler, stop = disk / "filler", threading.Event()

    def fill() -> None:
        while not condition():
            if stop.wait(0.001):
                return
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 12))

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield filler
    finally:
        stop.set()
        thread.join()


def told(code: int, output: str, *words: str, expected: int = 2) -> str:
    """The message of a command that had to be refused; fails if there is a traceback, another code or no message."""
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    check("Traceback" not in output, f"a traceback, exit {code}: {output[-600:]}")
    check(code == expected, f"exit {code} instead of {expected}: {output[-600:]}")
    check(bool(lines), f"no message: {output[-600:]}")
    missing = [word for word in words if word not in output]
    check(not missing, f"the message lacks {missing}: {lines[0]}")
    return lines[0].removeprefix("error: ")


def rows(run: Path) -> list[dict]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def accuracy(run: Path) -> float:
    return json.loads((run / "result.json").read_text())["video_accuracy"]


def goes_on(run: Path, work: Path) -> str:
    """Resumes a stopped run and checks that all epochs are there."""
    code, output = call(sys.executable, TRAIN, f"resume={run}", cwd=work)
    check(code == 0, f"resume failed: {output[-600:]}")
    check(len(rows(run)) == 3, f"{len(rows(run))} of 3 epochs after resume")
    return "resume ends it"


# the drills: each takes an empty folder and returns what was seen


def disk_full_before_the_first_checkpoint(work: Path) -> str:
    root = videos(work / "videos")
    with mounted(work / "disk", megabytes=0.2) as disk:
        return told(*call(*train_command(root, disk / "run"), cwd=work), str(disk), "space")


def disk_full_at_a_later_checkpoint(work: Path) -> str:
    root = videos(work / "videos")
    with mounted(work / "disk", megabytes=40) as disk:
        run = disk / "run"
        with full_disk_when((run / "metrics.csv").exists, disk) as filler:
            seen = told(*call(*train_command(root, run), cwd=work), str(disk), "space")
        filler.unlink()
        return f"{seen}; {goes_on(run, work)}"


def disk_full_at_the_report(work: Path) -> str:
    root = videos(work / "videos")
    with mounted(work / "disk", megabytes=40) as disk:
        run = disk / "run"
        with full_disk_when((run / "predictions.csv").exists, disk):
            code, output = call(*train_command(root, run), cwd=work)
        check("Traceback" not in output, output[-600:])
        check("video accuracy" in output, f"no accuracy is printed: {output[-600:]}")
        check(0 <= accuracy(run) <= 1, "no result")
        return f"exit {code}; the accuracy is printed and result.json is whole"


def disk_full_in_the_feature_cache(work: Path) -> str:
    with mounted(work / "disk", megabytes=0.3) as disk:
        root = videos(disk / "videos", per_class=24)
        return told(*call(*train_command(root, work / "run", *CACHED), cwd=work), str(disk), "space")


def disk_full_in_prepare(work: Path) -> str:
    root = videos(work / "videos", num_frames=40)
    with mounted(work / "disk", megabytes=0.05) as disk:
        command = (*STVID, "prepare", "data=folder", f"data.root={root}", "--out", disk / "copy")
        seen = told(*call(*command, cwd=work), str(disk), "space")
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        code, output = call(*command, cwd=work)
        check(code == 0, f"a second call failed: {output[-600:]}")
        return f"{seen}; with more space the same command ends it"


def read_only_output(work: Path) -> str:
    root = videos(work / "videos")
    (work / "out").mkdir()
    with read_only(work / "out") as out:
        return told(*call(*train_command(root, out / "run"), cwd=work), str(out))


def read_only_run_folder_is_evaluated(work: Path) -> str:
    root, run = videos(work / "videos"), work / "run"
    code, output = call(*train_command(root, run, "report=false"), cwd=work)
    check(code == 0, output[-600:])
    with read_only(run):
        code, output = call(*STVID, "evaluate", run, "--split", "val", cwd=work)
    check("Traceback" not in output, output[-600:])
    check("accuracy" in output, f"no numbers: {output[-600:]}")
    return f"exit {code}; the numbers are printed: {output.strip().splitlines()[-1]}"


def read_only_data(work: Path) -> str:
    root = videos(work / "videos")
    with read_only(root):
        code, output = call(*train_command(root, work / "run"), cwd=work)
    check(code == 0, output[-600:])
    return "trains as usual"


def small_shared_memory(work: Path) -> str:
    root = videos(work / "videos", num_frames=40)
    command = train_command(
        root,
        work / "run",
        *("data.num_workers=2", "clip.num_frames=32", "clip.frame_stride=1", "clip.size=224", "report=false"),
    )
    script = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    code, output = call("unshare", "-m", "sh", "-c", script, "sh", *command, cwd=work)
    if code == 0:
        return "trains as usual"
    return told(code, output, "/dev/shm")


def worker_killed(work: Path) -> str:
    root, run = videos(work / "videos"), work / "run"
    process = start(*train_command(root, run, *LONG, "data.num_workers=2"), cwd=work)
    wait_for((run / "metrics.csv").exists, process=process)
    os.kill(workers(process)[0], signal.SIGKILL)
    code, output = finish(process, cwd=work)
    check(code not in (0, -signal.SIGKILL), f"exit {code}")
    check("killed" in output.lower(), f"no word about the worker: {output[-600:]}")
    return f"exit {code}: {output.strip().splitlines()[-1]}"


def parent_killed(work: Path) -> str:
    root, run = videos(work / "videos"), work / "run"
    process = start(*train_command(root, run, *LONG, "data.num_workers=2"), cwd=work)
    wait_for((run / "metrics.csv").exists, process=process)
    children = workers(process)
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(is_alive, children)), seconds=15)
    return f"{len(children)} worker processes end within 15 s"


def workers(process: subprocess.Popen) -> list[int]:
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(number) for number in text.split() if "resource_tracker" not in command_line(int(number))]


def command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def stopped_at(work: Path, number: int, moment: Callable[[Path], bool], *overrides: str) -> tuple[int, str]:
    """Sends a signal to a training at a moment."""
    run = work / "run"
    process = start(*train_command(work / "videos", run, *overrides), cwd=work)
    wait_for(lambda: moment(run), process=process)
    process.send_signal(number)
    return finish(process, cwd=work)


def ctrl_c_during_imports(work: Path) -> str:
    process = start(*train_command(videos(work / "videos"), work / "run"), cwd=work)
    wait_for(lambda: "libtorch" in Path(f"/proc/{process.pid}/maps").read_text(), process=process)
    process.send_signal(signal.SIGINT)
    code, output = finish(process, cwd=work)
    check("Traceback" not in output, output[-600:])
    check(code in (130, -signal.SIGINT), f"exit {code}")
    return f"exit {code % 256 if code > 0 else 128 - code}, no traceback, no run folder"


def each_signal(
    work: Path, moment: Callable[[Path], bool], *overrides: str
) -> Iterator[tuple[signal.Signals, int, str]]:
    """A training for each signal, which stops it at a moment: the signal, the exit code and the output."""
    videos(work / "videos")
    for number in (signal.SIGINT, signal.SIGTERM):
        shutil.rmtree(work / "run", ignore_errors=True)
        code, output = stopped_at(work, number, moment, *overrides)
        check("Traceback" not in output, output[-600:])
        yield number, code, output


def signals_in_an_epoch(work: Path) -> str:
    seen = []
    for number, code, output in each_signal(work, lambda run: (run / "metrics.csv").exists(), *LONG):
        check(code == 128 + number, f"exit {code}: {output[-600:]}")
        check("resume with" in output, output[-600:])
        check((work / "run/checkpoints/last.ckpt").exists(), "no checkpoint")
        seen.append(f"{number.name}: exit {code}")
    return f"{', '.join(seen)}; saves a checkpoint and prints the command that resumes"


def signal_in_validation(work: Path) -> str:
    """Nearly all videos are validation videos, so that the signal comes while they are read."""
    videos(work / "videos", per_class=40)
    code, output = stopped_at(
        work, signal.SIGTERM, lambda run: (run / "metrics.csv").exists(), "data.val_fraction=0.8", *LONG
    )
    check(code == 128 + signal.SIGTERM, f"exit {code}: {output[-600:]}")
    check("Traceback" not in output, output[-600:])
    return f"SIGTERM: exit {code}, saved"


def signals_while_drawing(work: Path) -> str:
    seen = []
    for number, code, output in each_signal(work, lambda run: (run / "predictions.csv").exists()):
        check(code in (128 + number, -number), f"{number.name}: exit {code}: {output[-600:]}")
        check(0 <= accuracy(work / "run") <= 1, "no result")
        seen.append(number.name)
    return f"{', '.join(seen)}: ends at once; the result is whole"


def ctrl_c_while_features_are_encoded(work: Path) -> str:
    root = videos(work / "videos", per_class=40, num_frames=40)
    code, output = stopped_at(work, signal.SIGINT, lambda run: any(root.rglob("*.h5")), *CACHED)
    check(code == 130, f"exit {code}: {output[-600:]}")
    check("Traceback" not in output, output[-600:])
    code, output = call(*train_command(root, work / "run", *CACHED), cwd=work)
    check(code == 0, output[-600:])
    return "exit 130, no traceback; the same command goes on"


def two_trainings_in_one_folder(work: Path) -> str:
    root, run = videos(work / "videos"), work / "run"
    process = start(*train_command(root, run, *LONG), cwd=work)
    wait_for((run / "metrics.csv").exists, process=process)
    try:
        seen = told(*call(*train_command(root, run), cwd=work), str(run))
        told(*call(sys.executable, TRAIN, f"resume={run}", cwd=work))
        check(process.poll() is None, "the first training ended")
    finally:
        process.kill()
        process.wait()
    return f"a second training and a resume are refused: {seen}"


def video_changed_in_training(work: Path, change: Callable[[Path], None]) -> str:
    root, run = videos(work / "videos"), work / "run"
    command = train_command(root, run, "trainer.max_epochs=40", "report=false", "data.max_bad=0.2")
    process = start(*command, cwd=work)
    wait_for((run / "metrics.csv").exists, process=process)
    with (run / "manifest.csv").open(newline="") as file:
        name = next(row["path"] for row in csv.DictReader(file) if row["split"] == "train")
    change(root / name)
    code, output = finish(process, cwd=work)
    check(code == 0, f"exit {code}: {output[-600:]}")
    with (run / "bad_videos.csv").open(newline="") as file:
        bad = list(csv.DictReader(file))
    check([Path(row["path"]).name for row in bad] == [Path(name).name], f"bad_videos.csv: {bad}")
    return f"left out, counted and named ({bad[0]['reason']}); training goes on"


def video_deleted_in_training(work: Path) -> str:
    return video_changed_in_training(work, Path.unlink)


def video_truncated_in_training(work: Path) -> str:
    return video_changed_in_training(work, lambda path: os.truncate(path, path.stat().st_size // 2))


def video_replaced_in_training(work: Path) -> str:
    write_video(work / "other.mp4", np.full((8, 48, 48, 3), 99, np.uint8), fps=8)
    return video_changed_in_training(work, lambda path: os.replace(work / "other.mp4", path))


def clock_set_back(work: Path) -> str:
    """Every file of the data and of the run was written next year."""
    root, run = videos(work / "videos"), work / "run"
    code, output = stopped_at(work, signal.SIGTERM, lambda run: (run / "metrics.csv").exists(), "report=false")
    check(code == 128 + signal.SIGTERM, f"exit {code}: {output[-600:]}")
    future = time.time() + 365 * 24 * 3600
    for path in [*root.rglob("*"), *run.rglob("*")]:
        if "videos" not in path.parts or path.is_dir():
            os.utime(path, (future, future))
    return goes_on(run, work)


def sweep_killed(work: Path) -> str:
    root, sweep = videos(work / "videos"), work / "sweep"
    rates = "optimizer.lr=1e-4,1e-3,1e-2"
    command = train_command(root, work / "unused", rates, f"hydra.sweep.dir={sweep}", "report=false")
    command = [*command[:2], "-m", *(part for part in command[2:] if "run.dir" not in part)]
    process = start(*command, cwd=work)
    wait_for((sweep / "1/metrics.csv").exists, process=process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = (sweep / "0/result.json").read_bytes()
    code, output = call(sys.executable, TRAIN, "-m", f"resume={sweep}", cwd=work)
    check(code == 0, output[-600:])
    check((sweep / "0/result.json").read_bytes() == first, "a finished trial was done again")
    check(all((sweep / str(i) / "result.json").exists() for i in range(3)), "trials are missing")
    return "-m resume=SWEEP ends the other trials and leaves the finished one as it was"


def prepare_killed(work: Path) -> str:
    root = videos(work / "videos", per_class=30, num_frames=60)
    command = (*STVID, "prepare", "data=folder", f"data.root={root}", "--out")
    process = start(*command, work / "copy", cwd=work)
    wait_for(lambda: any((work / "copy").rglob("*.mp4")), process=process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for out in ("copy", "whole"):
        code, output = call(*command, work / out, cwd=work)
        check(code == 0, output[-600:])
    copies = {path.relative_to(work / "whole"): path.read_bytes() for path in (work / "whole").rglob("*.mp4")}
    check(len(copies) == 60, f"{len(copies)} copies")
    check(all((work / "copy" / name).read_bytes() == content for name, content in copies.items()), "copies differ")
    return "the same command ends it; every copy equals that of a call that was not killed"


def parts_killed(work: Path) -> str:
    """Seven parts of three commands, each killed once while it works and started again; then the merge."""
    root = videos(work / "videos", per_class=42, num_frames=60)
    run = work / "run"
    code, output = call(*train_command(root, run), "trainer.max_epochs=1", cwd=work)
    check(code == 0, output[-600:])
    data, num_killed = ("data=folder", f"data.root={root}"), 0
    for words in (
        ("check", *data, "--json", "OUT"),
        ("prepare", *data, "--out", "OUT"),
        ("predict", run, root, "--json", "OUT"),
    ):
        verb = words[0]
        (root / ".stvid_probe.jsonl").unlink(missing_ok=True)
        own = [work / f"{verb}.out" if word == "OUT" else word for word in words]
        for number in range(1, 8):
            part = (*STVID, *own, "--shard", f"{number}/7")
            process = start(*part, cwd=work)
            time.sleep(2.5 + 0.3 * number)  # from its imports to its last videos
            if process.poll() is None:
                num_killed += 1
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code, output = call(*part, cwd=work)
            check(code == 0, output[-600:])
        code, merged = call(*STVID, "merge", *own, cwd=work)
        (root / ".stvid_probe.jsonl").unlink(missing_ok=True)
        (work / f"{verb}.out").rename(work / f"{verb}.merged")  # the manifest of prepare names its folder
        one_code, _ = call(*STVID, *own, cwd=work)
        check(code == one_code, f"{verb}: {code} and {one_code}: {merged[-600:]}")
        same_results(work / f"{verb}.merged", work / f"{verb}.out")
    return f"{num_killed} of 21 parts were killed and started again; the merged files equal those of one process"


def same_results(merged: Path, one: Path) -> None:
    """Equal bytes, except measured speeds, and the last digits of probabilities."""
    if one.is_dir():
        names = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
        check(names == {path.relative_to(merged) for path in merged.rglob("*") if path.is_file()}, "other files")
        for name in names - {Path("prepare.json")}:
            check((merged / name).read_bytes() == (one / name).read_bytes(), f"{name} differs")
        return
    rows_of = [json.loads(file.read_text(), parse_float=lambda text: round(float(text), 5)) for file in (merged, one)]
    check(rows_of[0] == rows_of[1], f"{merged.name} differs")


DRILLS = (
    disk_full_before_the_first_checkpoint,
    disk_full_at_a_later_checkpoint,
    disk_full_at_the_report,
    disk_full_in_the_feature_cache,
    disk_full_in_prepare,
    read_only_output,
    read_only_run_folder_is_evaluated,
    read_only_data,
    small_shared_memory,
    worker_killed,
    parent_killed,
    ctrl_c_during_imports,
    signals_in_an_epoch,
    signal_in_validation,
    signals_while_drawing,
    ctrl_c_while_features_are_encoded,
    two_trainings_in_one_folder,
    video_deleted_in_training,
    video_truncated_in_training,
    video_replaced_in_training,
    clock_set_back,
    sweep_killed,
    prepare_killed,
    parts_killed,
)


def main() -> None:
    words = sys.argv[1:]
    chosen = [drill for drill in DRILLS if not words or any(word in drill.__name__ for word in words)]
    failures = 0
    print("| drill | what was seen |\n|---|---|")
    for drill in chosen:
        with tempfile.TemporaryDirectory() as work:
            try:
                seen = drill(Path(work)).replace(f"{work}/", "")
            except (Failed, subprocess.SubprocessError) as error:
                failures += 1
                seen = f"FAILED: {error}".replace("\n", " / ")
        print(f"| {drill.__name__.replace('_', ' ')} | {seen} |", flush=True)
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
