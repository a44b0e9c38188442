"""`stvid serve` as a program: its options, its port, and its end."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from conftest import ROOT
from service_client import BOUNDARY, PART, TOKEN, until

from stvid.cli import _parse
from stvid.errors import InputError
from stvid.serve.options import ServeOptions, bind_port, check_packages, serve_options


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_delay": 5000.0}, "max_delay (=5000) must be from 0 to 1000 milliseconds"),
        ({"max_delay": float("nan")}, "max_delay (=nan) must be"),
        ({"max_batch": 0}, "max_batch (=0) must be at least 1"),
        ({"max_queue": 0, "max_frame": 0}, "max_queue (=0) must be at least 1; max_frame (=0)"),
        ({"idle_seconds": 0.0}, "idle_seconds (=0) must be above 0"),
        ({"token": "short"}, "token (or STVID_TOKEN) must be at least 8"),
    ],
)
def test_options_out_of_range_are_refused(wrong, message):
    with pytest.raises(InputError, match=re.escape(message)):
        ServeOptions(**wrong)


def test_the_page_has_no_options_for_ray():
    assert not {"ray", "replicas", "max_replicas"} & set(vars(_parse(["demo", "RUN"])))


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
        assert (process.returncode, output.splitlines()[-1]) == (0, "stopped")
    assert list(tmp_path.iterdir()) == []


def answers(port):
    with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), timeout=60):
        return True
    return False
