"""Messages for users: the commands that they suggest, and what counts as a user's mistake."""

import ast
import shlex
import sys

import pytest
from conftest import ROOT

from stvid.errors import train_command


@pytest.mark.parametrize(
    ("started", "suggested"),
    [
        (["python", "train.py", "model=conv3d"], "python train.py"),
        (["python", "-u", "../code/train.py"], "python ../code/train.py"),
        (["python", "/venv/bin/stvid", "train", "data.path=/lists/train.py"], "stvid train"),
        (["python", "/venv/bin/stvid", "prepare", "--out", "small"], "stvid train"),
        (["python", "-m", "stvid.cli", "train"], "stvid train"),
    ],
)
def test_the_suggested_command_is_the_one_that_started_this_process(monkeypatch, started, suggested):
    monkeypatch.setattr(sys, "orig_argv", started)
    monkeypatch.setattr(sys, "argv", ["/site-packages/stvid/train.py"])  # as the command line of `stvid train` sets it
    assert train_command("resume=outputs/run") == f"{suggested} resume=outputs/run"


def test_arguments_are_quoted_for_a_shell():
    assert shlex.split(train_command("-m", "data.root='my videos'"))[2:] == ["-m", "data.root='my videos'"]


def test_no_message_names_a_script_that_an_installed_package_does_not_have():
    for path in (ROOT / "stvid").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        bodies = [node.body for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
        docstrings = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        messages = [text.value for text in texts if id(text) not in docstrings and "python train.py" in text.value]
        # options.py says that it is for a checkout; config_help.py replaces it
        place = path.relative_to(ROOT / "stvid").as_posix()
        assert not messages or place in ("commands/options.py", "run/config_help.py"), messages
