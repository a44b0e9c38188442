"""Sprites of clips as the model sees them, and of heat maps."""

import dataclasses
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import break_half_way
from numbered import number_of, write_video
from PIL import Image

from stvid.clip import ClipSpec
from stvid.data.dataset import Views
from stvid.data.manifest import Item, Manifest
from stvid.errors import InputError
from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.conv3d import Conv3D
from stvid.report.previews import make_previews, overlay_heat, thin_frames
from stvid.run.checkpoint import TrainedModel, load_checkpoint
from stvid.video.probe import probe

CLASSES = ("a", "b")


def trained_with(clip, model=None):
    torch.manual_seed(0)
    return TrainedModel(
        path=Path("best.ckpt"),
        folder=Path("run"),
        model=(model or CNNLSTM(num_classes=2, in_channels=clip.channels)).eval(),
        clip=clip,
        class_names=CLASSES,
        protocol={"num_clips": 3, "num_crops": 1},
        config={},
        epoch=1,
    )


def item(path, **more):
    return Item(path=str(path), label="a", split="test", **more)


def previews_of(trained, items, *, explained=None, videos=None):
    videos = range(len(items)) if videos is None else videos
    return make_previews(trained, items, videos=videos, explained=explained or {}, cache=None)


def frames_of(sprite, preview):
    """uint8 T x H x W x 3."""
    image = Image.open(io.BytesIO(sprite))
    assert image.format == "WEBP"
    assert image.size == (preview.num_frames * preview.width, preview.height)
    return np.stack(np.split(np.asarray(image.convert("RGB")), preview.num_frames, axis=1))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """60 frames at 25 frames/s; each frame shows its number."""
    return write_video(tmp_path_factory.mktemp("numbered") / "video.mp4")


def test_the_frames_are_those_of_the_middle_clip(video):
    clip = ClipSpec(num_frames=8, frame_stride=2, size=(96, 128))
    preview = previews_of(trained_with(clip), [item(video)])[0]
    assert (preview.num_frames, preview.width, preview.height) == (8, 128, 96)
    assert [number_of(frame) for frame in frames_of(preview.sprite, preview)] == [22 + 2 * i for i in range(8)]
    assert preview.seconds == pytest.approx(14 / 25)
    assert preview.heat_sprite is None
    assert preview.evidence is None


def test_the_preview_of_a_part_only_has_its_frames(video):
    clip = ClipSpec(num_frames=4, frame_stride=1, size=(96, 128))
    preview = previews_of(trained_with(clip), [item(video, start=1.0, end=1.16)])[0]
    assert [number_of(frame) for frame in frames_of(preview.sprite, preview)] == [25, 26, 27, 28]


@pytest.mark.parametrize("input_", ["rgb", "diff", "rgb_diff"])
def test_a_sprite_is_the_input_of_the_model_up_to_compression(run_folder, input_):
    manifest = Manifest.read_csv(run_folder / "manifest.csv")
    clip = ClipSpec(num_frames=6, frame_stride=2, size=48, input=input_)
    items = manifest.select("val")[:2]
    infos = [probe(one.path) for one in items]
    dataset = Views(items=items, infos=infos, class_names=manifest.class_names, clip=clip)
    found = previews_of(trained_with(clip), items)
    for index in range(2):
        seen = dataset[(0, index)]["clips"][0][:, :3].permute(0, 2, 3, 1).numpy()
        shown = frames_of(found[index].sprite, found[index])
        assert np.abs(shown.astype(float) - seen).mean() < 8


def test_explained_clips_have_a_heat_map_and_evidence(run_folder):
    trained, items = load_checkpoint(run_folder), Manifest.read_csv(run_folder / "manifest.csv").items
    found = previews_of(trained, items, videos=[2, 0], explained={2: 1})
    assert list(found) == [2, 0]
    assert found[0].heat_sprite is None
    assert found[2].evidence is None  # a 3D network does not read frame by frame
    for sprite in (found[2].sprite, found[2].heat_sprite):
        assert frames_of(sprite, found[2]).shape == (4, 32, 32, 3)
    lstm = trained_with(trained.clip, CNNLSTM(num_classes=2))
    assert len(previews_of(lstm, items, videos=[1], explained={1: 0})[1].evidence) == 4


def test_long_clips_are_thinned_and_wide_ones_resized(video):
    clip = ClipSpec(num_frames=None, frame_stride=1, size=(120, 160))
    trained = trained_with(clip)
    preview = previews_of(trained, [item(video)], explained={0: 0})[0]
    assert (preview.num_frames, preview.width, preview.height) == (24, 128, 96)
    numbers = [number_of(frame) for frame in frames_of(preview.sprite, preview)]
    assert numbers == thin_frames(60)
    assert (numbers[0], numbers[-1]) == (0, 59)
    assert {b - a for a, b in itertools.pairwise(numbers)} == {2, 3}
    assert len(preview.evidence) == len(frames_of(preview.heat_sprite, preview)) == 24
    assert preview.seconds == pytest.approx(59 / 25, abs=1e-3)


def test_a_short_video_keeps_its_speed(video):
    short = item(video, start=0.0, end=0.2)  # 5 frames
    clip = ClipSpec(num_frames=8, frame_stride=1, size=32)
    seconds = {
        policy: previews_of(trained_with(dataclasses.replace(clip, short=policy)), [short])[0].seconds
        for policy in ("repeat_last", "wrap", "pad")
    }
    assert seconds == {
        "repeat_last": pytest.approx(7 / 25),
        "wrap": pytest.approx(7 / 25),
        "pad": pytest.approx(4 / 25),
    }
    padded = previews_of(trained_with(dataclasses.replace(clip, short="pad")), [short], explained={0: 1})[0]
    assert padded.num_frames == len(padded.evidence) == 5
    assert previews_of(trained_with(dataclasses.replace(clip, num_frames=1)), [short])[0].seconds == 1 / 25
    with pytest.raises(InputError, match="clip.short=error"):
        previews_of(trained_with(dataclasses.replace(clip, short="error")), [short])


def test_the_duration_follows_the_timestamps(tmp_path):
    times = [0, 40, 80, 500, 1000, 1040, 1080, 3000]
    video = write_video(tmp_path / "video.mp4", num_frames=8, times=times)
    clip = ClipSpec(num_frames=8, frame_stride=1, size=32)
    assert previews_of(trained_with(clip), [item(video)])[0].seconds == pytest.approx(3.0, abs=0.01)


def test_unreadable_videos_are_left_out(video, tmp_path):
    broken = write_video(tmp_path / "broken.mp4")
    break_half_way(broken)
    (tmp_path / "text.mp4").write_text("no video")
    clip = ClipSpec(num_frames=8, frame_stride=8, size=32)
    items = [item(tmp_path / "text.mp4"), item(video), item(tmp_path / "missing.mp4"), item(broken)]
    assert list(previews_of(trained_with(clip), items, explained={0: 0, 1: 0, 3: 0})) == [1]


def test_every_video_is_decoded_once(video, monkeypatch):
    import stvid.data.dataset as dataset

    calls, read = [], dataset.read_frames
    monkeypatch.setattr(dataset, "read_frames", lambda *args, **more: calls.append(args) or read(*args, **more))
    clip = ClipSpec(num_frames=8, size=32)
    previews_of(trained_with(clip, Conv3D(num_classes=2)), [item(video)], videos=[0, 0], explained={0: 1})
    assert len(calls) == 1


def test_brightness_grows_with_heat_and_the_image_stays_visible():
    """Brightness grows with heat, so colour vision is not needed; grey pictures stay grey where nothing is hot."""
    frames = torch.full((1, 3, 1, 11), 0.5)
    heat = torch.linspace(0, 1, 11).view(1, 1, 11)
    shown = overlay_heat(torch.cat([frames, torch.ones_like(frames)]), torch.cat([heat, heat]))
    brightness = (shown * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1)
    assert (brightness[0, 0].diff()[3:] > 0).all()
    assert brightness[0, 0, -1] > 1.5 * brightness[0, 0, 0]
    assert (shown[:, 0, 0, 0] == shown[:, 2, 0, 0]).all()
    assert (brightness[1] - brightness[0] > 0.05).all()
    assert 0 <= shown.min() <= shown.max() <= 1


def test_a_preview_is_small(video):
    clip = ClipSpec(num_frames=16, frame_stride=2, size=112)
    preview = previews_of(trained_with(clip), [item(video)], explained={0: 0})[0]
    assert len(preview.sprite) + len(preview.heat_sprite) < 30_000
