"""`stvid stream` on files, stdin and a stream over HTTP: JSON lines, the screen, recordings, and its end."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, in_process, moving_square
from loopback import endless, mpegts, serving

import stvid
from stvid.cli import main
from stvid.commands import stream_output
from stvid.deploy import slot
from stvid.video.probe import probe
from stvid.video.reader import read_frames
from stvid.video.writer import write_video

KEYS = ["time", "event", "class", "probability", "fps", "latency_ms", "dropped", "reconnects"]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Four seconds: to the right, then to the left."""
    path = tmp_path_factory.mktemp("stream") / "video.mp4"
    frames = [moving_square(to_right=i < 2, seed=1, num_frames=12) for i in range(4)]
    write_video(path, np.concatenate(frames), fps=12)
    return path


def stream(*words):
    words = [str(word) for word in words]
    return in_process(["stvid", *words], lambda: main(["stream", *words]))


def lines(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_json_lines_tell_every_change_and_every_second(run_folder, video):
    done = stream(run_folder, video, "--json", "--min-duration", "0", "--threshold", "0.5")
    entries = lines(done)
    assert all(list(entry) == KEYS for entry in entries)
    assert [entry["time"] for entry in entries if entry["event"] == "second"] == [1.0, 2.0, 3.0]
    assert {entry["dropped"] for entry in entries} == {0}
    # the oracle: every frame pushed by hand
    recognizer = stvid.load(run_folder)
    pushed = recognizer.stream(fps=12)
    answers = {}
    for i, frame in enumerate(read_frames(video, range(48))):
        answers[i] = pushed.push(frame)
    for entry in entries:
        expected = answers[round(entry["time"] * 12)]
        if entry["class"] in recognizer.class_names:
            assert entry["probability"] == pytest.approx(
                float(expected[recognizer.class_names.index(entry["class"])]), abs=1e-3
            )
        elif entry["class"] == "unknown":
            assert entry["probability"] == pytest.approx(float(expected.max()), abs=1e-3)
        else:
            assert expected is None
    assert "model:" in done.stderr
    assert "48 frames" in done.stderr
    assert "0 frames dropped" in done.stderr


def test_frames_on_stdin_are_those_of_the_file(run_folder, video, tmp_path, monkeypatch):
    pixels = read_frames(video, range(48)).permute(0, 2, 3, 1).contiguous().numpy()
    (tmp_path / "raw").write_bytes(pixels.tobytes())
    from_file = lines(stream(run_folder, video, "--json"))
    with open(tmp_path / "raw", "rb") as raw:
        monkeypatch.setattr(sys, "stdin", raw)
        from_stdin = lines(stream(run_folder, "-", "--size", "48x48", "--fps", "12", "--json"))
    keys = ("time", "event", "class", "probability")
    assert [[entry[key] for key in keys] for entry in from_stdin] == [
        [entry[key] for key in keys] for entry in from_file
    ]


@pytest.mark.parametrize(
    ("size", "message"), [(0, "stdin ended before the first frame"), (48 * 48 * 3 * 2 + 7, "ends inside frame 2: 7 of")]
)
def test_a_cut_frame_on_stdin_is_told(run_folder, tmp_path, monkeypatch, size, message):
    (tmp_path / "raw").write_bytes(bytes(size))
    with open(tmp_path / "raw", "rb") as raw:
        monkeypatch.setattr(sys, "stdin", raw)
        done = stream(run_folder, "-", "--size", "48x48", "--fps", "12")
    assert done.returncode == 2
    assert message in done.stderr
    assert ("2 frames" in done.stdout) == (size > 0)  # the summary


def test_the_screen_has_a_line_for_each_change_and_a_summary(run_folder, video):
    done = stream(run_folder, video)
    changes = [entry for entry in lines(stream(run_folder, video, "--json")) if entry["event"] == "label"]
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    assert shown[0].startswith("threshold 0.5 (the default")
    assert "48 x 48 pixels, 12 frames/s" in shown[1]
    assert [line.split()[1] for line in shown[2:-1]] == [entry["class"] for entry in changes]
    assert "latency" in shown[-1]


def test_every_model_can_read_windows(run_folder, video):
    """The oracle: the answers of `predict` for the last frames, of which a window has 4 with a stride of 2."""
    done = stream(run_folder, video, "--json", "--windows", "--min-duration", "0")
    entries, recognizer, frames = lines(done), stvid.load(run_folder), read_frames(video, range(48))
    assert "model: windows" in done.stderr
    known = [entry for entry in entries if entry["class"] in recognizer.class_names]
    assert known
    for entry in known:
        position = round(entry["time"] * 12)
        expected = recognizer.predict(frames[position - 6 : position + 1], fps=12, num_clips=1)
        assert entry["probability"] == pytest.approx(
            expected.probabilities[recognizer.class_names.index(entry["class"])], abs=1e-3
        )


def test_a_background_class_is_told_as_unknown(run_folder, video):
    names = stvid.load(run_folder).class_names
    words = [word for name in names for word in ("--background", name)]
    entries = lines(stream(run_folder, video, "--json", *words))
    assert {entry["class"] for entry in entries} <= {None, "unknown"}


def test_a_background_that_is_no_class_is_refused(run_folder, video):
    done = stream(run_folder, video, "--background", "to_lef")
    assert done.returncode == 2
    assert "did you mean 'to_left'?" in done.stderr


def test_the_recording_has_every_frame_with_the_label_on_it(run_folder, video, tmp_path):
    done = stream(run_folder, video, "--out", tmp_path / "out.mp4")
    assert done.returncode == 0, done.stderr
    source, recorded = probe(video), probe(tmp_path / "out.mp4")
    assert (recorded.num_frames, recorded.height, recorded.width) == (48, source.height, source.width)
    assert recorded.duration == pytest.approx(source.duration, abs=0.01)
    difference = (read_frames(video, [40]).int() - read_frames(tmp_path / "out.mp4", [40]).int()).abs().float()
    assert difference[..., :10, :20].mean() > 20  # the label
    assert difference[..., 30:, :].mean() < 6  # not the rest


def test_a_full_disk_ends_the_stream_with_a_message_and_without_the_file(run_folder, video, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def open_full(path, *, fps):
        def add(frame_HWC, seconds):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        yield add

    monkeypatch.setattr(stream_output, "open_recording", open_full)
    done = stream(run_folder, video, "--out", tmp_path / "out.mp4")
    assert done.returncode == 2
    assert f"cannot write {tmp_path / 'out.mp4'}: No space left on device" in done.stderr
    assert "1 frames" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_recording_is_kept_when_the_source_breaks(run_folder, tmp_path, monkeypatch):
    (tmp_path / "raw").write_bytes(bytes(48 * 48 * 3 * 5 + 1))
    with open(tmp_path / "raw", "rb") as raw:
        monkeypatch.setattr(sys, "stdin", raw)
        done = stream(run_folder, "-", "--size", "48x48", "--fps", "12", "--out", tmp_path / "out.mp4")
    assert done.returncode == 2
    assert probe(tmp_path / "out.mp4").num_frames == 5


def test_a_stream_over_http_flows_and_a_cut_connection_comes_back(run_folder, monkeypatch):
    monkeypatch.setattr(slot, "FIRST_PAUSE", 0.0)
    content = mpegts(num_frames=20)
    cut = []

    def answer(handler):
        if not cut:
            cut.append(True)
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(content)
        else:
            endless(content)(handler)

    with serving(live=answer) as server:
        done = stream(run_folder, f"{server.url}/live", "--json", "--duration", "6")  # slow machines, too
        entries = lines(done)
    assert len(server.requests) == 2
    assert entries[-1]["reconnects"] == 1
    assert [entry["time"] for entry in entries] == sorted(entry["time"] for entry in entries)
    assert {entry["class"] for entry in entries} & {"to_left", "to_right", "unknown"}
    assert "connected again" in done.stderr


@pytest.mark.parametrize("words", [["http://127.0.0.1:9/x"], ["98"]])
def test_a_source_that_cannot_be_opened_is_one_message(run_folder, words):
    done = stream(run_folder, *words)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")


def process(*words, **options):
    program = [sys.executable, "-c", "from stvid.cli import main; main()", "stream", *map(str, words)]
    return subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_ctrl_c_ends_with_a_summary_and_a_whole_recording(run_folder, tmp_path):
    with serving(live=endless(mpegts())) as server:
        running = process(run_folder, f"{server.url}/live", "--json", "--out", tmp_path / "out.mp4")
        first = [json.loads(running.stdout.readline()) for _ in range(3)]
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=120)
    assert running.returncode == 0, errors
    assert list(first[-1]) == KEYS
    assert "latency" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert probe(tmp_path / "out.mp4").num_frames >= 10


def test_a_closed_output_ends_the_stream_quietly(run_folder, video):
    with serving(live=endless(mpegts())) as server:
        running = process(run_folder, f"{server.url}/live", "--json")
        running.stdout.readline()
        running.stdout.close()
        errors = running.stderr.read()
        assert running.wait(120) == 1
    assert "Traceback" not in errors
    assert "latency" in errors


def test_the_documented_consumer_reads_the_lines():
    text = (ROOT / "docs" / "using.md").read_text(encoding="utf-8").split("## Another program")[1]
    program = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1]
    entries = [("label", "unknown", 1.0, 25), ("label", "walk", 2.5, 25), ("second", "walk", 3.0, 25)]
    entries += [("second", "walk", 4.0, 0), ("label", "sit", 5.25, 25), ("label", "unknown", 9.0, 25)]
    given = "".join(
        json.dumps({"event": event, "class": name, "time": seconds, "fps": fps}) + "\n"
        for event, name, seconds, fps in entries
    )
    done = subprocess.run([sys.executable, "-c", program], input=given, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["no frames at 4 s", "walk: 2.8 s, from 2.5 s on", "sit: 3.8 s, from 5.2 s on"]
