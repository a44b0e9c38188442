"""The windows of a video are what `Recognizer.predict` says of their frames alone; the video is read once."""

import dataclasses
import threading

import numpy as np
import pytest
import torch
from numbered import write_video
from PIL import Image

from stvid.clip import ClipSpec
from stvid.data import sampling
from stvid.data.manifest import Item
from stvid.deploy import windows
from stvid.deploy.window_plan import plan_windows
from stvid.deploy.windows import VideoViews, classify_windows, read_ahead
from stvid.errors import InputError, VideoError
from stvid.inference import ModelRunner, classify
from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.conv3d import Conv3D
from stvid.recognizer import Recognizer
from stvid.run.checkpoint import TrainedModel
from stvid.video import playback
from stvid.video.probe import probe
from stvid.video.reader import read_frames

CPU = torch.device("cpu")
CLIP = ClipSpec(num_frames=8, frame_stride=2, size=32)
BY_TIME = {"frame_stride": None, "fps": 12}
UNEVEN = [40 * i + (25 if i % 3 else 0) + 300 * (i >= 30) for i in range(60)]  # ms


def trained(tmp_path, clip=CLIP, model=Conv3D, num_clips=1, num_crops=1):
    torch.manual_seed(0)
    network = model(num_classes=3, in_channels=clip.channels).eval()
    for parameter in network.parameters():  # so that the probabilities of windows differ
        parameter.data *= 1.5
    return TrainedModel(
        path=tmp_path / "x.ckpt",
        folder=tmp_path,
        model=network,
        clip=clip,
        class_names=("a", "b", "c"),
        protocol={"num_clips": num_clips, "num_crops": num_crops},
        config={"trainer": {"precision": "32-true"}, "data": {"datamodule": {"batch_size": 3}}},
        epoch=1,
    )


def predicted_by_hand(run, path, plan, **options):
    """`Recognizer.predict` of the frames of each window, cut out of the video with `read_frames`."""
    recognizer = Recognizer(run, device="cpu")
    for start in plan.starts:
        frames = read_frames(path, plan.frames[start : start + plan.length], info=plan.info)
        yield recognizer.predict(frames, fps=plan.fps, **options).probabilities


@pytest.mark.parametrize("model", [Conv3D, CNNLSTM])
@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        ({"input": "diff", "normalize": "fixed"}, {}),
        ({"input": "rgb_diff", **BY_TIME}, {}),
        (BY_TIME, {"times": UNEVEN}),
        ({}, {"times": UNEVEN}),
        ({}, {"times": [5000 + 40 * i for i in range(60)]}),
    ],
    ids=["rgb", "diff", "rgb_diff by time", "uneven by time", "uneven", "late start"],
)
def test_windows_are_the_predictions_of_their_frames_cut_out_by_hand(tmp_path, model, changes, options):
    run = trained(tmp_path, dataclasses.replace(CLIP, **changes), model)
    path = write_video(tmp_path / "video.mkv", **options)
    plan = plan_windows(run, probe(path), path=path)
    actual = [window.probabilities_K for window in classify_windows(run, path)]
    np.testing.assert_allclose(actual, list(predicted_by_hand(run, path, plan)), atol=1e-5)
    assert np.ptp(actual, axis=0).max() > 0.01, "the windows must differ, or this test shows nothing"


def test_a_window_of_difference_images_is_the_evaluation_of_that_part_of_an_uneven_file(tmp_path):
    run = trained(tmp_path, dataclasses.replace(CLIP, input="diff"))
    path = write_video(tmp_path / "video.mkv", times=UNEVEN, size=(32, 32))  # the evaluation's reader shrinks nothing
    found = list(classify_windows(run, path))
    items = [Item(path=str(path), label="", split="test", start=w.start, end=w.end) for w in found]
    expected = classify(run, items, num_workers=0, device=CPU, progress=False).probabilities_NK
    np.testing.assert_allclose([window.probabilities_K for window in found], expected, atol=1e-5)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts", ".avi"])
def test_times_are_those_of_the_files_own_clock(tmp_path, suffix):
    import av

    times = [5000 + 40 * i for i in range(60)]
    path = write_video(tmp_path / f"video{suffix}", **({} if suffix == ".avi" else {"times": times}))
    with av.open(str(path)) as container:
        stamps = [frame.time for frame in container.decode(video=0)]
    run = trained(tmp_path)
    found = list(classify_windows(run, path))
    for start, window in zip([0, 3, 6], found[:3], strict=True):  # a clip spans 15 frames, a hop a quarter of them
        assert window.start == pytest.approx(stamps[start], abs=1e-3)
        assert window.end == pytest.approx(stamps[start + 15], abs=1e-3)
    assert found[-1].end == pytest.approx(stamps[-1] + 0.04, abs=2e-3)


def test_windows_start_every_hop_and_the_last_one_ends_with_the_video(tmp_path):
    path = write_video(tmp_path / "video.mp4")
    run = trained(tmp_path)
    info = probe(path)
    assert plan_windows(run, info, path=path).starts == [*range(0, 46, 3)]  # span 15 of 60 frames, a hop of 15 // 4
    plan = plan_windows(run, info, path=path, window=1.0, hop=0.4)
    assert (plan.length, plan.starts) == (25, [0, 10, 20, 30, 35])


@pytest.mark.parametrize("num_crops", [1, 3])
def test_longer_windows_take_as_many_clips_as_the_evaluation_of_their_frames(tmp_path, num_crops):
    run = trained(tmp_path, num_clips=3, num_crops=num_crops)
    path = write_video(tmp_path / "video.mp4")
    plan = plan_windows(run, probe(path), path=path, window=0.8)
    assert plan.num_clips == 3
    actual = [window.probabilities_K for window in classify_windows(run, path, window=0.8)]
    np.testing.assert_allclose(actual, list(predicted_by_hand(run, path, plan)), atol=1e-5)


def test_a_model_of_whole_videos_needs_a_window_and_then_sees_all_of_it(tmp_path):
    run = trained(tmp_path, dataclasses.replace(CLIP, num_frames=None), CNNLSTM)
    path = write_video(tmp_path / "video.mp4")
    with pytest.raises(InputError, match="--window SECONDS"):
        next(classify_windows(run, path))
    plan = plan_windows(run, probe(path), path=path, window=0.8)
    actual = [window.probabilities_K for window in classify_windows(run, path, window=0.8)]
    np.testing.assert_allclose(actual, list(predicted_by_hand(run, path, plan)), atol=1e-5)


@pytest.mark.parametrize("short", ["repeat_last", "wrap", "pad"])
def test_a_video_shorter_than_a_clip_is_one_window_under_the_short_policy(tmp_path, short):
    run = trained(tmp_path, dataclasses.replace(CLIP, short=short))
    path = write_video(tmp_path / "video.mp4", num_frames=6)
    (window,) = classify_windows(run, path)
    expected = Recognizer(run, device="cpu").predict(read_frames(path, range(6))).probabilities
    np.testing.assert_allclose(window.probabilities_K, expected, atol=1e-5)
    assert (window.start, window.end) == (0, pytest.approx(6 / 25))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"window": 0.1}, "window (=0.1) is shorter than a clip of this model, which spans 0.6 s"),
        ({}, {"hop": 0.7}, "hop (=0.7) is longer than a window, which is 0.6 s"),
        ({}, {"hop": 0.0}, "hop (=0.0) must be above 0"),
        ({"num_frames": 99, "short": "error"}, {}, "has 60 frames, a clip spans 197, and clip.short=error"),
    ],
)
def test_impossible_windows_are_refused(tmp_path, changes, options, message):
    path = write_video(tmp_path / "video.mp4")
    run = trained(tmp_path, dataclasses.replace(CLIP, **changes))
    with pytest.raises(InputError) as error:
        classify_windows(run, path, **options)  # at the call, not when the first window is taken
    assert message in str(error.value)


@pytest.mark.parametrize("num_crops", [1, 3])
def test_the_views_of_the_evaluation_come_from_the_same_pass(tmp_path, num_crops, monkeypatch):
    run = trained(tmp_path, num_clips=2, num_crops=num_crops)
    path = write_video(tmp_path / "video.mp4", bframes=2)
    info = probe(path)
    views = VideoViews(run, info)
    frames, decode = [], playback.decode
    monkeypatch.setattr(playback, "decode", lambda *args: (frames.append(1) or frame for frame in decode(*args)))
    list(classify_windows(run, path, info=info, views=views))
    assert len(frames) == info.num_frames
    expected = classify(run, [Item(path=str(path), label="", split="test")], num_workers=0, device=CPU, progress=False)
    actual = views.classify(ModelRunner(run, device=CPU))
    np.testing.assert_allclose(actual, expected.probabilities_NK[0], atol=1e-5)


def test_a_folder_of_images_is_a_video(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (20, 40, 60, 3), dtype=np.uint8)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{i}.png")
    run = trained(tmp_path)
    plan = plan_windows(run, probe(folder), path=folder)
    actual = [window.probabilities_K for window in classify_windows(run, folder)]
    np.testing.assert_allclose(actual, list(predicted_by_hand(run, folder, plan)), atol=1e-5)


def test_of_a_video_that_breaks_the_windows_before_come_first(tmp_path):
    path = write_video(tmp_path / "video.mp4")
    run = trained(tmp_path)
    info = dataclasses.replace(probe(path), num_frames=90)  # as if 30 frames could not be decoded
    found = []
    with pytest.raises(VideoError, match="ends after 60"):
        found.extend(iter_into(found, classify_windows(run, path, info=info)))
    assert found[-1].end == pytest.approx(60 / 25)
    expected = list(classify_windows(run, path))
    np.testing.assert_allclose(
        [window.probabilities_K for window in found], [window.probabilities_K for window in expected], atol=1e-6
    )


def iter_into(found, items):
    for item in items:
        found.append(item)
    return []


def test_only_needed_frames_are_converted_and_each_once(tmp_path, monkeypatch):
    seen = []
    resize = windows.crop_and_resize
    monkeypatch.setattr(windows, "crop_and_resize", lambda *args, **more: seen.append(1) or resize(*args, **more))
    run = trained(tmp_path)
    path = write_video(tmp_path / "video.mp4")
    list(classify_windows(run, path, hop=4 / 25))
    assert len(seen) == 30 + 8  # all even frames, and the odd ones of the last window, which starts at 45
    plan = plan_windows(run, probe(path), path=path, hop=4 / 25)
    wanted = {frame for start in plan.starts for clip in plan.clips(start) for frame in clip}
    assert len(seen) == len(wanted)


def test_no_more_frames_are_kept_than_two_windows_have(tmp_path, monkeypatch):
    path = write_video(tmp_path / "video.mp4")
    run = trained(tmp_path)
    sizes = []
    make_views = windows.make_views
    monkeypatch.setattr(
        windows, "make_views", lambda c, ring, clip: sizes.append(len(ring)) or make_views(c, ring, clip)
    )
    list(classify_windows(run, path))
    assert max(sizes) <= 15  # a clip spans 15 frames


def test_whoever_stops_early_leaves_no_thread(tmp_path):
    path = write_video(tmp_path / "video.mp4")
    before = threading.active_count()
    found = classify_windows(trained(tmp_path), path)
    next(found)
    found.close()
    assert threading.active_count() == before


def test_reading_ahead_is_bounded_and_hands_errors_over():
    begun = []

    def items():
        for i in range(1000):
            begun.append(i)
            yield i

    reading = read_ahead(items, size=4)
    assert next(reading) == 0
    reading.close()
    assert len(begun) < 20

    def broken():
        yield 1
        raise ValueError("broken")

    reading = read_ahead(broken, size=4)
    assert next(reading) == 1
    with pytest.raises(ValueError, match="broken"):
        next(reading)


def test_the_timeline_of_an_uneven_file_is_in_seconds_of_the_file(tmp_path):
    path = write_video(tmp_path / "video.mkv", times=UNEVEN)
    run = trained(tmp_path, dataclasses.replace(CLIP, **BY_TIME))
    info = probe(path)
    plan = plan_windows(run, info, path=path)
    assert info.timestamps is not None
    for position, frame in enumerate(plan.frames):  # a tick shows the frame that is on the screen at that time
        assert info.seconds_at(frame) <= plan.seconds(position) + 1e-3
    assert plan.seconds(len(plan.frames)) == info.end
    assert sampling.timeline(range(60), run.clip, info)[1] == 12
