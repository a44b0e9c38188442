"""Too much work, clients that go away, and bugs: the service stays up."""

import asyncio
import contextlib
import http.client
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from service_client import BOUNDARY, PART, Call, disconnect, only_full_batches, serving, until, upload

from stvid.errors import InputError, VideoError
from stvid.run.checkpoint import MAX_CLIP_PIXELS
from stvid.serve.app import create_app
from stvid.serve.options import ServeOptions, bind_port
from stvid.serve.server import Server
from stvid.serve.threads import in_thread
from stvid.video.workers import report_progress


@pytest.mark.parametrize("url", ["/predict", "/segments"])
def test_a_client_that_has_gone_costs_no_forward_pass(recognizer, video, url):
    app = create_app(recognizer, ServeOptions(max_batch=1000))
    service = app.state.service
    only_full_batches(service)

    async def gone_once_it_waits():
        while not len(service.batcher):
            await asyncio.sleep(0)
        return await disconnect()

    pieces = iter([PART + video.read_bytes() + b"\r\n--x--"])

    async def receive():
        for piece in pieces:
            return {"type": "http.request", "body": piece, "more_body": False}
        return await gone_once_it_waits()

    answer = asyncio.run(Call(app, url, receive, [(b"content-type", BOUNDARY.encode())]).run())
    assert answer.status == 499
    assert service.metrics.registry.get_sample_value("stvid_batch_size_count") == 0


def endless_video(began):
    """Reads packets until somebody ends it."""
    while True:
        report_progress()
        began.set()


def test_a_video_that_takes_too_long_to_read_is_refused():
    with ThreadPoolExecutor(1) as pool, pytest.raises(InputError, match=r"longer than 0\.01 seconds to read"):
        asyncio.run(in_thread(pool, lambda: endless_video(threading.Event()), max_seconds=0.01))


def test_the_reading_of_a_video_ends_with_its_request():
    async def cancelled_while_it_reads(pool):
        began = threading.Event()
        task = asyncio.ensure_future(in_thread(pool, lambda: endless_video(began)))
        while not began.is_set():
            await asyncio.sleep(0)
        task.cancel()
        await task

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(cancelled_while_it_reads(pool))
        assert pool.submit(lambda: "free").result(timeout=60) == "free"


@contextlib.contextmanager
def busy_model(service):
    """The model computes for another client until the block ends."""
    running, go_on = threading.Event(), threading.Event()

    def block(items):
        running.set()
        assert go_on.wait(60)
        return items

    blocker = service.batcher.submit(block, None)
    try:
        assert running.wait(60)
        yield
    finally:
        go_on.set()
        blocker.result(timeout=60)


def test_too_many_requests_are_told_to_come_again(recognizer, video):
    with serving(recognizer, max_queue=1) as (client, service), ThreadPoolExecutor(1) as pool:
        with busy_model(service):
            first = pool.submit(client.post, "/predict", files=upload(video))
            until(lambda: len(service.batcher) == 1)
            refused = client.post("/predict", files=upload(video))
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert client.get("/health").status_code == 200
        assert first.result(timeout=60).status_code == 200


@pytest.mark.parametrize("url", ["/predict", "/segments"])
def test_a_request_that_was_admitted_is_not_refused_because_cameras_wait(recognizer, video, url):
    with serving(recognizer, max_queue=1) as (client, service), ThreadPoolExecutor(1) as pool:
        with busy_model(service):
            frames = [service.batcher.submit(lambda items: items, None, key="a frame") for _ in range(3)]
            answer = pool.submit(client.post, url, files=upload(video))
            until(lambda: len(service.batcher) == 4)
        assert answer.result(timeout=60).status_code == 200
        assert all(frame.done() for frame in frames)


def test_the_clips_of_others_come_between_those_of_a_long_request(recognizer, video, monkeypatch):
    sizes = []
    runner = type(recognizer.runner)
    original = runner.__call__
    monkeypatch.setattr(runner, "__call__", lambda self, clips: sizes.append(len(clips)) or original(self, clips))
    with serving(recognizer, max_batch=4) as (client, service), ThreadPoolExecutor(1) as pool:
        with busy_model(service):
            long = pool.submit(client.post, "/predict?clips=5&crops=3", files=upload(video))
            until(lambda: len(service.batcher) == 1)
            service.batcher.submit(lambda items: sizes.append("another") or items, None, key="another")
        assert long.result(timeout=60).status_code == 200
    assert sizes == [4, "another", 4, 4, 3]


@pytest.mark.parametrize("url", ["/predict?clips=5&crops=3", "/segments?hop=0.1"])
def test_a_long_request_ends_between_two_forward_passes_when_the_service_stops(recognizer, video, monkeypatch, url):
    sizes = []
    with serving(recognizer, max_batch=4) as (client, service):

        def stop_at_the_first(self, clips):
            sizes.append(len(clips))
            service.batcher._is_stopped = True
            return torch.zeros(len(clips), 2)

        monkeypatch.setattr(type(recognizer.runner), "__call__", stop_at_the_first)
        answer = client.post(url, files=upload(video))
        assert (answer.status_code, answer.json()["detail"]) == (503, "the service is stopping")
        assert sizes == [4]


def test_large_windows_go_through_the_model_in_small_batches(recognizer, video, monkeypatch):
    sizes = []
    runner = type(recognizer.runner)
    original = runner.__call__
    monkeypatch.setattr(runner, "__call__", lambda self, clips: sizes.append(len(clips)) or original(self, clips))
    url = "/segments?window=1&hop=0.1&windows=true"
    trained = recognizer.trained
    frame = trained.clip.size[0] * trained.clip.size[1]
    view = trained.clip.num_frames * frame
    views = trained.protocol["num_clips"] * trained.protocol["num_crops"]
    with serving(recognizer) as (client, _):
        wanted = client.post(url, files=upload(video)).json()
        assert max(sizes) > views
        # room for the small frames, those of the whole video, and twice those of one window
        monkeypatch.setattr("stvid.serve.clips.MAX_CLIP_PIXELS", 64 * frame + 8 * views * view)
        sizes.clear()
        found = client.post(url, files=upload(video)).json()
        assert max(sizes) <= 2 * views
        assert found["segments"] == wanted["segments"]
        monkeypatch.setattr("stvid.serve.clips.MAX_CLIP_PIXELS", 64 * frame)
        answer = client.post(url, files=upload(video))
        assert answer.status_code == 422
        assert "ask for a shorter window" in answer.json()["detail"]


def test_too_many_windows_are_refused_before_they_are_computed(recognizer, video, monkeypatch):
    with serving(recognizer) as (client, _):
        monkeypatch.setattr("stvid.serve.app.MAX_VALUES", 10)
        answer = client.post("/segments?hop=0.1&windows=true", files=upload(video))
        assert answer.status_code == 422
        assert "windows, and this service computes 5 for an answer; ask for a longer hop" in answer.json()["detail"]
        assert client.post("/segments?hop=0.1", files=upload(video)).status_code == 200
        monkeypatch.setattr("stvid.serve.app.MAX_WINDOWS", 5)
        assert client.post("/segments?hop=0.1", files=upload(video)).status_code == 422


def test_clips_that_would_fill_the_memory_together_are_told_to_come_again(recognizer, video):
    with serving(recognizer) as (client, service), service.reserved(2 * MAX_CLIP_PIXELS):
        refused = client.post("/predict", files=upload(video))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    with serving(recognizer) as (client, service):
        assert client.post("/predict", files=upload(video)).status_code == 200
        assert client.post("/segments", files=upload(video)).status_code == 200
        assert service.num_pixels == 0


@pytest.mark.parametrize("url", ["/predict", "/segments"])
def test_a_bug_in_the_model_answers_500_and_the_service_stays_up(recognizer, video, monkeypatch, caplog, url):
    with serving(recognizer) as (client, _):
        with monkeypatch.context() as broken:
            broken.setattr("stvid.inference.run_model", lambda *args: 1 / 0)
            answer = client.post(url, files=upload(video))
            assert answer.status_code == 500
            assert "traceback" in answer.json()["detail"]
            assert "ZeroDivisionError" in caplog.text
        assert client.post(url, files=upload(video)).status_code == 200


def test_a_bug_elsewhere_answers_500_in_json(recognizer, video, monkeypatch):
    with serving(recognizer) as (client, _):
        monkeypatch.setattr("stvid.serve.clips.probe", lambda *args, **kwargs: 1 / 0)
        answer = client.post("/predict", files=upload(video))
        assert (answer.status_code, list(answer.json())) == (500, ["detail"])


def test_a_model_that_fails_again_and_again_makes_the_service_ill(recognizer, video, monkeypatch):
    with serving(recognizer) as (client, service):
        with monkeypatch.context() as broken:
            broken.setattr("stvid.inference.run_model", lambda *args: sys.exit(1))
            for _ in range(3):
                assert client.get("/health").status_code == 200
                assert client.post("/predict", files=upload(video)).status_code == 500
            health = client.get("/health")
            assert (health.status_code, "failed 3 times in a row" in health.json()["detail"]) == (503, True)
        assert client.post("/predict", files=upload(video)).status_code == 200
        assert client.get("/health").status_code == 200
        service.batcher.stop()
        assert client.get("/health").json() == {"detail": "the thread of the model does not run"}


def test_damaged_weights_are_no_mistake_of_a_client(recognizer, video, monkeypatch):
    with serving(recognizer) as (client, service):
        nan = torch.full((1, len(recognizer.class_names)), float("nan"))
        monkeypatch.setattr(type(service.recognizer.runner), "__call__", lambda self, clips: nan.repeat(len(clips), 1))
        assert client.post("/predict", files=upload(video)).status_code == 500


def test_stopping_does_not_wait_for_a_decoder_that_hangs(recognizer, video, monkeypatch):
    hanging, go_on, started = threading.Event(), threading.Event(), threading.Event()

    def hang(*arguments, **options):
        hanging.set()
        go_on.wait(60)
        raise VideoError("a.mp4", "timeout")

    monkeypatch.setattr("stvid.serve.clips.probe", hang)
    listener = bind_port("127.0.0.1", 0)
    app = create_app(recognizer, ServeOptions(stop_seconds=1))
    server = Server(app, on_start=started.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    listener.listen()
    port = listener.getsockname()[1]
    thread.start()
    try:
        assert started.wait(60)
        folder = app.state.service.folder
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            body = PART + video.read_bytes() + b"\r\n--x--"
            connection.request("POST", "/predict", body, {"Content-Type": BOUNDARY, "Host": "localhost"})
            assert hanging.wait(60)
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
        assert not folder.exists()
    finally:
        go_on.set()
