"""The newest frame is taken; what the model has no time for is dropped and counted; a lost source is opened again."""

import itertools
import threading

import pytest
import torch

from stvid.deploy import slot
from stvid.deploy.slot import FrameSlot
from stvid.errors import InputError

LONG = 60  # seconds: a test that waits so long has failed


class Source:
    """Yields numbered frames; each only when `give` allows it.

    Args:
        parts: number of frames until the connection is lost, once for each time that it is opened; None: as many as
            the test wants.
        error: at the end of each part but the last, which ends without an error.
    """

    name, fps = "source", 25.0

    def __init__(self, *parts, waits=False, reconnects=True, error=None):
        self.parts, self.waits, self.reconnects = iter(parts), waits, reconnects
        self.error = error or InputError("source: lost")
        self.last = len(parts)
        self.allowed, self.arrived = threading.Semaphore(0), threading.Semaphore(0)
        self.opened = self.number = self.pending = 0
        self.closed = threading.Event()

    def frames(self):
        self.opened += 1
        size = next(self.parts)
        for _ in itertools.count() if size is None else range(size):
            assert self.allowed.acquire(timeout=LONG)
            if self.closed.is_set():
                return
            number, self.number = self.number, self.number + 1
            yield number / 25, torch.full((3, 4, 4), number % 256, dtype=torch.uint8)
            self.arrived.release()  # when the next one is asked for, this one is in the slot
        if self.opened < self.last:
            raise self.error

    def give(self, count=1, *, wait=True):
        """The next frames are in the slot when this returns; `wait=False`: they will be."""
        self.allowed.release(count)
        self.pending += count
        while wait and self.pending:
            assert self.arrived.acquire(timeout=LONG)
            self.pending -= 1

    def close(self):
        self.closed.set()
        self.allowed.release()


def numbers(arrivals):
    return [round(arrival.seconds * 25) for arrival in arrivals]


def test_only_the_newest_frame_is_kept():
    source = Source(None)
    frames = FrameSlot(source)
    frames.start()
    for count, newest, dropped in ((1, 0, 0), (5, 5, 4), (1, 6, 4), (100, 106, 103)):
        source.give(count)
        taken = frames.take(timeout=LONG)
        assert numbers(taken) == [newest]
        assert taken[0].frame_CHW[0, 0, 0] == newest
        assert frames.dropped == dropped
    assert frames.take(timeout=0.001) == []
    frames.close()


def test_the_newest_frames_are_kept_for_a_model_that_looks_at_several():
    source = Source(None)
    frames = FrameSlot(source, capacity=3)
    frames.start()
    source.give(2)
    assert numbers(frames.take(timeout=LONG)) == [0, 1]
    source.give(10)
    assert numbers(frames.take(timeout=LONG)) == [9, 10, 11]
    assert frames.dropped == 7
    source.give(3)
    frames.capacity = 1  # the model has changed
    source.give()
    assert numbers(frames.take(timeout=LONG)) == [15]
    assert frames.dropped == 10
    frames.close()


@pytest.mark.parametrize(("max_bytes", "kept"), [(3 * 48 + 47, 3), (10, 1)])
def test_frames_that_wait_have_a_limit_in_bytes(max_bytes, kept, monkeypatch):
    monkeypatch.setattr(slot, "MAX_BYTES", max_bytes)  # a frame has 48
    source = Source(None)
    frames = FrameSlot(source, capacity=5)
    frames.start()
    source.give(10)
    assert numbers(frames.take(timeout=LONG)) == list(range(10 - kept, 10))
    assert frames.dropped == 10 - kept
    frames.close()


def test_a_source_that_waits_loses_nothing():
    source = Source(50, waits=True)
    source.allowed.release(50)
    frames = FrameSlot(source)
    frames.start()
    taken = []
    while (arrivals := frames.take(timeout=LONG)) is not None:
        taken += numbers(arrivals)
    assert taken == list(range(50))
    assert frames.dropped == 0


def test_a_lost_source_is_opened_again_after_growing_pauses(monkeypatch):
    pauses = []
    source = Source(3, 0, 0, 0, 0, 0, 0, 2, 0, 0, 2)
    frames = FrameSlot(source)
    monkeypatch.setattr(frames, "_closed", Waits(pauses))
    source.allowed.release(7)
    frames.start()
    taken = []
    while (arrivals := frames.take(timeout=LONG)) is not None:
        taken += arrivals
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 1, 2, 4]
    assert source.opened == 11
    assert frames.connections == 2
    assert taken[-1].connection == 2


class Waits:
    """Stands in for the event that ends a pause."""

    def __init__(self, pauses):
        self.pauses = pauses

    def wait(self, seconds):
        self.pauses.append(seconds)
        return False

    def is_set(self):
        return False


def test_while_the_source_is_lost_the_reason_is_known(monkeypatch):
    lost, again = threading.Event(), threading.Event()

    class Pause(Waits):
        def wait(self, seconds):
            lost.set()
            return not again.wait(LONG)

    source = Source(1, None)
    frames = FrameSlot(source)
    monkeypatch.setattr(frames, "_closed", Pause([]))
    frames.start()
    source.give()
    assert lost.wait(LONG)
    assert frames.lost == "source: lost"
    assert numbers(frames.take(timeout=LONG)) == [0]
    again.set()
    source.give()
    assert frames.lost == ""
    assert numbers(frames.take(timeout=LONG)) == [1]
    source.close()


@pytest.mark.parametrize("source", [Source(0, 5), Source(3, 5, reconnects=False)])
def test_a_source_that_never_opened_or_cannot_reconnect_is_an_error_after_its_frames(source):
    source.allowed.release(3)
    frames = FrameSlot(source, capacity=10)
    frames.start()
    taken = []
    with pytest.raises(InputError, match="source: lost"):
        taken.extend(
            number for arrivals in iter(lambda: frames.take(timeout=LONG), None) for number in numbers(arrivals)
        )
    assert taken == list(range(source.number))
    assert source.opened == 1


def test_a_bug_in_the_thread_is_raised_where_frames_are_taken():
    source = Source(0, 1, error=ZeroDivisionError("a bug"))
    frames = FrameSlot(source)
    frames.start()
    with pytest.raises(ZeroDivisionError, match="a bug"):
        frames.take(timeout=LONG)


def test_closing_ends_the_thread():
    for waits in (True, False):
        source = Source(None, waits=waits)
        frames = FrameSlot(source)
        frames.start()
        source.allowed.release(2)
        thread = next(t for t in threading.enumerate() if t.name == "frames of source")
        frames.close()
        thread.join(LONG)
        assert not thread.is_alive()


def test_pauses_are_those_of_the_documentation():
    assert (slot.FIRST_PAUSE, slot.LAST_PAUSE) == (1, 30)
