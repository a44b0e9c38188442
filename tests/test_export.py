"""An exported model gives the probabilities of the model itself, or there is no file.

The oracle is the path of the evaluation: packed sequences, loops over a batch, chunks; the exported form has none.
"""

import dataclasses
import functools
import importlib.util
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_models import CONFIGS
from test_stream import trained
from torch import nn

from stvid.clip import ClipSpec
from stvid.errors import InputError
from stvid.export.checked_file import write_checked
from stvid.export.clip_form import clip_form
from stvid.export.clips import clip_inputs, synthetic_clips
from stvid.export.metadata import metadata
from stvid.export.onnx_file import open_onnx, write_onnx
from stvid.export.parity import SYNTHETIC, TOLERANCE, check_parity, compare, original
from stvid.export.program import open_program, trace, write_program
from stvid.models.base import VideoModel
from stvid.models.conv3d import Conv3D
from stvid.models.eco import ECO
from stvid.models.layers import Residual
from stvid.models.recurrent import Recurrent
from stvid.preprocess import Preprocess, as_input
from stvid.run.checkpoint import load_checkpoint
from stvid.run.model import build_model

CLIP = ClipSpec(num_frames=4, size=32)
LENGTHS = {1: [5], 4: [6, 1, 5, 3]}


def vivid(run):
    """With statistics of batch norm as after training and logits that differ, so that an error shows."""
    for layer in run.model.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
            layer.momentum = 1.0
    pictures = synthetic_clips(run, number=4, num_frames=run.clip.num_frames or 6)
    clips = Preprocess(clip=run.clip)(torch.stack([as_input(picture, run.clip) for picture in pictures]))
    with torch.no_grad():
        run.model.train()(clips)
        spread = run.model.eval()(clips).std(dim=0).mean().item()
    return dataclasses.replace(run, temperature=max(spread, 1e-3))


def cnn_lstm(tmp_path, clip=CLIP, **options):
    return vivid(trained(tmp_path, clip, hidden_size=8, **options))


def conv3d(tmp_path, clip=CLIP):
    return vivid(trained(tmp_path, clip, Conv3D(num_classes=3, in_channels=clip.channels, widths=(4, 8, 8, 8))))


def eco(tmp_path, clip):
    options = {"stage": "layer2", "grid": (2, 3), "widths": (8, 8), "strides": ((1, 1, 1), (1, 1, 1))}
    run = trained(tmp_path, clip, ECO(num_classes=3, in_channels=clip.channels, **options))
    for layer in run.model.volume.modules():
        if isinstance(layer, Residual):
            nn.init.ones_(layer[1].weight)  # as after training: a new one adds nothing
    return vivid(run)


CLIPWISE = {"normalize": "clip"}
RUNS = {
    "conv3d, differences": lambda path: conv3d(path, dataclasses.replace(CLIP, input="rgb_diff", **CLIPWISE)),
    "conv3d, whole videos": lambda path: conv3d(path, dataclasses.replace(CLIP, num_frames=None, **CLIPWISE)),
    "no recurrence": lambda path: cnn_lstm(
        path, dataclasses.replace(CLIP, input="diff", **CLIPWISE), recurrent="none", pooling="mean"
    ),
    "lstm": lambda path: cnn_lstm(
        path, dataclasses.replace(CLIP, input="rgb_diff"), bidirectional=True, encoder_chunk=2
    ),
    "eco, padded": lambda path: eco(path, dataclasses.replace(CLIP, input="rgb_diff", short="pad", normalize="fixed")),
    "feature norm, projection and grid": lambda path: cnn_lstm(
        path, encoder="resnet18", grid=(2, 1), feature_norm="batch", projection=6, branches=2
    ),
}
MORE = {
    "conv3d": conv3d,
    "conv3d, padded": lambda path: conv3d(path, dataclasses.replace(CLIP, short="pad", normalize="fixed")),
    "lstm, two layers, max": lambda path: cnn_lstm(path, num_layers=2, pooling="max"),
    "gru, two layers, attention": lambda path: cnn_lstm(
        path, recurrent="gru", num_layers=2, bidirectional=True, pooling="attention"
    ),
}
if TEST_ALL := os.environ.get("STVID_TEST_ALL"):
    RUNS |= MORE


@pytest.mark.parametrize("name", RUNS)
def test_a_traced_form_has_the_probabilities_of_the_model(tmp_path, name):
    run = RUNS[name](tmp_path)
    form = clip_form(run)
    program = trace(form).module()
    names = [spec.name for spec in form.inputs]
    assert ("lengths" in names) == (form.inputs[0].shape[1] == "time")
    for batch_size, lengths in LENGTHS.items():
        pictures = synthetic_clips(run, number=batch_size, num_frames=6 if "lengths" in names else 4)
        lengths = torch.tensor(lengths) if "lengths" in names else None
        expected = original(run, pictures, lengths)
        assert expected.std() > 0.05
        actual = program(*clip_inputs(form, pictures, lengths))
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
        if lengths is not None:  # what comes after the valid frames has no influence
            for row, length in zip(pictures, lengths, strict=True):
                row[length : len(row) // (2 if "earlier" in names else 1)] = 255
            actual = program(*clip_inputs(form, pictures, lengths))
            torch.testing.assert_close(actual, original(run, pictures, lengths), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_recurrent_layer_in_an_export_has_the_states_of_torch(kind, monkeypatch):
    torch.manual_seed(0)
    layers = Recurrent(kind, input_size=3, hidden_size=5, num_layers=2, bidirectional=True).eval()
    features, lengths = torch.randn(3, 6, 3), torch.tensor([6, 1, 4])
    with torch.no_grad():
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
        exported = layers(features, lengths), layers(features)
        monkeypatch.undo()
        torch.testing.assert_close(exported, (layers(features, lengths), layers(features)))


@pytest.mark.filterwarnings("ignore:The tensor attributes")
def test_a_gru_is_exported_after_torch_has_traced_another_one_and_leaves_torch_as_it_was(tmp_path):
    with torch.no_grad():
        torch.export.export(nn.GRU(3, 4).eval(), (torch.randn(3, 2, 3),))
    program = trace(clip_form(trained(tmp_path, CLIP, hidden_size=8, recurrent="gru")))
    operator = torch.ops.aten.gru.input
    assert operator in [node.target for node in program.graph.nodes]
    remembered = [*operator._dispatch_cache.values(), *operator.py_kernels.values()]
    assert not any("while_loop" in str(kernel) for kernel in remembered)


def test_the_command_writes_a_file_and_what_it_found(exported):
    report = json.loads((exported / "report.json").read_text())
    printed = (exported / "printed.txt").read_text()
    assert sorted(path.name for path in exported.iterdir()) == ["model.onnx", "printed.txt", "report.json"]
    assert report["parity"]["source"] == "clips of the run's val split"
    assert report["parity"]["max_difference"] <= TOLERANCE
    assert report["inputs"] == {"frames": ["uint8", "batch", 4, 32, 32, 3]}
    assert report["bytes"] == (exported / "model.onnx").stat().st_size
    assert "4 frames: the same classes\n          largest difference of a probability" in printed
    assert "out       probabilities: float32 batch x 2" in printed


def test_the_file_tells_where_it_comes_from_but_not_on_which_computer(onnx_file, run_folder, shared_folder):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    record = json.loads(session.get_modelmeta().custom_metadata_map["stvid"])
    run = load_checkpoint(run_folder)
    assert record["class_names"] == ["to_left", "to_right"]
    assert ClipSpec(**record["clip"]) == run.clip
    assert (record["form"], record["temperature"], record["threshold"]) == ("clip", 1.0, None)
    assert record["protocol"] == run.protocol
    content = onnx_file.read_bytes()
    assert not any(part in content for part in (b"site-packages", os.fsencode(ROOT), os.fsencode(shared_folder)))
    assert [value.shape for value in session.get_inputs()] == [["batch", 4, 32, 32, 3]]


def test_an_exported_lstm_takes_any_number_of_frames_in_onnxruntime(tmp_path):
    pytest.importorskip("onnxscript")
    run = cnn_lstm(tmp_path, recurrent="gru")
    form = clip_form(run)
    parity = write_checked(
        form,
        tmp_path / "model.onnx",
        metadata_of(run, tmp_path),
        file_format="onnx",
        check=functools.partial(check_parity, run, form),
    )
    assert (parity.source, parity.num_frames, parity.batch_sizes) == (SYNTHETIC, (8, 40), (1, 4))
    session = open_onnx(tmp_path / "model.onnx")
    pictures = synthetic_clips(run, number=2, num_frames=1)
    torch.testing.assert_close(session(clip_inputs(form, pictures))[0], original(run, pictures), atol=1e-5, rtol=0)


def metadata_of(run, tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"stvid")
    return metadata(run)


def test_a_program_file_runs_without_stvid_and_carries_the_same_record(tmp_path):
    run = conv3d(tmp_path)
    record = metadata_of(run, tmp_path)
    write_program(clip_form(run), tmp_path / "model.pt2", record)
    found = {"stvid": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=found).module()
    assert {"stvid": found["stvid"]} == record
    pictures = synthetic_clips(run, number=4, num_frames=4)
    actual = program(pictures.permute(0, 1, 3, 4, 2).contiguous())
    torch.testing.assert_close(actual, original(run, pictures), atol=1e-5, rtol=0)
    with zipfile.ZipFile(tmp_path / "model.pt2") as file:
        assert not any(os.fsencode(ROOT) in file.read(name) for name in file.namelist())
        assert all(info.file_size < 5000 for info in file.infolist() if "sample_inputs" in info.filename)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no file that is always full")
def test_a_full_disk_does_not_end_the_process(tmp_path):
    with pytest.raises(OSError, match="No space left on device"):
        write_program(clip_form(conv3d(tmp_path)), Path("/dev/full"), {})


class Patched(nn.Module):
    """A layer that does something else while it is exported."""

    def forward(self, x):
        return x * 1.5 if torch.compiler.is_exporting() else x


def test_an_exported_model_that_differs_leaves_no_file(tmp_path):
    run = conv3d(tmp_path)
    run.model.dropout = Patched()
    form = clip_form(run)
    (tmp_path / "new").mkdir()
    with pytest.raises(InputError, match=r"does not give the model's probabilities: one differs by 0\.\d+ \(allowed: "):
        write_checked(
            form, tmp_path / "new/x.pt2", {}, file_format="torch", check=functools.partial(check_parity, run, form)
        )
    assert list((tmp_path / "new").iterdir()) == []


def test_another_class_is_refused_even_if_the_probabilities_are_close(tmp_path):
    run = conv3d(tmp_path)
    form = clip_form(run)

    def swapped(inputs):
        (probabilities,) = open_program_of(form, tmp_path)(inputs)
        return [probabilities.flip(1)]

    nn.init.zeros_(run.model.head.weight)
    nn.init.zeros_(run.model.head.bias)
    run.model.head.bias.data[0] = 1e-4
    with pytest.raises(InputError, match="4 of 4 clips|1 of 1 clips"):
        check_parity(run, form, swapped)


def test_a_tie_has_no_other_class_and_a_smaller_lead_than_the_tolerance_has():
    expected = torch.tensor([[0.5, 0.5], [0.4, 0.6]])
    rounded = expected + torch.tensor([[-1e-7, 1e-7], [0, 0]])
    for actual, model in ((expected, rounded), (rounded, expected)):
        assert 0 < compare(actual, model, place="here") < 1e-6
    with pytest.raises(InputError, match="1 of 2 clips have another most probable class"):
        compare(rounded, expected + torch.tensor([[1e-5, -1e-5], [0, 0]]), place="here")


def open_program_of(form, tmp_path):
    write_program(form, tmp_path / "x.pt2", {})
    return open_program(tmp_path / "x.pt2")


class Untraceable(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_model_that_cannot_be_traced_is_told_with_the_part_that_cannot(tmp_path, capfd):
    run = cnn_lstm(tmp_path)
    run.model.encoder.layers[2] = Untraceable()
    with pytest.raises(InputError, match=r"torch.export stops in model.encoder.layers.2 \(Untraceable\): ") as caught:
        write_program(clip_form(run), tmp_path / "model.pt2", {})
    assert "torch.where" in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "model.pt2").exists()


class Fixed(nn.Module):
    """Takes the number of images for a constant, which no exporter notices."""

    def forward(self, x_NCHW):
        return x_NCHW.view(len(x_NCHW), *x_NCHW.shape[1:])


def test_a_file_that_runs_only_for_the_sizes_of_the_example_is_refused(tmp_path):
    run = cnn_lstm(tmp_path, recurrent="none")
    run.model.encoder.layers[2] = Fixed()
    form = clip_form(run)
    with pytest.raises(InputError, match=r"the exported file fails for inputs of 1 x 8 x 32 x 32 x 3, 1: "):
        write_checked(
            form, tmp_path / "x.pt2", {}, file_format="torch", check=functools.partial(check_parity, run, form)
        )
    assert not (tmp_path / "x.pt2").exists()


class Eigenvalues(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x[:, :3, None] * x[:, None, :3]).real


class OwnModel(VideoModel):
    """A user's own model, whose lengths are not exported."""

    def __init__(self, layer):
        super().__init__()
        self.head, self.layer = nn.Linear(3, 3), layer

    def forward_features(self, clips_BCTHW, lengths_B=None):
        return self.layer(clips_BCTHW.mean(dim=(2, 3, 4)))


class FirstHalf(VideoModel):
    def __init__(self):
        super().__init__()
        self.num_features, self.head = 3, nn.Linear(3, 3)

    def forward_features(self, clips_BCTHW, lengths_B=None):
        return clips_BCTHW[:, :, : int(clips_BCTHW.shape[2] / 2)].mean(dim=(2, 3, 4))


def test_an_axis_that_became_a_constant_is_told(tmp_path):
    run = trained(tmp_path, dataclasses.replace(CLIP, num_frames=None), FirstHalf())
    with pytest.raises(InputError, match=r"a constant what may differ from call to call: time\. A model that"):
        trace(clip_form(run))


def test_what_onnx_has_no_operator_for_is_told(tmp_path):
    pytest.importorskip("onnxscript")
    run = trained(tmp_path, CLIP, OwnModel(Eigenvalues()))
    with pytest.raises(InputError, match=r"no operator of ONNX computes aten.linalg_eig\S+\. Use --format torch"):
        write_onnx(clip_form(run), tmp_path / "model.onnx", {})


def test_a_mistake_in_a_model_keeps_its_own_error(tmp_path):
    run = trained(tmp_path, CLIP, OwnModel(nn.Linear(4, 3)))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        write_program(clip_form(run), tmp_path / "model.pt2", {})


def test_a_model_of_your_own_is_exported(tmp_path):
    run = trained(tmp_path, CLIP, OwnModel(nn.Identity()))
    form = clip_form(run)
    pictures = synthetic_clips(run, number=4, num_frames=4)
    actual = trace(form).module()(*clip_inputs(form, pictures))
    torch.testing.assert_close(actual, original(run, pictures), atol=1e-5, rtol=0)


def test_a_missing_package_is_told_with_its_command(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(InputError, match=r"needs onnxscript: pip install 'stvid\[export\]'"):
        write_onnx(clip_form(trained(tmp_path, CLIP)), tmp_path / "model.onnx", {})


# model -> clip, and options of a model that is small enough; all with the networks of configs/model
LARGE = {
    **{name: ({"num_frames": 16, "size": 56}, {}) for name in ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "c3d")},
    "i3d": ({"num_frames": 4, "size": 64}, {}),
    "resnet18": ({"num_frames": 4, "size": 64}, {"encoder": "resnet18"}),
    "efficientnet_lite0": ({"num_frames": 4, "size": 64}, {"encoder": "efficientnet_lite0", "recurrent": "gru"}),
    "timm ViT": ({"num_frames": 4, "size": 32}, {"encoder": "timm/vit_tiny_patch16_224", "image_size": 32}),
    "torchvision ViT": ({"num_frames": 4, "size": 32}, {"encoder": "vit_b_16", "image_size": 32}),
    "r3d_18, whole videos": ({"num_frames": None, "size": 32}, {}),
}


@pytest.mark.skipif(not TEST_ALL, reason="minutes; set STVID_TEST_ALL=1")
@pytest.mark.parametrize("name", LARGE)
def test_large_networks_have_the_same_probabilities_in_onnxruntime(tmp_path, name):
    clip, options = LARGE[name]
    config = CONFIGS.get(name.partition(",")[0], CONFIGS["cnn_lstm"]) | options
    torch.manual_seed(0)
    clip = ClipSpec(**clip, normalize="fixed")
    run = vivid(trained(tmp_path, clip, build_model(config, num_classes=3, in_channels=3, pretrained=False)))
    # deep random networks amplify rounding: of s3d, torch's own float32 and float64 differ by nearly the tolerance
    run = dataclasses.replace(run, temperature=10 * run.temperature)
    form = clip_form(run)
    parity = write_checked(
        form, tmp_path / "model.onnx", {}, file_format="onnx", check=functools.partial(check_parity, run, form)
    )
    assert parity.max_difference <= TOLERANCE
    assert np.isfinite(parity.milliseconds_file)
