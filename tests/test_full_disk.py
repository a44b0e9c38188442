"""Full and read-only disks, too little shared memory, workers that die: one message, and what was there is not lost.

Disks cannot be filled here, so that writes fail as they do on a full disk; benchmarks/drills.py fills real ones.
"""

import argparse
import contextlib
import errno
import io
import logging
import os
import pickle
from pathlib import Path

import pytest

from stvid import disks
from stvid.commands import arguments
from stvid.commands import evaluate as evaluate_command
from stvid.disks import full_disk_error, system_error_text
from stvid.errors import InputError
from stvid.evaluation import evaluation_run
from stvid.exits import report_errors
from stvid.files import LogFile, replacing, why_not_writable, write_json
from stvid.training.callbacks.checkpoints import AtomicCheckpoints

FULL = OSError(errno.ENOSPC, "No space left on device")  # a write has no file name


@pytest.fixture
def full_disk(monkeypatch):
    """No file takes another byte."""

    class FullFile(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_full(path, mode="r", buffering=-1, encoding=None, errors=None, newline=None):
        binary = io.BufferedWriter(FullFile(path, mode.replace("b", "").replace("t", "")), 16)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline)

    monkeypatch.setattr(Path, "open", open_full)


def message_of(capsys, block) -> str:
    with pytest.raises(SystemExit) as stop, report_errors():
        block()
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="file systems of Unix")
@pytest.mark.parametrize(
    "write", [write_json, lambda path, content: AtomicCheckpoints().save_checkpoint(content, path)]
)
def test_a_full_disk_names_the_file_and_the_disk_and_keeps_the_old_file(tmp_path, capsys, full_disk, write):
    path = tmp_path / "file"
    path.touch()
    text = message_of(capsys, lambda: write(path, {"a": list(range(10_000))}))
    assert text.startswith(f"error: cannot write {path}: No space left on device. The disk at ")
    assert "bytes free" in text
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.stat().st_size == 0


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Unable to flush file (errno = 28, error message = 'No space left on device', buf = 0x5)"),
        OSError("Can't write data (file write failed: error message = 'No space left on device')"),
    ],
)
def test_a_full_disk_is_found_in_errors_of_libraries(tmp_path, capsys, error):
    def write():
        with replacing(tmp_path / "a.h5") as partial:
            partial.touch()
            raise error

    assert f"cannot write {tmp_path / 'a.h5'}: No space left" in message_of(capsys, write)
    assert not list(tmp_path.iterdir())


def test_the_cause_of_an_error_counts(tmp_path):
    """torch.save raises `inline_container ... unexpected pos` while it handles the error of the disk."""

    def save():
        try:
            raise FULL
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 76672 vs 76568")

    with pytest.raises(OSError, match="No space") as caught, replacing(tmp_path / "last.ckpt"):
        save()
    assert caught.value.filename == str(tmp_path / "last.ckpt")


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="a bug"), replacing(tmp_path / "file"):
        raise RuntimeError("a bug")
    with pytest.raises(OSError, match="Too many open files"), report_errors():
        raise OSError(errno.EMFILE, "Too many open files")
    with pytest.raises(RuntimeError, match="shape"), report_errors():
        raise RuntimeError("shape mismatch in DataLoader worker process 0")


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EISDIR, errno.ENOTDIR])
def test_a_file_in_the_way_may_be_our_own_mistake(number):
    with pytest.raises(OSError, match="/a"), report_errors():
        raise OSError(number, os.strerror(number), "/a")


def test_a_file_without_permission_is_not(capsys):
    def write():
        raise PermissionError(errno.EACCES, "Permission denied", "/a")

    assert message_of(capsys, write) == "error: cannot use /a: Permission denied\n"


def test_only_errors_of_a_disk_get_the_name_of_the_file(tmp_path):
    with pytest.raises(ConnectionResetError) as reset, replacing(tmp_path / "a.json"):
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    assert reset.value.filename is None
    with pytest.raises(OSError, match="Input/output") as broken, replacing(tmp_path / "a.json"):
        raise OSError(errno.EIO, "Input/output error")
    assert broken.value.filename == str(tmp_path / "a.json")


def test_a_full_disk_in_a_worker_is_not_shared_memory(capsys):
    def load():
        raise OSError(
            "Caught OSError in DataLoader worker process 0.\nOriginal Traceback ...\n"
            "OSError: [Errno 28] No space left on device: '/videos/.probe.json'\n"
        )

    message = message_of(capsys, load)
    assert "cannot write /videos/.probe.json: No space left" in message
    assert "/dev/shm" not in message


def test_an_error_that_hides_a_full_disk_on_purpose_is_another_error():
    def save():
        try:
            raise FULL
        except OSError:
            raise RuntimeError("a bug") from None

    with pytest.raises(RuntimeError, match="a bug"), report_errors():
        save()


def test_the_text_of_an_unknown_error_is_no_full_disk(monkeypatch):
    monkeypatch.setattr(os, "strerror", lambda number: "Unknown error")  # as for a quota on Windows
    assert full_disk_error(RuntimeError("CUDA: Unknown error")) is None


def test_a_full_disk_of_another_library_lists_the_disks(capsys):
    def write():
        raise FULL

    text = message_of(capsys, write)
    assert "bytes free" in text
    assert os.path.realpath("/") in text


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker (pid 9) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback ...\nRuntimeError: unable to write to "
        "file </torch_7_1_0>: No space left on device (28)",
        "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)",
    ],
)
def test_too_little_shared_memory(capsys, text):
    def load():
        raise RuntimeError(text)

    message = message_of(capsys, load)
    assert "/dev/shm" in message
    assert "data.num_workers" in message


@pytest.mark.parametrize(
    "text",
    ["DataLoader worker (pid 77) is killed by signal: Killed. ", "DataLoader worker (pid(s) 77) exited unexpectedly"],
)
def test_a_killed_worker(capsys, text):
    def load():
        raise RuntimeError(text)

    message = message_of(capsys, load)
    assert "process 77" in message
    assert "was killed" in message
    assert "data.num_workers" in message


def test_ctrl_c_is_no_error(capsys):
    with pytest.raises(SystemExit) as stop, report_errors():
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_disk_without_room_for_another_file_says_so(tmp_path, monkeypatch):
    if not hasattr(os, "statvfs"):
        pytest.skip("no inodes")
    real = os.statvfs(tmp_path)
    full = os.statvfs_result([*real[:7], 0, *real[8:10]])
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    assert "no room for another file" in disks.disk_text(tmp_path / "new" / "run")


def test_a_log_file_on_a_full_disk_loses_lines_without_a_traceback(tmp_path, capsys, monkeypatch):
    handler = LogFile(tmp_path / "train.log")
    monkeypatch.setattr(handler.stream, "write", lambda text: (_ for _ in ()).throw(FULL))
    for number in range(3):
        handler.emit(logging.LogRecord("a", logging.INFO, __file__, number, "line", (), None))
    handler.close()
    assert capsys.readouterr().err == f"{tmp_path / 'train.log'} lacks lines: No space left on device\n"


def test_whether_a_folder_is_writable_is_known_before_the_work(tmp_path, monkeypatch):
    assert why_not_writable(tmp_path / "evaluate" / "test") is None
    assert not list(tmp_path.iterdir())
    error = OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **options: (_ for _ in ()).throw(error))
    assert why_not_writable(tmp_path / "evaluate" / "test") == "Read-only file system"
    options = argparse.Namespace(command="export", output_files=["json"], json=str(tmp_path / "x.json"))
    monkeypatch.setitem(arguments.CHECKS, "export", lambda options: ())
    with pytest.raises(InputError, match=r"--json \S+x\.json: no file can be written there: Read-only file system"):
        arguments.check_arguments(options)


def test_an_error_of_another_process_keeps_its_file():
    error = pickle.loads(pickle.dumps(OSError(errno.ENOSPC, "No space left on device", "/videos/a.mp4")))
    assert "cannot write /videos/a.mp4" in (system_error_text(error) or "")


@pytest.mark.parametrize(
    ("error", "code"), [(OSError(errno.EROFS, "Read-only file system", "/run"), None), (FULL, errno.ENOSPC)]
)
def test_an_evaluation_that_cannot_be_written_is_printed(tmp_path, capsys, monkeypatch, error, code):
    """In a read-only folder that is all; on a full disk the error follows. `--json` works in both."""

    def fail(*arguments):
        raise error

    monkeypatch.setattr(evaluation_run, "write_result", fail)
    not_written = evaluation_run.write_if_possible(tmp_path, {}, [])
    evaluation = evaluation_run.EvaluationRun(
        folder=tmp_path, fold=None, result={"video_accuracy": 0.75}, predictions=[], not_written=not_written
    )
    monkeypatch.setattr(evaluate_command, "resolve_runs", lambda names: ([tmp_path], None))
    monkeypatch.setattr(evaluate_command, "evaluate_run", lambda *arguments, **options: evaluation)
    monkeypatch.setattr(evaluate_command, "result_text", lambda result: f"accuracy {result['video_accuracy']}")
    names = (
        "split",
        "clips",
        "crops",
        "manifest",
        "allow_leaks",
        "audit",
        "calibrate",
        "workers",
        "unknown",
        "background",
        "feature_cache",
        "trust",
        "data_root",
    )
    options = argparse.Namespace(
        **dict.fromkeys(names), runs=[str(tmp_path)], report=True, json=str(tmp_path / "out.json")
    )
    with contextlib.nullcontext() if code is None else pytest.raises(OSError, match="No space"):
        evaluate_command._evaluate(options, is_main_process=True)
    assert "accuracy 0.75" in capsys.readouterr().out
    assert (tmp_path / "out.json").is_file()
