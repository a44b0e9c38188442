"""Network streams and cameras: frames flow, and what is wrong is said in one message."""

import io
import itertools
import threading
from types import SimpleNamespace
from unittest import mock

import av
import pytest
import torch
from loopback import endless, mpegts, rtp_packets, rtsp_camera, send, serving

from stvid.errors import InputError
from stvid.video import capture
from stvid.video.capture import Camera, NetworkStream, held_back


@pytest.fixture(scope="module")
def video():
    return mpegts()


def status(code):
    return lambda handler: handler.send_error(code)


def hang(handler):
    handler.send_response(200)
    handler.end_headers()
    handler.server.stop.wait()


def playlist(segment):
    text = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{segment}\n#EXT-X-ENDLIST\n"
    return lambda handler: send(handler, text.encode(), kind="application/vnd.apple.mpegurl")


def test_frames_of_an_endless_stream_arrive_in_order(video):
    with serving(live=endless(video)) as server:
        source = NetworkStream(f"{server.url}/live")
        frames = list(itertools.islice(source.frames(), 120))
    assert source.fps == 25
    assert source.reconnects
    assert all(frame.shape == (3, 48, 64) and frame.dtype == torch.uint8 for _, frame in frames)
    levels = torch.tensor([frame.float().mean() for _, frame in frames[:49]])
    assert (levels - 5 * torch.arange(49.0)).abs().max() < 4
    assert [seconds for seconds, _ in frames] == sorted(seconds for seconds, _ in frames)


def test_frames_of_an_rtsp_camera_arrive():
    with rtsp_camera(rtp_packets(30)) as url:
        source, frames = NetworkStream(url, timeout=30), []
        with pytest.raises(InputError, match="closed|lost"):
            frames.extend(frame for _, frame in source.frames())
    levels = torch.tensor([frame.float().mean() for frame in frames])
    assert len(levels) == 30
    assert (levels - 5 * torch.arange(30.0)).abs().max() < 4
    assert source.reconnects


def test_a_cut_connection_is_an_error_and_can_be_opened_again(video):
    with serving(live=lambda handler: send(handler, video, with_length=False)) as server:
        source = NetworkStream(f"{server.url}/live")
        times = []
        with pytest.raises(InputError, match="lost|closed"):
            times.extend(seconds for seconds, _ in source.frames())
        assert len(times) >= 49
        seconds, _ = next(source.frames())
    assert seconds >= times[-1]  # its clock goes on
    assert source.reconnects


def test_a_file_on_a_server_is_played_at_its_own_pace_and_ends(video, monkeypatch):
    paced = []
    monkeypatch.setattr(capture, "held_back", lambda frames, closed, longest: paced.append(True) or frames)
    with serving(file=lambda handler: send(handler, video)) as server:
        source = NetworkStream(f"{server.url}/file")
        assert len(list(source.frames())) == 50
    assert paced == [True]
    assert not source.reconnects


def test_a_playlist_is_read(video, monkeypatch):
    monkeypatch.setattr(capture, "held_back", lambda frames, closed, longest: frames)
    with serving(list__m3u8=playlist("part.ts"), part__ts=lambda handler: send(handler, video)) as server:
        source = NetworkStream(f"{server.url}/list.m3u8")
        assert len(list(source.frames())) == 50
    assert source.reconnects


def test_a_playlist_cannot_open_files_of_this_machine(video, tmp_path):
    (tmp_path / "part.ts").write_bytes(video)
    with serving(list__m3u8=playlist((tmp_path / "part.ts").as_uri())) as server, pytest.raises(InputError):
        next(NetworkStream(f"{server.url}/list.m3u8").frames())


def test_a_list_of_files_is_no_video(video, tmp_path):
    (tmp_path / "part.ts").write_bytes(video)
    text = f"ffconcat version 1.0\nfile {tmp_path / 'part.ts'}\n".encode()
    with (
        serving(list=lambda handler: send(handler, text)) as server,
        pytest.raises(InputError, match="not with a video"),
    ):
        next(NetworkStream(f"{server.url}/list").frames())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (status(404), "404 Not Found"),
        (status(401), "refuses access"),
        (hang, "no data for 0.3 s"),
        (lambda handler: send(handler, b"<html>" + b"x" * 100_000, kind="text/html"), "is it a web page"),
        (lambda handler: send(handler, b"<html></html>", kind="text/html"), "no video|web page"),
    ],
)
def test_what_is_wrong_with_a_url_is_said_without_its_password(answer, message):
    with serving(x=answer) as server, pytest.raises(InputError, match=message) as error:
        next(NetworkStream(server.url.replace("//", "//me:secret@") + "/x", timeout=0.3).frames())
    assert "secret" not in str(error.value)
    assert str(error.value).startswith("http://me:***@127.0.0.1:")


def test_a_port_without_a_server_refuses():
    with serving() as server:
        url = server.url
    with pytest.raises(InputError, match="connection refused"):
        next(NetworkStream(f"{url}/x").frames())


def test_a_stream_that_stops_sending_is_noticed(video):
    def stall(handler):
        send(handler, video, with_length=False)
        handler.server.stop.wait()

    with serving(live=stall) as server:
        source = NetworkStream(f"{server.url}/live", timeout=0.3)
        with pytest.raises(InputError, match="no data for 0.3 s"):
            list(source.frames())


def test_sound_alone_is_no_source():
    out = io.BytesIO()
    with av.open(out, "w", format="mpegts") as container:
        stream = container.add_stream("mp2", rate=16000, layout="mono")
        for _ in range(20):
            frame = av.AudioFrame(format="s16", layout="mono", samples=1152)
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with (
        serving(sound=lambda handler: send(handler, out.getvalue())) as server,
        pytest.raises(InputError, match="has no pictures"),
    ):
        next(NetworkStream(f"{server.url}/sound").frames())


def test_frames_that_are_too_large_are_refused(video):
    with serving(live=endless(video)) as server, pytest.raises(InputError):
        next(NetworkStream(f"{server.url}/live", max_pixels=64).frames())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (av.FileNotFoundError(2, "No such file or directory", "x"), "there is no camera 7"),
        (av.PermissionError(13, "Permission denied", "x"), "no permission"),
        (av.OSError(16, "Device or resource busy", "x"), "is busy"),
        (av.OSError(25, "Inappropriate ioctl for device", "x"), "delivers no pictures"),
        (av.OSError(22, "Invalid argument", "x"), "Invalid argument"),
    ],
)
def test_what_is_wrong_with_a_camera_is_said(error, message, monkeypatch):
    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr(capture.sys, "platform", "linux")
    monkeypatch.setattr(capture.av, "open", refuse)
    with pytest.raises(InputError, match=message):
        next(Camera(7).frames())


@pytest.mark.parametrize(
    ("platform", "device", "driver", "options"),
    [
        ("linux", "/dev/video1", "v4l2", {"video_size": "640x480"}),
        ("darwin", "1:none", "avfoundation", {"video_size": "640x480", "framerate": "30"}),
        ("win32", "video=second", "dshow", {"video_size": "640x480"}),
    ],
)
def test_each_system_has_its_own_name_for_a_camera(platform, device, driver, options, monkeypatch):
    def open_device(name, **given):
        assert (name, given["format"], given["options"]) == (device, driver, options)
        raise av.OSError(16, "Device or resource busy", name)

    devices = [SimpleNamespace(name=name, media_types=["video"]) for name in ("first", "second")]
    sound = SimpleNamespace(name="microphone", media_types=["audio"])
    monkeypatch.setattr(capture.sys, "platform", platform)
    monkeypatch.setattr(capture.av, "open", open_device)
    monkeypatch.setattr(capture.av, "enumerate_input_devices", lambda name: [devices[0], sound, devices[1]])
    with pytest.raises(InputError, match="busy"):
        next(Camera(1, size=(480, 640)).frames())
    if platform == "win32":
        with pytest.raises(InputError, match="cameras of this machine: first, second"):
            next(Camera(2).frames())


class Clock:
    """Stands in for the module `time` and for an event that is waited for."""

    def __init__(self):
        self.now, self.waits = 100.0, []

    def monotonic(self):
        return self.now

    def wait(self, seconds):
        self.waits.append(seconds)
        self.now += seconds
        return False


def test_frames_are_held_back_until_their_time(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(capture, "time", clock)
    taken = []
    for seconds, i in held_back(((i / 4, i) for i in range(6)), clock):
        taken.append((clock.now - 100, i))
        assert seconds == i / 4
        if i == 2:
            clock.now += 10  # slow: what follows is not hurried through
    assert [time for time, _ in taken] == [0, 0.25, 0.5, 10.5, 10.75, 11.0]
    closed = threading.Event()
    closed.set()
    assert list(held_back(iter([(0.0, 0), (99.0, 1)]), closed)) == [(0.0, 0)]


def test_a_clock_that_jumps_ahead_does_not_stop_a_network_stream(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(capture, "time", clock)
    frames = [(0.0, 0), (1.0, 1), (26_000.0, 2), (26_001.0, 3)]
    assert list(held_back(iter(frames), clock, longest=60)) == frames
    assert clock.now - 100 == 2  # one second before frames 1 and 3
    clock = Clock()
    monkeypatch.setattr(capture, "time", clock)
    assert list(held_back(iter(frames), clock)) == frames
    assert clock.now - 100 == 26_001  # of a file, every pause is real


def test_the_time_for_which_a_frame_is_held_back_is_no_lack_of_pictures(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(capture, "time", clock)
    data = io.BytesIO(mpegts())
    with av.open(data) as container:
        frames = capture._decode(container, "x", fps=25, max_pixels=10**6, timeout=10)
        for _ in range(3):
            next(frames)
            clock.now += 15  # the frame after it comes 15 s later


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        ([None, None, None, None], [0.0, 0.1, 0.2, 0.3]),
        ([7.0, None, None, 7.5, None], [0.0, 0.1, 0.2, 0.5, 0.6]),
        ([None, None, 7.5, None, 8.0], [0.0, 0.1, 0.2, 0.3, 0.7]),
    ],
)
def test_a_frame_without_a_time_follows_the_one_before(stamps, expected):
    frames = [SimpleNamespace(height=4, width=4, time=stamp) for stamp in stamps]
    stream = mock.create_autospec(av.VideoStream, instance=True)
    packets = [SimpleNamespace(decode=lambda frame=frame: [frame]) for frame in frames]
    container = SimpleNamespace(streams=SimpleNamespace(best=lambda kind: stream), demux=lambda stream: packets)
    decoded = capture._decode(container, "x", fps=10, max_pixels=100, timeout=10)
    assert [seconds for seconds, _ in decoded] == pytest.approx(expected)
