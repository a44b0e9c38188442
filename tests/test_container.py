"""Which track of a file is the video, whatever else is in the file; and no file leads to another one."""

import av
import numpy as np
import pytest
from conftest import REAL_DATA
from numbered import decoded, number_of, numbered_picture, write_video
from PIL import Image
from test_completeness import remux

from stvid.errors import UNREADABLE, VideoError
from stvid.video.container import _format_of, open_video
from stvid.video.probe import probe
from stvid.video.reader import read_frames
from stvid.video.transcode import FrameRange, transcode


def write_tracks(path, tracks):
    """Tracks of (encoder, number of frames, size, dispositions); frame i shows the number i."""
    with av.open(str(path), "w") as container:
        streams = []
        for encoder, _, (height, width), dispositions in tracks:
            stream = container.add_stream(encoder, rate=25)
            stream.height, stream.width = height, width
            stream.pix_fmt = {"png": "rgb24", "mjpeg": "yuvj420p"}.get(encoder, "yuv420p")
            stream.disposition = dispositions
            streams.append(stream)
        packets = []
        for stream, (_, num_frames, (height, width), _) in zip(streams, tracks, strict=True):
            for i in range(num_frames):
                picture = numbered_picture(i, height=height, width=width)
                packets += stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24"))
            packets += stream.encode()
        for packet in sorted((p for p in packets if p.size), key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    return path


SUBTITLES = REAL_DATA / "faults" / "mkv_subtitles_called_truncated" / "d" / "subtitles.mkv"
VIDEO = ("libx264", 20, (96, 128), 0)
DEFAULT = av.stream.Disposition.default


@pytest.mark.parametrize("num_frames", [1, 2, 3, 20])
@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "h264"), ("mov", "mpeg4"), ("mkv", "h264"), ("avi", "mpeg4"), ("mp4", "hevc")]
)
def test_no_frame_is_lost_if_the_sound_is_the_first_track(tmp_path, container, codec, num_frames):
    source = write_video(tmp_path / "source.mp4", codec=codec, bframes=2, num_frames=num_frames)
    path = remux(source, tmp_path / f"video.{container}", sound="mp2", sound_first=True)
    with av.open(str(path)) as file:
        assert [stream.type for stream in file.streams] == ["audio", "video"]
    infos = [probe(path, decode_all=decode_all) for decode_all in (True, False)]
    assert [info.num_frames for info in infos] == [num_frames] * 2
    assert infos[0].random_access == probe(remux(source, tmp_path / f"plain.{container}")).random_access
    frames = read_frames(path, range(num_frames)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(frames, np.stack(decoded(path)))
    part = FrameRange(target=tmp_path / "copy.mp4", first=0, num_frames=num_frames)
    transcode(path, [part], info=infos[0], short_side=96, gop=8, crf=20)
    assert [number_of(picture) for picture in decoded(part.target)] == list(range(num_frames))


@pytest.mark.parametrize("sound_first", [False, True])
@pytest.mark.parametrize("name", [b"apac", b"ac-4", b"zzzz"])
def test_sound_without_a_decoder_does_no_harm(tmp_path, name, sound_first):
    source = write_video(tmp_path / "source.mp4", bframes=2, num_frames=20)
    path = remux(source, tmp_path / "video.mp4", sound="aac", sound_first=sound_first)
    content = path.read_bytes()
    assert content.count(b"mp4a") == 1
    path.write_bytes(content.replace(b"mp4a", name).replace(b"esds", b"xxxx"))
    assert [probe(path, decode_all=decode_all).num_frames for decode_all in (True, False)] == [20, 20]
    assert len(read_frames(path, range(20))) == 20


@pytest.mark.parametrize(
    ("container", "cover"), [("mkv", "mjpeg"), ("mp4", "mjpeg"), ("mov", "mjpeg"), ("mp4", "png"), ("mov", "png")]
)
@pytest.mark.parametrize("dispositions", [0, DEFAULT])
def test_a_cover_picture_is_not_the_video(tmp_path, container, cover, dispositions):
    path = write_tracks(tmp_path / f"video.{container}", [(cover, 1, (240, 320), dispositions), VIDEO])
    info = probe(path)
    assert (info.num_frames, info.codec, info.height) == (20, "h264", 96)
    assert [number_of(f) for f in read_frames(path, [0, 19]).permute(0, 2, 3, 1).numpy()] == [0, 19]


def test_a_cover_beside_a_video_of_jpegs_is_not_the_video(tmp_path):
    tracks = [("mjpeg", 1, (240, 320), 0), ("mjpeg", 20, (96, 128), 0)]
    for container in ("mkv", "mov"):
        assert probe(write_tracks(tmp_path / f"video.{container}", tracks)).num_frames == 20
    assert probe(write_tracks(tmp_path / "alone.mkv", tracks[:1])).num_frames == 1


def test_of_several_tracks_the_default_one_is_read_and_else_the_first(tmp_path):
    small = ("libx264", 30, (48, 64), DEFAULT)
    assert probe(write_tracks(tmp_path / "default.mkv", [VIDEO, small])).num_frames == 30
    assert probe(write_tracks(tmp_path / "first.mkv", [(*VIDEO[:3], DEFAULT), small])).num_frames == 20


def test_longer_tracks_beside_it_do_not_cut_a_video(tmp_path):
    tracks = [(*VIDEO[:3], DEFAULT), ("libx264", 60, (48, 64), 0)]
    assert probe(write_tracks(tmp_path / "two.mkv", tracks)).num_frames == 20


@pytest.mark.skipif(not SUBTITLES.exists(), reason="needs shared/data/faults")
def test_longer_subtitles_do_not_cut_a_video():
    assert [probe(SUBTITLES, decode_all=decode_all).num_frames for decode_all in (True, False)] == [100, 100]


SCRIPTS = {
    "concat": "ffconcat version 1.0\nfile other.mp4\n",
    "hls": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.4,\nother.ts\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    '<Representation mimeType="video/mp4"><BaseURL>other.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "subtitles": "1\n00:00:01,000 --> 00:00:02,000\nhello\n",
}


@pytest.mark.parametrize("extension", ["mp4", "m3u8", "txt", "sdp", "ans"])
@pytest.mark.parametrize("kind", SCRIPTS)
def test_no_script_opens_another_file(tmp_path, kind, extension):
    write_video(tmp_path / "other.mp4", num_frames=5)
    remux(tmp_path / "other.mp4", tmp_path / "other.ts")
    path = tmp_path / f"clip.{extension}"
    path.write_text(SCRIPTS[kind])
    for call in (lambda: probe(path), lambda: probe(path, decode_all=False), lambda: read_frames(path, [0])):
        with pytest.raises(VideoError) as caught:
            call()
        assert caught.value.reason == UNREADABLE


def test_a_name_that_looks_like_a_pattern_is_one_file(tmp_path):
    for i in range(5):
        Image.new("RGB", (64, 48)).save(tmp_path / f"walk{i}.gif")
    images = [Image.new("L", (64, 48), 60 * i) for i in range(3)]
    images[0].save(tmp_path / "walk%d.gif", save_all=True, append_images=images[1:], duration=40)
    assert probe(tmp_path / "walk%d.gif").num_frames == 3
    (tmp_path / "frame%d.jpg").write_text("no image")
    Image.new("RGB", (64, 48)).save(tmp_path / "frame0.jpg")
    with pytest.raises(VideoError):
        probe(tmp_path / "frame%d.jpg")


@pytest.mark.parametrize(
    "name", ["a.avi", "a.mp4", "a.mov", "a.m4v", "a.3gp", "a.mkv", "a.webm", "a.ts", "a.nut", "a%d.mp4"]
)
def test_the_format_of_a_file_is_the_one_that_ffmpeg_finds(tmp_path, name):
    codec = "vp9" if name.endswith("webm") else "h264"
    path = write_video(tmp_path / name, codec=codec, num_frames=4)
    with path.open("rb") as content:
        told = _format_of(str(path), content)
        assert content.tell() == 0
        with av.open(content) as container:
            found = container.format.name
    assert (told is not None) == (path.suffix not in (".ts", ".nut"))
    assert told is None or told in found.split(",")
    with open_video(path) as (container, _):
        assert container.format.name in (found, told)
    renamed = path.rename(tmp_path / "video.txt")
    assert probe(renamed).num_frames == 4
