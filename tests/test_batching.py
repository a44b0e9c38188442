"""Items of several clients in one call: what goes together, what is refused, and what a bug costs."""

import threading

import pytest

from stvid.serve.batching import Batcher, BatchFailed, QueueFull

FOREVER = 3600.0  # seconds; a test that waits for it fails


@pytest.fixture
def batcher():
    batcher = Batcher(max_batch=4, max_delay=0, max_queue=8)
    yield batcher
    batcher.stop()


def recording(calls):
    def function(items):
        calls.append(list(items))
        return [item * 10 for item in items]

    return function


def results(futures):
    return [future.result(timeout=60) for future in futures]


def test_items_with_the_same_key_go_together_and_each_gets_its_own_result(batcher):
    calls = []
    function = recording(calls)
    futures = [batcher.submit(function, item, key=item % 2) for item in (1, 2, 3, 5, 4)]
    batcher.start()
    assert results(futures) == [10, 20, 30, 50, 40]
    assert calls == [[1, 3, 5], [2, 4]]


def test_items_of_other_functions_never_go_together(batcher):
    first, second = [], []
    one, two = recording(first), recording(second)
    futures = [batcher.submit(function, 1) for function in (one, two, one)]
    batcher.start()
    assert results(futures) == [10, 10, 10]
    assert (first, second) == ([[1, 1]], [[1]])


def test_a_batch_takes_no_more_than_its_size_and_a_larger_item_comes_alone(batcher):
    calls = []
    function = recording(calls)
    futures = [batcher.submit(function, size, size=size) for size in (1, 2, 2, 9, 3, 1)]
    batcher.start()
    results(futures)
    assert calls == [[1, 2], [2], [9], [3, 1]]


def test_a_full_batch_does_not_wait_and_another_waits_for_others():
    calls = []
    function = recording(calls)
    batcher = Batcher(max_batch=2, max_delay=FOREVER, max_queue=8)
    batcher.start()
    try:
        first = batcher.submit(function, 1)
        other = batcher.submit(function, 7, key="of another shape")  # it does not complete the batch
        assert not first.done()
        second = batcher.submit(function, 2)
        assert results([first, second]) == [10, 20]
        assert calls == [[1, 2]]
        assert not other.done()
        batcher.submit(function, 8, size=2, key="of another shape")  # it does not fit in, so waiting is of no use
        assert results([other]) == [70]
    finally:
        batcher.stop()


def test_a_full_queue_refuses_and_cancelled_items_leave_it(batcher):
    calls = []
    function = recording(calls)
    futures = [batcher.submit(function, item) for item in range(8)]
    with pytest.raises(QueueFull):
        batcher.submit(function, 8)
    futures[3].cancel()
    futures.append(batcher.submit(function, 8))
    batcher.start()
    results(future for future in futures if not future.cancelled())
    assert calls == [[0, 1, 2, 4], [5, 6, 7, 8]]


def test_a_bug_fails_its_own_items_and_the_thread_goes_on(batcher, caplog):
    def broken(items):
        raise ZeroDivisionError("a bug")

    failing = [batcher.submit(broken, item) for item in range(2)]
    good = batcher.submit(recording([]), 1)
    batcher.start()
    assert good.result(timeout=60) == 10
    for future in failing:
        with pytest.raises(BatchFailed):
            future.result(timeout=60)
    assert "ZeroDivisionError: a bug" in caplog.text


def test_too_few_results_are_a_bug_not_another_clients_answer(batcher):
    futures = [batcher.submit(lambda items: items[1:], item) for item in range(2)]
    batcher.start()
    for future in futures:
        with pytest.raises(BatchFailed):
            future.result(timeout=60)


def test_stopping_finishes_the_running_call_and_cancels_the_rest(batcher):
    running, go_on = threading.Event(), threading.Event()

    def slow(items):
        running.set()
        assert go_on.wait(60)
        return items

    batcher.start()
    first = batcher.submit(slow, 1)
    assert running.wait(60)
    second = batcher.submit(slow, 2)
    second.add_done_callback(lambda _: go_on.set())  # cancelled by stop, which then waits for the first
    batcher.stop()
    assert first.result(timeout=60) == 1
    assert second.cancelled()
    with pytest.raises(QueueFull):
        batcher.submit(slow, 3)


def test_calls_are_measured():
    measured = []
    batcher = Batcher(
        max_batch=4, max_delay=0, max_queue=8, on_batch=lambda size, seconds: measured.append((size, seconds >= 0))
    )
    function = recording([])
    futures = [batcher.submit(function, 1, size=size) for size in (1, 3)]
    batcher.start()
    results(futures)
    batcher.stop()
    assert measured == [(4, True)]
