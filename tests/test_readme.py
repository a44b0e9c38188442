"""What the README tells a newcomer to type, typed."""

import glob
import json
import os
import re
import shlex
import shutil

import pytest
from conftest import ROOT, TINY, in_process, train_py

from stvid.cli import main
from stvid.data.synthetic.actions import CLASSES

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.strip().splitlines()]
FAST = (*TINY, "trainer.max_epochs=1")  # the same command on less


@pytest.fixture(scope="module")
def actions_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("actions")


LONG = pytest.mark.skipif(not os.environ.get("STVID_TEST_ALL"), reason="minutes more: with STVID_TEST_ALL=1")
JOBS = [pytest.param(COMMANDS[0], id="conv3d"), pytest.param(COMMANDS[1], id="cnn_lstm", marks=LONG)]


@pytest.fixture(scope="module", params=JOBS)
def main_job(request, actions_folder, tmp_path_factory):
    """The runs of the first two commands, as they stand there but for the places they write to."""
    folder = tmp_path_factory.mktemp("readme")
    *_, train = request.param.split(" && ")
    _, script, *overrides = shlex.split(train)
    assert script == "train.py"
    done = train_py(*overrides, f"hydra.run.dir={folder / 'run'}", f"data.root={actions_folder}")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done


def test_every_command_is_known_to_this_file():
    programs = {command.split(" && ")[-1].split()[0] for command in COMMANDS}
    assert programs == {"python", "stvid", "pytest"}


def test_the_install_and_test_commands_are_those_of_ci():
    install = COMMANDS[0].split(" && ")[2]
    ci = (ROOT / ".ci" / "run").read_text()
    assert install.removeprefix("pip install ") in ci
    assert "\npytest\n" in ci
    assert "pytest" in COMMANDS


@pytest.mark.slow
def test_the_main_job_learns_the_actions_from_video_files(main_job):
    folder, done = main_job
    result = json.loads((folder / "run" / "result.json").read_text())
    assert result["video_accuracy"] >= 0.95
    assert f"stvid evaluate {folder / 'run'}" in done.stdout


@pytest.mark.slow
def test_the_commands_for_a_run_work_on_it(main_job, actions_folder, tmp_path):
    folder, _ = main_job
    for command in COMMANDS:
        if command.startswith("stvid ") and "RUN" in command:
            if "RUN2" in command:
                command = command.replace("RUN2", str(shutil.copytree(folder / "run", folder / "second")))
            command = command.replace("RUN", str(folder / "run")).replace("data/actions", str(actions_folder))
            arguments = [path for word in shlex.split(command)[1:] for path in glob.glob(word) or [word]]
            if arguments[0] == "report":
                arguments += ["--out", str(tmp_path / "comparison.html")]
            done = in_process(["stvid", *arguments], lambda arguments=arguments: main(arguments))
            assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_it_knows_unseen_people_by_their_motion_alone(main_job):
    """Frozen or shuffled, a pair of mirrored actions shows the same pictures; reversed, each is the other."""
    result = json.loads((main_job[0] / "run" / "evaluate" / "test" / "result.json").read_text())
    assert result["video_accuracy"] >= 0.93
    assert result["audit"]["frozen"]["video_accuracy"] <= 0.60
    assert result["audit"]["shuffled"]["video_accuracy"] <= 0.60
    mirror = [CLASSES.index(name) for pair in zip(CLASSES[1::2], CLASSES[::2], strict=True) for name in pair]
    confusion = result["audit"]["reversed"]["confusion"]
    assert sum(confusion[truth][mirror[truth]] for truth in range(8)) / 200 >= 0.9
    assert result["still_classes"] == []


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if re.match(r"python train\.py (?!resume)(?!.*SMALL)", command)]
)
def test_every_other_training_command_runs(command, video_folder, tmp_path):
    overrides = shlex.split(command.replace("DIR", str(video_folder)))[2:]
    if not any(text.startswith("data=") for text in overrides):
        overrides += ["data=folder", f"data.root={video_folder}"]
    places = [f"hydra.run.dir={tmp_path / 'run'}", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    done = train_py(*overrides, *FAST, *places)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_commands_for_a_data_set_work_one_after_the_other(video_folder, tmp_path):
    places = {"DIR": str(video_folder), "SMALL": str(tmp_path / "small"), "RUN": ""}
    done = []
    for command in COMMANDS:
        program, *words = shlex.split(re.sub("|".join(places), lambda name: places[name[0]], command))
        if program == "stvid" and "RUN" not in command:
            result = in_process(["stvid", *words], lambda words=words: main(words))
        elif "SMALL" in command:
            result = train_py(*words[1:], *FAST, f"hydra.run.dir={tmp_path / 'run'}")
        else:
            continue
        assert result.returncode == 0, result.stdout + result.stderr
        done.append(program)
    assert done == ["stvid", "stvid", "python", "stvid"]


def test_the_tree_names_what_is_there():
    listed = re.findall(r"^    (\S+)", README.split("## The code")[1].split("## Add a model")[0], flags=re.MULTILINE)
    assert all((ROOT / path).exists() for path in listed)
