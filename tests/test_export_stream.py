"""The streaming form gives the probabilities of the model's own stream, frame by frame, and knows no other stream."""

import dataclasses
import itertools
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_continual import CLIP_FRAMES, SIZE, ready
from test_export import eco
from test_models import CONFIGS, NUM_CLASSES, small_c3d  # noqa: F401 # a fixture
from test_stream import CLIP, CPU, trained
from torch import nn

from stvid.clip import ClipSpec
from stvid.data.sampling import diff_frames
from stvid.deploy.stream import Stream
from stvid.errors import InputError
from stvid.export.form import Form, TensorSpec
from stvid.export.onnx_file import open_onnx, write_onnx
from stvid.export.stream_form import stream_form, stream_metadata, stream_states
from stvid.inference import ModelRunner
from stvid.models.base import VideoModel
from stvid.preprocess import Preprocess, as_input
from stvid.run.model import build_model

FPS = 20.0
FRAMES = 100
INPUTS = ("rgb", "diff", "rgb_diff")
POOLINGS = ("last", "mean", "max", "attention")
CASES = [*itertools.product(("lstm", "gru", "none"), POOLINGS)]


def recurrent_run(folder, *, recurrent="lstm", pooling="last", **changes):
    """A cnn_lstm whose probabilities change a lot from frame to frame."""
    run = trained(folder, dataclasses.replace(CLIP, **changes), recurrent=recurrent, pooling=pooling, num_layers=2)
    with torch.no_grad():
        run.model.head.weight.mul_(50)
    return dataclasses.replace(run, temperature=1.7)


def videos(number, num_frames, size=32):
    """Noise over patches that change with each frame, uint8 `B x T x size x size x 3`."""
    patches = torch.rand(number * num_frames, 3, 4, 4)
    patches = nn.functional.interpolate(patches, (size, size)).permute(0, 2, 3, 1).unflatten(0, (number, num_frames))
    return (patches * 255 * (0.7 + 0.3 * torch.rand_like(patches))).to(torch.uint8)


def pixels(form, clip, frames_BTHWC, t):
    """The form's inputs at frame t: a frame (or those until the call's last one), and the earlier ones."""
    period = form.inputs[0].shape[1] if form.inputs[0].name == "frames" else 1
    times = torch.arange(t, t + period)
    pictures = [frames_BTHWC[:, times], frames_BTHWC[:, (times - diff_frames(clip, FPS)).clamp(min=0)]]
    pictures = [x if form.inputs[0].name == "frames" else x[:, 0] for x in pictures]
    return pictures[: 1 if clip.input == "rgb" else 2]


def zero_states(form, batch):
    names = stream_states(form)
    return [spec.zeros(batch=batch) for spec in form.inputs if spec.name in names]


@torch.no_grad()
def play(form, clip, frames_BTHWC, run=None):
    """What the form (or `run` in its place) answers at each call: all outputs but the states, which are handed on."""
    states, answers, flags = zero_states(form, len(frames_BTHWC)), [], len(form.outputs) - len(stream_states(form))
    period = stream_metadata(form)["period"]
    for t in range(0, frames_BTHWC.shape[1] - period + 1, period):
        outputs = (run or form.module)(*pixels(form, clip, frames_BTHWC, t), *states)
        answers.append(outputs[:flags])
        states = outputs[flags:]
    return answers


@torch.no_grad()
def stream_of(run, frames_BTHWC):
    """Probabilities of `VideoModel.stream_step` after each frame, B x K or None."""
    clip, preprocess = run.clip, Preprocess(clip=run.clip)
    state, answers = run.model.start_stream(clip.num_frames), []
    for t in range(frames_BTHWC.shape[1]):
        now, before = (frames_BTHWC[:, i].permute(0, 3, 1, 2) for i in (t, max(t - diff_frames(clip, FPS), 0)))
        frame_BCHW = as_input(now if clip.input == "rgb" else torch.cat([before, now]), clip)
        logits, state = run.model.stream_step(preprocess(frame_BCHW[:, None])[:, :, 0], state)
        answers.append(None if logits is None else (logits / run.temperature).softmax(1))
    return answers


def onnx_runner(form, path):
    """`form.module` by onnxruntime, from a file."""
    import onnxruntime

    write_onnx(form, path, {})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in form.inputs]
    assert [x.name for x in session.get_inputs()] == names
    assert [x.name for x in session.get_outputs()] == [spec.name for spec in form.outputs]
    return lambda *inputs: tuple(
        map(torch.from_numpy, session.run(None, {n: np.asarray(x) for n, x in zip(names, inputs, strict=True)}))
    )


@pytest.mark.parametrize(("recurrent", "pooling"), CASES)
def test_every_frame_of_a_recurrent_model_has_the_answer_of_its_own_stream(tmp_path, recurrent, pooling):
    changes = {"input": INPUTS[CASES.index((recurrent, pooling)) % 3], "normalize": "fixed"}
    run = recurrent_run(tmp_path, recurrent=recurrent, pooling=pooling, **changes)
    form, frames = stream_form(run), videos(4, 40)
    wanted = stream_of(run, frames)
    for (actual,), expected in zip(play(form, run.clip, frames), wanted, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert (wanted[0] - wanted[-1]).abs().max() > 0.05
    alone = play(form, run.clip, frames[:1])
    torch.testing.assert_close(alone[-1][0], wanted[-1][:1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("recurrent", "pooling", "branches"), [("lstm", "last", 3), ("none", "mean", 1), ("gru", "max", 2)]
)
def test_what_stands_around_the_recurrent_layer_is_in_the_streaming_form(tmp_path, recurrent, pooling, branches):
    model = {"recurrent": recurrent, "pooling": pooling, "feature_norm": "batch", "projection": 6}
    model["branches"] = branches
    run = trained(tmp_path, dataclasses.replace(CLIP, input="rgb_diff", normalize="fixed"), **model)
    norm, linear, _ = run.model.frame_features.layers
    with torch.no_grad():
        norm.running_mean.uniform_(-0.1, 0.1)
        norm.running_var.uniform_(0.2, 1)
        linear.bias.uniform_(-0.1, 0.1)
        run.model.head.weight.mul_(5)
    form, frames = stream_form(run), videos(2, 12)
    wanted, run_onnx = stream_of(run, frames), onnx_runner(form, tmp_path / "model.onnx")
    assert (wanted[0] - wanted[-1]).abs().max() > 1e-3
    for answers in (play(form, run.clip, frames), play(form, run.clip, frames, run_onnx)):
        for (actual,), expected in zip(answers, wanted, strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sign", [-1, 1])
def test_attention_with_scores_that_overflow_and_underflow(tmp_path, sign):
    run = recurrent_run(tmp_path, recurrent="none", pooling="attention")
    with torch.no_grad():
        run.model.pooling.score.weight.copy_(sign * 1e4 * run.model.pooling.score.weight.abs())
    frames = videos(1, 10)
    for (actual,), expected in zip(play(stream_form(run), run.clip, frames), stream_of(run, frames), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def conv3d_run(folder, **changes):
    torch.manual_seed(0)
    clip = ClipSpec(**{"num_frames": CLIP_FRAMES, "frame_stride": 1, "size": SIZE, "normalize": "frame", **changes})
    model = build_model(CONFIGS["conv3d"], num_classes=3, in_channels=clip.channels, pretrained=False)
    model = ready(model, torch.randn(2, clip.channels, CLIP_FRAMES, SIZE, SIZE))
    with torch.no_grad():
        model.head.weight.mul_(20)
    return trained(folder, clip, model)


def assert_chunks_have_the_answers(actual, wanted, period, *, atol=1e-5):
    """A chunk has the stream's answer that comes within it; before the first one it is not valid and gives zeros."""
    assert any(valid.all() for _, valid in actual)
    for number, (probabilities, valid) in enumerate(actual):
        expected = next((x for x in wanted[number * period : (number + 1) * period] if x is not None), None)
        assert valid.tolist() == [[expected is not None]] * len(valid)
        expected = torch.zeros_like(probabilities) if expected is None else expected
        torch.testing.assert_close(probabilities, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("changes", [{}, {"input": "diff", "num_frames": None}, {"input": "rgb_diff"}])
def test_every_chunk_of_a_3d_network_has_the_answer_of_its_own_stream(tmp_path, changes):
    run = conv3d_run(tmp_path, **changes)
    form, frames = stream_form(run), videos(2, FRAMES, SIZE)
    record = stream_metadata(form)
    assert (record["period"], record["first"]) == (8, 17)
    assert_chunks_have_the_answers(play(form, run.clip, frames), stream_of(run, frames), 8)


def test_every_chunk_of_eco_has_the_answer_of_its_own_stream(tmp_path):
    clip = ClipSpec(num_frames=8, frame_stride=1, size=64, short="pad", input="rgb_diff", normalize="fixed")
    run = eco(tmp_path, clip)
    form, frames = stream_form(run), videos(2, 24, 64)
    period, wanted = stream_metadata(form)["period"], stream_of(run, frames)
    run_onnx = onnx_runner(form, tmp_path / "stream.onnx")
    for answers in (play(form, clip, frames), play(form, clip, frames, run_onnx)):
        assert_chunks_have_the_answers(answers, wanted, period, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"recurrent": "gru", "pooling": "attention", "input": "diff"}])
def test_the_declared_names_types_and_shapes_are_those_of_the_tensors(tmp_path, changes):
    for run in (recurrent_run(tmp_path, **changes), conv3d_run(tmp_path)):
        form = stream_form(run)
        outputs = form.module(*form.example)
        for spec, tensor in zip((*form.inputs, *form.outputs), (*form.example, *outputs), strict=True):
            assert (spec.dtype, spec.shape[1:]) == (tensor.dtype, tuple(tensor.shape[1:]))
            assert spec.shape[0] == "batch"
        assert not any(state.any() for state in zero_states(form, 2))


def test_onnxruntime_has_the_probabilities_of_the_deployed_stream(tmp_path):
    run = recurrent_run(tmp_path, pooling="attention", input="rgb_diff")
    form, frames = stream_form(run), videos(4, FRAMES)
    onnx = onnx_runner(form, tmp_path / "stream.onnx")
    for batch in (1, 4):
        streams = [Stream(run, fps=FPS, runner=ModelRunner(run, device=CPU)) for _ in range(batch)]
        for t, (actual,) in enumerate(play(form, run.clip, frames[:batch], onnx)):
            wanted = torch.stack([stream.push(frames[i, t].numpy()) for i, stream in enumerate(streams)])
            torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=0)


class MeanOfFrames(nn.Module):
    """torch's exporter names a value of the graph `mean`, like the state."""

    def forward(self, frames, mean):
        new = mean + frames.mean(dim=1)
        return new.softmax(dim=1), new


def test_a_value_of_the_graph_with_the_name_of_a_state_is_renamed(tmp_path):
    frames, mean = (
        TensorSpec(name, torch.float32, ("batch", *size)) for name, size in (("frames", (4, 3)), ("mean", (3,)))
    )
    outputs = (replace(mean, name="probabilities"), replace(mean, name="new_mean"))
    example = (torch.rand(2, 4, 3), torch.rand(2, 3))
    form = Form(module=MeanOfFrames().eval(), inputs=(frames, mean), outputs=outputs, example=example)
    write_onnx(form, tmp_path / "mean.onnx", {})
    for actual, expected in zip(open_onnx(tmp_path / "mean.onnx")(example), form.module(*example), strict=True):
        torch.testing.assert_close(actual, expected)


LARGE = pytest.mark.skipif("STVID_TEST_ALL" not in os.environ, reason="exports for minutes: only with STVID_TEST_ALL=1")


@LARGE
@pytest.mark.parametrize(("recurrent", "pooling"), CASES)
def test_onnx_of_every_recurrent_layer_and_pooling(tmp_path, recurrent, pooling):
    for kind in INPUTS:
        run = recurrent_run(tmp_path, recurrent=recurrent, pooling=pooling, input=kind)
        form, frames = stream_form(run), videos(4, FRAMES)
        onnx = onnx_runner(form, tmp_path / f"{kind}.onnx")
        wanted = stream_of(run, frames)
        for batch in (1, 4):
            for (actual,), expected in zip(play(form, run.clip, frames[:batch], onnx), wanted, strict=True):
                torch.testing.assert_close(actual, expected[:batch], atol=1e-4, rtol=0)


@LARGE
@pytest.mark.parametrize("name", sorted(set(CONFIGS) - {"cnn_lstm"}))
def test_onnx_of_every_3d_network(tmp_path, name, small_c3d):  # noqa: F811
    torch.manual_seed(0)
    run = trained(
        tmp_path,
        ClipSpec(num_frames=CLIP_FRAMES, frame_stride=1, size=SIZE, normalize="fixed"),
        ready(build_model(CONFIGS[name], num_classes=NUM_CLASSES, pretrained=False)),
    )
    form = stream_form(dataclasses.replace(run, class_names=tuple("abcde")))
    record = stream_metadata(form)
    frames = videos(4, max(FRAMES, record["first"] + 3 * record["period"]), SIZE)
    onnx, wanted = onnx_runner(form, tmp_path / "stream.onnx"), stream_of(run, frames)
    for batch in (1, 4):
        actual = play(form, run.clip, frames[:batch], onnx)
        expected = [x if x is None else x[:batch] for x in wanted]
        assert_chunks_have_the_answers(actual, expected, record["period"], atol=1e-4)


class WholeClips(VideoModel):
    """A user's own model without a stream."""

    def __init__(self):
        super().__init__()
        self.num_features, self.head = 3, nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: trained(folder, bidirectional=True), r"bidirectional.*train with\s+model\.bidirectional=false"),
        (lambda folder: conv3d_run(folder, normalize="clip"), r"clip\.normalize=clip.*normalize=frame or fixed"),
        (lambda folder: trained(folder, dataclasses.replace(CLIP, normalize="clip")), "not known"),
        (lambda folder: trained(folder, model=WholeClips()), "WholeClips has no step for one frame"),
    ],
)
def test_a_model_without_a_streaming_form_is_an_input_error_with_what_to_do(tmp_path, make, reason):
    with pytest.raises(InputError, match=reason) as caught:
        stream_form(make(tmp_path))
    assert "export the clip form" in str(caught.value)
