"""Models from configs and checkpoints: what is imported, what is refused, models of a user, moved names."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY
from hydra.utils import get_object

from stvid.errors import InputError
from stvid.models.conv3d import Conv3D
from stvid.run.checkpoint import load_checkpoint
from stvid.run.model import build_model
from stvid.run.trust import MOVED_TARGETS, trusted_modules

CONV3D = {"_target_": "stvid.models.conv3d.Conv3D", "widths": [4, 8], "strides": [[1, 2, 2], [2, 2, 2]]}


def test_a_model_is_built_from_plain_data():
    model = build_model(CONV3D, num_classes=3)
    assert isinstance(model, Conv3D)
    assert model.head.out_features == 3


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "stvid.cli.main",
        "stvid.models.conv3d.torch.load",
        "stvid.models.conv3d.nn.Linear",
        "stvid.models.conv3d.InputError",
        "stvid.models.conv3d.ConvLayer",
        "stvid.models.encoders.torchvision",
        "stvid.models.nothing.Model",
        "stvid.models.conv3d.Nothing",
        "",
        ["stvid.models.conv3d.Conv3D"],
        {"stvid": "models"},
    ],
)
def test_nothing_but_a_model_of_ours_is_ever_called(target):
    with pytest.raises(InputError, match="model._target_"):
        build_model({"_target_": target}, num_classes=3)


def test_an_unknown_key_is_named_with_the_nearest():
    with pytest.raises(InputError, match=r"unknown key model\.width: Conv3D.*did you mean 'widths'"):
        build_model({**CONV3D, "width": 3}, num_classes=3)


@pytest.mark.parametrize("mistake", [ValueError, KeyError, TypeError, RuntimeError])
def test_a_mistake_inside_a_constructor_stays_what_it_is(mistake, run_folder, monkeypatch):
    """In a new model; where one is loaded, it is the cause of the message: a damaged config can make it too."""

    def broken(*arguments, **options):
        raise mistake("inside")

    monkeypatch.setattr("stvid.models.conv3d.ConvLayer", broken)
    with pytest.raises(mistake) as new:
        build_model(CONV3D, num_classes=3)
    with pytest.raises(InputError, match=f"no model can be built from its config.*{mistake.__name__}") as loaded:
        load_checkpoint(run_folder)
    assert new.type is type(loaded.value.__cause__) is mistake


@pytest.mark.parametrize("mistake", [AttributeError, NameError, ImportError, AssertionError])
def test_a_mistake_that_no_config_can_make_keeps_its_traceback(mistake, run_folder, monkeypatch):
    def broken(*arguments, **options):
        raise mistake("inside")

    monkeypatch.setattr("stvid.models.conv3d.ConvLayer", broken)
    with pytest.raises(mistake, match="inside"):
        load_checkpoint(run_folder)


def test_a_library_that_a_model_lacks_is_not_a_model_that_does_not_exist(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "stvid.models.layers", None)
    monkeypatch.delitem(__import__("sys").modules, "stvid.models.conv3d")
    with pytest.raises(ModuleNotFoundError, match=r"stvid\.models\.layers"):
        build_model(CONV3D, num_classes=3)


def test_a_run_and_its_checkpoint_rebuild_the_same_model(run_folder):
    run, checkpoint = load_checkpoint(run_folder), load_checkpoint(run_folder / "checkpoints" / "best.ckpt")
    assert run.class_names == ("to_left", "to_right")
    assert run.clip == checkpoint.clip
    assert run.clip.size == (32, 32)
    assert run.folder == checkpoint.folder == run_folder
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), checkpoint.model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_checkpoints_hold_data_only(run_folder, name):
    content = torch.load(run_folder / "checkpoints" / name, weights_only=True)
    assert {"config", "clip", "class_names", "protocol"} <= set(content["stvid"])
    assert content["stvid"]["config"]["data"]["root"]


def test_a_checkpoint_alone_is_enough(run_folder, tmp_path):
    shutil.copy(run_folder / "checkpoints" / "best.ckpt", tmp_path / "model.ckpt")
    assert load_checkpoint(tmp_path / "model.ckpt").folder == tmp_path


def spoilt(run_folder, tmp_path, change):
    content = torch.load(run_folder / "checkpoints" / "best.ckpt", weights_only=True)
    change(content)
    torch.save(content, tmp_path / "changed.ckpt")
    return tmp_path / "changed.ckpt"


def test_a_checkpoint_that_names_foreign_code_is_refused(run_folder, tmp_path):
    def change(content):
        content["stvid"]["config"]["model"]["_target_"] = "os.system"

    with pytest.raises(InputError, match=r"changed\.ckpt: its model, os\.system, is code outside of stvid"):
        load_checkpoint(spoilt(run_folder, tmp_path, change))


def test_a_checkpoint_of_another_format_or_with_holes_is_told(run_folder, tmp_path):
    def newer(content):
        content["stvid"]["format"] = 99

    def holed(content):
        del content["stvid"]["clip"]

    with pytest.raises(InputError, match="has format 99"):
        load_checkpoint(spoilt(run_folder, tmp_path, newer))
    with pytest.raises(InputError, match="incomplete or was changed: .*has no clip"):
        load_checkpoint(spoilt(run_folder, tmp_path, holed))


def test_weights_of_another_model_are_told(run_folder, tmp_path):
    def change(content):
        content["stvid"]["config"]["model"]["widths"] = [16, 32, 64, 64]

    phrases = r"belong to another model than its config says: 6 of another shape \(head\.weight, layers\.3\.0\.weight"
    with pytest.raises(InputError, match=phrases):
        load_checkpoint(spoilt(run_folder, tmp_path, change))

    def renamed(content):
        state = content["state_dict"]
        state["model.tail.weight"] = state.pop("model.head.weight")

    phrases = r"1 missing \(head\.weight\), 1 not known to the model \(tail\.weight\)"
    with pytest.raises(InputError, match=phrases):
        load_checkpoint(spoilt(run_folder, tmp_path, renamed))


def test_what_is_no_checkpoint_is_told(run_folder, tmp_path):
    (tmp_path / "text.ckpt").write_text("hello")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    for path, phrases in (
        (tmp_path / "text.ckpt", "no readable checkpoint"),
        (tmp_path / "other.ckpt", "another program"),
        (tmp_path / "nothing", "does not exist"),
        (tmp_path, r"has no checkpoints/best\.ckpt"),
    ):
        with pytest.raises(InputError, match=phrases):
            load_checkpoint(path)


@pytest.mark.parametrize(
    ("target", "trust", "is_imported"),
    [
        ("my_package.MyModel", ["my_package"], True),
        ("my_package.models.MyModel", "my_package", True),
        ("my_package.MyModel", ["my_pack"], False),
        ("my_package_2.MyModel", ["my_package"], False),
        ("my_package.MyModel", ["my_package.models"], False),
        ("my_package.models.MyModel", ["my_package.models"], True),
        ("my_package.MyModel", [], False),
        ("MyModel", ["MyModel"], False),
    ],
)
def test_only_trusted_modules_are_imported(target, trust, is_imported):
    """None of them exists, so the message says whether an import was tried."""
    message = (
        "there is no module my_package" if is_imported else "code outside of stvid.*add --trust my_pack|--trust MyM"
    )
    with pytest.raises(InputError, match=message):
        build_model({"_target_": target}, num_classes=3, trust=trusted_modules(trust))


@pytest.mark.parametrize("trust", [["my package"], ["my_package/models"], [""], [3]])
def test_trust_takes_names_of_modules(trust):
    with pytest.raises(InputError, match="must be the name of a package or module"):
        trusted_modules(trust)


@pytest.mark.parametrize("trust", [None, 5, True])
def test_trust_takes_a_list(trust):
    """`resume=RUN trust=5` asks here first."""
    with pytest.raises(InputError, match=r"must be a list of packages or modules: trust=\[my_package\]"):
        trusted_modules(trust)


INIT = "    def __init__(self, *, num_classes):\n        super().__init__()\n"
MODULES = {
    "no_model": f"import torch\nclass MyModel(torch.nn.Module):\n{INIT}",
    "no_classes": "import stvid\nclass MyModel(stvid.VideoModel):\n    pass\n",
    "broken": "import a_library_that_is_missing",
    "wrong": f"import stvid\nclass MyModel(stvid.VideoModel):\n{INIT}        1 / 0\n",
}
NO_MODEL = r"must be a subclass of stvid\.VideoModel whose constructor takes the keyword num_classes"


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        ("no_model", InputError, r"must be a subclass of stvid\.VideoModel whose constructor takes the keyword num_cl"),
        (
            "no_classes",
            InputError,
            r"must be a subclass of stvid\.VideoModel whose constructor takes the keyword num_cl",
        ),
        ("nowhere", InputError, r"there is no module nowhere, neither in .* nor installed"),
        ("broken", ModuleNotFoundError, "a_library_that_is_missing"),
        ("wrong", ZeroDivisionError, "division by zero"),
    ],
)
def test_what_a_model_of_a_user_must_be_is_one_message_and_its_own_errors_stay(
    module, error, message, tmp_path, monkeypatch
):
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with pytest.raises(error, match=message) as caught:
        build_model({"_target_": f"{module}.MyModel"}, num_classes=3, trust=[module])
    assert caught.type is error
    assert sys.path == before
    sys.modules.pop(module, None)


MY_PACKAGE = """
import stvid
from torch import nn

class MyModel(stvid.VideoModel):
    def __init__(self, *, num_classes, width=4):
        super().__init__()
        self.conv = nn.Conv3d(3, width, 3, padding=1)
        self.num_features, self.head = width, nn.Linear(width, num_classes)

    def forward_features(self, clips_BCTHW, lengths_B=None):
        return self.conv(clips_BCTHW).relu().mean(dim=(2, 3, 4))
"""
COMMANDS = """
import json, sys
from stvid.cli import main
for command in json.loads(sys.argv[1]):
    code = 0
    try:
        main(command)
    except SystemExit as stop:
        code = stop.code
    print("ended with", code, "imported" if "my_package" in sys.modules else "not imported", flush=True)
import stvid
print(stvid.load("run", trust=["my_package"]))
"""  # seconds of imports are paid once


def run_alone(*arguments, cwd):
    """A Python that does not look for modules in the current folder (-P)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


def test_a_model_of_a_user_trains_and_is_loaded_only_if_it_is_trusted(video_folder, tmp_path):
    """In a folder that holds nothing but the package."""
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text(MY_PACKAGE)
    data = ["data=folder", f"data.root={video_folder}", "trainer.max_epochs=1", "augment=none", *TINY]
    model = ["model._target_=my_package.MyModel", "+model.width=8"]  # widths, depths, ... of conv3d do not apply
    trained = run_alone(ROOT / "train.py", *data, *model, "hydra.run.dir=run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    config = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)["stvid"]["config"]
    assert config["model"] == {"_target_": "my_package.MyModel", "width": 8}

    video = str(next(video_folder.rglob("*.mp4")))
    resume = ["train", "resume=run", "trainer.max_epochs=2", "allow_changes=true", "trainer.accelerator=cpu"]
    trust = ["--trust", "my_package"]
    commands = [
        ["predict", "run", video],
        ["evaluate", "run", "--split", "val"],
        ["report", "run"],
        resume,
        ["predict", "run", video, *trust],
        ["evaluate", "run", "--split", "val", "--workers", "0", *trust],
        ["report", "run", *trust],
        [*resume, "trust=[my_package]"],
        ["cost", *model],
    ]
    done = run_alone("-c", COMMANDS, json.dumps(commands), cwd=tmp_path)
    ends = [line for line in done.stdout.splitlines() if line.startswith("ended with")]
    assert ends == ["ended with 2 not imported"] * 4 + ["ended with 0 imported"] * 5, done.stdout + done.stderr
    assert done.stderr.count("add --trust my_package to the command") == 3
    assert done.stderr.count("add trust=[my_package]") == 1
    assert "MyModel, 2 classes" in done.stdout
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 1 + 2
    assert {path.name for path in tmp_path.iterdir()} == {"my_package", "run"}


OLD_TARGETS = {
    "stvid.models.video_network.VideoNetwork": ({"name": "mc3_18"}, "TorchvisionVideoModel"),
    "stvid.models.torchvision3d.VideoNetwork": ({"name": "mc3_18"}, "TorchvisionVideoModel"),
    "stvid.models.inflated.InflatedNetwork": ({"network": "squeezenet1_1"}, "I3D"),
    "stvid.models.i3d.InflatedNetwork": ({"network": "squeezenet1_1"}, "I3D"),
}


@pytest.mark.parametrize("target", OLD_TARGETS)
def test_a_checkpoint_of_an_older_version_loads_under_the_new_names(target, tmp_path):
    options, name = OLD_TARGETS[target]
    model = build_model({"_target_": target, **options}, num_classes=2)
    content = {
        "stvid": {
            "format": 1,
            "config": {
                "model": {"_target_": target, "weights": "gone.pth", **options},
                "data": {"datamodule": {"batch_size": 4}},
                "trainer": {"precision": "32-true"},
            },
            "clip": {"num_frames": 4, "size": [32, 32]},
            "class_names": ["a", "b"],
            "protocol": {"num_clips": 1, "num_crops": 1},
        },
        "state_dict": {f"model.{key}": value for key, value in model.state_dict().items()},
        "epoch": 0,
        "global_step": 3,
        "loops": {
            "fit_loop": {
                "epoch_progress": {"current": {"ready": 1, "processed": 1}},
                "epoch_loop.batch_progress": {"current": {"ready": 3}},
            }
        },
    }
    torch.save(content, tmp_path / "old.ckpt")
    trained = load_checkpoint(tmp_path / "old.ckpt")
    assert type(trained.model).__name__ == name
    assert all(torch.equal(value, trained.model.state_dict()[key]) for key, value in model.state_dict().items())
    assert trained.config["model"]["_target_"].endswith(name)


def test_every_moved_target_has_a_present_name_that_exists():
    for old, new in MOVED_TARGETS.items():
        assert callable(get_object(new)), old
        assert new not in MOVED_TARGETS
