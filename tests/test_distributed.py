"""Several processes: evaluation with any number of them, and launching them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, make_folder
from test_train import rows_of

from stvid import device
from stvid.distributed import launch_processes

RUN_COMMANDS = """
import sys
from pathlib import Path
from stvid.cli import main
for number, line in enumerate(sys.stdin.read().splitlines()):
    code = 0
    try:
        main(line.split("|"))
    except SystemExit as stop:
        code = stop.code
    print(f"{number} ended with {code}", flush=True)
"""  # imports once for all commands


def test_evaluation_gives_the_same_numbers_with_any_number_of_processes(run_folder, tmp_path):
    """Seven videos, one of them unreadable; a wrong option gives one message with several processes too."""
    root = make_folder(tmp_path / "videos", videos=4, num_frames=14)  # not the bytes of the training videos
    (root / "to_left" / "00.mp4").write_bytes(b"x" * 5000)
    (root / "to_right" / "03.mp4").unlink()
    lines = [f"{path},{path.parent.name},test" for path in sorted(root.rglob("*.mp4"))]
    options = ["evaluate", str(run_folder), "--workers", "0"]
    for count in (1, 2, 3):
        (tmp_path / f"seven{count}.csv").write_text("\n".join(["path,label,split", *lines]))
    calls = [
        [*options, "--manifest", f"{tmp_path}/seven{n}.csv", "--processes", str(n)] for n in (2, 3, 1)
    ]  # those that fork come first
    calls.insert(0, [*options, "--split", "tset", "--processes", "2"])
    commands = "\n".join("|".join(call) for call in calls)
    done = subprocess.run(
        [sys.executable, "-c", RUN_COMMANDS], input=commands, cwd=ROOT, capture_output=True, text=True
    )
    assert [line for line in done.stdout.splitlines() if "ended with" in line] == [
        "0 ended with 2", "1 ended with 0", "2 ended with 0", "3 ended with 0"
    ]  # fmt: skip
    assert done.stdout.count("video accuracy") == 3
    assert done.stderr.count("--split tset") == 1
    assert "Traceback" not in done.stderr
    folders = [run_folder / "evaluate" / f"test_seven{n}" for n in (1, 2, 3)]
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    assert [Path(result.pop("manifest")).name for result in results] == [f"seven{n}.csv" for n in (1, 2, 3)]
    predictions = [rows_of(folder / "predictions.csv") for folder in folders]
    assert (results[0]["num_videos"], results[0]["num_failed"], len(predictions[0])) == (7, 1, 7)
    assert results[1:] == results[:1] * 2
    assert predictions[1:] == predictions[:1] * 2


def _write_cores() -> None:
    with open(os.environ["CORES_FILE"], "a") as file:
        file.write(f"{device.cores_per_process()} of {device.num_cores()}\n")


def test_launched_processes_share_the_cores(tmp_path, monkeypatch):
    for name in ("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CORES_FILE", str(tmp_path / "cores"))
    monkeypatch.setattr(device, "num_cores", lambda: 6)
    assert launch_processes(_write_cores, 3) == 0
    assert (tmp_path / "cores").read_text() == "2 of 6\n" * 3


def _fail_in_rank_1() -> None:
    if os.environ["RANK"] == "1":
        print("reason of the failure")
        raise SystemExit(3)
    signal.pause()  # until it is terminated


def test_the_exit_code_and_output_of_a_failed_process_are_shown(capfd):
    assert launch_processes(_fail_in_rank_1, 2) == 3
    assert "reason of the failure" in capfd.readouterr().err
