"""Every file of configs/ composes, and its keys are parameters of what it configures."""

import inspect
import sys

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from stvid.errors import InputError
from stvid.run.config import compose_config

CONFIGS = ROOT / "configs"
GROUPS = sorted(p.name for p in CONFIGS.iterdir() if p.is_dir() and p.name != "hydra")
CHOICES = [
    (group, path.stem)
    for group in GROUPS
    for path in sorted((CONFIGS / group).glob("*.yaml"))
    if (group, path.stem) != ("data", "loading")  # a part of the others
]
FOLDERS = ("folder", "frames", "ucf101", "hmdb51", "kinetics", "ssv2", "kth", "ut_interaction", "shards")
REQUIRED = {"manifest": ["data.path=x"]} | {choice: ["data.root=x"] for choice in FOLDERS}
PASSED_IN_CODE = {"num_classes", "lr", "model", "params", "logger", "callbacks", "save_dir"}


def composed(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def targets(node, where=""):
    """(place, section) for every section with a `_target_`."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield where, node
        for key, child in node.items():
            yield from targets(child, f"{where}.{key}".strip("."))


def assert_binds(where, node):
    signature = inspect.signature(get_object(node["_target_"]))
    given = {key for key in node if not key.startswith("_")}
    assert given <= set(signature.parameters), f"{where}: {given - set(signature.parameters)} are no parameters"
    if node.get("_partial_"):
        return
    needed = {name for name, p in signature.parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    assert needed - given <= PASSED_IN_CODE, f"{where}: {needed - given} are missing"


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_yaml_composes_and_binds(group, choice):
    config = composed(f"{group}={choice}", *REQUIRED.get(choice, []))
    sections = list(targets(OmegaConf.to_container(config, resolve=True)))
    parts = {"clip", "augment", "mixing", "model", "optimizer", "optimizer.optimizer", "loss", "trainer"}
    assert parts | {"data.datamodule"} <= {where for where, _ in sections}
    for where, node in sections:
        assert_binds(where, node)


@pytest.mark.parametrize(
    "group", ["clip", "data", "model", "augment", "mixing", "optimizer", "loss", "trainer", "experiment"]
)
def test_every_documented_group_exists(group):
    assert group in GROUPS


def test_every_key_a_user_sets_under_data_reaches_the_data_module():
    for choice in (choice for group, choice in CHOICES if group == "data"):
        data = composed(f"data={choice}").data
        wiring = str(OmegaConf.to_container(data.datamodule, resolve=False))
        assert all(f"${{data.{key}}}" in wiring for key in data if key != "datamodule")


def test_defaults_in_yaml_are_those_of_the_code():
    """Except for those listed here, which differ on purpose."""
    differ = {("data.datamodule", "num_clips")}
    for where, node in targets(OmegaConf.to_container(composed(), resolve=True)):
        if where not in ("clip", "model", "data.datamodule", "data.datamodule.manifest"):
            continue
        for name, parameter in inspect.signature(get_object(node["_target_"])).parameters.items():
            if name in node and parameter.default is not parameter.empty and not isinstance(node[name], dict):
                is_equal = OmegaConf.create([node[name]]) == OmegaConf.create([_plain(parameter.default)])
                assert is_equal or (where, name) in differ or name == "size", f"{where}.{name}"


def _plain(value):
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("group", ["optimizer", "mixing", "augment"])
def test_every_choice_of_a_group_has_the_same_keys(group):
    keys = {choice: set(composed(f"{group}={choice}")[group]) for where, choice in CHOICES if where == group}
    parameters = set(inspect.signature(get_object(composed()[group]["_target_"])).parameters)
    assert all(of_choice - {"_target_"} == parameters for of_choice in keys.values()), keys


@pytest.mark.parametrize("choice", ["lamb", "lars"])
def test_an_optimizer_names_its_missing_package(choice, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"optimizer.optimizer \(=timm.*pip install 'stvid\[timm\]'"):
        compose_config([f"optimizer={choice}"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("loss.label_smoothing=high", "loss.label_smoothing (='high') must be float"),
        ("mixing.mixup=yes", "mixing.mixup (='yes') must be float"),
        ("augment.rand_augment=0.5", "augment.rand_augment (=0.5) must be int"),
        ("optimizer.milestones=0.5", "optimizer.milestones (=0.5) must be"),
        ("optimizer.schedule=plateau optimizer.patience=1.5", "optimizer.patience (=1.5) must be int"),
    ],
)
def test_a_value_of_another_type_is_an_error(overrides, message):
    with pytest.raises(InputError) as error:
        compose_config(overrides.split())
    assert message in str(error.value)


@pytest.mark.parametrize("override", ["{}._target_=[a]", "{}._target_=null", "~{}._target_"])
@pytest.mark.parametrize("section", ["model", "optimizer", "clip", "logger", "data.datamodule.manifest"])
def test_a_section_that_names_no_class_is_told(section, override):
    with pytest.raises(InputError) as error:
        compose_config([override.format(section)], needs_data=True)
    assert f"{section}._target_ " in str(error.value)


def test_groups_can_be_given_on_the_command_line():
    config = composed("optimizer.groups={head: {lr: 1e-2}, encoder.layers: {weight_decay: 0}}")
    groups = instantiate(config.optimizer, _convert_="all").groups
    assert groups == {"head": {"lr": 1e-2}, "encoder.layers": {"weight_decay": 0}}
