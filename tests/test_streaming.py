"""A stream says, frame by frame, what the model says of the whole video until then."""

import dataclasses

import numpy as np
import pytest
import torch

from stvid.clip import ClipSpec
from stvid.data.sampling import earlier_frames
from stvid.errors import InputError
from stvid.inference import ModelRunner
from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.conv3d import Conv3D
from stvid.preprocess import Preprocess, as_input
from stvid.recognizer import Stream
from stvid.run.checkpoint import TrainedModel
from stvid.video.types import VideoInfo

CPU = torch.device("cpu")
CLIP = ClipSpec(num_frames=None, frame_stride=1, size=32)
INFO = VideoInfo(num_frames=9, fps=20.0, duration=0.45, height=32, width=32, codec="x")


def trained(tmp_path, clip=CLIP, **options):
    torch.manual_seed(0)
    return TrainedModel(
        path=tmp_path / "x.ckpt",
        folder=tmp_path,
        model=CNNLSTM(num_classes=3, in_channels=clip.channels, **options).eval(),
        clip=clip,
        class_names=("a", "b", "c"),
        protocol={},
        config={"trainer": {"precision": "32-true"}},
        epoch=1,
    )


def test_a_stream_slower_than_the_clip_repeats_its_frames_as_a_video_would(tmp_path):
    run = trained(tmp_path, dataclasses.replace(CLIP, frame_stride=None, fps=30))
    video = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    stream = Stream(run, fps=15, runner=ModelRunner(run, device=CPU))
    for t in range(5):
        found = stream.push(video[t])
    with torch.no_grad():
        wanted = run.model(Preprocess(clip=run.clip)(video[None, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]]))[0].softmax(0)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"input": "rgb_diff"}, {"input": "diff", "normalize": "fixed"}])
@pytest.mark.parametrize("pooling", ["last", "attention"])
def test_every_answer_is_that_of_the_whole_video_until_then(tmp_path, changes, pooling):
    clip = dataclasses.replace(CLIP, **changes)
    run = trained(tmp_path, clip, pooling=pooling)
    video = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8)
    stream = Stream(run, fps=20, runner=ModelRunner(run, device=CPU))
    for t in range(9):
        found = stream.push(video[t])
        frames = list(range(t + 1))
        whole = as_input(video[earlier_frames(frames, frames, clip, INFO) + frames], clip)
        with torch.no_grad():
            wanted = run.model(Preprocess(clip=clip)(whole[None]))[0].softmax(0)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_only_the_frames_that_the_clip_takes_go_through_the_model(tmp_path):
    run = trained(tmp_path, dataclasses.replace(CLIP, frame_stride=None, fps=10))
    stream = Stream(run, fps=25, runner=ModelRunner(run, device=CPU))
    seen, step = [], run.model.stream_step
    run.model.stream_step = lambda frame, state: seen.append(stream.num_frames - 1) or step(frame, state)
    for _ in range(12):
        stream.push(torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8))
    assert seen == [0, 2, 5, 7, 10]


def test_models_that_cannot_stream_are_refused(tmp_path):
    with pytest.raises(InputError, match="bidirectional"):
        Stream(trained(tmp_path, bidirectional=True), fps=20)
    with pytest.raises(InputError, match="clip.normalize=clip"):
        Stream(trained(tmp_path, dataclasses.replace(CLIP, normalize="clip")), fps=20)
    with pytest.raises(InputError, match="Conv3D cannot predict frame by frame"):
        Stream(dataclasses.replace(trained(tmp_path), model=Conv3D(num_classes=3)), fps=20)


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
