"""A cut download is not a shorter video, and a whole file is never called cut."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from numbered import numbered_picture, write_video

from stvid.errors import TRUNCATED, UNREADABLE, VideoError
from stvid.video import completeness
from stvid.video.completeness import find_cut
from stvid.video.probe import probe

NUM_FRAMES = 40
LIVE = {"live": "1"}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
KINDS = {  # name: container, codec, sound codec, options of the container
    "mp4": ("mp4", "h264", "aac", {"movflags": "faststart"}),
    "mp4-silent": ("mp4", "h264", None, {"movflags": "faststart"}),
    "mov": ("mov", "mpeg4", "pcm_s16le", {"movflags": "faststart"}),
    "fragments": ("mp4", "h264", "aac", FRAGMENTS),
    "index": ("mp4", "h264", None, {"movflags": FRAGMENTS["movflags"] + "+dash+global_sidx"}),
    "mkv": ("mkv", "h264", "aac", {}),
    "mkv-live": ("mkv", "h264", "aac", LIVE),
    "webm": ("webm", "vp9", None, {}),
    "avi": ("avi", "mpeg4", "mp2", {}),
    "flv": ("flv", "h264", "aac", {}),
    "wmv": ("wmv", "mpeg4", None, {}),
    "gif": ("gif", "gif", None, {}),
}


def remux(source, path, *, sound=None, options=None, sound_first=False, stream_out=None):
    """Copies the packets of `source`, with noise in a sound track of the same length."""
    with av.open(str(source)) as reading, av.open(stream_out or str(path), "w", **(options or {})) as writing:
        packets, audio = [], None
        if sound and sound_first:
            audio = writing.add_stream(sound, rate=44100)
        video = writing.add_stream_from_template(reading.streams.video[0])
        if sound and not sound_first:
            audio = writing.add_stream(sound, rate=44100)
        for packet in reading.demux(video=0):
            if packet.size:
                packets.append((float(packet.dts * packet.time_base), packet, video))
        seconds = max(time for time, _, _ in packets) + 0.04
        if audio is not None:
            audio.layout = "mono"
            noise = np.random.default_rng(0).integers(-9000, 9000, round(seconds * 44100), np.int16)
            frame = av.AudioFrame.from_ndarray(noise[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 44100, 0, Fraction(1, 44100)
            encoded = [*audio.encode(frame), *audio.encode(None)]
            packets += [(float(p.pts * p.time_base), p, audio) for p in encoded if p.size]
        for _, packet, stream in sorted(packets, key=lambda item: item[0]):
            packet.stream = stream
            writing.mux(packet)
    return path


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """Path of a whole file of each kind."""
    folder = tmp_path_factory.mktemp("wholes")
    sources = {c: write_video(folder / f"{c}.mp4", codec=c, num_frames=NUM_FRAMES) for c in ("h264", "mpeg4", "vp9")}
    paths = {}
    for name, (container, codec, sound, options) in KINDS.items():
        path = folder / f"{name}.{container}"
        if codec == "gif":
            with av.open(str(sources["h264"])) as reading, av.open(str(path), "w") as writing:
                stream = writing.add_stream("gif", rate=25)
                stream.width, stream.height, stream.pix_fmt = 128, 96, "rgb8"
                for frame in reading.decode(video=0):
                    writing.mux(stream.encode(frame.reformat(format="rgb8")))
                writing.mux(stream.encode())
        else:
            formats = {"wmv": {"format": "asf"}}.get(container, {})
            remux(sources[codec], path, sound=sound, options={"options": options, **formats})
        paths[name] = path
    return paths


def reason(path, **options):
    """Why `probe` refuses a file; None if it does not."""
    try:
        probe(path, **options)
    except VideoError as error:
        return error.reason
    return None


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_file_is_whole(wholes, name):
    assert probe(wholes[name]).num_frames == NUM_FRAMES
    assert probe(wholes[name], decode_all=False).num_frames == NUM_FRAMES


@pytest.mark.parametrize("name", KINDS)
def test_no_cut_passes_for_a_shorter_video(wholes, name, tmp_path):
    content = wholes[name].read_bytes()
    cut = tmp_path / wholes[name].name
    passed = []
    for percent in range(4, 100, 3):
        cut.write_bytes(content[: len(content) * percent // 100])
        if reason(cut, decode_all=False) is None:
            passed.append(percent)
    assert passed == []


@pytest.mark.parametrize("num_frames", [1, 2, 9])
@pytest.mark.parametrize("milliseconds", [40, 1000, 10_000])
def test_an_flv_of_few_frames_is_whole_and_a_cut_of_it_is_told(tmp_path, num_frames, milliseconds):
    times = [i * milliseconds for i in range(num_frames)]
    whole = write_video(tmp_path / "whole.flv", num_frames=num_frames, times=times, bframes=3, options={"b-adapt": "0"})
    assert [probe(whole, decode_all=decode_all).num_frames for decode_all in (True, False)] == [num_frames] * 2
    cut = tmp_path / "cut.flv"
    for percent in range(40, 100, 3):
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * percent // 100])
        assert reason(cut) is not None, percent


@pytest.mark.parametrize("name", ["flv", "gif"])
def test_zeros_in_place_of_the_rest_are_a_cut(wholes, name, tmp_path):
    content, path = wholes[name].read_bytes(), tmp_path / wholes[name].name
    for percent in range(20, 75, 6):
        length = len(content) * percent // 100
        path.write_bytes(content[:length] + bytes(len(content) - length))
        assert reason(path, decode_all=False) == TRUNCATED, percent


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_longer_sound_does_not_cut_a_matroska_video(tmp_path, num_frames):
    sound = remux(write_video(tmp_path / "long.mp4"), tmp_path / "sound.mkv", sound="aac")
    video = write_video(tmp_path / "short.mp4", num_frames=num_frames, bframes=2)
    path = tmp_path / "video.mkv"
    with av.open(str(video)) as pictures, av.open(str(sound)) as noise, av.open(str(path), "w") as writing:
        copies = {s: writing.add_stream_from_template(s) for s in (pictures.streams.video[0], noise.streams.audio[0])}
        for stream, copy in copies.items():
            for packet in [packet for packet in stream.container.demux(stream) if packet.size]:
                packet.stream = copy
                writing.mux(packet)
    assert [probe(path, decode_all=decode_all).num_frames for decode_all in (True, False)] == [num_frames] * 2


def test_a_cut_mxf_file_is_told(tmp_path):
    whole = tmp_path / "whole.mxf"
    with av.open(str(whole), "w") as writing:
        stream = writing.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for i in range(NUM_FRAMES):
            picture = numbered_picture(i, height=96, width=128)
            writing.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        writing.mux(stream.encode())
    assert probe(whole).num_frames == NUM_FRAMES
    cut = tmp_path / "cut.mxf"
    for percent in range(4, 100, 3):
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * percent // 100])
        assert reason(cut) is not None, percent


@pytest.mark.parametrize("name", ["mp4", "mkv", "avi", "flv"])
def test_a_cut_at_the_edge_of_a_packet_is_told_in_numbers(wholes, name, tmp_path):
    with av.open(str(wholes[name])) as container:
        edges = sorted(packet.pos for packet in container.demux() if packet.size and packet.pos is not None)
    edge = edges[len(edges) * 2 // 3] - {"avi": 8, "flv": 16}.get(name, 0)
    cut = tmp_path / wholes[name].name
    cut.write_bytes(wholes[name].read_bytes()[:edge])
    with pytest.raises(VideoError) as caught:
        probe(cut)
    assert caught.value.reason == TRUNCATED
    assert any(character.isdigit() for character in caught.value.detail)


@pytest.mark.parametrize("name", ["mp4", "fragments", "mkv", "avi", "flv"])
def test_bytes_behind_the_end_do_no_harm(wholes, name, tmp_path):
    longer = tmp_path / wholes[name].name
    for tail in (b"\n", bytes(100), b"<!-- served in 3 ms -->" * 5):
        longer.write_bytes(wholes[name].read_bytes() + tail)
        assert probe(longer).num_frames == NUM_FRAMES


def test_a_wrong_length_in_the_header_of_an_avi_does_no_harm_if_its_index_is_there(wholes, tmp_path):
    content = bytearray(wholes["avi"].read_bytes())
    struct.pack_into("<I", content, 4, len(content) + 5000)
    (tmp_path / "video.avi").write_bytes(content)
    assert probe(tmp_path / "video.avi").num_frames == NUM_FRAMES


def test_a_wrong_length_of_the_media_box_does_no_harm_if_the_samples_are_there(wholes, tmp_path):
    content = bytearray(wholes["mp4"].read_bytes())
    place = content.index(b"mdat") - 4
    struct.pack_into(">I", content, place, len(content) - place + 5000)
    (tmp_path / "video.mp4").write_bytes(content)
    assert probe(tmp_path / "video.mp4").num_frames == NUM_FRAMES


@pytest.mark.parametrize("container", ["avi", "matroska"])
def test_a_recording_without_a_length_is_whole_and_a_cut_inside_it_is_told(wholes, container, tmp_path):
    class Pipe(io.RawIOBase):  # a writer cannot go back in it to fill in the lengths
        content = b""

        def write(self, data):
            self.content += bytes(data)
            return len(data)

        def writable(self):
            return True

        seek = seekable = tell = None

    pipe = Pipe()
    remux(wholes["mov"], None, options={"format": container}, stream_out=pipe)
    path = tmp_path / "video.bin"
    path.write_bytes(pipe.content)
    assert probe(path).num_frames == NUM_FRAMES
    cuts = 0
    for percent in range(20, 100, 8):
        path.write_bytes(pipe.content[: len(pipe.content) * percent // 100])
        cuts += reason(path) in (TRUNCATED, UNREADABLE)
    assert cuts == 10


def ogg_page(number, *, flags=0, body=bytes(100)):
    return b"OggS\0" + bytes([flags]) + struct.pack("<QIII", number, 1, number, 0) + bytes([1, len(body)]) + body


def test_a_recorded_broadcast_in_ogg_has_no_end_mark_and_a_broken_page_is_told(tmp_path):
    path = tmp_path / "dump.ogg"
    pages = [ogg_page(0, flags=2), ogg_page(1), ogg_page(2)]
    path.write_bytes(b"".join(pages))
    assert find_cut(path, "ogg") is None
    path.write_bytes(b"".join(pages) + ogg_page(3, flags=4))
    assert find_cut(path, "ogg") is None
    path.write_bytes(b"".join(pages)[:-20])
    assert "inside a page" in find_cut(path, "ogg")


@pytest.mark.parametrize("name", ["fragments", "mkv-live", "flv", "gif", "avi"])
def test_a_long_check_reports_that_it_goes_on(wholes, name, tmp_path, monkeypatch):
    """Files of many gigabytes have millions of blocks; a worker without reports is ended."""
    calls = []
    monkeypatch.setattr(completeness, "report_progress", lambda: calls.append(1))
    formats = {"fragments": "mov", "mkv-live": "matroska"}
    path = wholes[name]
    if name == "avi":  # a recording that nobody ended: its chunks are followed
        content = bytearray(path.read_bytes())
        struct.pack_into("<I", content, 4, 0)
        path = tmp_path / "live.avi"
        path.write_bytes(content)
    find_cut(path, formats.get(name, name))
    assert len(calls) > 5
