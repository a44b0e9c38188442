"""A recognizer predicts what the evaluation computed, without side effects."""

import csv
import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, moving_square
from test_stream import CLIP, trained

import stvid
from stvid.errors import InputError, VideoError
from stvid.preprocess import Preprocess
from stvid.recognizer import Recognizer
from stvid.video.writer import write_video


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
