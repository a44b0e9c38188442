"""The service: the numbers of `Recognizer`, and what wrong, hostile and impatient clients get."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT, break_half_way, moving_square
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import WebSocketDenialResponse

import stvid
from stvid.cli import _parse
from stvid.deploy.subtitles import subtitles
from stvid.errors import InputError, VideoError
from stvid.run.checkpoint import MAX_CLIP_PIXELS
from stvid.serve.app import create_app
from stvid.serve.options import ServeOptions, bind_port, check_packages, is_loopback, serve_options
from stvid.serve.server import Server
from stvid.serve.uploads import MAX_FIELD, MAX_PARTS
from stvid.video.writer import write_video

LOCAL = "http://127.0.0.1:8000"
TOKEN = "a-secret-of-the-tests"


@pytest.fixture(scope="module")
def recognizer(run_folder):
    return stvid.load(run_folder, device="cpu")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "square.mp4"
    frames = [moving_square(to_right=bool(i % 2), seed=i, num_frames=12) for i in range(4)]
    return write_video(path, torch.cat([torch.from_numpy(part) for part in frames]).numpy(), fps=12) or path


@contextlib.contextmanager
def serving(recognizer, **options):
    """A client of a service that runs in this process, and the service."""
    app = create_app(recognizer, ServeOptions(**options))
    with TestClient(app, base_url=LOCAL, raise_server_exceptions=False) as client:
        yield client, app.state.service
        assert not list(app.state.service.folder.iterdir())  # no upload is left, whatever the test did
        folder = app.state.service.folder
    assert not folder.exists()


@pytest.fixture(scope="module")
def client(recognizer, video):
    with serving(recognizer, root=video.parent, max_upload=2**20) as (client, _):
        yield client


def upload(path, name=None):
    return {"file": (name or path.name, path.read_bytes())}


# --- the numbers of the library ---


def test_predict_gives_the_numbers_of_the_recognizer(client, recognizer, video):
    expected = recognizer.predict(video)
    answer = client.post("/predict?top=1", files=upload(video, "my square.mp4")).json()
    assert list(answer) == ["path", "duration", "fps", "top", "probabilities"]
    assert (answer["path"], answer["duration"], answer["fps"]) == ("my square.mp4", 4.0, 12.0)
    assert answer["top"] == [{"class": expected.label, "probability": pytest.approx(expected.probability, abs=1e-6)}]
    assert list(answer["probabilities"]) == list(expected.class_names)
    assert list(answer["probabilities"].values()) == pytest.approx(expected.probabilities.tolist(), abs=1e-6)


def test_clips_and_crops_are_those_of_predict(client, recognizer, video):
    expected = recognizer.predict(video, num_clips=3, num_crops=5).probabilities
    answer = client.post("/predict?clips=3&crops=5", files=upload(video)).json()
    assert list(answer["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert max(abs(expected - recognizer.predict(video).probabilities)) > 1e-4  # else the options would change nothing


@pytest.mark.parametrize(
    "request_of",
    [lambda path: {"params": {"path": path}}, lambda path: {"data": {"path": path}}],
    ids=["query", "form"],
)
def test_a_video_below_the_root_can_be_named(client, recognizer, video, request_of):
    for path in (video.name, str(video), f"./{video.name}"):
        answer = client.post("/predict", **request_of(path)).json()
        assert answer["path"] == path
        best = recognizer.predict(video).probability
        assert answer["top"][0]["probability"] == pytest.approx(best, abs=1e-6)


def test_segments_are_those_of_the_recognizer(client, recognizer, video):
    options = {"threshold": 0.3, "window": 1.0, "hop": 0.5, "min_duration": 0.1}
    expected = recognizer.segments(video, **options)
    answer = client.post("/segments", params={**options, "windows": True}, files=upload(video)).json()
    assert answer["threshold"] == 0.3
    assert answer["class_names"] == list(recognizer.class_names)
    told = [(s["start"], s["end"], s["class"], s["probability"]) for s in answer["segments"]]
    assert told == [pytest.approx((s.start, s.end, s.label, s.probability), abs=1e-3) for s in expected]
    windows = list(recognizer.windows(video, window=1.0, hop=0.5))
    assert len(answer["windows"]) == len(windows)
    for mine, theirs in zip(answer["windows"], windows, strict=True):
        assert mine["probabilities"] == pytest.approx(theirs.probabilities_K.tolist(), abs=1e-6)
        assert (mine["start"], mine["end"]) == pytest.approx((theirs.start, theirs.end), abs=1e-3)
    assert "windows" not in client.post("/segments", files=upload(video)).json()


@pytest.mark.parametrize("kind", ["srt", "vtt"])
def test_segments_as_subtitles(client, recognizer, video, kind):
    expected = recognizer.segments(video, threshold=0.3)
    hidden = next(segment.label for segment in expected if segment.label != "unknown")
    answer = client.post(f"/segments?format={kind}&threshold=0.3", files=upload(video))
    assert answer.text == subtitles(expected, kind=kind)
    answer = client.post(f"/segments?format={kind}&threshold=0.3&background={hidden}", files=upload(video))
    assert answer.text == subtitles(expected, kind=kind, background=[hidden])
    assert hidden not in answer.text


def test_a_calibrated_threshold_applies(recognizer, video):
    trained = recognizer.trained
    calibrated = stvid.Recognizer(type(trained)(**{**vars(trained), "threshold": 0.9}), device="cpu")
    with serving(calibrated) as (client, _):
        assert client.get("/model").json()["threshold"] == 0.9
        assert client.post("/segments", files=upload(video)).json()["threshold"] == 0.9


def test_several_clients_share_one_forward_pass(recognizer, video):
    expected = recognizer.predict(video).probabilities.tolist()
    views = recognizer.trained.protocol["num_clips"] * recognizer.trained.protocol["num_crops"]
    # the first batch waits for an hour, unless three requests fill it
    with serving(recognizer, max_delay=3600, max_batch=3 * views) as (client, service):
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda _: client.post("/predict", files=upload(video)).json(), range(3)))
        assert service.metrics.registry.get_sample_value("stvid_batch_size_count") == 1
        assert service.metrics.registry.get_sample_value("stvid_batch_size_sum") == 3 * views
    for answer in answers:
        assert list(answer["probabilities"].values()) == pytest.approx(expected, abs=1e-6)


def test_a_request_larger_than_a_batch_is_divided(recognizer, video):
    expected = recognizer.predict(video, num_clips=5, num_crops=3).probabilities.tolist()
    with serving(recognizer, max_batch=4) as (client, _):
        answer = client.post("/predict?clips=5&crops=3", files=upload(video)).json()
    assert list(answer["probabilities"].values()) == pytest.approx(expected, abs=1e-6)


# --- wrong requests ---

BOUNDARY = "multipart/form-data; boundary=x"
PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'


@pytest.mark.parametrize(
    ("url", "content", "content_type", "status", "message"),
    [
        ("/predict", b"", None, 415, "send a form"),
        ("/predict", b"RIFF", "video/mp4", 415, "send a form"),
        ("/predict", b"{}", "application/json", 415, "send a form"),
        ("/predict", b"", BOUNDARY, 400, "ends too early"),
        ("/predict", b"nonsense", BOUNDARY, 400, "cannot be read"),
        ("/predict", PART + b"abc", BOUNDARY, 400, "ends too early"),
        ("/predict", PART + b"\r\n--x--", BOUNDARY, 415, "a.mp4: empty"),
        ("/predict", PART + b"no video\r\n--x--", BOUNDARY, 415, "a.mp4: unreadable"),
        ("/predict", (PART + b"1\r\n") * 2 + b"--x--", BOUNDARY, 400, "more than one file"),
        ("/predict", b"--x--", "multipart/form-data", 400, "boundary"),
        ("/predict", b"--x--", f"multipart/form-data; boundary={'x' * 1000}", 400, "Boundary length"),
        ("/predict", PART.replace(b"file", b"movie") + b"1\r\n--x--", BOUNDARY, 400, "send a video as the file"),
        ("/predict", PART.replace(b"file", b"movie") + b"1" * (MAX_FIELD + 1), BOUNDARY, 400, "a field is longer"),
        ("/predict", PART.replace(b"file", b"b") + (b"\r\n" + PART.replace(b"file", b"b")) * MAX_PARTS, BOUNDARY, 400,
         "more than 16 parts"),
        ("/predict", b"a=1", "application/x-www-form-urlencoded", 400, "send a video"),
        ("/predict?top=0", b"", None, 422, "top (=0)"),
        ("/predict?top=-5", b"", None, 422, "top (=-5)"),
        ("/predict?clips=-1", b"", None, 422, "clips (=-1)"),
        ("/predict?clips=many", b"", None, 422, "clips (=many)"),
        ("/predict?crops=2&path=square.mp4", b"", None, 422, "num_crops (=2) must be 1"),
        ("/predict?clips=49&path=square.mp4", b"", None, 422, "number of frames of square.mp4: 48"),
        ("/predict?clips=999999999999&path=square.mp4", b"", None, 422, "pixels, and this service takes"),
        ("/segments?threshold=1.5", b"", None, 422, "threshold (=1.5)"),
        ("/segments?threshold=nan", b"", None, 422, "threshold (=nan)"),
        ("/segments?window=-1", b"", None, 422, "window (=-1)"),
        ("/segments?window=inf", b"", None, 422, "window (=inf)"),
        ("/segments?window=1e308&path=square.mp4", b"", None, 422, "window (=1e+308) must be above 0 and at most 1e"),
        ("/segments?hop=1e308&path=square.mp4", b"", None, 422, "hop (=1e+308) must be above 0 and at most 1e+09"),
        ("/segments?min_duration=-1", b"", None, 422, "min_duration (=-1)"),
        ("/segments?format=exe", b"", None, 422, "format (=exe)"),
        ("/segments?background=nothing", b"", None, 422, "background nothing: the model has no such class"),
        ("/segments?window=0.01&path=square.mp4", b"", None, 422, "window (=0.01) is shorter than a clip"),
        ("/segments?hop=3&window=1&path=square.mp4", b"", None, 422, "hop (=3) is longer than a window"),
        ("/nowhere", b"", None, 404, "Not Found"),
    ],
)  # fmt: skip
def test_a_wrong_request_gets_one_message(client, url, content, content_type, status, message):
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = client.post(url, content=content, headers=headers)
    assert (answer.status_code, list(answer.json())) == (status, ["detail"])
    assert message in answer.json()["detail"]
    assert "/tmp" not in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("../outside.mp4", 403),
        ("folder/../../outside.mp4", 403),
        ("/etc/passwd", 403),
        ("link.mp4", 403),
        ("linked/outside.mp4", 403),
        ("loop", 404),
        ("missing.mp4", 404),
        ("folder", 404),
        ("pipe", 404),
        ("x" * 5000, 404),
        ("a\0b", 400),
        ("", 400),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="links and pipes of Unix")
def test_no_path_leads_out_of_the_root(recognizer, video, tmp_path, path, status):
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    (tmp_path / "outside.mp4").write_bytes(video.read_bytes())
    (root / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    (root / "linked").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")
    with serving(recognizer, root=root) as (client, _):
        answer = client.post("/predict", params={"path": path})
        assert answer.status_code == status
        assert str(tmp_path) not in answer.text
        in_form = client.post("/predict", data={"path": path})
        assert in_form.status_code == (400 if path == "x" * 5000 and len(path) > MAX_FIELD else status)


def test_without_a_root_no_file_can_be_named(recognizer, video):
    with serving(recognizer) as (client, _):
        assert client.post("/predict", params={"path": str(video)}).status_code == 403


@pytest.mark.parametrize(
    "name",
    ["../../evil.mp4", "/etc/cron.d/evil.mp4", "a\0.mp4", "..\\evil.mp4", "x" * 3000 + ".mp4", "%s%n.mp4", "<b>.mp4"],
)
def test_a_file_name_of_the_client_never_becomes_a_path(client, recognizer, video, name):
    answer = client.post("/predict", files=upload(video, name)).json()
    best = recognizer.predict(video).probability
    assert answer["top"][0]["probability"] == pytest.approx(best, abs=1e-6)
    assert answer["path"].replace("%00", "\0").replace("%5C", "\\") == name


def test_a_video_that_breaks_half_way(client, video, tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(video.read_bytes())
    break_half_way(path)
    answer = client.post("/segments", files=upload(path))
    assert answer.status_code in (200, 415)
    assert "detail" in answer.json() or answer.json()["error"]
    answer = client.post("/segments?format=srt", files=upload(path))
    assert answer.status_code == 415
    assert client.post("/predict", files=upload(path)).status_code == 415


def test_a_large_upload_is_refused_by_what_it_says(client):
    answer = client.post("/predict", files={"file": ("a.mp4", bytes(2**21))})
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert "larger than 1 MiB" in answer.json()["detail"]


def test_a_large_upload_is_refused_while_it_is_read(recognizer):
    taken = []

    def body():
        yield PART
        for _ in range(1000):
            taken.append(2**16)
            yield bytes(2**16)

    app = create_app(recognizer, ServeOptions(max_upload=2**20))
    answer = call(app, "/predict", pieces=body())
    assert answer.status == 413
    assert sum(taken) <= 2**20 + 2**17  # the rest was not taken


def test_frames_larger_than_the_model_allows_are_refused(recognizer, video):
    trained = recognizer.trained
    config = json.loads(json.dumps(trained.config))
    config["data"]["datamodule"]["max_pixels"] = 1000
    strict = stvid.Recognizer(type(trained)(**{**vars(trained), "config": config}), device="cpu")
    with serving(strict) as (client, _):
        answer = client.post("/predict", files=upload(video))
    assert answer.status_code == 415
    assert "more than data.max_pixels=1000 allows" in answer.json()["detail"]


# --- who is answered ---


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[", "10.0.0.1"])
def test_another_host_name_is_refused(client, host):
    assert client.get("/model", headers={"Host": host}).status_code == 403
    with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect("/x", headers={"Host": host}):
        pass
    assert refused.value.status_code == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "LOCALHOST"])
def test_names_of_this_machine_are_accepted(client, host):
    assert client.get("/model", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8000", 200),
        ("http://evil.example", 403),
        ("http://127.0.0.1:9000", 403),
        ("http://localhost:8000", 403),
        ("https://127.0.0.1:8000.evil.example", 403),
        ("null", 403),
        ("file://", 403),
        ("", 403),
        ("http://[", 403),
    ],
)
def test_a_page_of_another_site_cannot_post(client, video, origin, status):
    answer = client.post("/predict", params={"path": video.name}, headers={"Origin": origin})
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


def test_a_token_is_needed_where_there_is_one(recognizer, video):
    with serving(recognizer, token=TOKEN) as (client, _):

        def status(method, url, token=None):
            headers = {} if token is None else {"Authorization": token}
            return client.request(method, url, headers=headers).status_code

        assert status("GET", "/health") == 200
        for url in ("/model", "/metrics", "/docs", "/openapi.json"):
            assert status("GET", url) == 401
            assert status("GET", url, "Bearer wrong") == 401
            assert status("GET", url, f"Basic {TOKEN}") == 401
            assert status("GET", url, f"Bearer {TOKEN}") == 200
            assert status("GET", f"{url}?token={TOKEN}") == 200  # a link in a browser
        assert status("POST", f"/predict?token={TOKEN}") == 401  # not in the address of what others could send
        assert status("POST", "/predict", f"Bearer {TOKEN}") == 415
        assert status("POST", "/predict", "Bearer ü".encode()) == 401
        assert client.get("/model").headers["www-authenticate"] == "Bearer"
        assert client.get("/model", headers={"Host": "gpu7.example", "Authorization": f"Bearer {TOKEN}"}).is_success


def test_loopback_and_other_addresses():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org", "")))


# --- what the service says of itself ---


def test_the_model_describes_itself(client, recognizer):
    answer = client.get("/model").json()
    assert answer["class_names"] == list(recognizer.class_names)
    assert answer["clip"]["num_frames"] == recognizer.clip.num_frames
    assert answer["limits"] == {"max_upload_bytes": 2**20, "stream_mode": recognizer.stream(25).mode}
    assert re.fullmatch("[0-9a-f]{64}", answer["fingerprint"])


def test_the_api_page_loads_nothing_from_elsewhere(client):
    page = client.get("/docs")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.findall(r"(?:src|href)=\"(?!openapi\.json)|url\(|@import|<script", page.text)
    description = client.get("/openapi.json").json()
    for path, methods in description["paths"].items():
        assert path in page.text
        for operation in methods.values():
            for parameter in operation.get("parameters", []):
                assert f">{parameter['name']}<" in page.text


def test_metrics_have_no_label_of_a_client(client, video):
    client.post("/predict", params={"path": video.name})
    for number in range(5):
        client.get(f"/secret-{number}")
    families = list(text_string_to_metric_families(client.get("/metrics").text))
    samples = {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}
    assert samples["stvid_requests_total", ("endpoint", "/predict"), ("status", "200")] >= 1
    assert samples["stvid_requests_total", ("endpoint", "other"), ("status", "404")] >= 5
    assert samples["stvid_request_seconds_count", ("endpoint", "/predict")] >= 1
    assert samples["stvid_batch_size_count",] >= 1
    for name in ("stvid_queue_length", "stvid_uploads_in_progress", "stvid_requests_in_work"):
        assert samples[name,] == 0
    assert "secret" not in client.get("/metrics").text


def test_health_while_the_service_stops(recognizer):
    with serving(recognizer) as (client, service):
        assert client.get("/health").json() == {"status": "ok"}
        service.is_stopping = True
        assert client.get("/health").status_code == 503


# --- too much, too slow, gone, broken ---


class Call:
    """One request to an application without a server: its events, in the order of the test."""

    def __init__(self, app, url, receive, headers):
        path, _, query = url.partition("?")
        self.scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": path,
            "raw_path": path.encode(), "query_string": query.encode(), "root_path": "", "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 1), "headers": [(b"host", b"127.0.0.1:8000"), *headers],
        }  # fmt: skip
        self.app, self.receive, self.status, self.body = app, receive, None, b""

    async def send(self, message):
        self.status = message.get("status", self.status)
        self.body += message.get("body", b"")

    async def run(self):
        async with self.app.router.lifespan_context(self.app):
            await self.app(self.scope, self.receive, self.send)
            assert not list(self.app.state.service.folder.iterdir())
        return self


def call(app, url, *, pieces=(), then=None):
    """The answer to a form whose body comes in pieces; `then()` is what comes after them."""
    pieces = iter(pieces)

    async def receive():
        for piece in pieces:
            return {"type": "http.request", "body": piece, "more_body": True}
        return await then()

    headers = [(b"content-type", BOUNDARY.encode())]
    return asyncio.run(Call(app, url, receive, headers).run())


def test_an_upload_that_stands_still_is_refused(recognizer):
    app = create_app(recognizer, ServeOptions(idle_seconds=0.01))
    answer = call(app, "/predict", pieces=[PART, b"abc"], then=asyncio.Event().wait)
    assert answer.status == 408


def test_an_upload_that_creeps_is_refused(recognizer):
    def creeping():
        yield PART
        while True:
            yield b"."

    app = create_app(recognizer, ServeOptions(upload_seconds=0.05))
    assert call(app, "/predict", pieces=creeping()).status == 408


async def disconnect():
    return {"type": "http.disconnect"}


def test_an_upload_that_stops_in_the_middle_leaves_nothing(recognizer):
    app = create_app(recognizer, ServeOptions())
    assert call(app, "/predict", pieces=[PART, b"abc"], then=disconnect).status == 499  # only the metrics see it


@pytest.mark.parametrize("url", ["/predict", "/segments"])
def test_a_client_that_has_gone_costs_no_forward_pass(recognizer, video, url):
    app = create_app(recognizer, ServeOptions(max_delay=3600, max_batch=1000))  # it would wait for an hour
    service = app.state.service

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


def test_too_many_requests_are_told_to_come_again(recognizer, video):
    with serving(recognizer, max_queue=1) as (client, service):
        go_on = threading.Event()
        running = threading.Event()

        def block(items):
            running.set()
            assert go_on.wait(60)
            return items

        blocker = service.batcher.submit(block, None)
        assert running.wait(60)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(client.post, "/predict", files=upload(video))
            until(lambda: len(service.batcher) == 1)
            refused = client.post("/predict", files=upload(video))
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert client.get("/health").status_code == 200
            go_on.set()
            assert first.result(timeout=60).status_code == 200
        blocker.result(timeout=60)


def test_clips_that_would_fill_the_memory_together_are_told_to_come_again(recognizer, video):
    with serving(recognizer) as (client, service), service.reserved(2 * MAX_CLIP_PIXELS):
        refused = client.post("/predict", files=upload(video))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    with serving(recognizer) as (client, service):
        assert client.post("/predict", files=upload(video)).status_code == 200
        assert client.post("/segments", files=upload(video)).status_code == 200
        assert service.num_pixels == 0


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


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
        monkeypatch.setattr("stvid.serve.service.probe", lambda *args, **kwargs: 1 / 0)
        answer = client.post("/predict", files=upload(video))
        assert (answer.status_code, list(answer.json())) == (500, ["detail"])


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

    monkeypatch.setattr("stvid.serve.service.probe", hang)
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


# --- the program ---


def test_a_missing_package_is_told_with_its_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else True)
    with pytest.raises(InputError, match=r"needs uvicorn: pip install 'stvid\[serve\]'"):
        check_packages()


@pytest.mark.parametrize(("host", "needs_token"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_a_token_is_made_where_others_can_reach_the_service(monkeypatch, host, needs_token):
    monkeypatch.delenv("STVID_TOKEN", raising=False)
    words = ["serve", "RUN", "--host", host]
    options = [serve_options(_parse(words)) for _ in range(2)]
    assert [made.token is not None for made in options] == [needs_token] * 2
    assert not needs_token or (len(options[0].token) >= 32 and options[0].token != options[1].token)
    monkeypatch.setenv("STVID_TOKEN", TOKEN)
    assert serve_options(_parse(words)).token == TOKEN
    assert serve_options(_parse([*words, "--token", "another-one"])).token == "another-one"


def test_a_port_in_use_is_told():
    with bind_port("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port}: the port is in use.*--port {port + 1}"):
            bind_port("127.0.0.1", port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a" * 100 + ".invalid"])
def test_an_address_of_another_machine_is_told(host):
    with pytest.raises(InputError, match=r"--host .*(no name or address|no such address)"):
        bind_port(host, 0)


@contextlib.contextmanager
def program(*arguments, folder):
    """`stvid serve` in a process of its own, once it answers: the process and its port."""
    command = [sys.executable, "-m", "stvid", "serve", *map(str, arguments), "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if match := re.search(r"on http://[\d.]+:(\d+);", line):
                    break
            else:
                pytest.fail("".join(lines))
            yield process, int(match[1])
        finally:
            process.kill()


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_the_program_cleans_up_after_clients_and_ends_in_good_order(run_folder, video, tmp_path):
    content = video.read_bytes()
    body = PART + content + b"\r\n--x--\r\n"
    head = (
        f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {BOUNDARY}\r\nContent-Length: {len(body)}\r\n\r\n"
    )

    def uploads():
        return [path for path in tmp_path.glob("stvid-serve-*/*") if path.stat().st_size]

    def begin():
        connection = socket.create_connection(("127.0.0.1", port), timeout=60)
        connection.sendall(head.encode() + body[:-100])
        until(lambda: list(tmp_path.glob("stvid-serve-*/*")))
        return connection

    with program(run_folder, "--device", "cpu", folder=tmp_path) as (process, port):
        done = subprocess.run(
            [sys.executable, "-m", "stvid", "serve", str(run_folder), "--port", str(port)],
            cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (2, "")
        assert "the port is in use" in done.stderr
        begin().close()  # a client that goes away in the middle
        until(lambda: not list(tmp_path.glob("stvid-serve-*/*")))
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nX-Long: " + b"a" * 200_000)  # a header that is too long
            with contextlib.suppress(ConnectionError):
                assert connection.recv(100).startswith(b"HTTP/1.1 400")
        with begin() as connection:  # its request is running when the service is told to stop
            process.send_signal(signal.SIGTERM)
            until(lambda: not answers(port))
            connection.sendall(body[-100:])
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert response.status == 200
            assert json.loads(response.read())["path"] == "a.mp4"
        output = process.communicate(timeout=60)[0]
        assert (process.returncode, output) == (0, "Invalid HTTP request received.\nstopped\n")
    assert list(tmp_path.iterdir()) == []


def answers(port):
    with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), timeout=60):
        return True
    return False
