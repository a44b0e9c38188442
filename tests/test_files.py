import json
import multiprocessing
import os
import shutil

import pytest

from stvid.disks import system_error_text
from stvid.files import file_lock, is_special, replacing, write_json
from stvid.run.folder import RunFolder
from stvid.run.lock import locked_folder
from stvid.run.start import locked_run


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"accuracy": 0.5, "name": "é"})
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        partial.write_text(f"half, then {1 / 0}")
    assert json.loads(path.read_text(encoding="utf-8")) == {"accuracy": 0.5, "name": "é"}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_file_that_cannot_be_written_is_named_although_there_is_nothing_to_remove(tmp_path, monkeypatch):
    def unlink(self, missing_ok=False):
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr("pathlib.Path.unlink", unlink)
    with pytest.raises(OSError, match="Read-only") as caught, replacing(tmp_path / "result.json") as partial:
        raise OSError(30, "Read-only file system", str(partial))
    assert caught.value.filename == str(tmp_path / "result.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_pipes_and_devices_are_special(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    assert all(is_special(path) for path in (tmp_path / "pipe", "/dev/null", "/dev/stdout"))
    assert not any(is_special(path) for path in (tmp_path, tmp_path / "file", tmp_path / "new"))


def test_names_that_are_not_utf_8_are_the_same_after_reading(tmp_path):
    content = {"path": "b\udce9ta.mp4", "é": 1}
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == content


def _enter(path, out):
    with file_lock(path):
        with out.open("a") as file:
            file.write("in ")
        for _ in range(200_000):  # long enough for another process to interleave
            pass
        with out.open("a") as file:
            file.write("out ")


def test_one_process_at_a_time_runs_the_block(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_enter, args=(tmp_path / "cache", tmp_path / "out")) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (tmp_path / "out").read_text() == "in out " * 4


def test_without_permission_to_write_there_is_no_lock(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with file_lock(tmp_path / "file" / "cache"):
        pass
    with pytest.raises(FileNotFoundError), file_lock(tmp_path / "cache"):
        raise FileNotFoundError


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), NotImplementedError("no flock")])
@pytest.mark.parametrize("lock", [file_lock, lambda path: locked_folder(RunFolder(path))])
def test_a_bug_in_a_block_without_a_lock_stays_a_bug(tmp_path, monkeypatch, lock, error):
    def acquire(*args, **kwargs):
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with pytest.raises(RuntimeError, match="a bug") as caught, lock(tmp_path):
        raise RuntimeError("a bug")
    assert caught.value.__context__ is None
    assert system_error_text(caught.value) is None


def test_a_run_folder_that_vanishes_or_cannot_be_written_any_more_hides_no_error(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    monkeypatch.setattr("stvid.run.start._hydra_folder", lambda: folder)

    def vanish():
        with locked_run():
            shutil.rmtree(folder.path)
            print(1 / 0)

    def become_read_only():
        def unlink(self, missing_ok=False):
            raise OSError(30, "Read-only file system", str(self))

        with monkeypatch.context() as patch, locked_folder(folder):
            patch.setattr("pathlib.Path.unlink", unlink)
            print(1 / 0)

    for change in (vanish, become_read_only):
        folder.path.mkdir(exist_ok=True)
        with pytest.raises(ZeroDivisionError):
            change()
    with locked_folder(folder):  # the lock was released
        pass
