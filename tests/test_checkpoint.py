import shutil

import pytest
import torch
from stvid.models.input_check import check_fit

from stvid.clip import ClipSpec
from stvid.errors import InputError
from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.conv3d import Conv3D
from stvid.run.checkpoint import build_model, load_checkpoint

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
        "stvid.models.conv3d._layer",
        "stvid.models.encoders.torchvision",
        "stvid.models.nothing.Model",
        "stvid.models.conv3d.Nothing",
        "",
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
    """In a new model, and in one that is loaded."""

    def broken(*arguments):
        raise mistake("inside")

    monkeypatch.setattr("stvid.models.conv3d._layer", broken)
    with pytest.raises(mistake) as new:
        build_model(CONV3D, num_classes=3)
    with pytest.raises(mistake) as loaded:
        load_checkpoint(run_folder)
    assert new.type is loaded.type is mistake


def test_a_library_that_a_model_lacks_is_not_a_model_that_does_not_exist(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "stvid.models.layers", None)
    monkeypatch.delitem(__import__("sys").modules, "stvid.models.conv3d")
    with pytest.raises(ModuleNotFoundError, match=r"stvid\.models\.conv"):
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

    with pytest.raises(InputError, match="nothing else is ever called"):
        load_checkpoint(spoilt(run_folder, tmp_path, change))


def test_a_checkpoint_of_another_format_or_with_holes_is_told(run_folder, tmp_path):
    def newer(content):
        content["stvid"]["format"] = 99

    def holed(content):
        del content["stvid"]["clip"]

    with pytest.raises(InputError, match="has format 99"):
        load_checkpoint(spoilt(run_folder, tmp_path, newer))
    with pytest.raises(InputError, match="incomplete or was changed: KeyError 'clip'"):
        load_checkpoint(spoilt(run_folder, tmp_path, holed))


def test_weights_of_another_model_are_told(run_folder, tmp_path):
    def change(content):
        content["stvid"]["config"]["model"]["widths"] = [16, 32, 64, 64]

    words = r"belong to another model than its config says: 6 of another shape \(head\.weight, layers\.3\.0\.weight"
    with pytest.raises(InputError, match=words):
        load_checkpoint(spoilt(run_folder, tmp_path, change))

    def renamed(content):
        state = content["state_dict"]
        state["model.tail.weight"] = state.pop("model.head.weight")

    words = r"1 missing \(head\.weight\), 1 not known to the model \(tail\.weight\)"
    with pytest.raises(InputError, match=words):
        load_checkpoint(spoilt(run_folder, tmp_path, renamed))


def test_what_is_no_checkpoint_is_told(run_folder, tmp_path):
    (tmp_path / "text.ckpt").write_text("hello")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    for path, words in (
        (tmp_path / "text.ckpt", "no readable checkpoint"),
        (tmp_path / "other.ckpt", "another program"),
        (tmp_path / "nothing", "does not exist"),
        (tmp_path, r"holds no checkpoints/best\.ckpt"),
    ):
        with pytest.raises(InputError, match=words):
            load_checkpoint(path)


class Picky(torch.nn.Module):
    """A user's own: takes clips of 8 frames of 24 x 24 pixels and more."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, clips):
        self.calls += 1
        return torch.nn.functional.avg_pool3d(clips, (8, 24, 24)).mean(dim=(2, 3, 4))


@pytest.mark.parametrize(("num_frames", "tried"), [(4, 4), (None, 16)])
def test_an_error_of_the_model_stays_what_it_is_with_the_clip_that_it_got(num_frames, tried):
    model = Picky().train()
    with pytest.raises(RuntimeError) as error:
        check_fit(model, ClipSpec(num_frames=num_frames, size=(10, 64)))
    assert "forward" in [entry.name for entry in error.traceback]
    assert error.value.__notes__ == [f"Picky was given one clip, B x C x T x H x W = 1 x 3 x {tried} x 10 x 64"]
    assert model.calls == 1
    assert model.training


@pytest.mark.parametrize(
    ("model", "clip", "words"),
    [
        (
            {"encoder": "vgg11"},
            {"size": (24, 64)},
            r"model.encoder \(=vgg11\) takes images of at least 32 x 32 pixels, not 24 x 64: set clip.size=32",
        ),
        (
            {"encoder": "vit_b_32"},
            {"size": 64, "num_frames": 1},
            r"\(=vit_b_32\) takes images of 224 x 224 pixels only, not 64 x 64: set clip.size=224, or .*image_size",
        ),
        ({}, {"input": "rgb_diff"}, r"clips must be B x 3 x T x H x W, got \(1, 6, 16, 64, 64\)"),
    ],
)
def test_a_clip_that_a_model_of_ours_does_not_take_is_one_message(model, clip, words):
    model = CNNLSTM(num_classes=2, hidden_size=4, **model).train()
    with pytest.raises(InputError, match=words):
        check_fit(model, ClipSpec(**clip))
    assert model.training


def test_a_model_that_fits_stays_as_it_is():
    model = build_model(CONV3D, num_classes=3, in_channels=6).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_fit(model, ClipSpec(num_frames=None, input="rgb_diff"))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
