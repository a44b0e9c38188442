"""The service on Ray Serve: two replicas, one of which is killed while requests come."""

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest
from conftest import ROOT, stvid

from stvid.errors import InputError
from stvid.serve import options as serve_options
from stvid.serve.options import ServeOptions
from stvid.serve.ray_app import RayOptions, deployment_options

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
NUM_CLIENTS, NUM_REQUESTS = 4, 15
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
    import ray

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    name = "to_left/00.mp4"
    with serving(run_folder, "--replicas", "2", "--root", str(video_folder)) as (_, url):
        wanted, answers, retries = predict(url, name), [], []
        half_done = threading.Event()

        def ask():
            for i in range(NUM_REQUESTS):
                while True:
                    try:
                        answers.append(predict(url, name))
                        break
                    except OSError as error:  # the answer of a replica that is gone: urllib.error.HTTPError is one
                        retries.append(error)
                if i == NUM_REQUESTS // 3:
                    half_done.set()

        clients = [threading.Thread(target=ask) for _ in range(NUM_CLIENTS)]
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
            print(f"{len(answers)} answers, {len(retries)} retries: {set(map(str, retries))}")
            assert answers == [wanted] * NUM_CLIENTS * NUM_REQUESTS
            while len(replicas() - {victim}) < 2:  # Ray starts another one
                assert predict(url, name) == wanted
        finally:
            ray.shutdown()


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
