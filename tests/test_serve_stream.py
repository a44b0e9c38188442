"""Frames over a socket: the answers of `Recognizer.stream`, shared forward passes, limits, mistakes of clients."""

import asyncio
import contextlib
import dataclasses
import io
import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from service_client import only_full_batches, until
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from test_stream import CLIP, OfAUser, small_conv3d, trained

from stvid.recognizer import Recognizer
from stvid.serve import streams
from stvid.serve.app import create_app
from stvid.serve.inbox import Inbox
from stvid.serve.options import ServeOptions

SOCKET = "ws://127.0.0.1/stream"
SETTINGS = {"fps": 20, "format": "rgb24", "size": [50, 40], "realtime": False}
MODES = {
    "carried state": lambda: (CLIP, None, {}),
    "continual convolution": lambda: (dataclasses.replace(CLIP, num_frames=4, frame_stride=2), small_conv3d(), {}),
    "windows": lambda: (dataclasses.replace(CLIP, num_frames=4), OfAUser(), {}),
    "live windows": lambda: (dataclasses.replace(CLIP, num_frames=4), None, {"pooling": "mean"}),
}


def recognizer(tmp_path, mode="carried state", changes=()):
    torch.manual_seed(0)
    clip, model, options = MODES[mode]()
    clip = dataclasses.replace(clip, **dict(changes))
    run = trained(tmp_path, clip, model, **options)
    run.path.write_bytes(b"x")  # its checksum is told
    return Recognizer(run, device="cpu")


def service(tmp_path, mode="carried state", changes=(), **options):
    """A client of the application, to be entered; `changes` are those of the clip."""
    app = create_app(recognizer(tmp_path, mode, changes), ServeOptions(**options))
    return TestClient(app, base_url="http://127.0.0.1")


@pytest.fixture
def client(tmp_path):
    with service(tmp_path, max_frame=20_000, max_streams=2) as client:
        yield client


def video_of(num_frames, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_frames, 40, 50, 3), dtype=np.uint8)


def jpeg(frame, **options):
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "JPEG", **options)
    return out.getvalue()


def begin(socket, **changes):
    socket.send_json({**SETTINGS, **changes})
    return socket.receive_json()


def error_of(socket):
    """The message of an error, and the code that the socket is closed with."""
    message = socket.receive_json()
    assert message["event"] == "error", message
    with pytest.raises(WebSocketDisconnect) as closed:
        socket.receive_json()
    return message["detail"], closed.value.code


def open_streams(client):
    return client.get("/metrics").text.partition("\nstvid_streams_open ")[2].partition("\n")[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("format", ["rgb24", "jpeg"])
def test_the_answers_are_those_of_the_recognizer(tmp_path, mode, format):
    frames = video_of(12)
    sent = [frame.tobytes() if format == "rgb24" else jpeg(frame) for frame in frames]
    if format == "jpeg":
        frames = [np.array(Image.open(io.BytesIO(content))) for content in sent]
    with service(tmp_path, mode) as client, client.websocket_connect(SOCKET) as socket:
        start = begin(socket, format=format)
        oracle = recognizer(tmp_path, mode).stream(20, hop=1 if mode == "live windows" else None)
        assert start == {
            "event": "start",
            "class_names": ["a", "b", "c"],
            "mode": oracle.mode,
            "first": oracle.first,
            "threshold": 0.5,
        }
        for number, (content, frame) in enumerate(zip(sent, frames, strict=True)):
            socket.send_bytes(content)
            answer, wanted = socket.receive_json(), oracle.push(frame)
            assert (answer["event"], answer["frame"], answer["dropped"]) == ("answer", number, 0)
            assert answer["latency_ms"] > 0
            if wanted is None:
                assert (answer["class"], answer["probabilities"]) == (None, None)
            else:
                np.testing.assert_allclose(answer["probabilities"], wanted, atol=1e-5)
        best = wanted.argmax()
        assert answer["class"] == ("abc"[best] if wanted[best] >= 0.5 else "unknown")
        assert answer["probability"] == pytest.approx(float(wanted[best]), abs=1e-5)


@pytest.mark.parametrize("mode", ["carried state", "windows"])
def test_clients_share_forward_passes(tmp_path, mode):
    videos = [video_of(6, seed) for seed in range(3)]
    oracle = recognizer(tmp_path, mode)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(service(tmp_path, mode, max_batch=3))
        only_full_batches(client.app.state.service)
        model, passes = client.app.state.service.recognizer.trained.model, []
        step = model.stream_step
        model.stream_step = lambda frame, state: passes.append(len(frame)) or step(frame, state)
        model.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
        sockets = [stack.enter_context(client.websocket_connect(SOCKET)) for _ in videos]
        for socket in sockets:
            begin(socket)
        wanted = [oracle.stream(20) for _ in videos]
        for t in range(6):
            for socket, video in zip(sockets, videos, strict=True):
                socket.send_bytes(video[t].tobytes())
            for socket, video, stream in zip(sockets, videos, wanted, strict=True):
                answer, probabilities = socket.receive_json(), stream.push(video[t])
                if probabilities is not None:
                    np.testing.assert_allclose(answer["probabilities"], probabilities, atol=1e-5)
    assert passes == [3] * (6 if mode == "carried state" else 3)


def test_in_real_time_the_newest_frame_is_answered_and_those_before_it_are_dropped(client, monkeypatch):
    put, have_arrived = Inbox.put, threading.Event()

    async def put_and_tell(inbox, frame):
        await put(inbox, frame)
        if frame.number == 5:
            have_arrived.set()

    monkeypatch.setattr(Inbox, "put", put_and_tell)
    model = client.app.state.service.recognizer.trained.model
    step, is_running, may_end = model.stream_step, threading.Event(), threading.Event()

    def slow_step(frame, state):
        is_running.set()
        assert may_end.wait(60)
        return step(frame, state)

    model.stream_step = slow_step
    with client.websocket_connect(SOCKET) as socket:
        begin(socket, realtime=True)
        socket.send_bytes(video_of(1).tobytes())
        assert is_running.wait(60)
        for frame in video_of(5):
            socket.send_bytes(frame.tobytes())
        assert have_arrived.wait(60)
        may_end.set()
        answers = [socket.receive_json() for _ in range(2)]
    assert [(answer["frame"], answer["dropped"]) for answer in answers] == [(0, 4), (5, 4)]


@pytest.mark.parametrize(
    ("message", "detail"),
    [
        ("{", "no JSON"),
        ('{"fps": 20, "fps": 30}', "key twice"),
        ("[" * 5000, "no JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "must state the frames per second"),
        ('{"fps": 0}', "fps must be a number from 0.01 to 1000"),
        ('{"fps": NaN}', "fps must be a number"),
        ('{"fps": true}', "fps must be a number"),
        ('{"fps": 1' + "0" * 400 + "}", "fps must be a number"),
        ('{"fps": 20, "formt": "jpeg"}', "there is no key 'formt'; did you mean 'format'?"),
        ('{"fps": 20, "format": "png"}', 'format must be one of "jpeg", "rgb24"'),
        ('{"fps": 20, "format": "rgb24"}', "frames of the format rgb24 need a size"),
        ('{"fps": 20, "format": "rgb24", "size": [0, 4]}', "size must be [width, height]"),
        ('{"fps": 20, "format": "rgb24", "size": [60000, 60000]}', "more than"),
        ('{"fps": 20, "threshold": 1.5}', "threshold must be a number"),
        ('{"fps": 20, "background": ["d"]}', "background d: the model has no such class"),
        ('{"fps": 20, "realtime": 1}', "realtime must be one of true, false"),
    ],
)
def test_a_wrong_first_message_is_told(client, message, detail):
    with client.websocket_connect(SOCKET) as socket:
        socket.send_text(message)
        told, code = error_of(socket)
    assert detail in told
    assert code == 1008
    assert open_streams(client) == "0.0"


AT_25 = {"frame_stride": None, "fps": 25}
AT_1 = {"frame_stride": None, "fps": 1, "size": (112, 112)}


@pytest.mark.parametrize(
    ("mode", "changes", "fps", "detail"),
    [
        ("carried state", AT_25, 0.5, "would take 50 steps for each frame, and 32 are allowed; send at least 0.781 fr"),
        ("windows", AT_1, 1000, "would keep 3001 frames, 37,644,544 pixels, and 16,777,216 are allowed; send fewer"),
    ],
)
def test_a_rate_that_costs_too_much_is_refused(tmp_path, mode, changes, fps, detail):
    with service(tmp_path, mode, changes) as client, client.websocket_connect(SOCKET) as socket:
        socket.send_json({**SETTINGS, "fps": fps})
        told, code = error_of(socket)
        assert detail in told
        assert code == 1008


def test_a_frame_counts_as_many_steps_and_pixels_as_it_costs(tmp_path):
    with service(tmp_path, changes={**AT_25, "input": "diff", "diff_seconds": 1.0}) as client:
        shared = client.app.state.service
        with client.websocket_connect(SOCKET) as socket:
            begin(socket, fps=5)
            socket.send_bytes(video_of(1).tobytes())
            assert socket.receive_json()["event"] == "answer"
            assert shared.num_pixels == 6 * 32 * 32  # the frames of a second, and the one before
        sample = shared.metrics.registry.get_sample_value
        assert (sample("stvid_batch_size_count"), sample("stvid_batch_size_sum")) == (5, 5)  # one for each step
        assert open_streams(client) == "0.0"
        assert shared.num_pixels == 0


def test_a_replica_with_one_core_decodes_in_one_thread(tmp_path):
    with service(tmp_path, num_decoders=1) as client:
        assert client.app.state.service.pools.frames._max_workers == 1


def test_a_camera_whose_frame_waits_is_told_that_the_service_stops(client):
    shared = client.app.state.service
    only_full_batches(shared)
    with client.websocket_connect(SOCKET) as socket:
        begin(socket)
        socket.send_bytes(video_of(1).tobytes())
        until(lambda: len(shared.batcher))
        shared.batcher.stop()
        assert error_of(socket) == ("the service stops", 1001)


def many_scans(progressive):
    """A JPEG whose last scan is repeated: few bytes for each, but each goes through the whole picture."""
    return progressive[:-2] + progressive[progressive.rindex(b"\xff\xda") : -2] * 100 + progressive[-2:]


LARGE = np.zeros((40, 50, 3), np.uint8)
FRAMES = {
    "other size": ("rgb24", b"x" * 600, "frame 1 has 600 bytes, but 50 x 40 x 3 = 6000 were announced", 1008),
    "no JPEG": ("jpeg", b"GIF89a", "frame 1: it is no JPEG", 1008),
    "only the start of a JPEG": ("jpeg", b"\xff\xd8\xff", "frame 1: ", 1008),
    "truncated": ("jpeg", jpeg(LARGE)[:-200], "frame 1: JPEG: ", 1008),
    "scans without end": ("jpeg", many_scans(jpeg(LARGE, progressive=True)), "it has more than 100 scans", 1008),
    "too many pixels": ("jpeg", jpeg(np.zeros((100, 101, 3), np.uint8)), "10100 pixels, more than", 1008),
    "too large": ("rgb24", b"x" * 20_001, "frame 1 has 20001 bytes; at most 20000 are taken", 1009),
    "text": ("jpeg", '{"fps": 30}', "text in the middle of the frames", 1008),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_a_wrong_frame_is_told(client, kind):
    format, content, detail, code = FRAMES[kind]
    client.app.state.service.recognizer.trained.config["data"]["datamodule"]["max_pixels"] = 10_000
    with client.websocket_connect(SOCKET) as socket:
        begin(socket, format=format)
        socket.send_bytes(LARGE.tobytes() if format == "rgb24" else jpeg(LARGE))
        assert socket.receive_json()["event"] == "answer"
        (socket.send_text if isinstance(content, str) else socket.send_bytes)(content)
        told, closed_with = error_of(socket)
    assert detail in told
    assert closed_with == code
    assert open_streams(client) == "0.0"


def test_frames_before_the_settings_are_refused(client):
    with client.websocket_connect(SOCKET) as socket:
        socket.send_bytes(b"frame")
        assert error_of(socket) == ("the first message must be text with the settings, before any frame", 1008)


def test_the_number_of_streams_is_bounded(client):
    with client.websocket_connect(SOCKET) as first, client.websocket_connect(SOCKET) as second:
        for socket in (first, second):
            assert begin(socket)["event"] == "start"
        assert open_streams(client) == "2.0"
        with client.websocket_connect(SOCKET) as third:
            assert error_of(third) == ("2 streams are open, and this service takes no more; try again later", 1013)
    assert open_streams(client) == "0.0"
    with client.websocket_connect(SOCKET) as socket:
        assert begin(socket)["event"] == "start"


def test_a_client_that_goes_away_leaves_nothing_behind(client):
    with client.websocket_connect(SOCKET) as socket:
        begin(socket)
        socket.send_bytes(video_of(1).tobytes())
    assert open_streams(client) == "0.0"


def test_a_client_that_sends_nothing_is_told(tmp_path):
    with service(tmp_path, idle_seconds=0.05) as client, client.websocket_connect(SOCKET) as socket:
        assert error_of(socket) == ("no message for 0.05 s", 1008)


def test_a_client_that_never_reads_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "SEND_SECONDS", 0.05)

    class Deaf:
        """Like a socket whose buffers are full."""

        async def receive(self):
            return {"type": "websocket.receive", "text": json.dumps(SETTINGS)}

        async def send_text(self, text):
            await asyncio.Event().wait()

        close = send_text

    app = create_app(recognizer(tmp_path), ServeOptions())
    sockets = set()
    asyncio.run(streams._serve_socket(Deaf(), app.state.service, sockets))
    assert len(sockets) == 1  # the caller removes it


def test_a_model_that_fails_closes_its_socket_only(client):
    model = client.app.state.service.recognizer.trained.model
    step = model.stream_step
    with client.websocket_connect(SOCKET) as good, client.websocket_connect(SOCKET) as bad:
        for socket in (good, bad):
            begin(socket)
        model.stream_step = lambda frame, state: 1 / 0
        bad.send_bytes(video_of(1).tobytes())
        assert error_of(bad) == ("the model failed; the log of the service has the traceback", 1011)
        model.stream_step = step
        good.send_bytes(video_of(1).tobytes())
        assert good.receive_json()["event"] == "answer"


def test_a_model_that_reads_no_streams_says_what_would(tmp_path):
    run = trained(tmp_path, bidirectional=True)
    run.path.write_bytes(b"x")
    app = create_app(Recognizer(run, device="cpu"), ServeOptions())
    with TestClient(app, base_url="http://127.0.0.1") as client, client.websocket_connect(SOCKET) as socket:
        socket.send_json(SETTINGS)
        detail, code = error_of(socket)
    assert "model.bidirectional=false" in detail
    assert code == 1008


def test_background_and_threshold_decide_about_the_label(client):
    model = client.app.state.service.recognizer.trained.model
    torch.nn.init.constant_(model.head.weight, 0)
    model.head.bias.data = torch.tensor([5.0, 0, 0])
    labels = []
    for changes in ({}, {"background": ["a"]}, {"threshold": 1.0}):
        with client.websocket_connect(SOCKET) as socket:
            begin(socket, **changes)
            socket.send_bytes(video_of(1).tobytes())
            labels.append(socket.receive_json()["class"])
    assert labels == ["a", "unknown", "unknown"]
