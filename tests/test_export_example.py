"""`examples/onnx_predict.py` sees the pixels that stvid sees, and gives its probabilities, without stvid and torch."""

import itertools
import json
import re
import runpy
import subprocess
import sys
import wave
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from conftest import REAL_DATA, ROOT, moving_square
from numbered import turned, write_video

import stvid
from stvid.clip import ClipSpec
from stvid.data.dataset import Views
from stvid.data.manifest import Item
from stvid.preprocess import resize
from stvid.video.probe import probe
from stvid.video.writer import write_video as write_frames

EXAMPLE = ROOT / "examples" / "onnx_predict.py"
ALONE = """
import runpy, sys
script, sys.argv = sys.argv[1], sys.argv[1:]
runpy.run_path(script, run_name="__main__")
assert not {"torch", "stvid"} & sys.modules.keys()
"""
CLIPS = {
    "pictures": (ClipSpec(num_frames=8, size=64), 1, 1),
    "differences, crops along the longer side": (ClipSpec(num_frames=6, size=(50, 72), input="diff"), 2, 3),
    "by time, repeated, crops in corners": (
        ClipSpec(num_frames=16, frame_stride=None, fps=12.5, size=(60, 48), input="rgb_diff", short="wrap"),
        1,
        5,
    ),
    "the whole video": (ClipSpec(num_frames=None, frame_stride=5, size=(100, 112)), 1, 1),
    "shorter, enlarged": (ClipSpec(num_frames=12, frame_stride=3, size=(200, 100), short="pad", input="diff"), 1, 3),
}
ODD = ("video_90.mov", "testsrc2_odd_height_and_width_444.mp4", "testsrc2_mpeg4.avi")


@pytest.fixture(scope="module")
def example():
    return SimpleNamespace(**runpy.run_path(str(EXAMPLE), run_name="example"))


class Recorder:
    """In the place of an onnxruntime session: keeps the clips that it gets."""

    def __init__(self, clip, num_clips, num_crops):
        protocol = {"num_clips": num_clips, "num_crops": num_crops}
        self.record = {"class_names": ["a"], "clip": clip.to_dict(), "protocol": protocol}
        self.names = ["frames", "earlier", "lengths"] if clip.input != "rgb" else ["frames", "lengths"]
        self.views = []

    def get_modelmeta(self):
        return SimpleNamespace(custom_metadata_map={"stvid": json.dumps(self.record)})

    def get_inputs(self):
        return [SimpleNamespace(name=name) for name in self.names]

    def run(self, _, feeds):
        assert feeds["lengths"].tolist() == [feeds["frames"].shape[1]]
        self.views.append(np.concatenate([feeds[name] for name in ("earlier", "frames") if name in feeds], axis=1))
        return [np.ones((1, 1), np.float32)]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    plain = write_video(folder / "plain.mp4", num_frames=30)
    turned_one = turned(write_video(folder / "turned.mp4", num_frames=30), (0, -1, 1, 0))
    odd = [REAL_DATA / "odd_videos" / name for name in ODD]
    return [plain, turned_one, *(path for path in odd if path.exists())]


@pytest.mark.parametrize("name", CLIPS)
def test_the_example_sees_the_pixels_that_stvid_sees(example, videos, name):
    clip, num_clips, num_crops = CLIPS[name]
    for path in videos:
        views = Views(
            items=[Item(path=str(path), label="", split="test")],
            infos=[probe(path)],
            class_names=["a"],
            clip=clip,
            num_clips=num_clips,
            num_crops=num_crops,
        )
        recorder = Recorder(clip, num_clips, num_crops)
        example.predict(recorder, str(path))
        expected = torch.stack(list(views.pictures(0))).permute(0, 1, 3, 4, 2).numpy()
        np.testing.assert_array_equal(np.concatenate(recorder.views), expected, err_msg=str(path))


def test_resizing_is_exact(example):
    rng = np.random.default_rng(0)
    for height, width, new_height, new_width in [(48, 64, 48, 20), (37, 91, 64, 64), (200, 3, 7, 5), (1, 1, 9, 2)]:
        frames = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        expected = resize(torch.from_numpy(frames).permute(0, 3, 1, 2), (new_height, new_width)).permute(0, 2, 3, 1)
        actual = example.resize(example.resize(frames, 2, new_width), 1, new_height)
        np.testing.assert_array_equal(actual, expected.numpy())


def test_an_unevenly_spaced_video_is_refused_by_a_model_that_depends_on_time(example, tmp_path):
    times = list(itertools.accumulate([0, *([40] * 10), *([200] * 5)]))
    path = write_video(tmp_path / "video.mp4", num_frames=len(times), times=times)
    with pytest.raises(SystemExit, match="not evenly spaced"):
        example.predict(Recorder(ClipSpec(num_frames=4, size=32, input="diff"), 1, 1), str(path))
    example.predict(Recorder(ClipSpec(num_frames=4, size=32), 1, 1), str(path))


def test_the_example_gives_the_probabilities_of_stvid_predict(run_folder, onnx_file, tmp_path):
    paths = [tmp_path / "small.mp4", tmp_path / "large.mp4"]
    for path, size in zip(paths, (32, 90), strict=True):
        write_frames(path, moving_square(to_right=True, seed=7, size=size)[:, :, : size - 10], fps=12)
    command = [sys.executable, "-c", ALONE, str(EXAMPLE), str(onnx_file), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    recognizer = stvid.load(run_folder, device="cpu")
    for path, line in zip(paths, map(json.loads, done.stdout.splitlines()), strict=True):
        expected = recognizer.predict(path)
        assert line["path"] == str(path)
        assert tuple(line["probabilities"]) == expected.class_names
        actual = list(line["probabilities"].values())
        np.testing.assert_allclose(actual, expected.probabilities, atol=1e-4, rtol=0)


def test_what_cannot_be_classified_is_told_in_one_line(onnx_file, tmp_path, monkeypatch, capsys):
    for name in ("text.mp4", "text.txt"):  # FFmpeg would draw the letters of the second one
        (tmp_path / name).write_text("no video")
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1), sound.setsampwidth(2), sound.setframerate(8000), sound.writeframes(bytes(1600))
    other = onnx.load(onnx_file)
    del other.metadata_props[:]
    onnx.save(other, tmp_path / "other.onnx")
    for model in (tmp_path / name for name in ("missing.onnx", "text.mp4", "other.onnx")):
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(model), "x"])
        with pytest.raises(SystemExit, match=re.escape(str(model))) as caught:
            runpy.run_path(str(EXAMPLE), run_name="__main__")
        assert "\n" not in str(caught.value)
    write_frames(tmp_path / "good.mp4", moving_square(to_right=True, seed=7), fps=12)
    bad = [str(tmp_path / name) for name in ("missing.mp4", ".", "text.mp4", "text.txt", "sound.wav")]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(onnx_file), *bad, str(tmp_path / "good.mp4")])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert caught.value.code == 1
    out, err = capsys.readouterr()
    assert [json.loads(line)["path"] for line in out.splitlines()] == [str(tmp_path / "good.mp4")], "the others go on"
    assert [line.partition(" cannot be read as a video: ")[0] for line in err.splitlines()] == bad
