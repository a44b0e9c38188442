"""`redraw` keeps every frame, its time, its place and its colours, and the sound in sync."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from conftest import break_half_way
from numbered import decoded, number_of, turned, write_video
from test_completeness import remux
from test_orientation import ORIENTATIONS
from test_transcode import write_coloured, write_images

from stvid.errors import InputError, VideoError
from stvid.video.probe import probe
from stvid.video.redraw import redraw

CORNER = 16  # pixels of the square that `mark` draws


def mark(frame_HWC, seconds):
    frame_HWC[:CORNER, :CORNER] = (255, 0, 0)
    return frame_HWC


def redrawn(source, draw=mark):
    """Draws on all frames; checks what holds for every source, and returns the path of the result."""
    target = source.with_name("redrawn.mp4")
    info, steps = probe(source), []
    redraw(source, target, draw, info=info, advance=lambda: steps.append(1))
    result = probe(target)
    assert result.num_frames == info.num_frames == len(steps)
    assert (result.codec, result.pixel_format, result.rotation, result.mirrored) == ("h264", "yuv420p", 0, False)
    assert result.duration == pytest.approx(info.duration, abs=1e-6)
    return target


def times(path) -> list[Fraction]:
    """Of all frames, in seconds, by PyAV run from the first one."""
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def seconds_of(path) -> Fraction:
    """What an mp4 file states as the length of its video, without a start after 0."""
    with av.open(str(path)) as container:
        return container.streams.video[0].duration * container.streams.video[0].time_base


def packets(path, track=0) -> list[tuple[Fraction, bytes]]:
    """Time (seconds) and content of a sound track's packets."""
    with av.open(str(path)) as container:
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(audio=track) if p.size]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("b-frames.mp4", {"bframes": 2}),
        ("open-gop.mkv", {"bframes": 2, "options": {"x264-params": "open-gop=1:bframes=2"}}),
        ("vp9.webm", {"codec": "vp9", "bframes": 2}),
        ("motion-jpeg.avi", {"codec": "mjpeg"}),
        ("uneven.mkv", {"times": [0, 40, 80, 400, 440, 480, 520, 1200, 1240, 1280]}),
        ("uneven.mp4", {"times": [0, 40, 80, 400, 440, 480, 520, 1200, 1240, 1280]}),
        ("late.mkv", {"times": [1501 + 40 * i for i in range(10)]}),
        ("late.mp4", {"times": [1501 + 40 * i for i in range(10)]}),
        ("late-and-uneven.mp4", {"times": [333, 350, 400, 1000, 1111]}),
    ],
)
def test_every_frame_keeps_its_place_and_its_time(tmp_path, name, options):
    source = write_video(tmp_path / name, num_frames=len(options.get("times", range(20))), **options)
    seen = []
    target = redrawn(source, lambda frame, seconds: seen.append(seconds) or mark(frame, seconds))
    assert [number_of(picture) for picture in decoded(target)] == list(range(len(seen)))
    assert times(target) == times(source)
    assert seen == pytest.approx([float(time) for time in times(source)])
    assert source.suffix != ".mp4" or seconds_of(target) == seconds_of(source)


def test_the_rate_is_kept_where_the_time_stamps_are_wrong(tmp_path):
    source = write_video(tmp_path / "lying-stamps.avi", bframes=2, num_frames=20)
    assert times(source) != sorted(times(source)), "the test's own file"
    start, *rest = times(redrawn(source))
    assert [time - start for time in rest] == [Fraction(i, 25) for i in range(1, 20)]


def test_frames_that_an_edit_list_hides_stay_hidden(tmp_path):
    source = tmp_path / "cut.mp4"
    whole = write_video(tmp_path / "whole.mp4", num_frames=20)
    with av.open(str(whole)) as reading, av.open(str(source), "w") as writing:
        stream = writing.add_stream_from_template(reading.streams.video[0])
        for packet in reading.demux(video=0):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - 5 * 512, packet.dts - 5 * 512, stream
                writing.mux(packet)
    assert [number_of(picture) for picture in decoded(source)] == list(range(5, 20)), "the test's own file"
    target = redrawn(source)
    assert [number_of(picture) for picture in decoded(target)] == list(range(5, 20))
    assert times(target) == times(source)


def test_the_clock_of_a_transport_stream_starts_at_0(tmp_path):
    source = remux(write_video(tmp_path / "video.mp4", bframes=2, num_frames=20), tmp_path / "video.ts", sound="aac")
    target = redrawn(source)
    start = min(times(source)[0], packets(source)[0][0])
    assert start > 0
    assert times(target) == [time - start for time in times(source)]
    ours, theirs = ([float(time) for time, _ in packets(path)] for path in (target, source))
    assert ours == pytest.approx([time - float(start) for time in theirs], abs=1e-4)


def test_a_folder_of_images(tmp_path):
    target = redrawn(write_images(tmp_path / "images", 20))
    assert [number_of(picture) for picture in decoded(target)] == list(range(20))
    assert times(target) == [Fraction(i, 25) for i in range(20)]


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_turned_and_mirrored_frames_are_drawn_on_and_written_upright(tmp_path, name):
    matrix, show = ORIENTATIONS[name]
    source = write_video(tmp_path / "video.mp4", num_frames=6)
    expected = np.stack([show(picture) for picture in decoded(source)])
    pictures = np.stack(decoded(redrawn(turned(source, matrix))))
    assert np.abs(pictures[:, :CORNER, :CORNER] - (255.0, 0, 0)).mean() < 8
    pictures[:, : CORNER + 2, : CORNER + 2] = expected[:, : CORNER + 2, : CORNER + 2]
    assert np.abs(pictures - expected.astype(float)).mean() < 2


@pytest.mark.parametrize("size", [(97, 131), (96, 131), (17, 16)])
def test_odd_sides_get_one_more_row_or_column(tmp_path, size):
    source = write_video(tmp_path / "odd.mkv", pixels="yuv444p", size=size, num_frames=3)
    target = redrawn(source, lambda frame, seconds: frame)
    pictures = np.stack(decoded(target))
    assert pictures.shape[1:3] == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert np.abs(pictures[:, : size[0], : size[1]] - np.stack(decoded(source)).astype(float)).mean() < 4


@pytest.mark.parametrize(
    ("name", "encoder", "pixels", "tags"),
    [
        ("plain.mp4", "libx264", "yuv420p", {}),
        ("full-range.mp4", "libx264", "yuv420p", {"color_range": 2, "colorspace": 1}),
        ("bt709.mp4", "libx264", "yuv420p", {"colorspace": 1, "color_primaries": 1, "color_trc": 1, "color_range": 1}),
        ("bt2020.mp4", "libx265", "yuv420p10le", {"colorspace": 9, "color_primaries": 9, "color_trc": 16}),
        ("rgb.mkv", "ffv1", "bgr0", {}),
    ],
)
def test_colours_are_nearly_the_sources(tmp_path, name, encoder, pixels, tags):
    source, _ = write_coloured(tmp_path / name, encoder, pixels, **tags)
    target = redrawn(source, lambda frame, seconds: frame)
    difference = np.stack(decoded(target)) - np.stack(decoded(source)).astype(float)
    assert np.abs(difference).mean() < 2.5
    assert np.abs(difference.mean(axis=(0, 1, 2))).max() < 2
    with av.open(str(target)) as container:
        context = container.streams.video[0].codec_context
        assert all(getattr(context, key) == tag for key, tag in tags.items() if key != "color_range")
        assert context.color_range in (0, 1), "limited range, which is what no tag means, too"


@pytest.mark.parametrize("sound", ["aac", "ac3", "flac", "mp2"])
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_sound_is_copied_packet_for_packet(tmp_path, sound, container):
    source = remux(write_video(tmp_path / "video.mp4", num_frames=20), tmp_path / f"sound.{container}", sound=sound)
    target = redrawn(source)
    ours, theirs = packets(target), packets(source)
    assert [content for _, content in ours] == [content for _, content in theirs]
    assert [float(time) for time, _ in ours] == pytest.approx([float(time) for time, _ in theirs], abs=1.1e-3)
    assert times(target) == times(source)


def test_several_sound_tracks_keep_their_order_and_languages(tmp_path):
    source, seconds = tmp_path / "two.mkv", 1
    with av.open(str(source), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = 96, 128, "yuv420p"
        tracks = [container.add_stream(codec, rate=48_000, layout="mono") for codec in ("ac3", "pcm_s16le")]
        for track, language in zip(tracks, ("ger", "fre"), strict=True):
            track.metadata["language"] = language
        for _ in range(25 * seconds):
            frame = av.VideoFrame.from_ndarray(np.zeros((96, 128, 3), np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        for track in tracks:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 48_000 * seconds), np.int16), "s16", "mono")
            silence.sample_rate, silence.pts, silence.time_base = 48_000, 0, Fraction(1, 48_000)
            container.mux(track.encode(silence))
        for stream in (video, *tracks):
            container.mux(stream.encode(None))
    with av.open(str(redrawn(source))) as container:
        found = [
            (stream.codec_context.codec.canonical_name, stream.metadata["language"])
            for stream in container.streams.audio
        ]
    assert found == [("ac3", "ger"), ("aac", "fre")]


def write_clap(path, *, clap: float, gap: float, delay: float):
    """Two seconds of video, silent but for a clap; no sound from `gap` on for 0.3 s; all starts at `delay`."""
    rate = 48_000
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = 96, 128, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        samples = np.zeros(2 * rate, np.int16)
        samples[round(clap * rate) : round((clap + 0.01) * rate)] = 20_000
        items = []
        for i in range(50):
            frame = av.VideoFrame.from_ndarray(np.zeros((96, 128, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = i + round(delay * 25), Fraction(1, 25)
            items.append((i / 25, video, frame))
            start = i * rate // 25
            part = av.AudioFrame.from_ndarray(samples[None, start : start + rate // 25].copy(), "s16", "mono")
            part.sample_rate, part.pts, part.time_base = rate, start + round(delay * rate), Fraction(1, rate)
            if not gap <= i / 25 < gap + 0.3:
                items.append((i / 25, sound, part))
        for _, stream, frame in items:
            container.mux(stream.encode(frame))
        for stream in (video, sound):
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("delay", [0, 0.4])
@pytest.mark.parametrize(("name", "gap"), [("whole.mov", 9), ("gap.mkv", 0.6)])  # MOV files close a gap
def test_encoded_sound_is_in_sync(tmp_path, name, gap, delay):
    source = write_clap(tmp_path / name, clap=1.5, gap=gap, delay=delay)
    target = redrawn(source)
    assert times(target) == times(source)
    with av.open(str(target)) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
        frames = [(float(f.pts * f.time_base), f.to_ndarray()[0]) for f in container.decode(audio=0)]
    moments = np.concatenate([time + np.arange(len(samples)) / 48_000 for time, samples in frames])
    loud = moments[np.abs(np.concatenate([samples for _, samples in frames])) > 0.2]
    assert loud.min() == pytest.approx(1.5 + delay, abs=0.003)
    assert loud.max() == pytest.approx(1.51 + delay, abs=0.003)


@pytest.mark.parametrize("sound", ["aac", "mp2"])
def test_joined_recordings_whose_clock_starts_again_go_on(tmp_path, sound):
    part = remux(write_video(tmp_path / "video.mp4", num_frames=25), tmp_path / "part.ts", sound=sound)
    source = tmp_path / "joined.ts"
    source.write_bytes(2 * part.read_bytes())
    target = redrawn(source)
    assert [number_of(picture) for picture in decoded(target)] == 2 * list(range(25))
    times_of_sound = [float(time) for time, _ in packets(target)]
    assert len(times_of_sound) == len(packets(source)) == 2 * len(packets(part))
    assert times_of_sound == sorted(times_of_sound)
    assert times_of_sound[-1] == pytest.approx(float(times(target)[-1]), abs=0.1)


def test_damaged_sound_is_left_out(tmp_path):
    source = remux(write_video(tmp_path / "video.mp4", num_frames=25), tmp_path / "video.ts", sound="aac")
    content, heads = source.read_bytes(), []
    while (place := content.find(b"\xff\xf1", heads[-1] + 1 if heads else 0)) >= 0:  # of AAC packets in MPEG-TS
        heads.append(place)
    source.write_bytes(bytes(0 if place in heads[10:20:3] else byte for place, byte in enumerate(content)))
    target = redrawn(source)
    assert [number_of(picture) for picture in decoded(target)] == list(range(25))
    assert 20 < len(packets(target)) < len(packets(source))


def test_sound_without_a_decoder_is_left_out_with_a_word(tmp_path, caplog):
    source = remux(write_video(tmp_path / "source.mp4", num_frames=20), tmp_path / "video.mp4", sound="aac")
    source.write_bytes(source.read_bytes().replace(b"mp4a", b"zzzz").replace(b"esds", b"xxxx"))
    with av.open(str(redrawn(source))) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    assert "sound track 1 is left out" in caplog.text


def test_the_source_is_never_the_target(tmp_path):
    source = write_video(tmp_path / "video.mp4", num_frames=5)
    content = source.read_bytes()
    os.link(source, tmp_path / "hard.mp4")
    names = ["video.mp4", "hard.mp4"]
    if os.name != "nt":
        (tmp_path / "soft.mp4").symlink_to(source)
        names.append("soft.mp4")
    for name in names:
        with pytest.raises(InputError, match="is the source itself"):
            redraw(source, tmp_path / name, mark, info=probe(source))
    assert source.read_bytes() == content


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.avi", "ends in .mp4"),
        ("folder.mp4", "is a folder"),
        ("video.mp4/out.mp4", "video.mp4 is a file; give another folder"),
    ],
)
def test_targets_that_cannot_be_written_are_refused(tmp_path, name, message):
    source = write_video(tmp_path / "video.mp4", num_frames=5)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(InputError, match=message):
        redraw(source, tmp_path / name, mark, info=probe(source))


@pytest.mark.skipif(os.name == "nt", reason="names of Unix")
@pytest.mark.parametrize("name", ["12:30.mp4", "walk%d.mp4", "-.mp4"])
def test_any_name_will_do(tmp_path, monkeypatch, name):
    source = write_video(tmp_path / "video.mp4", num_frames=5)
    monkeypatch.chdir(tmp_path)
    redraw(source, name, mark, info=probe(source))
    assert probe(tmp_path / name).num_frames == 5


def test_a_source_that_breaks_in_the_middle_leaves_the_old_target(tmp_path):
    source, target = write_video(tmp_path / "video.mp4", options={"crf": "1"}), tmp_path / "out.mp4"
    info = replace(probe(source), identity="")  # as if it had been probed before it broke
    target.write_text("old")
    break_half_way(source)
    with pytest.raises(VideoError):
        redraw(source, target, mark, info=replace(info, num_frames=61))
    assert target.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4", "video.mp4"]


def test_an_error_while_drawing_keeps_its_kind_and_leaves_nothing(tmp_path):
    source = write_video(tmp_path / "video.mp4", num_frames=5)
    with pytest.raises(ZeroDivisionError):
        redraw(source, tmp_path / "out" / "out.mp4", lambda frame, seconds: 1 // 0, info=probe(source))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(os.name == "nt", reason="limits of Unix")
def test_a_full_disk_is_the_disks_error_and_leaves_nothing(tmp_path):
    source = write_video(tmp_path / "video.mp4")
    (tmp_path / "out").mkdir()
    program = (
        "import resource, sys; from stvid.video.probe import probe; from stvid.video.redraw import redraw; "
        "source, target = sys.argv[1:]; info = probe(source); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); "
        "redraw(source, target, lambda frame, seconds: frame, info=info)"
    )
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "out" / "out.mp4")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "OSError: [Errno 27]" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
