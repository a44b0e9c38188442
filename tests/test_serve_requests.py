"""Wrong, hostile and slow requests: each gets one message, and leaves nothing behind."""

import asyncio
import json
import threading

import pytest
from conftest import break_half_way
from service_client import BOUNDARY, PART, Call, call, disconnect, serving, upload

import stvid
from stvid.serve import uploads
from stvid.serve.app import create_app
from stvid.serve.options import ServeOptions
from stvid.serve.uploads import MAX_FIELD, MAX_PARTS

TEXT = PART.replace(b'; filename="a.mp4"', b"").replace(b"file", b"note")  # of a form, not a file


@pytest.fixture(scope="module")
def client(recognizer, video):
    with serving(recognizer, root=video.parent, max_upload=2**20) as (client, _):
        yield client


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
        ("/predict", PART.replace(b'"file"', b'"movie"') + b"1\r\n--x--", BOUNDARY, 400, "has the name 'movie'"),
        ("/predict", TEXT.replace(b"note", b"file") + b"a.mp4\r\n--x--", BOUNDARY, 400, "-F file=@VIDEO.mp4"),
        ("/predict", TEXT + b"1\r\n--x--", BOUNDARY, 400, "send a video as the file"),
        ("/predict", TEXT + b"1" * (MAX_FIELD + 1), BOUNDARY, 400, "longer than 8192 bytes"),
        ("/predict", TEXT + (b"\r\n" + TEXT) * MAX_PARTS, BOUNDARY, 400, "more than 16 parts"),
        ("/predict", b"a=1", "application/x-www-form-urlencoded", 400, "send a video"),
        ("/predict?topp=3", b"", None, 422, "/predict does not know topp; did you mean 'top'?"),
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
        ("/nowhere", b"", None, 404, "there is no /nowhere; /docs lists"),
    ],
)  # fmt: skip
def test_a_wrong_request_gets_one_message(client, url, content, content_type, status, message):
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = client.post(url, content=content, headers=headers)
    assert (answer.status_code, list(answer.json())) == (status, ["detail"])
    assert message in answer.json()["detail"]
    assert "/tmp" not in answer.json()["detail"]


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
    answer = client.post("/segments?hop=0.1", files=upload(path))
    found = answer.json()
    assert (answer.status_code, bool(found["error"]), found["top"]) == (200, True, [])
    assert "probabilities" not in found
    assert 0 < found["segments"][-1]["end"] < 4
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


def test_a_piece_that_is_being_written_when_the_client_goes_is_written_before_the_file_is_deleted(
    recognizer, monkeypatch
):
    events, running, go_on = [], threading.Event(), threading.Event()
    original = uploads.Form.write

    def slow_write(form, piece):
        running.set()
        assert go_on.wait(60)
        original(form, piece)
        events.append("written")

    monkeypatch.setattr(uploads.Form, "write", slow_write)
    delete = uploads.Form.delete
    monkeypatch.setattr(uploads.Form, "delete", lambda form: events.append("deleted") or delete(form))
    app = create_app(recognizer, ServeOptions())

    async def receive():
        return {"type": "http.request", "body": PART + b"abc", "more_body": True}

    async def cancel():
        task = asyncio.ensure_future(Call(app, "/predict", receive, [(b"content-type", BOUNDARY.encode())]).run())
        while not running.is_set():
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert events == ["written", "deleted"]


def test_an_upload_that_stops_in_the_middle_leaves_nothing(recognizer):
    app = create_app(recognizer, ServeOptions())
    assert call(app, "/predict", pieces=[PART, b"abc"], then=disconnect).status == 499  # only the metrics see it
