"""The service behind `stvid demo`: its files, copies of videos that browsers can play, and the command."""

import asyncio
import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from grey_demo import avi_of, grey_recognizer
from loopback import mpegts
from starlette.testclient import TestClient

import stvid.serve.demo
from stvid.commands import demo
from stvid.serve.demo import _CopyResponse, create_demo
from stvid.serve.options import ServeOptions, address_text, bind_port
from stvid.video.probe import probe
from stvid.video.reader import read_frames


@pytest.fixture(scope="module")
def recognizer(run_folder):
    return grey_recognizer(run_folder)


@pytest.fixture(scope="module")
def avi(tmp_path_factory):
    return avi_of(tmp_path_factory.mktemp("demo") / "old.avi").read_bytes()


@pytest.fixture
def client(recognizer):
    with TestClient(create_demo(recognizer, ServeOptions()), base_url="http://127.0.0.1") as client:
        yield client


def test_the_page_alone_needs_no_token(recognizer):
    with TestClient(create_demo(recognizer, ServeOptions(token="12345678")), base_url="http://127.0.0.1") as client:
        assert client.get("/").headers["content-security-policy"].startswith("default-src 'self'; ")
        script = client.get("/page/demo.js")
        assert script.headers["content-type"].startswith("text/javascript")
        assert client.get("/page/demo.js", headers={"If-None-Match": script.headers["etag"]}).status_code == 304
        assert client.get("/page/demo.css").status_code == 200
        assert [client.get(path).status_code for path in ("/model", "/page/../demo.py", "/page/no.js")] == [401] * 3
        assert client.post("/playable").status_code == 401


def test_only_files_of_the_page_are_sent(client):
    paths = ("/page/no.js", "/page/..%2fdemo.py", "/page/%00", "/demo.js")
    assert [client.get(path).status_code for path in paths] == [404] * 4
    assert client.get("/predict").status_code == 405


def test_a_playable_copy_has_the_same_frames_at_the_same_times(client, avi, tmp_path):
    answer = client.post("/playable", files={"file": ("old.avi", avi)})
    assert answer.status_code == 200
    (tmp_path / "old.avi").write_bytes(avi)
    (tmp_path / "copy.mp4").write_bytes(answer.content)
    source, copy = probe(tmp_path / "old.avi"), probe(tmp_path / "copy.mp4")
    assert (copy.codec, copy.num_frames, copy.fps) == ("h264", source.num_frames, source.fps)
    frames = read_frames(tmp_path / "copy.mp4", range(copy.num_frames)).float().mean(dim=(1, 2, 3))
    assert frames.tolist() == pytest.approx([20 * i for i in range(12)], abs=3)
    assert float(answer.headers["Stvid-Offset"]) == source.start - copy.start == 0
    assert list(client.app.state.service.folder.iterdir()) == []


def test_a_clock_that_does_not_start_at_0_is_told(client):
    content, start = mpegts(first=100, fps=25), 4.0
    answer = client.post("/playable", files={"file": ("stream.ts", content)})
    assert float(answer.headers["Stvid-Offset"]) == pytest.approx(start, abs=1e-3)
    segments = client.post("/segments?windows=true", files={"file": ("stream.ts", content)}).json()
    assert segments["clock_start"] == pytest.approx(start, abs=1e-3)


def test_what_is_no_video_has_no_copy(client):
    answer = client.post("/playable", files={"file": ("notes.mp4", b"no video")})
    assert answer.status_code == 415
    assert answer.json()["detail"].startswith("notes.mp4: ")
    assert list(client.app.state.service.folder.iterdir()) == []


def test_a_video_that_takes_too_long_has_no_copy(client, avi, monkeypatch):
    monkeypatch.setattr(stvid.serve.demo, "MAX_COPY_PIXELS", 12 * 48 * 64 - 1)
    answer = client.post("/playable", files={"file": ("old.avi", avi)})
    assert answer.status_code == 422
    assert "too long for a copy: 12 frames of 64 x 48 pixels" in answer.json()["detail"]


def test_copies_do_not_stop_other_work(client, avi, monkeypatch):
    began, may_end, redraw = threading.Event(), threading.Event(), stvid.serve.demo.redraw

    def slow_redraw(*arguments, **options):
        began.set()
        assert may_end.wait(60)
        redraw(*arguments, **options)

    monkeypatch.setattr(stvid.serve.demo, "redraw", slow_redraw)
    with ThreadPoolExecutor(17) as pool:
        try:
            copies = [pool.submit(client.post, "/playable", files={"file": ("old.avi", avi)}) for _ in range(16)]
            assert began.wait(60)
            segments = pool.submit(client.post, "/segments", files={"file": ("old.avi", avi)})
            assert segments.result(timeout=60).status_code == 200
            assert not any(copy.done() for copy in copies)
        finally:
            may_end.set()
        assert [copy.result(timeout=60).status_code for copy in copies] == [200] * 16


def test_a_request_is_in_work_until_its_copy_was_sent_or_the_client_goes_away(tmp_path):
    copy, at_work = tmp_path / "copy.mp4", []
    copy.write_bytes(bytes(1000))

    async def send(message):
        at_work.append(copy.exists())
        raise OSError("the client has gone")

    async def receive():
        await asyncio.Event().wait()

    async def respond():
        resources = contextlib.AsyncExitStack()
        resources.callback(copy.unlink)
        response = _CopyResponse(copy, resources, headers={})
        await response({"type": "http", "method": "GET", "headers": []}, receive, send)

    with pytest.raises(OSError, match="gone"):
        asyncio.run(respond())
    assert at_work == [True]
    assert not copy.exists()


def test_the_address_names_a_machine_that_others_can_open():
    with contextlib.closing(bind_port("0.0.0.0", 0)) as listener:
        assert address_text(listener) == f"http://{socket.gethostname()}:{listener.getsockname()[1]}"


def test_the_command_opens_the_page(monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(demo.webbrowser, "open", opened.append)
    monkeypatch.setattr(demo, "can_open_browser", lambda: True)
    monkeypatch.setattr(demo.threading, "Thread", lambda target, args, daemon: Started(target, args))
    demo.start(f"http://{socket.gethostname()}:8000", "a+b", browser=True)
    demo.start("http://127.0.0.1:8000", None, browser=False)
    assert opened == ["http://localhost:8000/?token=a%2Bb"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"the page is http://{socket.gethostname()}:8000/?token=a%2Bb; Ctrl-C stops"
    assert lines[1] == "the page is http://127.0.0.1:8000/; Ctrl-C stops"


class Started:
    """A thread that is done when it has started."""

    def __init__(self, target, args):
        self.start = lambda: target(*args)
