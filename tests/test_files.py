import json
import multiprocessing

import pytest

from stvid.files import file_lock, replacing, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"accuracy": 0.5, "name": "é"})
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        partial.write_text(f"half, then {1 / 0}")
    assert json.loads(path.read_text(encoding="utf-8")) == {"accuracy": 0.5, "name": "é"}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


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
