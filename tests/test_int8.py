"""An int8 file takes and gives what the float file does, and is kept only if it classifies about as well."""

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from stvid.errors import InputError
from stvid.export import int8
from stvid.export.clip_form import clip_form
from stvid.export.clips import read_clips
from stvid.export.metadata import metadata
from stvid.export.parity import original
from stvid.run.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def run(run_folder):
    return load_checkpoint(run_folder)


@pytest.fixture(scope="module")
def quantized(run, onnx_file, tmp_path_factory):
    """The run's int8 file, and what was found out about it."""
    path = tmp_path_factory.mktemp("int8") / "model.int8.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "write_onnx", lambda form, path, metadata: shutil.copy(onnx_file, path))
        return path, *int8.write_int8(run, clip_form(run), path, metadata(run), max_loss=0.5)


def test_inputs_outputs_and_metadata_are_those_of_the_clip_form(run, quantized):
    path, parity, found = quantized
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (frames,), (probabilities,) = session.get_inputs(), session.get_outputs()
    assert (frames.name, frames.type, frames.shape) == ("frames", "tensor(uint8)", ["batch", 4, 32, 32, 3])
    assert (probabilities.name, probabilities.type) == ("probabilities", "tensor(float)")
    assert json.loads(session.get_modelmeta().custom_metadata_map["stvid"])["class_names"] == ["to_left", "to_right"]
    assert parity.max_difference < 1e-4
    assert parity.milliseconds_file == found.milliseconds[0]  # the report has one time for the float file
    assert found.num_bytes[1] == path.stat().st_size < 0.5 * found.num_bytes[0]


def test_probabilities_are_near_those_of_the_model_and_not_the_same(run, quantized):
    clips = read_clips(run, "val", number=4, num_frames=4)
    expected = original(run, clips).numpy()
    session = onnxruntime.InferenceSession(quantized[0], providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {"frames": clips.permute(0, 1, 3, 4, 2).numpy()})
    difference = np.abs(actual - expected).max()
    assert 1e-6 < difference < 0.1


def test_each_channel_of_a_weight_is_rounded_to_seven_bits(run, quantized):
    graph = onnx.load(quantized[0]).graph
    stored = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    weights = [name for name, value in stored.items() if value.dtype == np.int8 and value.ndim == 5]
    assert len(weights) == 3  # of four convolutions, the first stays in float
    original_weights = {tuple(p.shape): p.detach().numpy() for p in run.model.parameters() if p.ndim == 5}
    node = {tensor: node for node in graph.node for tensor in node.input[:1]}
    for name in weights:
        scale = stored[node[name].input[1]].reshape(-1, 1, 1, 1, 1)
        assert np.abs(stored[name]).max() <= 64  # see `reduce_range`
        folded = stored[name] * scale
        weight = original_weights[folded.shape]  # times one factor per channel, by the batch norm behind it
        factor = (folded * weight).sum((1, 2, 3, 4)) / (weight**2).sum((1, 2, 3, 4))
        error = folded - weight * factor.reshape(-1, 1, 1, 1, 1)
        assert (np.abs(error) <= 0.51 * scale + 1e-3 * np.abs(folded).max()).all()


def test_the_accuracies_are_those_of_the_val_videos(run, quantized):
    """Those of `stvid evaluate`, which the run's own result holds."""
    found = quantized[2]
    result = json.loads((run.folder / "result.json").read_text())
    assert found.accuracy[0] == pytest.approx(result["video_accuracy"])
    assert found.num_videos == result["num_videos"]
    assert 0 <= found.accuracy[1] <= 1
    assert found.num_clips == int8.MAX_CLIPS


@pytest.fixture
def unquantized(onnx_file, monkeypatch):
    """Int8 files are copies of the float file, which takes no time."""
    monkeypatch.setattr(int8, "write_onnx", lambda form, path, metadata: shutil.copy(onnx_file, path))
    monkeypatch.setattr(int8, "quantize", lambda source, target, clips: shutil.copy(source, target))


@pytest.mark.usefixtures("unquantized")
def test_a_file_that_loses_accuracy_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "_accuracies", lambda *_: (8, (0.875, 0.75)))
    with pytest.raises(InputError, match=r"75.0% of 8 val videos correctly, the float file 87.5%; --max-loss allows"):
        int8.write_int8(run, clip_form(run), tmp_path / "model.onnx", metadata(run), max_loss=0.1)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("unquantized")
def test_a_loss_of_all_that_is_allowed_is_not_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "_accuracies", lambda *_: (100, (0.5, 0.49)))  # the difference is above 0.01 by rounding
    int8.write_int8(run, clip_form(run), tmp_path / "model.onnx", metadata(run), max_loss=0.01)
    assert (tmp_path / "model.onnx").is_file()


def test_without_training_clips_it_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "read_clips", lambda *_, **__: None)
    with pytest.raises(InputError, match="needs clips of the run's train split"):
        int8.write_int8(run, clip_form(run), tmp_path / "model.onnx", metadata(run), max_loss=0.1)
    assert not list(tmp_path.iterdir())


def test_the_first_layer_what_is_before_it_and_products_of_activations_stay_in_float():
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [1, 1], [1.0])
    nodes = [
        helper.make_node("Add", ["x", "x"], ["a"], name="preprocessing"),
        helper.make_node("MatMul", ["a", "weight"], ["b"], name="first layer"),
        helper.make_node("MatMul", ["b", "weight"], ["c"], name="second layer"),
        helper.make_node("MatMul", ["b", "c"], ["d"], name="attention"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in "xd")
    graph = helper.make_graph(nodes, "graph", [x], [y], [weight])
    assert int8._float_nodes(graph) == ["preprocessing", "first layer", "attention"]
