"""The service: the numbers of `Recognizer`, and what it says of itself."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import TypeAdapter
from service_client import only_full_batches, serving, upload

import stvid
from stvid.deploy.subtitles import subtitles
from stvid.serve.answers import ModelAnswer, PredictAnswer, SegmentsAnswer
from stvid.serve.app import create_app
from stvid.serve.options import ServeOptions


@pytest.fixture(scope="module")
def client(recognizer, video):
    with serving(recognizer, root=video.parent, max_upload=2**20) as (client, _):
        yield client


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
    answer = client.post("/segments?top=1", files=upload(video)).json()
    assert "windows" not in answer
    whole = client.post("/predict?top=1", files=upload(video)).json()
    assert answer["top"] == whole["top"]
    assert answer["probabilities"] == pytest.approx(whole["probabilities"], abs=1e-6)


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
    with serving(recognizer, max_batch=3 * views) as (client, service):
        only_full_batches(service)
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda _: client.post("/predict", files=upload(video)).json(), range(3)))
        assert service.metrics.registry.get_sample_value("stvid_batch_size_count") == 1
        assert service.metrics.registry.get_sample_value("stvid_batch_size_sum") == 3 * views
    for answer in answers:
        assert list(answer["probabilities"].values()) == pytest.approx(expected, abs=1e-6)


def test_a_request_larger_than_a_batch_is_divided(recognizer, video):
    expected = recognizer.predict(video, num_clips=5, num_crops=3).probabilities.tolist()
    with serving(recognizer, max_batch=4) as (client, service):
        answer = client.post("/predict?clips=5&crops=3", files=upload(video)).json()
        assert service.metrics.registry.get_sample_value("stvid_batch_size_count") == 4
        assert service.metrics.registry.get_sample_value("stvid_batch_size_sum") == 15
    assert list(answer["probabilities"].values()) == pytest.approx(expected, abs=1e-6)


def test_the_model_describes_itself(client, recognizer):
    answer = client.get("/model").json()
    assert answer["class_names"] == list(recognizer.class_names)
    assert answer["clip"]["num_frames"] == recognizer.clip.num_frames
    assert answer["limits"] == {"max_upload_bytes": 2**20, "stream_mode": recognizer.stream(25).mode}
    assert answer["fingerprint"] == hashlib.sha256(recognizer.trained.path.read_bytes()).hexdigest()


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


def test_the_answers_are_those_of_the_description(client, video):
    for url, kind in (("/predict", PredictAnswer), ("/segments?windows=true", SegmentsAnswer), ("/model", ModelAnswer)):
        answer = client.get(url) if url == "/model" else client.post(url, files=upload(video))
        assert TypeAdapter(kind).validate_python(answer.json(), strict=True) == answer.json()
    content = client.get("/openapi.json").json()["paths"]["/segments"]["post"]["responses"]["200"]["content"]
    assert set(content) == {"application/json", "text/vtt", "application/x-subrip"}


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
        assert client.post("/predict", files={"file": b""}).status_code == 503


def test_warming_up_runs_a_clip_and_a_step_of_a_stream(recognizer, monkeypatch):
    ran = []
    runner, push = type(recognizer.runner), stvid.Stream.push
    original = runner.__call__
    monkeypatch.setattr(runner, "__call__", lambda *args: ran.append("clip") or original(*args))
    monkeypatch.setattr(stvid.Stream, "push", lambda *args: ran.append("step") or push(*args))
    create_app(recognizer, ServeOptions()).state.service.warm_up()
    assert ran == ["clip", "step"]
