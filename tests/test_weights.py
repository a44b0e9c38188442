"""Weights from files: what is read, what is taken, what is refused; the oracles are torch's own layers and loaders."""

import logging
import os
import pickle
import re
import sys
import urllib.error
from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import nn

from stvid.errors import InputError
from stvid.models.conv3d import Conv3D
from stvid.models.weights import load_weights, read_file, read_weights, reshape_kernel
from stvid.run.model import build_model

SMALL = {"widths": [4, 6], "strides": [[1, 2, 2], [2, 2, 2]]}
CONV3D = {"_target_": "stvid.models.conv3d.Conv3D", **SMALL}


def small(num_classes=3, **options):
    """A network with numbers of its own, in its statistics too."""
    model = Conv3D(num_classes=num_classes, **SMALL, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


def prefixed(prefix, state):
    return OrderedDict((prefix + name, value) for name, value in state.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: prefixed("module.", state),
        lambda state: {"state_dict": prefixed("model.", state), "epoch": 3, "optimizer_states": [{"lr": 0.1}]},
        lambda state: {"state_dict": {**prefixed("model.", state), "loss.weight": torch.ones(2)}},
        lambda state: {"state_dict": prefixed("model._orig_mod.", state)},
        lambda state: {"model": prefixed("module.", state), "args": {"lr": 0.1}},
        lambda state: {"model_state": state, "cfg": "text"},
    ],
)
def test_files_of_many_programs_hold_the_same_state_dict(wrap, tmp_path):
    state = small().state_dict()
    torch.save(wrap(state), tmp_path / "weights.pth")
    assert same(read_file(tmp_path / "weights.pth"), state)


def test_files_of_before_torch_1_6_are_read(tmp_path):
    state = small().state_dict()
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(read_file(tmp_path / "old.pth"), state)


def test_safetensors_are_read(tmp_path):
    library = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    state = small().state_dict()
    library.save_file(prefixed("model.", state), tmp_path / "new.safetensors")
    assert same(read_file(str(tmp_path / "new.safetensors")), state)
    (tmp_path / "new.safetensors").write_bytes(b"hello")
    with pytest.raises(ValueError, match="new.safetensors cannot be read"):
        read_file(tmp_path / "new.safetensors")


def test_without_the_package_safetensors_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "x.safetensors").touch()
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match="pip install safetensors"):
        read_file(tmp_path / "x.safetensors")


class Command:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_code_in_a_file_is_never_run(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1)}, "trap": Command(tmp_path / "ran")}, tmp_path / "trap.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Command(tmp_path / "ran")))
    for name in ("trap.pth", "plain.pth"):
        with pytest.raises(ValueError, match=f"{name} is no file of weights, is truncated, or holds more than tensors"):
            read_file(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_whatever_a_file_holds_it_is_weights_or_a_value_error(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.arange(64.0)}, path)
    whole = path.read_bytes()
    spoilt = [b"", b"hello", b"PK\x03\x04", bytes(range(256)), *(whole[:n] for n in range(1, len(whole) - 1, 97))]
    for content in spoilt:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="weights.pth"):
            read_file(path)


@pytest.mark.parametrize("content", [{"epoch": 3, "net": {}}, [1, 2], {}, {"state_dict": {"a": 1}}])
def test_a_file_without_a_state_dict_says_what_it_holds(content, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    actual = {"epoch": "epoch, net", "state_dict": "a"}.get(next(iter(content), 0), "list|nothing")
    with pytest.raises(ValueError, match=f"holds no state dict, alone or under state_dict.*it holds ({actual})"):
        read_file(tmp_path / "other.pt")


def test_what_was_taken_is_told_and_logged(caplog):
    model, donor = small(num_classes=3), small(num_classes=5)
    before = model.head.weight.clone()
    with caplog.at_level(logging.INFO):
        report = load_weights(model, donor.state_dict(), source="donor.pth for conv3d")
    reported = "weights donor.pth for conv3d: 12 matched, 0 reshaped, 2 skipped (head.weight, head.bias)"
    assert str(report) == caplog.messages[-1] == reported
    assert same(model.layers.state_dict(), donor.layers.state_dict())
    assert torch.equal(model.head.weight, before)


def test_a_head_for_as_many_classes_is_kept_and_never_half_of_it():
    model, donor = small(), small()
    load_weights(model, donor.state_dict(), source="x")
    assert same(model.state_dict(), donor.state_dict())
    other = small()
    half = {name: value for name, value in donor.state_dict().items() if name != "head.weight"}
    bias = other.head.bias.clone()
    assert load_weights(other, half, source="x").skipped == ("head.bias",)
    assert torch.equal(other.head.bias, bias)


def test_a_file_that_counts_no_batches_will_do():
    model, donor = small(), small()
    state = {name: value for name, value in donor.state_dict().items() if "num_batches" not in name}
    assert len(load_weights(model, state, source="x").matched) == 12


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda s: s.pop("layers.1.1.running_var"), r"10 tensors 9 were found, 1 missing .layers\.1\.1\.running_var."),
        (lambda s: s.update({"layers.9.0.weight": torch.ones(1)}), r"1 not known to the model .layers\.9\.0\.weight."),
        (lambda s: s.update({"layers.0.0.weight": torch.ones(4, 2, 3, 3, 3)}), "4x2x3x3x3, expected 4x3x3x3x3"),
        (lambda s: s.clear(), r"10 tensors 0 were found, 10 missing .layers\.0\.0\.weight, .*, \.\.\.\)"),
    ],
)
def test_weights_of_another_architecture_change_nothing_and_say_where_they_differ(spoil, text):
    model, state = small(), small().state_dict()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    spoil(state)
    with pytest.raises(ValueError, match=f"the weights FILE belong to another architecture: .*{text}"):
        load_weights(model, state, source="FILE")
    assert same(model.state_dict(), before)


def test_image_weights_of_another_image_network_are_refused():
    """resnet34 holds all that resnet18 asks for, in the same shapes, and more."""
    with torch.device("meta"):
        model, other = torchvision.models.resnet18(), torchvision.models.resnet34()
    with pytest.raises(ValueError, match=r"100 tensors 100 were found, \d+ not known to the model .layer1\.2"):
        load_weights(model, other.state_dict(), source="resnet34.pth", head=("fc.",))


def test_an_inflated_kernel_answers_a_still_clip_like_its_picture():
    picture, kernel = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    clip = picture[:, :, None].expand(-1, -1, 5, -1, -1)
    inflated = reshape_kernel(kernel, (4, 3, 5, 3, 3))
    torch.testing.assert_close(nn.functional.conv3d(clip, inflated)[:, :, 0], nn.functional.conv2d(picture, kernel))


def test_a_kernel_for_two_pictures_answers_two_equal_ones_like_one():
    picture, kernel = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    both = nn.functional.conv2d(torch.cat([picture, picture], 1), reshape_kernel(kernel, (4, 6, 3, 3)))
    torch.testing.assert_close(both, nn.functional.conv2d(picture, kernel))
    assert reshape_kernel(kernel, (4, 4, 3, 3)) is None
    assert reshape_kernel(torch.randn(4, 16, 3, 3), (4, 32, 3, 3)) is None
    assert reshape_kernel(torch.randn(4, 6, 3, 3), (4, 3, 3, 3)) is None


def test_reshaped_tensors_are_told_with_both_shapes():
    model, donor = small(in_channels=6), small()
    report = load_weights(model, donor.state_dict(), source="x")
    assert report.reshaped == ("layers.0.0.weight: 4x3x3x3x3 -> 4x6x3x3x3",)
    clips = torch.randn(2, 3, 4, 16, 16)
    torch.testing.assert_close(model.eval()(torch.cat([clips, clips], 1)), donor.eval()(clips))


def test_old_names_of_densenet_are_known(tmp_path):
    """torchvision's own files still have them; its loader renames them, too."""
    with torch.device("meta"):
        network = torchvision.models.densenet121()
    old = {re.sub(r"(denselayer\d+\.[a-z]+)([12])\.", r"\1.\2.", n): v for n, v in network.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save({name: torch.zeros(1) for name in old}, tmp_path / "densenet.pth")
    assert read_file(tmp_path / "densenet.pth").keys() == network.state_dict().keys()


@pytest.mark.parametrize(
    ("weights", "network", "text"),
    [
        ("KINETICS", "r3d_18", r"KINETICS\) is not among the weights of r3d_18: DEFAULT, KINETICS400_V1"),
        (True, "r3d_18", "True. is not among the weights"),
        ("nothing.pth", "r3d_18", r"model\.weights \(=nothing\.pth\): there is no such file"),
        ("runs/nothing", "r3d_18", "there is no such file"),
        ("DEFAULT", None, "there is no such file; there are none to download for this model; give a file .* or a run"),
    ],
)
def test_words_that_are_neither_a_file_nor_a_name_are_told(weights, network, text):
    with pytest.raises(ValueError, match=text):
        read_weights(weights, network=network)


def test_a_failed_download_says_what_to_fetch(monkeypatch):
    def no_way_out(*arguments, **options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", no_way_out)
    with pytest.raises(
        ValueError, match=r"model\.inflate.*resnet18.*\.pth could not be downloaded.*model\.inflate=FILE"
    ):
        read_weights("DEFAULT", network="resnet18", key="inflate")


def run_of(model, folder):
    """A run folder as training leaves it, as far as weights go."""
    (folder / "checkpoints").mkdir(parents=True)
    content = {"state_dict": prefixed("model.", model.state_dict()), "epoch": 0, "stvid": {"format": 1}}
    torch.save(content, folder / "checkpoints" / "best.ckpt")
    return folder


def test_a_run_gives_its_weights_to_a_model_for_other_classes(tmp_path):
    donor = small(num_classes=3)
    run = run_of(donor, tmp_path / "run")
    for weights in (run, run / "checkpoints" / "best.ckpt"):
        model = build_model({**CONV3D, "weights": str(weights)}, num_classes=7)
        assert same(model.layers.state_dict(), donor.layers.state_dict())
        assert model.head.out_features == 7
    same_classes = build_model({**CONV3D, "weights": str(run)}, num_classes=3)
    assert same(same_classes.state_dict(), donor.state_dict())


def test_a_model_is_rebuilt_without_the_weights_it_began_with(tmp_path):
    build_model({**CONV3D, "weights": str(tmp_path / "long" / "gone.ckpt")}, num_classes=2, pretrained=False)
    r3d = {"_target_": "stvid.models.torchvision3d.TorchvisionVideoModel", "weights": None, "inflate": "gone.pth"}
    build_model(r3d, num_classes=2, pretrained=False)


def test_a_users_mistake_with_weights_is_an_input_error(tmp_path):
    torch.save({"x": torch.ones(1)}, tmp_path / "stranger.pth")
    for weights, text in (
        (tmp_path / "stranger.pth", "belong to another architecture"),
        (tmp_path / "nothing.ckpt", "there is no such file"),
        (tmp_path, r"has no checkpoints/best\.ckpt"),
    ):
        with pytest.raises(InputError, match=text):
            build_model({**CONV3D, "weights": str(weights)}, num_classes=2)
