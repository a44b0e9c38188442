"""RunFolder, and how a RUN on the command line is found."""

import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from stvid.errors import InputError
from stvid.run.folder import COMPARISON_HTML, RunFolder, find_checkpoint, finished_runs, resolve_runs

PROPERTIES = [name for name, value in vars(RunFolder).items() if isinstance(value, property)]
NO_FILES = ("is_sweep", "evaluated_run", "training_files")
NAMES = {getattr(RunFolder(Path("run")), name).name for name in PROPERTIES if name not in NO_FILES}
NOT_OF_A_RUN = {
    "stvid/data/layouts/recognition.py": {"manifest.csv"},  # other files with the same names
    "stvid/data/prepare.py": {"manifest.csv", "bad_videos.csv"},  # of a prepared data set
    "stvid/data/synthetic/actions.py": {"manifest.csv"},  # of the built-in data set
    "stvid/data/synthetic/root.py": {"manifest.csv"},  # of the same
    "stvid/report/content.py": {"report.html"},  # template
    "stvid/report/comparison.py": {"comparison.html"},  # template
}


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_no_other_module_names_a_file_of_a_run():
    names = {*NAMES, COMPARISON_HTML, "evaluate/"} - {"checkpoints"}  # also the name of a module
    listed = subprocess.run(["git", "ls-files", "stvid/*.py", "train.py"], cwd=ROOT, capture_output=True, text=True)
    files = listed.stdout.split() or [str(path.relative_to(ROOT)) for path in (ROOT / "stvid").rglob("*.py")]
    assert len(files) > 50
    for file in files:
        literals = set(re.findall(r"[\"/]([\w./]+)\"", (ROOT / file).read_text(encoding="utf-8")))
        if file != "stvid/run/folder.py":
            assert not (literals & names) - NOT_OF_A_RUN.get(file, set()), file


def test_a_run_is_named_by_its_folder_or_a_checkpoint_in_it(tmp_path):
    folder = RunFolder(tmp_path / "run")
    best = touch(folder.best_ckpt)
    alone = touch(tmp_path / "downloads" / "model.ckpt")
    assert RunFolder.of(folder.path) == RunFolder.of(best) == folder
    assert RunFolder.of(alone) == RunFolder(alone.parent)


def test_the_best_checkpoint_comes_first_then_the_last(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(InputError, match=r"has no checkpoints/best.ckpt; was it trained\?"):
        find_checkpoint(tmp_path)
    touch(folder.last_ckpt)
    assert find_checkpoint(tmp_path) == folder.last_ckpt
    touch(folder.best_ckpt)
    assert find_checkpoint(tmp_path) == folder.best_ckpt
    assert find_checkpoint(folder.last_ckpt) == folder.last_ckpt


def test_an_evaluation_knows_its_run(tmp_path):
    run = RunFolder(tmp_path)
    assert run.evaluation("test").path == tmp_path / "evaluate" / "test"
    assert run.evaluation("test").evaluated_run == run
    assert run.evaluated_run == run


@pytest.fixture
def sweep(tmp_path):
    folder = RunFolder(tmp_path / "sweep")
    touch(folder.sweep_yaml)
    for number in (10, 2):
        touch(folder.trial(number).result_json)
    folder.trial(3).path.mkdir()
    return folder


def test_a_sweep_stands_for_its_finished_runs_by_number(sweep, caplog):
    runs = [sweep.trial(number).path for number in (2, 10)]
    assert finished_runs(sweep.path) == runs
    assert "3 is left out: it is not finished (no result.json)" in caplog.text
    assert resolve_runs([str(sweep.path)]) == (runs, sweep.path)


def test_several_runs_are_a_cross_validation_in_the_folder_around_them(sweep, tmp_path):
    first, second = str(sweep.trial(2).path), str(sweep.trial(10).path)
    assert resolve_runs([first]) == ([Path(first)], None)
    assert resolve_runs([first, second]) == ([Path(first), Path(second)], sweep.path)
    with pytest.raises(InputError, match="2 is named twice"):
        resolve_runs([first, str(sweep.path)])
    other = touch(RunFolder(tmp_path / "elsewhere" / "run").result_json).parent
    with pytest.raises(InputError, match="must be in one folder.*elsewhere, .*sweep"):
        resolve_runs([first, str(other)])
    with pytest.raises(InputError, match=r"nowhere does not exist; give a run folder"):
        resolve_runs([first, "nowhere"])
    with pytest.raises(InputError, match="split=test does not exist; after a run there are no overrides"):
        resolve_runs([first, "split=test"])
