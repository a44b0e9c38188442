"""`read_frames` as its callers know it: order, jumps, sizes, backends, and what it says of a file that fails."""

from __future__ import annotations

import itertools
import os
from contextlib import contextmanager
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from numbered import as_thwc, decoded, number_of, numbered_picture, packed, remuxed, requests, turned, write_video
from PIL import Image
from torchvision.transforms.v2 import functional as F

from stvid.clip import ClipSpec
from stvid.data.dataset import Failure, Views
from stvid.data.manifest import Item
from stvid.errors import CHANGED, MISSING, TRUNCATED, UNREADABLE, VideoError
from stvid.video import reader, skipping
from stvid.video.decoding import decode
from stvid.video.probe import probe, probe_all
from stvid.video.reader import is_installed, read_frames
from stvid.video.transcode import FrameRange, transcode


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
    monkeypatch.setattr(reader, "_decode_from_start", None)
    assert number_of(as_thwc(read_frames(path, [59], info=info))[0]) == 59


def test_a_jump_decodes_no_more_than_from_the_keyframe(tmp_path, monkeypatch):
    path = write_video(tmp_path / "video.mp4", gop=12)
    info, decoded_frames = probe(path), []
    monkeypatch.setattr(reader, "decode", lambda *args: (decoded_frames.append(f) or f for f in decode(*args)))
    read_frames(path, [38, 40], info=info)
    assert len(decoded_frames) == 5  # 36 to 40


def test_frames_that_no_other_needs_are_not_decoded_and_change_no_pixel(tmp_path, monkeypatch):
    """Against a decoder that is run from the first frame and skips nothing."""
    path = write_video(tmp_path / "video.mp4", bframes=3, gop=60)
    info, decoded_frames = probe(path), []
    wanted_THWC = np.stack(decoded(path))
    monkeypatch.setattr(reader, "_decode_from_start", None)
    monkeypatch.setattr(reader, "decode", lambda *args: (decoded_frames.append(f) or f for f in decode(*args)))
    for stride, start in itertools.product((1, 2, 3, 4, 7), (0, 1, 2, 11)):
        indices = range(start, 60, stride)
        decoded_frames.clear()
        np.testing.assert_array_equal(as_thwc(read_frames(path, indices, info=info)), wanted_THWC[indices])
        if stride == 7:
            assert len(decoded_frames) < 45


@pytest.mark.parametrize("name", ["video.avi", "packed.avi", "video.mp4", "video.mkv"])
def test_b_frames_of_mpeg_4_that_no_clip_wants_are_not_decoded(tmp_path, monkeypatch, name):
    path = write_video(tmp_path / f"source_{name}", codec="mpeg4", bframes=2, gop=60)
    if name == "packed.avi":
        path = remuxed(path, tmp_path / name, packed)
    info, decoded_frames = probe(path), []
    assert info.b_frames_in_order
    wanted_THWC = np.stack(decoded(path))
    assert [number_of(frame) for frame in wanted_THWC] == list(range(60))
    monkeypatch.setattr(reader, "_decode_from_start", None)
    monkeypatch.setattr(reader, "decode", lambda *args: (decoded_frames.append(f) or f for f in decode(*args)))
    for stride, start in itertools.product((1, 2, 3, 7), (0, 1, 2, 30)):
        indices = range(start, 60, stride)
        decoded_frames.clear()
        np.testing.assert_array_equal(as_thwc(read_frames(path, indices, info=info)), wanted_THWC[indices])
        if stride == 7:
            assert len(decoded_frames) < 32


def test_frames_are_right_where_packets_of_mpeg_4_were_lost(tmp_path):
    source, num_skipping = write_video(tmp_path / "source.avi", codec="mpeg4", bframes=2, gop=12, num_frames=30), 0
    for lost in range(30):
        path = remuxed(
            source, tmp_path / f"{lost}.avi", lambda contents, lost=lost: contents[:lost] + contents[lost + 1 :]
        )
        info, wanted = probe(path), decoded(path)
        num_skipping += info.b_frames_in_order
        for indices in ([info.num_frames - 1], [5], range(1, info.num_frames, 3)):
            np.testing.assert_array_equal(as_thwc(read_frames(path, indices, info=info)), [wanted[i] for i in indices])
    assert num_skipping > 10


def moving_texture(number, *, height, width):
    """Noise that moves by 1.5 pixels a frame: motion compensation that is a little wrong shows."""
    noise = np.random.default_rng(0).integers(0, 256, (height, 4 * width, 3), np.uint8)
    place = 3 * number // 2
    return (noise[:, place : place + width].astype(int) + noise[:, place + 1 : place + 1 + width]).astype(np.uint8) // 2


@pytest.mark.parametrize(
    ("flags", "skips"), [("+qpel", True), ("+mv4", True), ("+ildct+ilme", False), ("+ildct+ilme+mv4", False)]
)
def test_skipped_b_frames_change_no_pixel_of_moving_textures(tmp_path, flags, skips):
    options = {"flags": flags, "mbd": "rd"}
    path = tmp_path / "video.avi"
    write_video(path, codec="mpeg4", bframes=3, gop=60, options=options, picture=moving_texture)
    info, wanted_THWC = probe(path), np.stack(decoded(path))
    assert info.b_frames_in_order is skips
    for indices in ([30], [59], range(0, 60, 7), range(11, 43, 2)):
        np.testing.assert_array_equal(as_thwc(read_frames(path, indices, info=info)), wanted_THWC[indices])


@pytest.mark.parametrize("data", [b"XviD0001", b"DivX412b0", b"Lavc50.0.0"])
def test_headers_before_a_b_frame_are_not_left_out(tmp_path, data):
    def change(contents):
        is_b = [content[content.index(b"\0\0\1\xb6") + 4] >> 6 == 2 for content in contents]
        first = is_b.index(True)
        return [*contents[:first], b"\0\0\1\xb2" + data + contents[first], *contents[first + 1 :]]

    source = write_video(tmp_path / "source.avi", codec="mpeg4", bframes=2, gop=60, picture=moving_texture)
    path = remuxed(source, tmp_path / "video.avi", change)
    info, wanted_THWC = probe(path), np.stack(decoded(path))
    for indices in ([30], [59], range(13, 60, 9)):
        np.testing.assert_array_equal(as_thwc(read_frames(path, indices, info=info)), wanted_THWC[indices])


def test_uncompressed_video_with_a_palette_is_read_from_its_start(tmp_path):
    """The palette is in the first packet only."""
    path = tmp_path / "video.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "gray"
        for number in range(60):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, height=96, width=128)[:, :, 0].copy(), "gray")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    wanted_THWC = np.stack(decoded(path))
    for indices in ([30], [59], range(1, 60, 2)):
        np.testing.assert_array_equal(as_thwc(read_frames(path, indices)), wanted_THWC[indices])


def test_a_file_is_read_from_its_start_where_its_b_frames_are_not_found(tmp_path, monkeypatch):
    path = write_video(tmp_path / "video.avi", codec="mpeg4", bframes=2)
    info = probe(path)
    monkeypatch.setattr(skipping, "_is_b_frame", lambda packet: False)
    assert probe(path) == replace(info, b_frames_in_order=False)
    monkeypatch.setattr(skipping, "_is_b_frame", lambda packet: True)
    assert [number_of(frame) for frame in as_thwc(read_frames(path, [8, 40], info=info))] == [8, 40]


def test_a_damaged_frame_that_others_refer_to_is_not_skipped(tmp_path):
    path = write_video(tmp_path / "video.mp4", gop=60)
    with av.open(str(path)) as container:
        place = [packet.pos for packet in container.demux(video=0) if packet.size][25]
    content = bytearray(path.read_bytes())
    content[place + 4] ^= 0x1E  # the type of its NAL unit
    path.write_bytes(content)
    info = probe(path, decode_all=False)
    assert info.random_access
    with pytest.raises(VideoError) as caught:
        read_frames(path, [28], info=info)
    assert caught.value.reason == TRUNCATED


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
    info = replace(probe(path), identity="")  # as if the file had been probed wrongly
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert number_of(as_thwc(read_frames(path, [5], info=info))[0]) == 5
    with pytest.raises(VideoError) as caught:
        read_frames(path, [5, 59], info=info)
    assert caught.value.reason == TRUNCATED


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_a_missing_or_replaced_file_is_a_video_error(tmp_path, backend):
    path, other = write_video(tmp_path / "video.mp4"), write_video(tmp_path / "other.mp4", gop=3)
    info = probe(path)
    os.replace(other, path)  # as good a video as the one before
    with pytest.raises(VideoError) as caught:
        read_frames(path, [59], info=info, backend=backend)
    assert caught.value.reason == CHANGED
    path.write_text("no video any more")
    with pytest.raises(VideoError) as caught:
        read_frames(path, [59], info=replace(info, identity=""), backend=backend)
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


def test_frames_have_one_size_where_the_video_changes_it(tmp_path):
    small, large = (write_video(tmp_path / f"{h}.ts", size=(h, 64), num_frames=9) for h in (48, 96))
    (tmp_path / "both.ts").write_bytes(small.read_bytes() + large.read_bytes())
    info = probe(tmp_path / "both.ts")
    frames = as_thwc(read_frames(tmp_path / "both.ts", range(info.num_frames), info=info))
    assert frames.shape == (18, 48, 64, 3)
    assert [number_of(frame) for frame in frames] == [*range(9), *range(9)]


def test_large_frames_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = write_video(tmp_path / "small.mp4", num_frames=9)
    assert probe(path, max_pixels=96 * 128).num_frames == 9
    monkeypatch.setattr("stvid.video.probe.Scan", None)
    with pytest.raises(VideoError, match="128 x 96 = 12288 pixels, more than data.max_pixels=12287 allows") as caught:
        probe(path, max_pixels=96 * 128 - 1)
    assert caught.value.reason == UNREADABLE


def test_frames_that_grow_beyond_the_limit_are_not_decoded(tmp_path):
    small, large = (write_video(tmp_path / f"{h}.ts", size=(h, 64), num_frames=9) for h in (48, 96))
    (tmp_path / "both.ts").write_bytes(small.read_bytes() + large.read_bytes())
    with pytest.raises(VideoError):
        probe(tmp_path / "both.ts", max_pixels=48 * 64)


@pytest.mark.parametrize("kind", ["video", "images"])
def test_a_lowered_limit_holds_while_clips_are_read(tmp_path, kind):
    path = tmp_path / "both.ts"
    if kind == "video":
        small, large = (write_video(tmp_path / f"{h}.ts", size=(h, 64), num_frames=9) for h in (48, 96))
        path.write_bytes(small.read_bytes() + large.read_bytes())
    else:
        path.mkdir()
        for number in range(18):
            height = 48 if number < 9 else 96
            Image.fromarray(numbered_picture(number, height=height, width=64)).save(path / f"{number}.png")
    info = replace(probe(path), keyframes=())
    items, clip = [Item(path=str(path), label="a", split="val")], ClipSpec(num_frames=16, frame_stride=1, size=16)
    views = {
        limit: Views(items=items, infos=[info], class_names=["a"], clip=clip, max_pixels=limit)
        for limit in (96 * 64, 96 * 64 - 1)
    }
    assert not isinstance(views[96 * 64][0], Failure)
    assert views[96 * 64 - 1][0].reason == (TRUNCATED if kind == "video" else UNREADABLE)
    with pytest.raises(VideoError):
        transcode(
            path,
            [FrameRange(target=tmp_path / "x.mp4", first=0, num_frames=18)],
            info=info,
            short_side=32,
            gop=4,
            crf=20,
            max_pixels=96 * 64 - 1,
        )
    assert not (tmp_path / "x.mp4").exists()


def test_the_limit_holds_for_results_of_earlier_runs(tmp_path):
    path, known = write_video(tmp_path / "small.mp4", num_frames=9), {"num_workers": 0, "cache": tmp_path / "cache"}
    assert probe_all([path], **known)[0].num_frames == 9
    assert probe_all([path], **known, max_pixels=100)[0].reason == UNREADABLE


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("a.mp4", {"bframes": 2}),
        ("a.mov", {"bframes": 2, "gop": 30}),
        ("a.mp4", {"codec": "hevc"}),
        ("a.mp4", {"codec": "vp9"}),
        ("a.mp4", {"codec": "mjpeg"}),
        ("a.mkv", {"bframes": 2}),
    ],
)
def test_a_file_that_was_probed_is_opened_once(tmp_path, monkeypatch, name, options):
    path = write_video(tmp_path / name, **options)
    info, opened, open_video = probe(path), [], reader.open_video
    assert info.random_access or options.get("codec") == "hevc"
    monkeypatch.setattr(
        reader, "open_video", lambda *a, **settings: opened.append(settings["is_known"]) or open_video(*a, **settings)
    )
    wanted = [0, 5, info.num_frames - 1]
    frames = read_frames(path, wanted, info=info).permute(0, 2, 3, 1).numpy()
    assert [number_of(frame) for frame in frames] == wanted
    assert opened == [info.random_access]


@pytest.mark.parametrize("fails", ["raises", "finds other frames"])
def test_where_ffmpeg_knows_too_little_a_file_is_opened_as_others_are(tmp_path, monkeypatch, fails):
    path, opened, open_video = write_video(tmp_path / "a.mp4"), [], reader.open_video

    @contextmanager
    def open_badly(path, *, is_known, **settings):
        opened.append(is_known)
        if is_known and fails == "raises":
            raise VideoError(path, UNREADABLE)
        with open_video(path, is_known=is_known, **settings) as (container, stream):
            if is_known:
                next(container.demux(stream))
                stream.codec_context.skip_frame = "ALL"
            yield container, stream

    info = probe(path)
    monkeypatch.setattr(reader, "open_video", open_badly)
    (frame,) = read_frames(path, [20], info=info).permute(0, 2, 3, 1).numpy()
    assert number_of(frame) == 20
    assert opened == [True, False]


@pytest.mark.parametrize("container", ["mov", "mkv", "avi"])
def test_jpegs_with_the_tables_of_earlier_ones_are_read_in_order(tmp_path, container):
    source = write_video(tmp_path / "source.mkv", codec="mjpeg")
    path = remuxed(source, tmp_path / f"a.{container}", without_most_tables)
    info, truth = probe(path), decoded(path)
    assert not info.random_access
    for wanted in ([34], [5, 50], [20, 21]):
        for frame, index in zip(as_thwc(read_frames(path, wanted, info=info)), wanted, strict=True):
            np.testing.assert_array_equal(frame, truth[index])


def without_most_tables(jpegs):
    """JPEGs without quantisation tables, except every twentieth: then those of the last picture hold."""
    for number, jpeg in enumerate(jpegs):
        place = jpeg.index(b"\xff\xdb")
        length = int.from_bytes(jpeg[place + 2 : place + 4], "big")
        yield jpeg if number % 20 == 0 else jpeg[:place] + jpeg[place + 2 + length :]


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_new_parameter_sets_must_be_at_every_keyframe(tmp_path, container, repeated):
    """Two encodings in one track, of which the second one has other settings than the track's header says."""
    first = write_video(tmp_path / "first.mp4", num_frames=30, gop=10, options={"qp": "20"})
    second = write_video(tmp_path / "second.mp4", num_frames=30, gop=10, options={"qp": "32", "x264-params": "cabac=0"})
    with av.open(second) as other:
        header = other.streams.video[0].codec_context.extradata
        others = [(bytes(packet), packet.is_keyframe) for packet in other.demux(video=0) if packet.size]
    sets = in_band(header)

    def joined(contents):
        yield from contents
        for number, (content, is_keyframe) in enumerate(others):
            yield sets + content if number == 0 or (repeated and is_keyframe) else content

    path = remuxed(first, tmp_path / f"a.{container}", joined)
    info, truth = probe(path), decoded(path)
    assert info.num_frames == 60
    assert info.random_access == repeated
    for wanted in ([45], [5, 55], [31, 52]):
        for frame, index in zip(as_thwc(read_frames(path, wanted, info=info)), wanted, strict=True):
            np.testing.assert_array_equal(frame, truth[index])


def in_band(header):
    """The parameter sets of an avcC, each behind its length in four bytes."""
    place, sets = 6, b""
    for count in (header[5] & 31, None):
        if count is None:
            count, place = header[place], place + 1
        for _ in range(count):
            length = int.from_bytes(header[place : place + 2], "big")
            sets += length.to_bytes(4, "big") + header[place + 2 : place + 2 + length]
            place += 2 + length
    return sets
