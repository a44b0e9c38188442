"""`read_frames` is exact whatever the file; the oracle is PyAV run from the first frame."""

from __future__ import annotations

import os
import random
import struct
from contextlib import contextmanager

import av
import numpy as np
import pytest
from conftest import REAL_DATA
from numbered import NUM_FRAMES, as_thwc, decoded, number_of, numbered_picture, requests, turned, write_video

from stvid.errors import TRUNCATED, VideoError
from stvid.video import probe as probe_module
from stvid.video import reader
from stvid.video.container import open_video
from stvid.video.probe import probe
from stvid.video.reader import read_frames
from stvid.video.types import MAX_PIXELS

UT_INTERACTION = REAL_DATA / "ut_interaction"
TEST_ALL = bool(os.environ.get("STVID_TEST_ALL"))  # all real files, which takes minutes
ODD_VIDEOS = REAL_DATA / "odd_videos"
CONTAINERS = {
    "mpeg4": ("avi", "mp4", "mkv"),
    "h264": ("avi", "mp4", "mkv"),
    "hevc": ("mp4", "mkv"),
    "vp9": ("mp4", "mkv", "webm"),
    "mjpeg": ("avi", "mp4", "mkv"),
}
MATRIX = [
    (codec, container, bframes, gop)
    for codec, containers in CONTAINERS.items()
    for container in containers
    for bframes in (0, 2)
    for gop in (12, 250)
    if codec != "mjpeg" or (bframes == 0 and gop == 12)  # keyframes only
]


def assert_exact(path) -> None:
    """Every way in which `path` may be read gives the oracle's pixels."""
    oracle = np.stack(decoded(path))
    info = probe(path)
    assert info.num_frames == len(oracle)
    assert (info.height, info.width) == oracle.shape[1:3]
    for indices in requests(len(oracle)):
        np.testing.assert_array_equal(as_thwc(read_frames(path, indices, info=info)), oracle[indices])
    if info.random_access:
        assert set(info.keyframes) <= set(range(info.num_frames))
        for indices in ([i] for i in range(len(oracle))):  # every frame by a jump of its own
            size = (info.height, info.width)
            options = {"size": size, "num_threads": 1, "max_pixels": MAX_PIXELS}
            frames_THWC = reader._read_pyav(path, indices, reader._decode_with_seeks, info=info, **options)
            assert frames_THWC is not None, f"seeking to frame {indices} fails"
            np.testing.assert_array_equal(frames_THWC.numpy(), oracle[indices])


@pytest.mark.parametrize(("codec", "container", "bframes", "gop"), MATRIX)
def test_frames_are_exact_for_every_codec_and_container(tmp_path, codec, container, bframes, gop):
    path = write_video(tmp_path / f"video.{container}", codec=codec, bframes=bframes, gop=gop)
    assert [number_of(picture) for picture in decoded(path)] == list(range(NUM_FRAMES))
    assert_exact(path)


@pytest.mark.parametrize(
    "options",
    [
        {"x264-params": "open-gop=1:bframes=2"},  # frames that need the keyframe after them
        {"bf": "5", "refs": "5", "x264-params": "b-pyramid=normal"},
        {"intra-refresh": "1", "bf": "0", "x264-params": "keyint=20"},  # keyframes that are none
        {"flags": "+ildct+ilme"},  # interlaced
    ],
    ids=["open-gop", "pyramid", "intra-refresh", "interlaced"],
)
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_frames_are_exact_for_unusual_h264(tmp_path, container, options):
    assert_exact(write_video(tmp_path / f"video.{container}", bframes=2, options=options))
    assert_exact(write_video(tmp_path / f"plain.{container}", bframes=0, options={**options, "bf": "0"}))


def test_frames_are_exact_where_the_time_stamps_lie(tmp_path):
    # AVI knows no time of display; copied into an mp4 its made-up times look flawless, and are wrong.
    source = write_video(tmp_path / "video.avi", bframes=2)
    copy = tmp_path / "copy.mp4"
    with av.open(str(source)) as reading, av.open(str(copy), "w") as writing:
        stream = writing.add_stream_from_template(reading.streams.video[0])
        for packet in reading.demux(video=0):
            if packet.size:
                packet.stream = stream
                writing.mux(packet)
    assert not probe(copy).random_access
    assert_exact(copy)


def test_frames_are_exact_where_a_keyframe_was_lost(tmp_path):
    source = write_video(tmp_path / "video.mp4", bframes=2)
    lossy = tmp_path / "lossy.mp4"
    with av.open(str(source)) as reading, av.open(str(lossy), "w") as writing:
        stream = writing.add_stream_from_template(reading.streams.video[0])
        for number, packet in enumerate(reading.demux(video=0)):
            if packet.size and number != 24:
                packet.stream = stream
                writing.mux(packet)
    assert_exact(lossy)


def test_frames_are_exact_for_variable_frame_rate(tmp_path):
    times = np.cumsum(np.random.default_rng(0).choice([20, 40, 130], NUM_FRAMES)).tolist()
    assert_exact(write_video(tmp_path / "video.mkv", bframes=2, times=times))


@pytest.mark.parametrize("pixels", ["yuv420p10le", "yuv422p", "yuv444p"])
def test_deep_and_full_colour_become_8_bit_rgb(tmp_path, pixels):
    assert_exact(write_video(tmp_path / "video.mp4", pixels=pixels, num_frames=30))


def test_odd_sizes_are_read(tmp_path):
    path = write_video(tmp_path / "video.mp4", pixels="yuv444p", size=(97, 131))
    assert read_frames(path, [0]).shape == (1, 3, 97, 131)
    assert_exact(path)


def test_animated_gifs_are_read(tmp_path):
    with av.open(str(tmp_path / "video.gif"), "w") as container:
        stream = container.add_stream("gif", rate=10)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "rgb8"
        for number in range(12):
            picture = numbered_picture(number, height=96, width=128)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    assert_exact(tmp_path / "video.gif")


@pytest.mark.parametrize(("turn", "matrix"), [(90, (0, -1, 1, 0)), (180, (-1, 0, 0, -1)), (270, (0, 1, -1, 0))])
def test_rotated_recordings_come_upright(tmp_path, turn, matrix):
    path = write_video(tmp_path / "video.mp4", bframes=2)
    plain = decoded(path)
    turned(path, matrix)
    frames = as_thwc(read_frames(path, [0, 50]))
    np.testing.assert_array_equal(frames, np.stack([np.rot90(plain[i], turn // 90) for i in (0, 50)]))
    assert_exact(path)


def shifted(source, path, seconds, **options):
    """A copy whose time stamps are later, or earlier, by some seconds."""
    with av.open(str(source)) as reading, av.open(str(path), "w", options=options) as writing:
        stream = writing.add_stream_from_template(reading.streams.video[0])
        for packet in reading.demux(video=0):
            if packet.size:
                ticks = round(seconds / packet.time_base)
                packet.stream, packet.pts, packet.dts = stream, packet.pts + ticks, packet.dts + ticks
                writing.mux(packet)
    return path


def first_pts(path):
    with av.open(str(path)) as container:
        return min(p.pts * p.time_base for p in container.demux(video=0) if p.size)


@pytest.mark.parametrize("bframes", [0, 2])
@pytest.mark.parametrize("container", ["mp4", "mov", "mkv", "ts", "flv"])
def test_frames_are_exact_if_the_first_time_stamp_is_far_from_zero(tmp_path, container, bframes):
    source = write_video(tmp_path / "source.mp4", bframes=bframes)
    path = shifted(source, tmp_path / f"video.{container}", 4000, use_editlist="0", avoid_negative_ts="disabled")
    assert container in ("mp4", "mov") or first_pts(path) > 3000
    assert_exact(path)
    assert probe(path).fps == 25


@pytest.mark.parametrize("bframes", [0, 2])
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_frames_are_exact_if_the_first_time_stamps_are_negative(tmp_path, container, bframes):
    source = write_video(tmp_path / "source.mp4", bframes=bframes)
    path = shifted(source, tmp_path / f"video.{container}", -1, avoid_negative_ts="disabled")
    assert container == "mkv" or first_pts(path) < 0
    assert_exact(path)


@pytest.mark.parametrize("bframes", [0, 2])
@pytest.mark.parametrize(("first", "num_frames"), [(0, NUM_FRAMES), (12, NUM_FRAMES), (17, 20)])
def test_frames_are_exact_if_an_edit_list_hides_some(tmp_path, first, num_frames, bframes):
    path = write_video(tmp_path / "video.mp4", bframes=bframes)
    content = bytearray(path.read_bytes())
    # seconds of the edit in 1/1000, its first tick in the track; version 0
    place, tick = content.index(b"elst") + 12, 512
    seconds = min(num_frames, NUM_FRAMES - first) * 40
    start = struct.unpack_from(">i", content, place + 4)[0] + first * tick
    struct.pack_into(">Ii", content, place, seconds, start)
    path.write_bytes(content)
    assert_exact(path)
    shown = [number_of(picture) for picture in decoded(path)]
    assert shown == list(range(first, min(first + num_frames, NUM_FRAMES)))
    assert probe(path, decode_all=False).num_frames == len(shown)


@pytest.mark.parametrize("size", [(97, 129), (99, 128), (96, 131)])
def test_frames_of_odd_sizes_are_exact(tmp_path, size):
    assert_exact(write_video(tmp_path / "video.mkv", codec="h264", size=size, pixels="yuv444p"))
    assert_exact(write_video(tmp_path / "video.avi", codec="mpeg4", size=size))


@pytest.mark.skipif(not UT_INTERACTION.exists(), reason="needs shared/data/ut_interaction")
def test_frames_of_ut_interaction_are_exact():
    # 119 of these 120 MPEG-4 AVI files have wrong headers; random access is wrong in many.
    wrong = []
    paths = sorted(UT_INTERACTION.glob("*/*.avi"))[:: 1 if TEST_ALL else 4]
    for number, path in enumerate(paths):
        info = probe(path)
        assert not info.random_access
        last = info.num_frames - 1
        start = random.Random(number).randrange(max(1, last - 31))
        uniform = [round(i * last / 15) for i in range(16)]
        dense = [min(last, start + 2 * i) for i in range(16)]
        with av.open(str(path)) as container:
            frames = list(container.decode(video=0))
        for indices in (uniform, dense):
            oracle = np.stack([frames[i].to_ndarray(format="rgb24") for i in indices])
            if not np.array_equal(as_thwc(read_frames(path, indices, info=info)), oracle):
                wrong.append((path.name, indices))
    assert len(paths) == (120 if TEST_ALL else 30)
    assert wrong == []


@pytest.mark.slow
@pytest.mark.skipif(not UT_INTERACTION.exists(), reason="needs shared/data/ut_interaction")
def test_dense_clips_of_ut_interaction_are_exact_at_every_start():
    """Of every 24th file; of all with STVID_TEST_ALL=1, which takes minutes."""
    wrong = []
    for path in sorted(UT_INTERACTION.glob("*/*.avi"))[:: 1 if TEST_ALL else 24]:
        info, oracle = probe(path), np.stack(decoded(path))
        last = info.num_frames - 1
        for start in range(info.num_frames):
            indices = [min(last, start + 2 * i) for i in range(16)]
            if not np.array_equal(as_thwc(read_frames(path, indices, info=info)), oracle[indices]):
                wrong.append((path.name, start))
    assert wrong == []


@pytest.mark.skipif(not ODD_VIDEOS.exists(), reason="needs shared/data/odd_videos")
@pytest.mark.parametrize(
    "name",
    [
        "av1_video.mkv",
        "bikes.mp4",
        "carphone_pristine.mp4",
        "discard_first_keyframe.mp4",
        "h264_10bits.mp4",
        "h265_video.mp4",
        "nasa_13013.mp4",
        "nasa_13013_rotated.mp4",
        "testsrc2_mpeg4.avi",
        "testsrc2_odd_height_and_width_444.mp4",
        "testsrc2_vp9.webm",
        "unordered.mov",
        "video_270.mov",
        "video_90.mov",
        "webm.webm",
    ],
)
def test_frames_of_odd_files_are_exact(name):
    assert_exact(ODD_VIDEOS / name)


@pytest.mark.skipif(not ODD_VIDEOS.exists(), reason="needs shared/data/odd_videos")
def test_a_broken_file_gives_its_good_frames_and_no_others():
    path = ODD_VIDEOS / "corrupted.mp4"  # claims 50 frames, breaks after 28
    with pytest.raises(VideoError) as caught:
        probe(path)
    assert caught.value.reason == TRUNCATED
    info = probe(path, decode_all=False)  # counts what is promised
    assert len(read_frames(path, range(28), info=info)) == 28
    with pytest.raises(VideoError) as caught:
        read_frames(path, [0, 49], info=info)
    assert caught.value.reason == TRUNCATED


def test_empty_packets_repeat_a_frame_and_are_none(tmp_path):
    source, path = write_video(tmp_path / "source.mkv", codec="mjpeg", num_frames=20), tmp_path / "video.nut"
    with av.open(str(source)) as reading, av.open(str(path), "w") as writing:
        stream = writing.add_stream_from_template(reading.streams.video[0])
        for packet in [packet for packet in reading.demux(video=0) if packet.size]:
            if packet.pts // packet.duration in (7, 8, 19):
                times = packet.pts, packet.dts, packet.time_base, packet.duration
                packet = av.Packet()
                packet.pts, packet.dts, packet.time_base, packet.duration = times
            packet.stream = stream
            writing.mux(packet)
    with av.open(str(path)) as container:
        assert sum(packet.dts is not None and not packet.size for packet in container.demux()) == 3
    numbers = [number_of(frame) for frame in read_frames(path, range(17)).permute(0, 2, 3, 1).numpy()]
    assert numbers == [*range(7), *range(9, 19)]
    assert probe(path).num_frames == probe(path, decode_all=False).num_frames == 17


@pytest.mark.parametrize("num_frames", [1, 12])
def test_jpegs_one_after_the_other_are_a_video(tmp_path, num_frames):
    path = write_video(tmp_path / "video.mjpeg", codec="mjpeg", num_frames=num_frames)
    numbers = [number_of(frame) for frame in read_frames(path, range(num_frames)).permute(0, 2, 3, 1).numpy()]
    assert numbers == list(range(num_frames))


def test_a_track_that_appears_on_the_way_does_no_harm(tmp_path, monkeypatch):
    """PyAV then fails behind the last packet, or not, as its memory happens to be: here it always does."""
    path = write_video(tmp_path / "video.flv", num_frames=12)

    class Failing:
        def __init__(self, container):
            self.container = container

        def __getattr__(self, name):
            return getattr(self.container, name)

        def demux(self, *streams):
            yield from self.container.demux(*streams)
            raise IndexError("list index out of range")

    @contextmanager
    def open_failing(*args, **options):
        with open_video(*args, **options) as (container, stream):
            yield Failing(container), stream

    for module in (probe_module, reader):
        monkeypatch.setattr(module, "open_video", open_failing)
    assert [probe(path, decode_all=decode_all).num_frames for decode_all in (True, False)] == [12, 12]
    assert [number_of(frame) for frame in read_frames(path, [11, 3]).permute(0, 2, 3, 1).numpy()] == [11, 3]
