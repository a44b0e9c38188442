"""A recognizer predicts what the evaluation computed, without side effects; a stream, what the whole video gives."""

import csv
import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, moving_square

import stvid
from stvid.clip import ClipSpec
from stvid.data.sampling import earlier_frames
from stvid.errors import InputError, VideoError
from stvid.inference import ModelRunner
from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.conv3d import Conv3D
from stvid.preprocess import Preprocess, as_input
from stvid.recognizer import Recognizer, Stream
from stvid.run.checkpoint import TrainedModel
from stvid.video.types import VideoInfo
from stvid.video.writer import write_video

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


@pytest.fixture(scope="module")
def recognizer(run_folder):
    return stvid.load(run_folder, device="cpu")


def val_rows(run_folder):
    with (run_folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_are_those_of_the_evaluation(recognizer, run_folder):
    for row in val_rows(run_folder):
        prediction = recognizer.predict(row["path"])
        expected = [float(row[f"p_{name}"]) for name in recognizer.class_names]
        np.testing.assert_allclose(prediction.probabilities, expected, atol=1e-5)
        assert prediction.label == row["predicted"]
        assert prediction.path == row["path"]


def test_frames_in_memory_give_the_prediction_of_their_file_but_for_the_reader_shrinking_in_yuv(recognizer, run_folder):
    path = val_rows(run_folder)[0]["path"]
    frames_TCHW = stvid.read_frames(path, range(stvid.probe(path).num_frames))
    from_tensor = recognizer.predict(frames_TCHW)
    from_array = recognizer.predict(frames_TCHW.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(from_tensor.probabilities, from_array.probabilities)
    np.testing.assert_allclose(from_tensor.probabilities, recognizer.predict(path).probabilities, atol=0.05)
    assert from_tensor.path is None


def test_a_prediction_is_readable(recognizer, run_folder):
    prediction = recognizer.predict(val_rows(run_folder)[0]["path"])
    (first, best), (second, _) = prediction.top(2)
    assert prediction.label == first
    assert prediction.probability == best
    assert prediction.top(99) == prediction.top(2)
    assert f"{first} {best:.3f}, {second} " in repr(prediction)
    assert "Conv3D, 2 classes, on cpu" in repr(recognizer)


def test_what_cannot_be_predicted_is_refused(recognizer, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(VideoError, match="unreadable"):
        recognizer.predict(broken)
    with pytest.raises(VideoError, match="missing"):
        recognizer.predict(tmp_path / "absent.mp4")
    with pytest.raises(InputError, match=r"uint8 array T x H x W x 3.*got ndarray float64 \(2, 8, 8, 3\)"):
        recognizer.predict(np.zeros((2, 8, 8, 3)))
    with pytest.raises(InputError, match="no pixels"):
        recognizer.predict(np.zeros((0, 8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="num_crops"):
        recognizer.predict(np.zeros((20, 8, 8, 3), np.uint8), num_crops=2)
    with pytest.raises(InputError, match="Conv3D cannot predict frame by frame"):
        recognizer.stream(fps=25)


def test_frames_need_a_rate_where_clips_depend_on_time(tmp_path):
    run = trained(tmp_path, dataclasses.replace(CLIP, num_frames=4, frame_stride=None, fps=10))
    config = {**run.config, "data": {"datamodule": {"batch_size": 4}}}
    run = dataclasses.replace(run, config=config, protocol={"num_clips": 1, "num_crops": 1})
    frames = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    with pytest.raises(InputError, match="fps=25"):
        Recognizer(run, device="cpu").predict(frames)
    every_third = Recognizer(run, device="cpu").predict(frames, fps=30)
    with torch.no_grad():
        middle = torch.from_numpy(frames[10:20:3]).permute(0, 3, 1, 2)[None]
        expected = run.model(Preprocess(clip=run.clip)(middle))[0].softmax(0)
    np.testing.assert_allclose(every_third.probabilities, expected, atol=1e-5)


def long_video(path):
    frames = [moving_square(to_right=i % 2 == 0, seed=5, num_frames=24) for i in range(3)]
    write_video(path, np.concatenate(frames), fps=12)
    return path


def test_windows_are_predictions_of_parts_of_a_video(recognizer, tmp_path):
    path = long_video(tmp_path / "long.mp4")
    found = list(recognizer.windows(path, window=1.0, hop=0.5))
    assert [window.start for window in found] == [0.5 * i for i in range(11)]
    for window in found:
        first, last = round(window.start * 12), round(window.end * 12)
        expected = recognizer.predict(stvid.read_frames(path, range(first, last))).probabilities
        np.testing.assert_allclose(window.probabilities_K, expected, atol=1e-5)


def test_segments_cover_a_video_and_name_classes_of_the_model(recognizer, tmp_path):
    segments = recognizer.segments(long_video(tmp_path / "long.mp4"))
    assert (segments[0].start, segments[-1].end) == (0.0, 6.0)
    assert {segment.label for segment in segments} <= {*recognizer.class_names, "unknown"}
    (whole,) = recognizer.segments(tmp_path / "long.mp4", min_duration=99)
    assert (whole.start, whole.end) == (0.0, 6.0)


def test_the_threshold_of_the_calibration_is_used_unless_another_is_given(recognizer, tmp_path):
    path = long_video(tmp_path / "long.mp4")
    calibrated = Recognizer(dataclasses.replace(recognizer.trained, threshold=1.0), device="cpu")
    assert [segment.label for segment in calibrated.segments(path)] == ["unknown"]
    assert calibrated.segments(path, threshold=0.5) == recognizer.segments(path)
    for options in ({"threshold": 0.0}, {"threshold": 1.5}, {"min_duration": -1.0}, {"hop": -1.0}):
        with pytest.raises(InputError, match=next(iter(options))):
            recognizer.segments(path, **options)


SIDE_EFFECTS = """
import sys, warnings
import torch, av, numpy
threads, filters = torch.get_num_threads(), list(warnings.filters)
import stvid
recognizer = stvid.load(sys.argv[1], device="cpu")
recognizer.predict(sys.argv[2])
recognizer.segments(sys.argv[2])
assert torch.get_num_threads() == threads, "the number of threads"
assert list(warnings.filters) == filters, "the filters of warnings"
heavy = ("pytorch_lightning", "hydra", "omegaconf", "matplotlib", "tensorboard", "torchvision", "torchmetrics", "h5py")
print([name for name in heavy if name in sys.modules])
"""


def test_loading_and_predicting_has_no_side_effects_and_imports_nothing_large(run_folder):
    command = [sys.executable, "-c", SIDE_EFFECTS, str(run_folder), val_rows(run_folder)[0]["path"]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_there_and_cost_nothing_until_they_are_used():
    assert set(stvid.__all__) <= set(dir(stvid))
    for name in stvid.__all__:
        assert getattr(stvid, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        stvid.nothing  # noqa: B018
    code = "import stvid, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "False\n"
