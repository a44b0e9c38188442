"""Who is answered, and which files of the machine may be named."""

import os
import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from service_client import LOCAL, TOKEN, serving, upload
from starlette.testclient import WebSocketDenialResponse

from stvid.serve.app import create_app
from stvid.serve.options import ServeOptions, is_loopback


@pytest.fixture(scope="module")
def client(recognizer, video):
    with serving(recognizer, root=video.parent, max_upload=2**20) as (client, _):
        yield client


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


def test_a_parent_application_can_mount_the_service_and_start_it_again(recognizer, video):
    app = create_app(recognizer, ServeOptions(token=TOKEN))
    parent = FastAPI(lifespan=lambda _: app.router.lifespan_context(app))
    parent.mount("/stvid", app)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for _ in range(2):
        with TestClient(parent, base_url=LOCAL) as client:
            assert client.get("/stvid/health").status_code == 200  # needs no token there, either
            assert client.get("/stvid/model").status_code == 401
            assert client.post("/stvid/predict", files=upload(video), headers=headers).status_code == 200
            assert 'endpoint="/predict",status="200"' in client.get("/stvid/metrics", headers=headers).text


def test_an_application_that_was_not_started_says_so(recognizer, video):
    client = TestClient(create_app(recognizer, ServeOptions()), base_url=LOCAL)
    assert client.get("/health").status_code == 503
    with pytest.raises(RuntimeError, match="must run its lifespan"):
        client.post("/predict", files=upload(video))


def test_the_api_page_and_description_with_a_token(recognizer):
    with serving(recognizer, token=TOKEN) as (client, _):
        page = client.get(f"/docs?token={TOKEN}").text
        link = re.search(r'href="(openapi\.json[^"]*)"', page)[1]
        description = client.get(f"/{link}").json()
    assert description["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    protected = {path for path, methods in description["paths"].items() for o in methods.values() if "security" in o}
    assert protected == set(description["paths"]) - {"/health"}


def test_loopback_and_other_addresses():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org", "")))


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
        assert in_form.status_code == status


def test_without_a_root_no_file_can_be_named(recognizer, video):
    with serving(recognizer) as (client, _):
        assert client.post("/predict", params={"path": str(video)}).status_code == 403
