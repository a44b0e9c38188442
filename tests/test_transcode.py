"""`transcode` keeps every picture, its place, time and colours, and makes each quickly reachable."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from numbered import as_thwc, number_of, numbered_picture, turned, write_video
from PIL import Image

from stvid.errors import TRUNCATED, VideoError
from stvid.video import reader
from stvid.video.decoding import decode
from stvid.video.probe import probe
from stvid.video.reader import read_frames
from stvid.video.transcode import FrameRange, read_comment, transcode


def transcoded(
    source, target, *, first=0, num_frames=None, comment="", short_side=48, gop=8, crf=20, uncompressed=False
):
    """The facts of source and copy."""
    info = probe(source)
    part = FrameRange(target=target, first=first, num_frames=num_frames or info.num_frames, comment=comment)
    transcode(source, [part], info=info, short_side=short_side, gop=gop, crf=crf, uncompressed=uncompressed)
    return info, probe(target)


def numbers(path) -> list[int]:
    """What the pictures of a file show, in the order of a decoder run from the first."""
    with av.open(str(path)) as container:
        return [number_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def write_images(folder, num_frames: int, *, size=(96, 128)):
    folder.mkdir(parents=True)
    for number in range(num_frames):
        Image.fromarray(numbered_picture(number, height=size[0], width=size[1])).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("b-frames.mp4", {"bframes": 2}),
        ("open-gop.mkv", {"bframes": 2, "options": {"x264-params": "open-gop=1:bframes=2"}}),
        ("asp.avi", {"codec": "mpeg4", "bframes": 2}),
        ("lying-stamps.avi", {"bframes": 2}),
        ("motion-jpeg.avi", {"codec": "mjpeg"}),
        ("vp9.webm", {"codec": "vp9", "bframes": 2}),
        ("deep.mp4", {"codec": "h264", "pixels": "yuv420p10le"}),
        ("odd.mkv", {"pixels": "yuv444p", "size": (97, 131)}),
    ],
)
def test_every_picture_keeps_its_place(tmp_path, name, options):
    info, copy = transcoded(write_video(tmp_path / name, **options), tmp_path / "copy.mp4")
    assert numbers(tmp_path / "copy.mp4") == list(range(info.num_frames)) == list(range(60))
    assert (copy.height, copy.width, copy.pixel_format, copy.rotation) == (48, 64, "yuv420p", 0)
    assert (copy.fps, copy.timestamps) == (info.fps, None)
    assert [number_of(frame) for frame in as_thwc(read_frames(tmp_path / "copy.mp4", [40, 3], info=copy))] == [40, 3]


def test_a_folder_of_images_becomes_a_video_of_25_frames_a_second(tmp_path):
    _, copy = transcoded(write_images(tmp_path / "images", 40), tmp_path / "copy.mp4")
    assert numbers(tmp_path / "copy.mp4") == list(range(40))
    assert (copy.fps, copy.height, copy.width) == (25, 48, 64)


@pytest.mark.parametrize("gop", [1, 8])
def test_keyframes_are_near_and_no_frame_waits_for_a_later_one(tmp_path, gop):
    _, copy = transcoded(write_video(tmp_path / "video.mp4", bframes=2, gop=250), tmp_path / "copy.mp4", gop=gop)
    assert copy.random_access
    assert max(np.diff([*copy.keyframes, copy.num_frames])) <= gop
    with av.open(str(tmp_path / "copy.mp4")) as container:
        assert all(packet.pts == packet.dts for packet in container.demux(video=0) if packet.size)


@pytest.mark.parametrize("uncompressed", [False, True])
@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(60000, 1001), Fraction(25, 2), 240])
def test_the_rate_is_kept_exactly(tmp_path, rate, uncompressed):
    path = tmp_path / "source.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(50):
            picture = numbered_picture(number, height=32, width=32)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    info, copy = transcoded(path, tmp_path / "copy", uncompressed=uncompressed)
    assert info.fps == float(rate)
    assert copy.fps == pytest.approx(float(rate), rel=1e-6 if uncompressed else 0, abs=0)  # Matroska: whole ns
    assert copy.timestamps is None
    assert copy.random_access


def test_uncompressed_times_rise_where_they_are_nearer_than_a_millisecond(tmp_path):
    source = write_video(tmp_path / "video.mkv", num_frames=6, times=[0, 40, 41, 42, 900, 940])
    info = probe(source)
    info = replace(info, timestamps=(0.0, 0.04, 0.0401, 0.0402, 0.9, 0.94))
    part = FrameRange(target=tmp_path / "copy.mkv", first=0, num_frames=6)
    transcode(source, [part], info=info, short_side=48, gop=8, crf=20, uncompressed=True)
    copy = probe(part.target)
    assert copy.random_access
    assert copy.timestamps == pytest.approx((0, 0.04, 0.041, 0.042, 0.9, 0.94), abs=1e-6)


def test_more_than_1000_frames_a_second_are_not_kept_uncompressed(tmp_path):
    source = write_video(tmp_path / "video.mp4")
    info = replace(probe(source), fps=2000.0, duration=60 / 2000)
    part = FrameRange(target=tmp_path / "copy.mkv", first=0, num_frames=60)
    with pytest.raises(VideoError, match="instead of 2000; uncompressed ones have at most 1000"):
        transcode(source, [part], info=info, short_side=48, gop=8, crf=20, uncompressed=True)
    assert not part.target.exists()


@pytest.mark.parametrize("name", ["video.mp4", "asp.avi", "images"])
def test_uncompressed_copies_have_the_pixels_of_lossless_ones(tmp_path, name):
    if name == "images":
        source = write_images(tmp_path / name, 60)
    else:
        source = write_video(tmp_path / name, codec="h264" if name == "video.mp4" else "mpeg4", bframes=2)
    infos, paths = [], [tmp_path / "lossless.mp4", tmp_path / "uncompressed.mkv", tmp_path / "again.mkv"]
    for path in paths:
        infos.append(transcoded(source, path, crf=0, uncompressed=path.suffix == ".mkv", comment="Größe")[1])
    assert paths[1].read_bytes() == paths[2].read_bytes()
    assert read_comment(paths[1]) == "Größe"
    assert (infos[1].codec, infos[1].keyframes) == ("rawvideo", tuple(range(60)))
    for indices in ([0], [59], [41, 3, 3], range(5, 60, 2), range(0, 60, 19)):
        frames = [read_frames(path, indices, info=info) for path, info in zip(paths[:2], infos[:2], strict=True)]
        assert torch.equal(*frames)
        assert [number_of(frame) for frame in as_thwc(frames[1])] == list(indices)


@pytest.mark.parametrize("codec", ["rawvideo", "mjpeg"])
def test_only_wanted_frames_are_decoded_where_no_frame_refers_to_another(tmp_path, monkeypatch, codec):
    source = write_video(tmp_path / "source.mkv", codec="mjpeg")
    path = source if codec == "mjpeg" else tmp_path / "copy.mkv"
    if codec == "rawvideo":
        transcoded(source, path, uncompressed=True)
    info, decoded_frames = probe(path), []
    assert info.random_access
    monkeypatch.setattr(reader, "_decode_from_start", None)
    monkeypatch.setattr(reader, "decode", lambda *args: (decoded_frames.append(f) or f for f in decode(*args)))
    for indices in ([0], [59], range(7, 40, 2), range(0, 60, 25)):
        decoded_frames.clear()
        frames = as_thwc(read_frames(path, indices, info=info))
        assert [number_of(frame) for frame in frames] == list(indices)
        assert len(decoded_frames) == len(indices)


def test_frames_that_are_not_evenly_spaced_keep_their_times(tmp_path):
    times = [0, 40, 80, 400, 440, 480, 520, 1200, 1240, 1280]
    source = write_video(tmp_path / "video.mkv", num_frames=10, times=times)
    for name in ("copy.mp4", "copy.mkv"):
        _, copy = transcoded(source, tmp_path / name, uncompressed=name.endswith("mkv"))
        assert copy.timestamps == pytest.approx([time / 1000 for time in times], abs=1e-4)
    transcoded(source, tmp_path / "part.mp4", first=3, num_frames=5)
    assert probe(tmp_path / "part.mp4").timestamps == pytest.approx([0, 0.04, 0.08, 0.12, 0.8], abs=1e-4)
    assert numbers(tmp_path / "part.mp4") == [3, 4, 5, 6, 7]


def test_parts_may_touch_and_overlap(tmp_path):
    source = write_video(tmp_path / "video.avi", codec="mpeg4", bframes=2)
    wanted = {"a": (0, 20), "b": (20, 1), "c": (10, 30), "d": (10, 5), "e": (59, 1)}
    parts = [FrameRange(target=tmp_path / f"{n}.mp4", first=f, num_frames=count) for n, (f, count) in wanted.items()]
    transcode(source, parts, info=probe(source), short_side=48, gop=8, crf=20)
    for name, (first, count) in wanted.items():
        assert numbers(tmp_path / f"{name}.mp4") == list(range(first, first + count))


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)])
def test_a_turned_recording_becomes_upright(tmp_path, matrix):
    source = turned(write_video(tmp_path / "video.mp4", num_frames=10), matrix)
    info, copy = transcoded(source, tmp_path / "copy.mp4", short_side=96)
    assert info.rotation
    assert (copy.rotation, copy.height, copy.width) == (0, info.height, info.width)
    difference = read_frames(source, range(10)).float() - read_frames(tmp_path / "copy.mp4", range(10)).float()
    assert difference.abs().mean() < 4


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((96, 128), 500, (96, 128)),  # never enlarged
        ((97, 131), 500, (96, 130)),
        ((97, 131), 97, (96, 130)),
        ((128, 96), 48, (64, 48)),
        ((120, 160), 51, (50, 68)),
        ((18, 300), 16, (16, 266)),
    ],
)
def test_sizes_are_even_and_never_larger(tmp_path, size, short_side, expected):
    source = write_video(tmp_path / "video.mkv", pixels="yuv444p", size=size, num_frames=3)
    _, copy = transcoded(source, tmp_path / "copy.mp4", short_side=short_side)
    assert (copy.height, copy.width) == expected


def write_coloured(path, encoder: str, pixels: str, **tags: int):
    """Five frames of a picture with many colours, encoded with nearly no loss by the rules that the tags name."""
    y, x = np.mgrid[0:96, 0:128]
    picture = np.stack([2 * x, 255 - 2 * y, x + y], axis=-1).astype(np.uint8)
    matrix = {1: "ITU709", 9: "BT2020"}.get(tags.get("colorspace"))
    with av.open(str(path), "w") as container:
        options = {"x265-params": "log-level=none:crf=4"} if encoder == "libx265" else {"crf": "4"}
        stream = container.add_stream(encoder, rate=25, options={} if encoder == "mjpeg" else options)
        stream.height, stream.width, stream.pix_fmt = 96, 128, pixels
        if encoder == "mjpeg":
            stream.codec_context.bit_rate = 8_000_000
        for name, tag in tags.items():
            setattr(stream.codec_context, name, tag)
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            range_ = tags.get("color_range")
            frame = frame.reformat(format=pixels, dst_colorspace=matrix, dst_color_range=range_)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path, picture


@pytest.mark.parametrize(
    ("name", "encoder", "pixels", "tags"),
    [
        ("plain.mp4", "libx264", "yuv420p", {}),
        ("full-range.avi", "mjpeg", "yuvj420p", {"color_range": 2}),
        ("full-range.mp4", "libx264", "yuv420p", {"color_range": 2, "colorspace": 1}),
        ("deep.mp4", "libx265", "yuv420p10le", {}),
        ("444.mp4", "libx264", "yuv444p", {}),
        ("bt709.mp4", "libx264", "yuv420p", {"colorspace": 1, "color_primaries": 1, "color_trc": 1, "color_range": 1}),
        ("bt2020.mp4", "libx265", "yuv420p10le", {"colorspace": 9, "color_primaries": 9, "color_trc": 16}),
        ("rgb.mkv", "ffv1", "bgr0", {}),
    ],
)
def test_colours_are_nearly_the_sources(tmp_path, name, encoder, pixels, tags):
    source, picture = write_coloured(tmp_path / name, encoder, pixels, **tags)
    transcoded(source, tmp_path / "copy.mp4", short_side=96, crf=4)
    before, after = (as_thwc(read_frames(path, range(5))).astype(float) for path in (source, tmp_path / "copy.mp4"))
    assert np.abs(before - picture).mean() < 4, "the test's own file is not what it should be"
    assert np.abs(after - before).mean() < 2.5
    assert np.abs((after - before).mean(axis=(0, 1, 2))).max() < 2
    with av.open(str(tmp_path / "copy.mp4")) as container:
        context = container.streams.video[0].codec_context
        actual = context.color_range, context.colorspace, context.color_primaries, context.color_trc
    assert actual[0] in (0, 1), "limited range, which is what no tag means, too"
    if pixels == "bgr0":
        assert actual[1] == 6  # BT.601
    assert actual[1:] == tuple(
        tags.get(key, actual[i]) for i, key in enumerate(("colorspace", "color_primaries", "color_trc"), start=1)
    )


def test_the_same_source_gives_the_same_bytes(tmp_path):
    source = write_video(tmp_path / "video.mp4", bframes=2)
    transcoded(source, tmp_path / "a.mp4", comment="same")
    transcoded(source, tmp_path / "b.mp4", comment="same")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    # x264's macroblock tree, the one thing in it that depends on what lay in memory before, is off
    assert b"mbtree=0" in (tmp_path / "a.mp4").read_bytes()
    assert b" threads=1 " in (tmp_path / "a.mp4").read_bytes()


def test_a_file_carries_its_comment(tmp_path):
    transcoded(write_video(tmp_path / "video.mp4"), tmp_path / "copy.mp4", comment='{"of": "here"}')
    assert read_comment(tmp_path / "copy.mp4") == '{"of": "here"}'
    assert read_comment(tmp_path / "video.mp4") is None
    assert read_comment(tmp_path / "missing.mp4") is None


def test_a_source_that_ends_early_leaves_only_the_parts_before_its_end(tmp_path):
    source = write_video(tmp_path / "video.mkv", num_frames=60)
    info = replace(probe(source), identity="")  # as if it had been probed wrongly
    write_video(source, num_frames=40)
    parts = [FrameRange(target=tmp_path / f"{first}.mp4", first=first, num_frames=20) for first in (0, 10, 30)]
    with pytest.raises(VideoError) as caught:
        transcode(source, parts, info=info, short_side=48, gop=8, crf=20)
    assert (caught.value.reason, caught.value.path) == (TRUNCATED, str(source))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.mp4", "10.mp4", "video.mkv"]
    assert numbers(tmp_path / "10.mp4") == list(range(10, 30))


def test_a_full_disk_is_the_disks_error_and_leaves_nothing(tmp_path):
    source = write_video(tmp_path / "video.mp4")
    (tmp_path / "out").mkdir()
    program = (
        "import resource, sys; from pathlib import Path; from stvid.video.transcode import *; "
        "source, target = sys.argv[1:]; info = probe(source); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); "
        "part = FrameRange(target=Path(target), first=0, num_frames=60); "
        "transcode(source, [part], info=info, short_side=96, gop=8, crf=1)"
    )
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "out" / "copy.mp4")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "OSError: [Errno 27]" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
