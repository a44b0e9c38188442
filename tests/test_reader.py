"""`read_frames` returns the frames asked for, whatever the file; the oracle is PyAV run from the first frame."""

from __future__ import annotations

import os
import random
import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from stvid.video import reader
from stvid.video.backends import is_installed
from stvid.video.decoding import decode
from stvid.video.errors import MISSING, TRUNCATED, UNREADABLE, VideoError
from stvid.video.probe import probe
from stvid.video.reader import read_frames

DATA = Path(os.environ.get("STVID_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
UT_INTERACTION = DATA / "ut_interaction"
ODD_VIDEOS = DATA / "odd_videos"
NUM_FRAMES = 60

ENCODERS = {"mpeg4": "mpeg4", "h264": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9", "mjpeg": "mjpeg"}
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


def numbered_picture(number: int, *, height: int, width: int) -> np.ndarray:
    """Eight grey blocks, one a bit of `number`: readable after any compression."""
    picture = np.full((height, width, 3), 128, np.uint8)
    for bit in range(8):
        row, column = divmod(bit, 4)
        block = picture[row * height // 2 : (row + 1) * height // 2, column * width // 4 : (column + 1) * width // 4]
        block[2:-2, 2:-2] = 235 if number >> bit & 1 else 20
    return picture


def number_of(picture: np.ndarray) -> int:
    height, width = picture.shape[:2]
    centres = [((2 * (bit // 4) + 1) * height // 4, (2 * (bit % 4) + 1) * width // 8) for bit in range(8)]
    return sum(int(picture[y - 3 : y + 3, x - 3 : x + 3].mean() > 128) << bit for bit, (y, x) in enumerate(centres))


def write_video(
    path, *, codec="h264", bframes=0, gop=12, num_frames=NUM_FRAMES, size=(96, 128), pixels=None, options=(), times=None
):
    """Frame i shows the number i, and is due at `times[i]` ms (default: 25 frames/s)."""
    height, width = size
    quick = {"h264": {"preset": "veryfast", "bf": str(bframes)}, "vp9": {"cpu-used": "8", "deadline": "realtime"}}
    if codec == "vp9" and bframes:  # its likeness of B-frames: references that are not shown
        quick["vp9"] = {"cpu-used": "8", "deadline": "good", "auto-alt-ref": "1", "lag-in-frames": "16"}
    x265 = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes={bframes}:pools=1:frame-threads=1:log-level=none"
    quick["hevc"] = {"preset": "ultrafast", "x265-params": x265}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(ENCODERS[codec], rate=25, options={**quick.get(codec, {}), **dict(options)})
        stream.height, stream.width = height, width
        stream.pix_fmt = pixels or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
        stream.codec_context.gop_size = gop
        if codec == "mpeg4":
            stream.codec_context.max_b_frames = bframes
            stream.codec_context.bit_rate = 2_000_000
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(num_frames):
            picture = numbered_picture(number, height=height, width=width)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decoded(path) -> list[np.ndarray]:
    """All frames, H x W x 3, upright, by PyAV run from the first one."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90) for frame in frames]


def requests(num_frames: int) -> list[list[int]]:
    """Index lists of the shapes that samplers ask for, and some that they do not."""
    rng = random.Random(num_frames)
    last = num_frames - 1
    clips = [[min(last, start + 2 * i) for i in range(8)] for start in (0, last // 2, rng.randrange(num_frames))]
    singles = [[0], [last], *([rng.randrange(num_frames)] for _ in range(4))]
    uniform = [[round(i * last / 7) for i in range(8)]]
    return [*clips, *singles, *uniform, [last, 0, last // 2, last // 2], list(range(num_frames))[-10:]]


def as_thwc(frames: torch.Tensor) -> np.ndarray:
    return frames.permute(0, 2, 3, 1).numpy()


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
            jumped = reader._read(path, indices, info=info, size=(info.height, info.width), num_threads=1, jump=True)
            assert jumped is not None, f"jumping to frame {indices} fails"
            np.testing.assert_array_equal(jumped.numpy(), oracle[indices])


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
        {"intra-refresh": "1"},  # no keyframes but the first
        {"flags": "+ildct+ilme"},  # interlaced
    ],
    ids=["open-gop", "pyramid", "intra-refresh", "interlaced"],
)
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_frames_are_exact_for_unusual_h264(tmp_path, container, options):
    assert_exact(write_video(tmp_path / f"video.{container}", bframes=2, options=options))


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


def turned(path, matrix):
    """Writes a display matrix into the track header of an mp4: 16.16 and 2.30 fixed point."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("turn", "matrix"), [(90, (0, -1, 1, 0)), (180, (-1, 0, 0, -1)), (270, (0, 1, -1, 0))])
def test_rotated_recordings_come_upright(tmp_path, turn, matrix):
    path = write_video(tmp_path / "video.mp4", bframes=2)
    plain = decoded(path)
    turned(path, matrix)
    frames = as_thwc(read_frames(path, [0, 50]))
    np.testing.assert_array_equal(frames, np.stack([np.rot90(plain[i], turn // 90) for i in (0, 50)]))
    assert_exact(path)


def test_order_and_repeats_are_the_callers(tmp_path):
    path = write_video(tmp_path / "video.mp4")
    frames = as_thwc(read_frames(path, [7, 3, 3, 59, 0]))
    assert [number_of(frame) for frame in frames] == [7, 3, 3, 59, 0]


def test_frames_are_uint8_time_first_and_rows_stay_together(tmp_path):
    frames = read_frames(write_video(tmp_path / "video.avi", codec="mpeg4"), range(0, 32, 2))
    assert frames.shape == (16, 3, 96, 128)
    assert frames.dtype == torch.uint8
    assert frames.permute(0, 2, 3, 1).is_contiguous()


def test_far_frames_of_a_trusted_file_are_reached_by_random_access(tmp_path, monkeypatch):
    path = write_video(tmp_path / "video.mp4", bframes=2)
    info = probe(path)
    assert info.random_access
    monkeypatch.setattr(reader, "_forward", None)
    assert number_of(as_thwc(read_frames(path, [59], info=info))[0]) == 59


def test_a_jump_decodes_no_more_than_from_the_keyframe(tmp_path, monkeypatch):
    path = write_video(tmp_path / "video.mp4", gop=12)
    info, decoded_frames = probe(path), []
    monkeypatch.setattr(reader, "decode", lambda *args: (decoded_frames.append(f) or f for f in decode(*args)))
    read_frames(path, [38, 40], info=info)
    assert len(decoded_frames) == 5  # 36 to 40


@pytest.mark.parametrize("change", [{"first_pts": 5}, {"fps": 50.0}, {"keyframes": (0, 7)}])
def test_forward_decoding_steps_in_where_a_jump_does_not_lead_to_the_frame(tmp_path, change):
    path = write_video(tmp_path / "video.mp4")
    wrong = replace(probe(path), **change)
    assert number_of(as_thwc(read_frames(path, [59], info=wrong))[0]) == 59
    assert number_of(as_thwc(read_frames(path, [8], info=wrong))[0]) == 8


def test_hevc_and_deep_pixels_are_reached_by_jumps_too(tmp_path):
    assert probe(write_video(tmp_path / "video.mp4", codec="hevc")).random_access
    assert probe(write_video(tmp_path / "deep.mp4", pixels="yuv420p10le")).random_access


@pytest.mark.parametrize(("height", "width", "short_side"), [(96, 128, 48), (97, 131, 40), (200, 120, 64)])
def test_scaled_frames_are_those_that_are_scaled_afterwards(tmp_path, height, width, short_side):
    path = write_video(tmp_path / "video.mp4", pixels="yuv444p", size=(height, width), bframes=2)
    scaled = read_frames(path, [5, 40], short_side=short_side)
    native = read_frames(path, [5, 40])
    assert min(scaled.shape[2:]) == short_side
    wanted = F.resize(native, list(scaled.shape[2:]), antialias=True)
    assert (scaled.float() - wanted.float()).abs().mean() < 1.5
    assert [number_of(frame) for frame in as_thwc(scaled)] == [5, 40]


def test_frames_are_never_enlarged(tmp_path):
    path = write_video(tmp_path / "video.mp4")
    assert torch.equal(read_frames(path, [3], short_side=500), read_frames(path, [3]))
    with pytest.raises(ValueError, match="short_side"):
        read_frames(path, [3], short_side=0)


def test_a_turned_recording_is_scaled_upright(tmp_path):
    path = turned(write_video(tmp_path / "video.mp4"), (0, -1, 1, 0))
    assert read_frames(path, [0], short_side=48).shape == (1, 3, 64, 48)


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_other_backends_give_the_same_frames(tmp_path, backend):
    if not is_installed(backend):
        pytest.skip(f"{backend} is not installed")
    for name, options in [("a.mp4", {"bframes": 2}), ("b.avi", {"codec": "mpeg4", "bframes": 2}), ("c.mkv", {})]:
        path = write_video(tmp_path / name, **options)
        info = probe(path)
        for indices in requests(info.num_frames):
            frames = read_frames(path, indices, info=info, backend=backend)
            assert torch.equal(frames, read_frames(path, indices, info=info))
    assert read_frames(tmp_path / "a.mp4", [7], backend=backend, short_side=48).shape == (1, 3, 48, 64)


def test_a_backend_that_fails_is_stood_in_for(tmp_path, monkeypatch):
    decord = pytest.importorskip("decord")
    path = write_video(tmp_path / "video.mp4")
    monkeypatch.setattr(decord.VideoReader, "get_batch", lambda *_: (_ for _ in ()).throw(decord.DECORDError("no")))
    assert number_of(as_thwc(read_frames(path, [59], backend="decord"))[0]) == 59


def test_an_unknown_backend_is_the_callers_mistake(tmp_path):
    with pytest.raises(ValueError, match="pyav, decord, torchcodec"):
        read_frames(tmp_path / "video.mp4", [0], backend="opencv")


def test_threads_change_nothing(tmp_path):
    path = write_video(tmp_path / "video.mp4", bframes=2)
    assert torch.equal(read_frames(path, range(40), num_threads=2), read_frames(path, range(40)))


@pytest.mark.parametrize("indices", [[60], [0, 75], [-1]])
def test_an_index_outside_the_video_is_the_callers_mistake(tmp_path, indices):
    with pytest.raises(ValueError, match="60 frames, 0 to 59"):
        read_frames(write_video(tmp_path / "video.mp4"), indices)


def test_no_index_is_the_callers_mistake(tmp_path):
    with pytest.raises(ValueError, match="no frame indices"):
        read_frames(write_video(tmp_path / "video.mp4"), [])


def test_a_file_that_ends_before_what_was_promised_is_truncated(tmp_path):
    path = write_video(tmp_path / "video.avi", codec="mpeg4")
    info = probe(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert number_of(as_thwc(read_frames(path, [5], info=info))[0]) == 5
    with pytest.raises(VideoError) as caught:
        read_frames(path, [5, 59], info=info)
    assert caught.value.reason == TRUNCATED


def test_a_missing_or_replaced_file_is_a_video_error(tmp_path):
    path = write_video(tmp_path / "video.mp4")
    info = probe(path)
    path.write_text("no video any more")
    with pytest.raises(VideoError) as caught:
        read_frames(path, [59], info=info)
    assert caught.value.reason == UNREADABLE
    path.unlink()
    with pytest.raises(VideoError) as caught:
        read_frames(path, [59], info=info)
    assert caught.value.reason == MISSING


@pytest.mark.parametrize(
    "name", ["with space.mp4", "日本語 é.mp4", "12:30.mp4", "100%d.mp4"], ids=["space", "unicode", "colon", "percent"]
)
def test_any_file_name_works(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.rename(write_video(tmp_path / "video.mp4"), name)
    assert number_of(as_thwc(read_frames(name, [1]))[0]) == 1
    assert number_of(as_thwc(read_frames(name, [59]))[0]) == 59


@pytest.mark.skipif(not UT_INTERACTION.exists(), reason="needs shared/data/ut_interaction")
def test_frames_of_ut_interaction_are_exact():
    # 119 of these 120 MPEG-4 AVI files have wrong headers; random access is wrong in many.
    wrong = []
    paths = sorted(UT_INTERACTION.glob("*/*.avi"))
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
    assert len(paths) == 120
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
