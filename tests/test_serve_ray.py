"""The service on Ray Serve: two replicas, one of which is killed while requests come."""

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import weakref

import numpy as np
import pytest
import torch
from conftest import ROOT, stvid
from websockets.sync.client import connect

from stvid.commands import serve as serve_command
from stvid.errors import InputError
from stvid.recognizer import load
from stvid.serve import options as serve_options
from stvid.serve.options import ServeOptions, find_ray_mistakes
from stvid.serve.ray_app import RayOptions, check_name, deployment_options

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
NUM_CLIENTS, NUM_REQUESTS, MAX_TRIES = 4, 15, 50
COMMAND = [sys.executable, "-c", "from stvid.cli import main; main()", "serve"]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def predict(url, path):
    request = urllib.request.Request(f"{url}/predict?path={path}", method="POST")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["probabilities"]


@contextlib.contextmanager
def serving(run, *options):
    """Yields the process and the URL of a service with replicas; ends it by Ctrl-C."""
    port = free_port()
    command = [*COMMAND, str(run), "--ray", "--port", str(port), *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        lines = []
        try:
            for line in process.stdout:
                lines.append(line)
                if "serving" in line and "Ctrl-C" in line:
                    break
            else:
                pytest.fail("".join(lines))
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)
    assert process.returncode == 0, "".join(lines)


def replicas():
    """Names of the replicas that are alive."""
    import ray

    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    return {name for name in names if name.startswith("SERVE_REPLICA::stvid#")}


@needs_ray
@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.skipif(not os.environ.get("STVID_TEST_ALL"), reason="starts Ray; set STVID_TEST_ALL=1")
def test_no_good_request_is_lost_when_a_replica_is_killed(run_folder, video_folder, monkeypatch):
    """Clients send a request at most `MAX_TRIES` times; sockets are answered, too, and a second service is refused."""
    import ray

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    name = "to_left/00.mp4"
    with serving(run_folder, "--replicas", "2", "--root", str(video_folder)) as (_, url):
        answers, retries, lost, half_done = [], [], [], threading.Event()

        def send_requests():
            for i in range(NUM_REQUESTS):
                for _ in range(MAX_TRIES):
                    try:
                        answers.append(predict(url, name))
                        break
                    except OSError as error:  # the answer of a replica that is gone: urllib.error.HTTPError is one
                        retries.append(str(error))
                        time.sleep(0.1)
                else:
                    lost.append(retries[-1])
                if i == NUM_REQUESTS // 3:
                    half_done.set()

        wanted = load(run_folder, device="cpu").predict(video_folder / name).probabilities
        monkeypatch.setenv("RAY_ADDRESS", "auto")  # a second command on the same cluster
        second = stvid("serve", run_folder, "--ray", "--port", str(free_port()))
        assert second.returncode == 2
        assert "runs an application 'stvid' already" in second.stdout + second.stderr
        clients = [threading.Thread(target=send_requests, daemon=True) for _ in range(NUM_CLIENTS)]
        for client in clients:
            client.start()
        ray.init(address="auto", namespace="serve", log_to_driver=False)
        try:
            before = replicas()
            assert len(before) == 2
            assert half_done.wait(120)
            victim = sorted(before)[0]
            ray.kill(ray.get_actor(victim, namespace="serve"), no_restart=False)
            for client in clients:
                client.join(120)
            assert not lost
            assert len(answers) == NUM_CLIENTS * NUM_REQUESTS
            for answer in answers:
                np.testing.assert_allclose(list(answer.values()), wanted, atol=1e-5)
            assert len(retries) < NUM_CLIENTS * MAX_TRIES
            for _ in range(600):
                if len(replicas() - {victim}) == 2:  # Ray has started another one
                    break
                time.sleep(0.1)
            else:
                pytest.fail("Ray has started no replica")
            answer_of_a_socket(url)
        finally:
            ray.shutdown()


def answer_of_a_socket(url):
    with connect(f"{url.replace('http', 'ws')}/stream") as camera:
        camera.send(json.dumps({"fps": 25, "format": "rgb24", "size": [40, 30], "realtime": False}))
        assert json.loads(camera.recv(timeout=60))["event"] == "start"
        for number in range(2):
            camera.send(bytes(40 * 30 * 3))
            answer = json.loads(camera.recv(timeout=60))
            assert (answer["event"], answer["frame"]) == ("answer", number)


def test_an_application_of_another_command_is_not_replaced():
    check_name(["default"])
    with pytest.raises(InputError, match="runs an application 'stvid' already.*would replace it"):
        check_name(["default", "stvid"])


def test_the_command_keeps_no_model_beside_those_of_the_replicas(run_folder, monkeypatch):
    started = []

    def start(run, **given):
        started.append(given)
        assert models[0]() is None

    models = []

    def load_weakly(run, *, device, trust):
        recognizer = load(run, device=device, trust=trust)
        models.append(weakref.ref(recognizer))
        return recognizer

    monkeypatch.setattr(serve_command, "load", load_weakly)
    monkeypatch.setattr(serve_command, "run_on_ray", start)
    monkeypatch.setattr(serve_command, "resolve_device", lambda device: torch.device("cuda", 0))
    options = argparse.Namespace(
        run=run_folder, device=None, trust=(), replicas=2, max_replicas=None, host="127.0.0.1", port=1
    )
    serve_command.run_replicas(options, ServeOptions(max_batch=3))
    (given,) = started
    assert given["device"] == "cuda"
    assert (given["ray_options"].num_gpus, given["ray_options"].target_ongoing_requests) == (1, 3)


def test_the_options_of_the_deployment():
    options = ServeOptions(max_queue=10, max_streams=3, stop_seconds=7.0)
    fixed = deployment_options(options, RayOptions(replicas=2))
    assert (fixed["num_replicas"], fixed["max_ongoing_requests"], fixed["max_queued_requests"]) == (2, 13, 10)
    assert fixed["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 0}
    scaled = deployment_options(options, RayOptions(replicas=2, max_replicas=5, target_ongoing_requests=4, num_gpus=1))
    assert scaled["autoscaling_config"] == {"min_replicas": 2, "max_replicas": 5, "target_ongoing_requests": 4}
    assert scaled["ray_actor_options"]["num_gpus"] == 1


def test_without_ray_the_command_names_what_to_install(monkeypatch):
    monkeypatch.setattr(serve_options.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--ray needs Ray Serve: pip install 'stvid\[ray\]'"):
        serve_options.check_ray()


def test_wrong_numbers_of_replicas_are_told(run_folder):
    done = stvid("serve", run_folder, "--replicas", "0", "--max-replicas", "-1", "--port", "0")
    assert done.returncode == 2
    for text in ("add --ray", "--replicas (=0) must be at least 1", "--max-replicas (=-1) must be at least --replicas"):
        assert text in done.stderr + done.stdout


def test_ray_chooses_the_gpu_of_a_replica():
    options = argparse.Namespace(ray=True, replicas=1, max_replicas=None, port=1, device="cuda:1")
    assert list(find_ray_mistakes(options)) == [
        "--device cuda:1: Ray gives each replica its own GPU; name the kind alone, such as cuda"
    ]
