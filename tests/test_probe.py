"""`probe` tells what is true of a file, whatever its header says; `probe_all` does so for many, and survives them."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from fractions import Fraction
from multiprocessing.connection import wait
from pathlib import Path

import av
import numpy as np
import pytest

from stvid.errors import EMPTY, MISSING, NO_VIDEO_STREAM, REASONS, TIMEOUT, TRUNCATED, UNREADABLE, VideoError
from stvid.video import decoding, workers
from stvid.video import probe as probe_module
from stvid.video.probe import probe, probe_all
from stvid.video.probe_cache import HEAD, ProbeCache
from stvid.video.types import VideoInfo, file_identity
from stvid.video.workers import report_progress

DATA = Path(os.environ.get("STVID_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
UT_INTERACTION = DATA / "ut_interaction"
ODD_VIDEOS = DATA / "odd_videos"


def write_video(path, *, encoder="libx264", num_frames=30, rate=25, times=None, size=(48, 64), **options):
    """Noise of `num_frames` frames, frame i due at `times[i]` ms (default: i / rate seconds)."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=rate, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(num_frames):
            picture = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def reason_of(path) -> str:
    with pytest.raises(VideoError) as caught:
        probe(path)
    assert str(path) in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("reason", REASONS)
def test_an_error_is_the_same_in_another_process(reason):
    error = pickle.loads(pickle.dumps(VideoError(Path("a.avi"), reason, "seen so")))
    assert (error.path, error.reason, error.detail) == ("a.avi", reason, "seen so")
    assert str(error) == f"a.avi: {reason} (seen so)"


def test_facts_of_a_plain_file(tmp_path):
    info = probe(write_video(tmp_path / "video.mp4", g="10", bf="0", sc_threshold="0"))
    assert info == VideoInfo(
        num_frames=30,
        fps=25.0,
        duration=1.2,
        height=48,
        width=64,
        codec="h264",
        rotation=0,
        pixel_format="yuv420p",
        keyframes=(0, 10, 20),
        first_pts=0,
    )
    assert pickle.loads(pickle.dumps(info)) == info


@pytest.mark.parametrize("container", ["mp4", "mkv", "avi"])
def test_the_rate_is_exact_where_the_header_explains_the_stamps(tmp_path, container):
    info = probe(write_video(tmp_path / f"video.{container}", rate=Fraction(30000, 1001)))
    assert info.fps == pytest.approx(30000 / 1001, rel=1e-4)  # Matroska keeps a frame's duration in whole ns
    assert info.timestamps is None


def test_variable_frame_rate_comes_with_the_time_of_each_frame(tmp_path):
    times = [0, 40, 80, 400, 440, 480, 520, 1200, 1240, 1280]
    info = probe(write_video(tmp_path / "video.mp4", num_frames=10, times=times))
    assert info.timestamps == pytest.approx([t / 1000 for t in times], abs=1e-3)
    assert probe(write_video(tmp_path / "plain.mp4", num_frames=10, times=times, bf="0")).random_access
    assert info.fps == pytest.approx(9 / 1.28, rel=1e-3)


def test_mpeg4_in_avi_is_never_trusted_with_random_access(tmp_path):
    assert not probe(write_video(tmp_path / "video.avi", encoder="mpeg4")).random_access


def test_a_recording_cut_in_mid_stream_counts_the_frames_that_can_be_shown(tmp_path):
    source = write_video(tmp_path / "video.mkv", g="10", num_frames=40)
    late = tmp_path / "late.mkv"
    with av.open(str(source)) as reading, av.open(str(late), "w") as writing:
        stream = writing.add_stream_from_template(reading.streams.video[0])
        for number, packet in enumerate(reading.demux(video=0)):
            if packet.size and number >= 5:
                packet.stream = stream
                writing.mux(packet)
    with av.open(str(late)) as container:
        displayed = sum(1 for _ in container.decode(video=0))
    assert probe(late).num_frames == displayed < 40


def test_missing_files_are_missing(tmp_path):
    assert reason_of(tmp_path / "nothing.mp4") == MISSING


def test_empty_files_are_empty(tmp_path):
    (tmp_path / "zero.mp4").touch()
    assert reason_of(tmp_path / "zero.mp4") == EMPTY


def test_text_is_unreadable_and_a_folder_without_images_empty(tmp_path):
    (tmp_path / "text.mp4").write_text("no video at all\n" * 100)
    assert reason_of(tmp_path / "text.mp4") == UNREADABLE
    assert reason_of(tmp_path) == EMPTY


def test_sound_alone_has_no_video_stream(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert reason_of(tmp_path / "sound.mp4") == NO_VIDEO_STREAM


@pytest.mark.parametrize(
    ("container", "encoder", "reason"),
    [
        ("avi", "mpeg4", TRUNCATED),
        ("mkv", "libx264", TRUNCATED),
        ("webm", "libvpx-vp9", TRUNCATED),
        ("mp4", "libx264", UNREADABLE),  # its index comes last
    ],
)
def test_half_a_file_is_not_taken_for_a_shorter_video(tmp_path, container, encoder, reason):
    path = write_video(tmp_path / f"video.{container}", encoder=encoder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert reason_of(path) == reason


@pytest.mark.skipif(not UT_INTERACTION.exists(), reason="needs shared/data/ut_interaction")
def test_counts_of_ut_interaction_are_those_of_a_decoder():
    true_counts = {row["path"]: row["n"] for row in json.loads((UT_INTERACTION / "probe.json").read_text())}
    infos = probe_all([UT_INTERACTION / name for name in true_counts], num_workers=2, progress=False)
    assert len(infos) == 120
    assert {name: info.num_frames for name, info in zip(true_counts, infos, strict=True)} == true_counts


@pytest.mark.skipif(not ODD_VIDEOS.exists(), reason="needs shared/data/odd_videos")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Mpeg4.mp4", NO_VIDEO_STREAM),
        ("mp4-with-audio.mp4", NO_VIDEO_STREAM),
        ("sine_mono_s16.wav", NO_VIDEO_STREAM),
        ("gif.gif", EMPTY),
    ],
)
def test_odd_files_without_frames_say_why(name, reason):
    assert reason_of(ODD_VIDEOS / name) == reason


def test_counting_is_quicker_and_says_the_same_of_a_good_file(tmp_path):
    path = write_video(tmp_path / "video.mp4", bf="0")
    counted = probe(path, decode_all=False)
    assert not counted.decoded
    assert replace(counted, decoded=True) == probe(path)


def test_the_frame_nearest_to_a_time_is_found(tmp_path):
    even = probe(write_video(tmp_path / "even.mp4"))
    assert [even.index_at(t) for t in (0, 0.019, 0.021, 1.0)] == [0, 0, 1, 25]
    times = [0, 40, 80, 400, 440]
    uneven = probe(write_video(tmp_path / "uneven.mp4", num_frames=5, times=times))
    assert [uneven.index_at(t) for t in (0, 0.1, 0.25, 0.3, 9)] == [0, 2, 3, 3, 4]
    assert [uneven.seconds_at(i) for i in range(5)] == pytest.approx([t / 1000 for t in times], abs=1e-3)


@pytest.fixture
def videos(tmp_path) -> list[Path]:
    folder = tmp_path / "videos"
    folder.mkdir()
    return [write_video(folder / f"{n}.mp4", num_frames=n, bf="0") for n in (5, 6, 7, 8)]


@pytest.fixture(params=["fork", "spawn"])
def start_method(request):
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


@pytest.fixture
def forked():
    """For tests that replace `probe`, which only a forked process inherits."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("fork", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.usefixtures("start_method")
def test_results_come_in_the_order_asked_good_and_bad(videos):
    a, b, c, _ = videos
    missing = a.with_name("missing.mp4")
    results = probe_all([c, missing, a, b, a], num_workers=2, progress=False)
    assert [getattr(r, "num_frames", None) or r.reason for r in results] == [7, MISSING, 5, 6, 5]


def test_no_workers_probe_in_this_process(videos):
    assert [info.num_frames for info in probe_all(videos, num_workers=0, progress=False)] == [5, 6, 7, 8]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_garbage_is_collected_while_files_are_probed(videos, monkeypatch, num_workers):
    def probe_paused(path, **options):
        if not gc.isenabled():
            raise VideoError(path, UNREADABLE, "garbage collection is paused")
        return probe(path, **options)

    monkeypatch.setattr("stvid.video.probe.probe", probe_paused)
    good = [path for path in videos if isinstance(probe_all([path], num_workers=0, progress=False)[0], VideoInfo)]
    assert good
    assert all(isinstance(info, VideoInfo) for info in probe_all(good, num_workers=num_workers, progress=False))


def test_nothing_to_probe_is_no_work():
    assert probe_all([], num_workers=4) == []


@pytest.mark.usefixtures("forked")
def test_a_crash_costs_only_the_file_that_caused_it(videos, monkeypatch):
    def crash(name, *, decode_all, max_pixels):
        if name.endswith("6.mp4"):
            os.kill(os.getpid(), signal.SIGKILL)
        return probe(name, decode_all=decode_all)

    monkeypatch.setattr(probe_module, "probe", crash)
    results = probe_all(videos, num_workers=2, progress=False)
    assert [getattr(r, "num_frames", None) or r.reason for r in results] == [5, UNREADABLE, 7, 8]


@pytest.mark.usefixtures("forked")
def test_a_hang_costs_its_time_limit_and_only_its_own_file(videos, monkeypatch):
    def hang(name, *, decode_all, max_pixels):
        if name.endswith("6.mp4"):
            time.sleep(600)
        return probe(name, decode_all=decode_all)

    monkeypatch.setattr(probe_module, "probe", hang)
    results = probe_all(videos, num_workers=2, progress=False, timeout=1.0)
    assert [getattr(r, "num_frames", None) or r.reason for r in results] == [5, TIMEOUT, 7, 8]
    assert "data.probe_timeout" in str(results[1])


def begin_and_hang(name):
    report_progress()
    threading.Event().wait()


def test_the_time_limit_counts_silence_not_the_whole_time():
    worker = workers._Worker(begin_and_hang, timeout=600.0)
    try:
        worker.start_file("film.mp4")
        before = worker.deadline
        wait([worker.pipe])
        assert not worker.has_ended()
        assert worker.deadline > before
    finally:
        worker.kill()


@pytest.mark.parametrize("decode_all", [True, False])
def test_every_frame_is_progress(videos, tmp_path, monkeypatch, decode_all):
    calls = []
    monkeypatch.setattr(decoding, "report_progress", lambda: calls.append(1))
    info = probe(videos[0], decode_all=decode_all)
    assert len(calls) >= info.num_frames


def forbidden(name, *, decode_all, max_pixels):
    raise AssertionError(f"{name} was probed again")


def test_unchanged_files_are_probed_once(videos, tmp_path, monkeypatch):
    cache = tmp_path / "deep" / "probe.json"
    first = probe_all(videos, num_workers=2, cache=cache, progress=False)
    monkeypatch.setattr(probe_module, "probe", forbidden)
    monkeypatch.chdir(videos[0].parent)
    again = probe_all([path.name for path in videos], num_workers=0, cache=cache, progress=False)
    assert again == first


def test_the_cache_keeps_the_time_of_each_frame(tmp_path):
    path = write_video(tmp_path / "video.mp4", num_frames=4, times=[0, 40, 80, 900])
    first = probe_all([path], num_workers=0, cache=tmp_path / "c.json", progress=False)
    assert probe_all([path], num_workers=0, cache=tmp_path / "c.json", progress=False) == first
    assert len(first[0].timestamps) == 4


def test_counted_facts_do_not_do_where_decoding_was_asked_for(videos, tmp_path):
    cache = tmp_path / "probe.json"
    known = {"num_workers": 0, "cache": cache, "progress": False}
    assert not any(info.decoded for info in probe_all(videos, decode_all=False, **known))
    assert all(info.decoded for info in probe_all(videos, decode_all=True, **known))
    assert all(info.decoded for info in probe_all(videos, decode_all=False, **known))


def test_no_process_outlives_a_parent_that_was_killed(tmp_path):
    program = f"""
import os, time
from stvid.video import workers
def work(name):
    open({str(tmp_path)!r} + "/" + name, "w").write(str(os.getpid()))
    time.sleep(600)
list(workers.map_files(work, ["a", "b"], num_workers=2, timeout=600))
"""
    parent = subprocess.Popen([sys.executable, "-c", program])
    started = [tmp_path / "a", tmp_path / "b"]
    assert in_time(lambda: all(path.exists() and path.read_text() for path in started))
    children = [int(path.read_text()) for path in started]
    parent.kill()
    parent.wait()
    assert in_time(lambda: not any(is_running(child) for child in children))


def in_time(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def is_running(process_id):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process_id}/status").read_text()
    except OSError:
        return False


@pytest.mark.usefixtures("forked")
def test_a_mistake_of_ours_is_not_taken_for_a_bad_file(videos, monkeypatch):
    def mistaken(name, *, decode_all, max_pixels):
        raise ZeroDivisionError

    monkeypatch.setattr(probe_module, "probe", mistaken)
    with pytest.raises(ZeroDivisionError):
        probe_all(videos, num_workers=2, progress=False)


def test_a_changed_file_is_probed_again_and_the_others_are_not(videos, tmp_path, monkeypatch):
    cache = tmp_path / "probe.json"
    probe_all(videos, num_workers=0, cache=cache, progress=False)
    write_video(videos[0], num_frames=12)
    monkeypatch.setattr(
        probe_module,
        "probe",
        lambda name, **options: probe(name) if name == str(videos[0]) else forbidden(name, **options),
    )
    infos = probe_all(videos, num_workers=0, cache=cache, progress=False)
    assert [info.num_frames for info in infos] == [12, 6, 7, 8]


def test_files_in_trouble_are_looked_at_again(tmp_path):
    path, cache = tmp_path / "video.mp4", tmp_path / "probe.json"
    assert probe_all([path], num_workers=0, cache=cache, progress=False)[0].reason == MISSING
    write_video(path)
    assert probe_all([path], num_workers=0, cache=cache, progress=False)[0].num_frames == 30


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"stvid_probe": 1}', b"\xff\x00", HEAD, HEAD + b"\n{}\t{}"])
def test_a_damaged_cache_is_ignored_and_replaced(videos, tmp_path, content):
    cache = tmp_path / "probe.jsonl"
    cache.write_bytes(content)
    infos = probe_all(videos, num_workers=0, cache=cache, progress=False)
    assert [info.num_frames for info in infos] == [5, 6, 7, 8]
    assert names_in(cache) == list(map(str, videos))


def names_in(cache):
    head, *lines = cache.read_bytes().splitlines(keepends=True)
    assert head == HEAD + b"\n"
    assert all(line.endswith(b"\n") for line in lines)
    return [json.loads(line.split(b"\t")[0]) for line in lines]


def test_new_results_are_appended(videos, tmp_path):
    cache = tmp_path / "probe.jsonl"
    probe_all(videos[:3], num_workers=0, cache=cache, progress=False)
    before, node = cache.read_bytes(), cache.stat().st_ino
    probe_all(videos, num_workers=0, cache=cache, progress=False)
    assert cache.read_bytes().startswith(before)
    assert cache.stat().st_ino == node
    assert names_in(cache) == list(map(str, videos))


def test_only_a_line_that_was_not_written_completely_is_lost(videos, tmp_path, monkeypatch):
    cache = tmp_path / "probe.jsonl"
    first = probe_all(videos, num_workers=0, cache=cache, progress=False)
    cache.write_bytes(cache.read_bytes()[:-20])
    probed = []
    monkeypatch.setattr(probe_module, "probe", lambda name, **options: probed.append(name) or probe(name, **options))
    assert probe_all(videos, num_workers=0, cache=cache, progress=False) == first
    assert probed == [str(videos[3])]
    assert names_in(cache) == list(map(str, videos))
    assert probe_all(videos, num_workers=0, cache=cache, progress=False) == first
    assert len(probed) == 1


def test_results_of_two_processes_are_kept(videos, tmp_path):
    cache = tmp_path / "probe.jsonl"
    both = [ProbeCache(cache), ProbeCache(cache)]
    for known, video in zip(both, videos, strict=False):
        known.add(str(video), file_identity(video), probe(video))
    for known in both:
        known.save()
    assert names_in(cache) == list(map(str, videos[:2]))


def test_a_cache_of_files_that_change_does_not_grow(videos, tmp_path):
    cache = tmp_path / "probe.jsonl"
    for i in range(10):
        os.utime(videos[0], (i, i))
        probe_all(videos[:2], num_workers=0, cache=cache, progress=False)
    assert 2 <= len(names_in(cache)) <= 5
    assert ProbeCache(cache).get(str(videos[0]), file_identity(videos[0])) is not None


def test_a_cache_that_cannot_be_written_is_done_without(videos, tmp_path):
    (tmp_path / "file").touch()
    infos = probe_all(videos, num_workers=0, cache=tmp_path / "file" / "probe.json", progress=False)
    assert [info.num_frames for info in infos] == [5, 6, 7, 8]


def test_nothing_but_the_cache_is_left_behind(videos, tmp_path):
    cache = tmp_path / "cache" / "probe.json"
    probe_all(videos, num_workers=0, cache=cache, progress=False)
    assert list(cache.parent.iterdir()) == [cache]


def test_a_bar_is_shown_only_when_there_is_something_to_do(videos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    cache = tmp_path / "probe.json"
    probe_all(videos, num_workers=0, cache=cache)
    assert "probing videos" in capsys.readouterr().err
    probe_all(videos, num_workers=0, cache=cache)
    assert capsys.readouterr().err == ""
