"""`python train.py --help` shows what `configs/` says; the oracle is Hydra's composed config."""

import subprocess
import sys

import pytest
from conftest import ROOT, train_py
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from stvid.run.config_help import choices_of, config_groups, default_choices, help_text, read_choice

CONFIGS = ROOT / "configs"


def composed(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", overrides=list(overrides)), resolve=False)
    del config["data"]["datamodule"]
    return config


def keys_of(node, place=""):
    """Dotted names of all values that a user sets."""
    if not isinstance(node, dict) or not node:
        return {place}
    children = {f"{place}.{key}".strip("."): child for key, child in node.items() if not key.startswith("_")}
    return {key for name, child in children.items() for key in keys_of(child, name)}


def value_of(config, key):
    for name in key.split("."):
        config = config[name]
    return config


@pytest.mark.parametrize("overrides", [[], ["model=cnn_lstm", "optimizer=sgd", "clip=lite0", "data=folder"]], ids=str)
def test_every_key_of_the_composed_config_is_there_with_its_value(overrides):
    config, text = composed(*overrides), help_text(overrides)
    entries = dict(
        line.strip().split("  ")[0].split("=", 1) for line in text.split("KEYS")[1].splitlines() if "=" in line
    )
    for key in keys_of(config):
        assert key in entries, key
        value = OmegaConf.to_container(OmegaConf.create(f"value: {entries[key].replace(',', ', ')}"))["value"]
        assert value == value_of(config, key), key


def test_comments_of_a_file_and_of_those_it_includes_are_shown():
    entries = read_choice("clip", "kinetics")
    assert entries["clip.fps"] == ("15", "frames per second of video")
    assert entries["clip.num_frames"][1].startswith("frames per clip"), "the comment of clip=default"
    assert "  clip.num_frames=16              frames per clip" in help_text(width=120)


def test_every_choice_is_listed_with_the_first_comment_of_its_file():
    lines = help_text(width=120).splitlines()
    for group in config_groups():
        files = {file.stem for file in (CONFIGS / group).glob("*.yaml")}
        assert set(choices_of(group)) == files - ({"loading"} if group == "data" else set())
        for choice in choices_of(group):
            mark = " *" if default_choices()[group] == choice else ""
            (line,) = [line for line in lines if line.startswith(f"  {group}={choice}{mark}  ")]
            assert line.split("  ", 2)[2].strip(), f"{group}={choice} has no description"
    assert "A ResNet-18 pretrained on ImageNet on every frame and an LSTM" in help_text(width=120)


@pytest.mark.parametrize("width", [80, 120])
def test_the_page_fits_the_width_of_the_terminal(width):
    assert max(map(len, help_text(width=width).splitlines())) <= width


WITHOUT_TORCH = """
import runpy, sys
sys.modules["torch"] = sys.modules["hydra"] = sys.modules["pytorch_lightning"] = None  # importing them fails
sys.argv = sys.argv[1:]
if sys.argv[0] == "stvid":
    from stvid.cli import main
    main()
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("program", [[str(ROOT / "train.py")], ["stvid", "train"]], ids=["train.py", "stvid train"])
def test_the_help_needs_neither_torch_nor_hydra(program):
    command = [sys.executable, "-c", WITHOUT_TORCH, *program, "model=cnn_lstm", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "model.hidden_size=96" in done.stdout


def test_a_choice_that_does_not_exist_is_an_error():
    done = train_py("model=cnn_lstn", "--help")
    assert done.returncode == 2
    assert "model=cnn_lstn: there is no such choice; did you mean 'cnn_lstm'?" in done.stderr
