"""Waiting is measured around the loader's next batch and nowhere else; a made-up clock tells the time."""

import subprocess
import sys

import pytest
import torch
from torch.utils.data import Dataset

from stvid.data import timed_loader
from stvid.data.timed_loader import IdleClock, TimedLoader


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(timed_loader.time, "perf_counter", lambda: self.now)


class Slow(Dataset):
    def __init__(self, clock):
        self.clock = clock

    def __len__(self):
        return 6

    def __getitem__(self, index):
        self.clock.now += 1.0
        return index


def test_reading_counts_and_training_does_not(monkeypatch):
    clock = Clock(monkeypatch)
    loader = TimedLoader(Slow(clock), batch_size=2)
    seen = []
    for _ in range(2):  # epochs
        for batch in loader:
            clock.now += 10.0
            seen += batch.tolist()
    assert seen == [*range(6)] * 2
    assert loader.waited == pytest.approx(12.0)


def test_an_epoch_that_ends_early_leaves_the_loader_in_order(monkeypatch):
    clock = Clock(monkeypatch)
    loader = TimedLoader(Slow(clock), batch_size=2)
    next(iter(loader))
    assert loader.waited == pytest.approx(2.0)
    assert len(list(loader)) == len(loader) == 3


def test_with_processes_all_batches_come_and_waiting_is_some_time():
    loader = TimedLoader(torch.arange(8), batch_size=2, num_workers=1, persistent_workers=True)
    for _ in range(2):
        assert torch.cat(list(loader)).tolist() == list(range(8))
    assert loader.waited > 0


class Event:
    """A CUDA event: it happens when the device is through with what was asked of it, but not before it is asked."""

    host = device = 0.0  # what time it is here, and when the device will have done all it was told to

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.time = max(Event.host, Event.device)

    def query(self):
        return Event.host >= self.time

    def synchronize(self):
        Event.host = max(Event.host, self.time)

    def elapsed_time(self, other):
        return 1000 * (other.time - self.time)


@pytest.mark.parametrize(
    ("reading", "computing", "idle"),
    [(1.0, 3.0, 0.0), (3.0, 1.0, 2.0), (1.0, 1.0, 0.0)],
    ids=["the device is slower", "reading is slower", "alike"],
)
def test_a_gpu_waits_only_while_it_has_nothing_left_to_do(monkeypatch, reading, computing, idle):
    """Kernels are asked for in no time and done later: reading meanwhile is not waiting."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    Event.host = Event.device = 0.0
    clock = IdleClock()
    for _ in range(10):
        clock.start()
        Event.host += reading
        clock.stop()
        Event.device = max(Event.host, Event.device) + computing
    assert clock.read() == pytest.approx(reading + 9 * idle)
    assert clock.read() == pytest.approx(reading + 9 * idle), "asking changes nothing"


LIVE_ITERATOR = """
import multiprocessing, sys
from torch.utils.data import DataLoader
from stvid.data.loading import worker_options

def read():
    global batches  # still there when the process exits
    batches = iter(DataLoader(range(100), **worker_options(1)))
    next(batches)

if sys.argv[1] == "main":
    read()
else:
    child = multiprocessing.get_context("fork").Process(target=read)
    child.start()
    child.join()
print("end")
"""


@pytest.mark.parametrize("process", ["main", "child"])
def test_a_process_with_a_live_iterator_exits_though_its_workers_ignore_sigterm(process):
    command = [sys.executable, "-c", LIVE_ITERATOR, process]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr
