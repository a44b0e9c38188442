"""A stream: after each frame, what the whole video until then gives, or the last frames as a video of their own."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from torch import nn

from stvid.clip import ClipSpec
from stvid.data.sampling import earlier_frames
from stvid.deploy.stream import Stream, step_together
from stvid.errors import InputError
from stvid.inference import ModelRunner
from stvid.models.base import VideoModel
from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.conv3d import Conv3D
from stvid.models.recurrent import Recurrent
from stvid.preprocess import Preprocess, as_input
from stvid.recognizer import Recognizer
from stvid.run.checkpoint import TrainedModel
from stvid.video.types import VideoInfo

CPU = torch.device("cpu")
CLIP = ClipSpec(num_frames=None, frame_stride=1, size=32)
INFO = VideoInfo(num_frames=9, fps=20.0, duration=0.45, height=32, width=32, codec="x")


def trained(tmp_path, clip=CLIP, model=None, **options):
    """A run of a cnn_lstm with these options, or of another model."""
    torch.manual_seed(0)
    return TrainedModel(
        path=tmp_path / "x.ckpt",
        folder=tmp_path,
        model=(model or CNNLSTM(num_classes=3, in_channels=clip.channels, **options)).eval(),
        clip=clip,
        class_names=("a", "b", "c"),
        protocol={"num_clips": 1, "num_crops": 1},
        config={"trainer": {"precision": "32-true"}, "data": {"datamodule": {"batch_size": 4}}},
        epoch=1,
    )


def test_a_stream_slower_than_the_clip_repeats_its_frames_as_a_video_would(tmp_path):
    run = trained(tmp_path, dataclasses.replace(CLIP, frame_stride=None, fps=30))
    video = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    stream = Stream(run, fps=15, runner=ModelRunner(run, device=CPU))
    for t in range(5):
        actual = stream.push(video[t])
    with torch.no_grad():
        wanted = run.model(Preprocess(clip=run.clip)(video[None, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]]))[0].softmax(0)
    torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"input": "rgb_diff"}, {"input": "diff", "normalize": "fixed"}])
@pytest.mark.parametrize("pooling", ["last", "attention"])
def test_every_answer_is_that_of_the_whole_video_until_then(tmp_path, changes, pooling):
    clip = dataclasses.replace(CLIP, **changes)
    run = trained(tmp_path, clip, pooling=pooling)
    video = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8)
    stream = Stream(run, fps=20, runner=ModelRunner(run, device=CPU))
    for t in range(9):
        actual = stream.push(video[t])
        frames = list(range(t + 1))
        whole = as_input(video[earlier_frames(frames, frames, clip, INFO) + frames], clip)
        with torch.no_grad():
            wanted = run.model(Preprocess(clip=clip)(whole[None]))[0].softmax(0)
        torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-5)


def test_only_the_frames_that_the_clip_takes_go_through_the_model(tmp_path):
    run = trained(tmp_path, dataclasses.replace(CLIP, frame_stride=None, fps=10))
    stream = Stream(run, fps=25, runner=ModelRunner(run, device=CPU))
    seen, step = [], run.model.stream_step
    run.model.stream_step = lambda frame, state: seen.append(stream.num_frames - 1) or step(frame, state)
    for _ in range(12):
        stream.push(torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8))
    assert seen == [0, 2, 5, 7, 10]


def test_a_frame_that_is_neither_array_nor_tensor_is_refused_with_what_was_found(tmp_path):
    stream = Stream(trained(tmp_path), fps=20)
    for frame in (np.zeros((3, 40, 60), np.uint8), torch.zeros(3, 40, 60), torch.zeros(40, 60, 3, dtype=torch.uint8)):
        with pytest.raises(InputError, match="uint8 array H x W x 3 or a uint8 tensor 3 x H x W, RGB; got"):
            stream.push(frame)


def test_an_array_and_a_tensor_of_the_same_frame_give_the_same_probabilities(tmp_path):
    run = trained(tmp_path)
    frame = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    from_array = Stream(run, fps=20).push(frame)
    assert torch.equal(from_array, Stream(run, fps=20).push(torch.from_numpy(frame).permute(2, 0, 1)))


def video_of(num_frames, height=40, width=60):
    return torch.randint(0, 256, (num_frames, 3, height, width), dtype=torch.uint8)


def small_conv3d(**options):
    return Conv3D(num_classes=3, widths=[8, 8], strides=[[1, 2, 2], [2, 2, 2]], **options)


class OfAUser(VideoModel):
    """Defines what it must, and no streaming."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Conv3d(3, 4, (3, 3, 3), stride=(2, 4, 4))
        self.num_features, self.head = 4, nn.Linear(4, 3)

    def forward_features(self, clips_BCTHW, lengths_B=None):
        return self.layers(clips_BCTHW).relu().mean(dim=(2, 3, 4))


def test_the_answers_of_a_3d_network_are_those_of_the_video_without_padding_in_time(tmp_path):
    clip = dataclasses.replace(CLIP, num_frames=8, frame_stride=2)
    run = trained(tmp_path, clip, small_conv3d())
    video = video_of(23, 32, 32)
    stream = Stream(run, fps=20, runner=ModelRunner(run, device=CPU))
    answers = [stream.push(frame) for frame in video]
    assert (stream.mode, stream.first, stream.hop) == ("continual convolution", 9, None)
    x = Preprocess(clip=clip)(video[None, ::2])
    with torch.no_grad():
        for conv, norm, relu in run.model.layers:
            padded = nn.functional.pad(x, (1, 1, 1, 1))
            x = relu(norm(nn.functional.conv3d(padded, conv.weight, stride=conv.stride)))
        steps = x.mean(dim=(3, 4))
        wanted = [run.model.head(steps[:, :, max(j - 4, 0) : j].mean(dim=2))[0].softmax(0) for j in range(1, 5)]
    assert answers[:8] == [None] * 8  # the fifth frame of the clip is number 8
    for t, answer in enumerate(answers[8:], start=8):
        torch.testing.assert_close(answer, wanted[(t // 2 - 4) // 2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("source", ["bidirectional", "normalize", "user", "hop"])
def test_other_models_read_windows_that_are_predicted_as_videos_of_their_own(tmp_path, source):
    clip = dataclasses.replace(
        CLIP, num_frames=4, frame_stride=3, normalize="clip" if source == "normalize" else "frame"
    )
    model = {"bidirectional": None, "normalize": small_conv3d(), "user": OfAUser(), "hop": small_conv3d()}[source]
    options = {} if model else {"bidirectional": True}
    recognizer = Recognizer(trained(tmp_path, clip, model, **options), device="cpu")
    stream = recognizer.stream(20, hop=3 if source == "hop" else None)
    assert (stream.mode, stream.first, stream.hop) == ("windows", 10, 3 if source == "hop" else 2)
    video = video_of(20)
    answers = [stream.push(frame) for frame in video]
    assert answers[:9] == [None] * 9
    for t in range(9, 20):
        latest = t - (t - 9) % stream.hop
        wanted = recognizer.predict(video[latest - 9 : latest + 1], fps=20, num_clips=1)
        np.testing.assert_allclose(answers[t], wanted.probabilities, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "fps", "span"),
    [
        ({"input": "rgb_diff"}, 20, 10),
        ({"frame_stride": None, "fps": 8}, 25, 10),  # every 3.125th frame
        ({"frame_stride": None, "fps": 30}, 10, 2),  # every frame three times
        ({"frame_stride": None, "fps": 10, "input": "diff"}, 25, 8),
    ],
)
def test_windows_take_the_frames_of_the_evaluation(tmp_path, changes, fps, span):
    clip = dataclasses.replace(CLIP, **{"num_frames": 4, "frame_stride": 3, **changes})
    recognizer = Recognizer(trained(tmp_path, clip, bidirectional=True), device="cpu")
    stream = recognizer.stream(fps, hop=1)
    assert stream.first == span
    video = video_of(span + 3)
    for t in range(span + 3):
        answer = stream.push(video[t])
        if t >= span - 1:
            wanted = recognizer.predict(video[t + 1 - span : t + 1], fps=fps, num_clips=1)
            np.testing.assert_allclose(answer, wanted.probabilities, atol=1e-6)


@pytest.mark.parametrize("mode", ["carried state", "continual convolution", "windows"])
def test_a_stream_that_is_started_anew_gives_the_answers_of_a_new_one(tmp_path, mode, monkeypatch):
    clip = dataclasses.replace(CLIP, num_frames=4, frame_stride=2, input="rgb_diff")
    model = small_conv3d(in_channels=clip.channels) if mode == "continual convolution" else None
    run = trained(tmp_path, clip, model, **({} if model else {"bidirectional": mode == "windows"}))
    runner, video, prepared = ModelRunner(run, device=CPU), video_of(26), []
    fresh = Stream(run, fps=20, runner=runner)
    wanted = [fresh.push(frame) for frame in video[10:]]
    stream = Stream(run, fps=20, runner=runner)
    monkeypatch.setattr(run.model, "start_stream", prepared.append)  # the network is not prepared again
    for frame in video[:10]:
        stream.push(frame)
    stream.restart()
    answers = [stream.push(frame) for frame in video[10:]]
    assert stream.mode == mode
    assert (stream.num_frames, prepared) == (16, [])
    assert [answer is None for answer in answers] == [answer is None for answer in wanted]
    assert all(torch.equal(a, b) for a, b in zip(answers, wanted, strict=True) if a is not None)
    assert answers[-1] is not None


SHARED = {  # options of a cnn_lstm, how many of three streams that begin at frames 0, 3 and 12 share a forward pass
    "lstm, attention": ({"pooling": "attention", "num_layers": 2}, 3),
    "gru, mean": ({"recurrent": "gru", "pooling": "mean"}, 3),
    "no recurrent layer, max": ({"recurrent": "none", "pooling": "max"}, 3),
    "feature norm and projection": ({"feature_norm": "batch", "projection": 6}, 3),
    "bidirectional": ({"bidirectional": True}, 3),
    "conv3d": (None, 2),  # every second frame has more steps than the others
    "conv3d of whole videos": (None, 1),  # each answer is the mean of another number of steps
    "of a user": (None, 1),
}


@pytest.mark.parametrize("kind", SHARED)
def test_streams_that_share_forward_passes_have_the_answers_of_each_alone(tmp_path, kind):
    options, largest = SHARED[kind]
    whole = options is None and "whole" in kind
    clip = dataclasses.replace(CLIP, num_frames=None if whole else 4, input="rgb_diff" if options else "rgb")
    model = None if options else Alone() if kind == "of a user" else small_conv3d()
    run = trained(tmp_path, clip, model, **(options or {}))
    runner = ModelRunner(run, device=CPU)
    videos = [video_of(40 - start, 30 + start, 50) for start in (0, 3, 12)]
    wanted = []
    for video in videos:
        stream = Stream(run, fps=20, runner=runner)
        wanted.append([stream.push(frame) for frame in video])
    start = functools.cache(runner.start_stream)
    streams = [Stream(run, fps=20, runner=runner, start=start) for _ in videos]
    passes = []
    run.model.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0])))
    step = run.model.stream_step
    run.model.stream_step = lambda frame, state: passes.append(len(frame)) or step(frame, state)
    for t in range(40):
        there = [i for i, video in enumerate(videos) if t >= 40 - len(video)]
        inputs = [streams[i].add(streams[i].prepare(videos[i][t - 40 + len(videos[i])])) for i in there]
        for i, answer in zip(there, step_together([(streams[i], inputs[n]) for n, i in enumerate(there)]), strict=True):
            alone = wanted[i][streams[i].num_frames - 1]
            assert (answer is None) == (alone is None)
            if answer is not None:
                torch.testing.assert_close(answer, alone, atol=1e-5, rtol=0)
    assert sum(passes) == sum(map(len, videos)) - (3 * 3 if streams[0].mode == "windows" else 0)
    assert max(passes) == largest


class Alone(CNNLSTM):
    """A user's model that reads streams, and does not say how they could share a step."""

    def __init__(self):
        super().__init__(num_classes=3)

    stream_key, stack_states, split_states = VideoModel.stream_key, VideoModel.stack_states, VideoModel.split_states


def test_what_cannot_be_a_stream_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"this CNNLSTM reads whole videos .*clip.num_frames=null.*bidirectional=false"
    ):
        Stream(trained(tmp_path, bidirectional=True), fps=20)
    run = trained(tmp_path)
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"fps \(=.*\) must be above 0"):
            Stream(run, fps=fps)
    with pytest.raises(InputError, match=r"hop \(=0\) must be at least 1 frame"):
        Stream(run, fps=20, hop=0)


def test_a_new_stream_has_the_present_weights(tmp_path):
    run, video = trained(tmp_path, CLIP, small_conv3d()), video_of(40)
    runner = ModelRunner(run, device=CPU)

    def last_answer(runner):
        stream = Stream(run, fps=20, runner=runner)
        return [stream.push(frame) for frame in video][-1]

    before = last_answer(runner)
    with torch.no_grad():
        for weight in run.model.parameters():
            weight.mul_(1.5)
    after = last_answer(runner)
    torch.testing.assert_close(after, last_answer(ModelRunner(run, device=CPU)))
    assert not torch.allclose(before, after, atol=1e-4)


@pytest.mark.parametrize("recurrent", ["lstm", "gru"])
def test_the_states_of_a_batch_are_divided_into_contiguous_ones(recurrent):
    """cuDNN refuses others: "rnn: hx is not contiguous"; a CPU takes them."""
    layers = Recurrent(recurrent, input_size=4, hidden_size=6, num_layers=2)
    _, state = layers.step(torch.rand(3, 4), None)
    for alone in layers.split(state):
        assert all(part.is_contiguous() for part in (alone if recurrent == "lstm" else [alone]))


def test_damaged_weights_are_told(tmp_path):
    run = trained(tmp_path)
    assert (Stream(run, fps=20).mode, Stream(run, fps=20).first) == ("carried state", 1)
    nn.init.constant_(run.model.head.bias, float("nan"))
    with pytest.raises(InputError, match="outputs are not finite"):
        Stream(run, fps=20).push(video_of(1)[0])
