"""onnxruntime computes a frozen image network's features; the oracle is torch's own network."""

import importlib.metadata
import json
import logging
import re
import sys

import onnx.parser
import pytest
import torch
from conftest import TINY, make_folder, train_py

from stvid.cli import main
from stvid.errors import InputError
from stvid.models import onnx_encoder
from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.conv3d import Conv3D
from stvid.models.eco import ECO
from stvid.models.image_networks import ImageSize

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    shared = {"num_classes": 2, "encoder": "resnet18", "freeze": "all"}
    models = {
        "cnn_lstm": CNNLSTM(in_channels=6, encoder_chunk=3, **shared),
        "eco": ECO(stage="layer2", grid=(2, 3), **shared),
    }
    return {name: model.eval() for name, model in models.items()}


@pytest.mark.parametrize("name", ["cnn_lstm", "eco"])
def test_features_are_those_of_torch(models, name):
    model = models[name]
    runtime = model.encoding_runtime(precision="32-true", device=CPU)
    assert runtime.startswith("onnxruntime ")
    encoder = model.encoder
    for size in ((5, 40, 48), (1, 40, 48), (2, 64, 64)):  # frames, height, width
        clips_BCTHW = torch.randn(1, model.in_channels, *size)
        with torch.inference_mode():
            expected = model.encode(clips_BCTHW)
            with model.encode_with(runtime):
                assert model.encoder is not encoder
                found = model.encode(clips_BCTHW)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert model.encoder is encoder


def test_the_encoder_is_put_back_after_an_error(models):
    encoder = models["eco"].encoder
    with pytest.raises(KeyError), models["eco"].encode_with("onnxruntime"):
        raise KeyError
    assert models["eco"].encoder is encoder


def test_torch_stays_where_it_is_better_or_alone(models, monkeypatch, caplog):
    model = models["cnn_lstm"]
    assert model.encoding_runtime(precision="bf16-mixed", device=CPU) is None
    assert model.encoding_runtime(precision="32-true", device=torch.device("cuda")) is None
    assert CNNLSTM(num_classes=2).encoding_runtime(precision="32-true", device=CPU) is None
    assert Conv3D(num_classes=2).encoding_runtime(precision="32-true", device=CPU) is None
    monkeypatch.setattr(onnx_encoder, "MAX_BYTES", 1000)
    assert model.encoding_runtime(precision="32-true", device=CPU) is None
    monkeypatch.undo()

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with caplog.at_level(logging.INFO):
        assert model.encoding_runtime(precision="32-true", device=CPU) is None
    assert "pip install 'stvid[export]'" in caplog.text
    with model.encode_with(None):
        assert not isinstance(model.encoder, onnx_encoder.OnnxEncoder)


def missing_operator(*args, **kwargs):
    try:
        raise NotImplementedError("no operator\nat all")
    except NotImplementedError as error:
        raise torch.onnx.OnnxExporterError("step 1 of 3") from error


class Exported:
    """What torch's exporter returns, around a graph that is none, or another one."""

    def __init__(self, graph):
        self.model_proto = self
        self.graph = graph

    def SerializeToString(self):
        return self.graph


def zeros(size):
    """A graph `N x 3 x 40 x 48` -> `N x size` of zeros."""
    text = f"""
        <ir_version: 9, opset_import: ["": {onnx_encoder.OPSET}]>
        zeros (float[n, 3, 40, 48] images) => (float[n, {size}] features) {{
            means = GlobalAveragePool (images)
            flat = Flatten (means)
            shape = Constant <value_ints = [3, {size}]> ()
            weights = ConstantOfShape (shape)
            features = MatMul (flat, weights)
        }}"""
    return onnx.parser.parse_model(text).SerializeToString()


@pytest.mark.parametrize(
    ("export", "message"),
    [
        (missing_operator, r"the encoder cannot be converted \(NotImplementedError: no operator\)"),
        (lambda *_, **__: Exported(b"no graph"), r"it cannot compute the converted encoder \(InvalidProtobuf: "),
        (lambda *_, **__: Exported(zeros(128 * 6)), "its features are others than those of torch"),
        (lambda *_, **__: Exported(zeros(5)), "its features are others than those of torch"),
    ],
)
def test_what_onnxruntime_cannot_compute_is_computed_by_torch(models, monkeypatch, caplog, export, message):
    monkeypatch.setattr(torch.onnx, "export", export)
    model, clips_BCTHW = models["eco"], torch.randn(1, 3, 2, 40, 48)
    with caplog.at_level(logging.INFO), torch.inference_mode(), model.encode_with("onnxruntime"):
        found = model.encode(clips_BCTHW)
        model.encode(clips_BCTHW)
    assert re.search(f"torch computes the encoder, not onnxruntime: {message}", caplog.text)
    assert caplog.text.count("torch computes") == 1
    with torch.inference_mode():
        assert torch.equal(found, model.encode(clips_BCTHW))


def test_a_broken_installation_is_no_error(models, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    model, clips_BCTHW = models["eco"], torch.randn(1, 3, 2, 40, 48)
    with caplog.at_level(logging.INFO), torch.inference_mode(), model.encode_with("onnxruntime"):
        model.encode(clips_BCTHW)
    assert "not onnxruntime: it cannot be imported" in caplog.text


def test_a_mistake_is_not_hidden(models, monkeypatch):
    monkeypatch.setattr(models["eco"].encoder, "size", ImageSize(network="resnet18", minimum=64))
    with pytest.raises(InputError, match="at least 64 x 64"), models["eco"].encode_with("onnxruntime"):
        models["eco"].encode(torch.randn(1, 3, 2, 40, 48))


def test_training_and_evaluation_share_the_features(tmp_path, monkeypatch):
    videos = make_folder(tmp_path / "squares", videos=7)
    words = ("model=cnn_lstm", "model.encoder=resnet18", "model.freeze=all", "trainer.max_epochs=1", *TINY)
    words += ("data=folder", f"data.root={videos}", "trainer.precision=32", f"hydra.run.dir={tmp_path / 'run'}")
    computed = []
    monkeypatch.setattr(onnx_encoder.OnnxEncoder, "forward", _counting(onnx_encoder.OnnxEncoder.forward, computed))
    done = train_py(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    in_training = len(computed)
    assert in_training == 2 * 7 - _num_test(tmp_path / "run")  # one call for each video of train and val
    results = {}
    for name, options in (("cached", ()), ("again", ()), ("without", ("--no-feature-cache",))):
        file = tmp_path / f"{name}.json"
        assert main(["evaluate", str(tmp_path / "run"), "--json", str(file), *options]) in (0, None)
        assert len(computed) == 2 * 7
        results[name] = json.loads(file.read_text())
    assert (
        results["cached"]["video_accuracy"]
        == results["again"]["video_accuracy"]
        == results["without"]["video_accuracy"]
    )
    assert results["cached"]["loss"] == results["again"]["loss"]
    assert results["cached"]["loss"] == pytest.approx(results["without"]["loss"], abs=1e-4)


def _counting(forward, calls):
    def counted(self, images_NCHW):
        calls.append(len(images_NCHW))
        return forward(self, images_NCHW)

    return counted


def _num_test(run):
    return sum(",test," in line for line in (run / "manifest.csv").read_text().splitlines())
