"""The answer is about the newest frame, labels do not flicker, a lost source starts the model anew."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_slot import LONG, Source

from stvid.clip import ClipSpec
from stvid.deploy import live, live_stream, meter, slot
from stvid.deploy.live import LiveRecognition
from stvid.deploy.segments import UNKNOWN
from stvid.deploy.steady_label import SteadyLabel
from stvid.errors import InputError
from stvid.models.cnn_lstm import CNNLSTM

NAMES = ("walk", "sit", "idle")
TRAINED = SimpleNamespace(clip=ClipSpec(num_frames=4, frame_stride=1, size=4), class_names=NAMES, model=None)


class Model:
    """Stands in for `Stream`: is sure of class `number of the frame // 100`.

    Attributes:
        pushed: numbers of the frames that all streams of a test were given, a list for each stream.
        meanwhile: called while the model computes.
    """

    mode, hop, first = "stand-in", None, 5
    pushed, meanwhile, silent = [], staticmethod(lambda: None), 0

    def __init__(self, trained, *, fps, runner, hop, start):
        self.restart()

    def restart(self):
        self.pushed.append([])
        self.count = 0

    def push(self, frame_CHW):
        self.pushed[-1].append(int(frame_CHW[0, 0, 0]))
        type(self).meanwhile()
        self.count += 1
        if self.count <= self.silent:
            return None
        return torch.eye(3)[int(frame_CHW[0, 0, 0]) // 100 % 3]


@pytest.fixture
def model(monkeypatch):
    """A fresh stand-in in place of `Stream`."""
    fresh = type("Fresh", (Model,), {"pushed": []})
    monkeypatch.setattr(live_stream, "Stream", fresh)
    monkeypatch.setattr(live, "WARM_UP", 0)
    return fresh


def recognition(source, *, trained=TRAINED, windows=False):
    label = SteadyLabel(NAMES, threshold=0.5, min_duration=0.0)
    return LiveRecognition(trained, source, label=label, windows=windows, runner=object())


def label_changes(events):
    return [(round(event.seconds * 25), event.label) for event in events if event.changed]


def test_a_source_that_waits_gives_every_frame_and_its_label(model):
    source = Source(255, waits=True)
    source.allowed.release(255)
    running = recognition(source)
    events = list(running.events())
    assert label_changes(events) == [(0, "walk"), (100, "sit"), (200, "idle")]
    assert model.pushed[-1] == list(range(255))
    assert running.meter.num_frames == 255
    assert running.slot.dropped == 0
    assert "4 x 4 pixels, 25 frames/s; model: stand-in, first answer after 0.2 s" in events[0].note


class Clock:
    """The time is that of the source: 25 frames/s."""

    def __init__(self, source):
        self.source = source

    def monotonic(self):
        return (self.source.number - 1) / 25


def test_a_source_twice_as_fast_as_the_model_loses_frames_but_no_time(model, monkeypatch):
    """While the model computes, two frames arrive. Each answer is about the frame that was the newest then."""
    source = Source(None)
    for module in (live, meter, slot):
        monkeypatch.setattr(module, "time", Clock(source))
    running = recognition(source)
    newest, delays, notes = [], [], []

    def compute():
        newest.append((source.number - 1) % 256)
        source.give(2)

    model.meanwhile = staticmethod(compute)
    source.give(wait=False)
    for event in running.events():
        if event.note:
            notes.append(event.note)
        elif event.frame_CHW is not None:
            number = round(event.seconds * 25)
            if newest[-1] == number % 256:  # the model has seen this frame
                delays.append(source.number - 1 - number)
            else:  # it takes time until another one comes
                source.give()
        if len(newest) == 200:
            break
    source.close()
    assert newest == model.pushed[-1]  # always the newest one that has arrived
    assert set(delays) == {2}  # frames that arrived while the model computed: its own time, no queue
    assert running.meter.percentile_95_ms == pytest.approx(80)
    assert running.slot.dropped >= 190
    assert "needs 25 frames/s and manages 12.5" in notes[1]


def test_a_model_of_windows_gets_all_frames_and_fewer_windows_while_it_is_slow(model, monkeypatch):
    """A window every 4 frames takes as long as 8 frames; later, as long as 2."""

    class Windows(model):
        cost = 8

        def __init__(self, trained, *, fps, runner, hop, start):
            super().__init__(trained, fps=fps, runner=runner, hop=hop, start=start)
            self.hop = hop

        def push(self, frame_CHW):
            if (self.count + 1) % self.hop == 0:
                source.give(self.cost)
            return super().push(frame_CHW)

    source = Source(None)
    monkeypatch.setattr(live_stream, "Stream", Windows)
    for module in (live, meter, slot):
        monkeypatch.setattr(module, "time", Clock(source))
    trained = SimpleNamespace(**{**vars(TRAINED), "clip": ClipSpec(num_frames=16, frame_stride=1, size=4)})
    running, notes = recognition(source, trained=trained, windows=True), []
    take = running.slot.take

    def wait_for_frames(*, timeout):
        while not (arrivals := take(timeout=0.001)):
            source.give()  # the model has read all frames so far
        return arrivals

    monkeypatch.setattr(running.slot, "take", wait_for_frames)
    for event in running.events():
        notes += [event.note] if event.note else []
        is_settled = len(model.pushed[-1]) >= 200  # the speed was measured again, and nothing changed
        if is_settled and "faster" in notes[-1]:
            break
        if is_settled and Windows.cost == 8:
            frames, Windows.cost = model.pushed[-1][20:100], 2
        assert source.number < 3000
    source.close()
    assert notes[1] == "the model is slow: from now on, one window every 0.36 s"  # 9 frames
    assert "faster" in notes[2]
    assert notes[-1] == "the model is faster again: from now on, one window every 0.16 s"  # 4 frames, as at first
    assert frames == list(range(frames[0], frames[0] + 80))


def test_a_model_is_started_anew_after_a_gap_and_the_label_is_unknown(model):
    class Gap(Source):
        def frames(self):
            for seconds, frame_CHW in super().frames():
                yield seconds + 10 * (seconds >= 0.4), frame_CHW

    model.silent = 2
    source = Gap(20)
    running = recognition(source)
    source.give(wait=False)
    changes = []
    for event in running.events():
        if event.changed:
            changes.append((round(event.seconds, 2), event.label))
        if event.frame_CHW is not None:
            if source.number == 20:
                break
            source.give()
    assert [len(frames) for frames in model.pushed[-2:]] == [10, 10]
    assert changes == [(0.08, "walk"), (10.4, UNKNOWN), (10.48, "walk")]
    assert running.restarts == 1


def test_a_lost_source_is_told_and_starts_the_model_anew(model, monkeypatch):
    monkeypatch.setattr(slot, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(live, "IDLE_INTERVAL", 0.005)
    source = Source(3, 3, waits=True)
    source.allowed.release(6)
    running = recognition(source)
    events = list(running.events())
    notes = [event.note for event in events if event.note]
    assert notes[1:] == ["source: lost; connecting again", "source: connected again; the model starts anew"]
    assert [event.label for event in events if event.changed] == ["walk", UNKNOWN, "walk"]
    assert [len(frames) for frames in model.pushed[-2:]] == [3, 3]
    assert running.slot.connections == 1


def test_the_label_before_a_lost_connection_is_forgotten_however_soon_it_comes_back(model, monkeypatch):
    """The source is back before anybody has noticed that it was lost."""
    monkeypatch.setattr(slot, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(live, "IDLE_INTERVAL", LONG)
    model.silent = 2
    source = Source(5, 5, waits=True)
    source.allowed.release(10)
    events = list(recognition(source).events())
    assert len([event for event in events if event.note]) == 2
    assert label_changes(events) == [(2, "walk"), (5, UNKNOWN), (7, "walk")]


def test_a_source_that_breaks_is_an_error_after_its_last_answer(model):
    source = Source(5, 1, waits=True, reconnects=False)
    source.allowed.release(5)
    seen = []
    with pytest.raises(InputError, match="source: lost"):
        seen.extend(event.seconds for event in recognition(source).events() if event.frame_CHW is not None)
    assert seen == [i / 25 for i in range(5)]


def test_without_frames_the_time_goes_on(model, monkeypatch):
    monkeypatch.setattr(live, "IDLE_INTERVAL", 0.001)
    source = Source(None)
    source.give(wait=False)
    events = recognition(source).events()
    events = list(itertools.islice(itertools.dropwhile(lambda event: not event.note, events), 6))
    source.close()
    times = [event.seconds for event in events]
    assert times == sorted(times)
    assert times[-1] > times[1]
    assert {event.label for event in events[2:]} == {"walk"}
    assert [event.changed for event in events] == [False, True, False, False, False, False]


@pytest.mark.parametrize(("pooling", "num_frames", "hop"), [("last", 16, None), ("mean", 16, 7), ("max", None, None)])
def test_a_state_that_pools_all_frames_is_no_live_answer(model, pooling, num_frames, hop):
    """After minutes, the mean over all frames would hardly change: such a model reads windows of its clips."""
    hops = []
    model.__init__ = lambda self, trained, *, fps, runner, hop, start: hops.append(hop)
    trained = SimpleNamespace(
        clip=ClipSpec(num_frames=num_frames, frame_stride=2, size=4),
        class_names=NAMES,
        model=CNNLSTM(num_classes=3, pooling=pooling),
    )
    label = SteadyLabel(NAMES, threshold=0.5, min_duration=0.0)
    LiveRecognition(trained, Source(1), label=label, runner=object())._new_live()
    assert hops == [hop]


def probabilities(*rows):
    return [torch.tensor(row) for row in rows]


def test_labels_do_not_flicker():
    label = SteadyLabel(NAMES, threshold=0.6, min_duration=0.1)
    sure, less, other = probabilities([0.7, 0.2, 0.1], [0.55, 0.35, 0.1], [0.1, 0.8, 0.1])
    rows = [sure, less, less, other, sure, other, other, other, other]
    labels = [label.update(row, i / 25)[0] for i, row in enumerate(rows)]
    # `less` is above the lower threshold; one frame of `other` is too short, from frame 5 on it lasts
    assert labels == ["walk"] * 8 + ["sit"]


def test_an_unknown_label_has_the_highest_probability_and_a_known_one_its_own():
    label = SteadyLabel(NAMES, threshold=0.5, min_duration=0.0)
    assert label.update(torch.tensor([0.45, 0.35, 0.2]), 0.0) == (UNKNOWN, pytest.approx(0.45))
    assert label.update(torch.tensor([0.7, 0.2, 0.1]), 0.1) == ("walk", pytest.approx(0.7))
    assert label.update(torch.tensor([0.42, 0.46, 0.12]), 0.2) == ("walk", pytest.approx(0.42))


def test_a_background_class_is_unknown():
    label = SteadyLabel(NAMES, threshold=0.6, min_duration=0.0, background=["idle"])
    assert label.update(torch.tensor([0.1, 0.1, 0.8]), 0.0) == (UNKNOWN, pytest.approx(0.8))


def test_the_meter_counts_frames_and_latencies(monkeypatch):
    now = SimpleNamespace(monotonic=lambda: now.value, value=0.0)
    monkeypatch.setattr(meter, "time", now)
    speed = meter.Meter()
    latencies = np.random.default_rng(0).uniform(0.01, 0.03, 100)
    for i in range(100):
        now.value = 0.1 * i
        speed.add(now.value - latencies[i])
    assert speed.fps == pytest.approx(10)
    assert speed.mean_fps == pytest.approx(10)
    assert speed.mean_ms == pytest.approx(1000 * latencies.mean())
    assert speed.percentile_95_ms == pytest.approx(1000 * np.percentile(latencies, 95))
    assert speed.latency_ms == pytest.approx(1000 * latencies[-50:].mean(), rel=0.05)
    now.value += 60
    assert speed.latency_ms is None
    for _ in range(20_000):  # nobody asks for the latest speed, as without a terminal
        now.value += 0.1
        speed.add(now.value)
    assert len(speed.recent) <= 52
