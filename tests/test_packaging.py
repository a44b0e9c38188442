"""The wheel works where there is no checkout."""

import email
import os
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT, TINY
from packaging.requirements import Requirement


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What the wheel would put into site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


CALLS = """
import sys
import stvid
print(stvid.__file__)
from pathlib import Path
from stvid.cli import main
video, *overrides = sys.argv[1:]
main(["train", *overrides])
(run,) = Path("outputs").iterdir()
main(["evaluate", str(run), "--workers", "0"])
main(["predict", str(run), video, "--workers", "0"])
main(["train", "-m", "seed=1", "hydra.sweep.dir=sweep", *overrides])
"""  # one process: its imports take seconds


def test_the_wheel_holds_code_and_configs_and_nothing_else(installed):
    top = {path.name for path in installed.iterdir()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"stvid"}
    shipped = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    assert {path.relative_to(installed / "stvid").as_posix() for path in installed.rglob("*.yaml")} == shipped
    assert (installed / "stvid" / "train.py").read_text() == (ROOT / "train.py").read_text()


@pytest.mark.parametrize(
    ("system", "machine", "has_wheels"),
    [
        *(("linux", "x86_64", True), ("linux", "aarch64", True), ("linux", "riscv64", False)),
        *(("darwin", "arm64", True), ("darwin", "x86_64", False), ("win32", "AMD64", True), ("win32", "ARM64", False)),
    ],
)
def test_decord_comes_along_where_it_has_wheels(installed, system, machine, has_wheels):
    (metadata,) = installed.glob("stvid-*.dist-info/METADATA")
    needed = [Requirement(text) for text in email.message_from_string(metadata.read_text()).get_all("Requires-Dist")]
    (decord,) = (item for item in needed if item.name == "decord2")
    environment = {"sys_platform": system, "platform_machine": machine, "extra": ""}
    assert decord.marker.evaluate(environment) is has_wheels


def test_optional_decoders_are_imported_only_where_they_are_chosen():
    code = "import sys, stvid.data.datamodule, stvid.video.reader; print({'decord', 'torchcodec'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_it_trains_evaluates_predicts_and_sweeps_in_an_empty_folder(installed, video_folder, tmp_path):
    overrides = ["data=folder", f"data.root={video_folder}", "trainer.max_epochs=1", *TINY]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", CALLS, str(video_folder / "to_left" / "00.mp4"), *overrides]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(installed) in done.stdout, "the checkout was used, not the wheel"
    (run,) = (tmp_path / "outputs").iterdir()
    assert run.name.endswith("_conv3d")
    assert "to_left" in done.stdout
    assert (tmp_path / "sweep" / "0" / "result.json").is_file()
    assert "trial 0 (1 in all): done" in done.stdout
