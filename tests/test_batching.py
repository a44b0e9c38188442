"""Items of several clients in one call: what goes together, what is refused, and what a bug costs."""

import threading

import pytest

from stvid.serve.batching import Batcher, BatchFailed, ServiceStopping

FOREVER = 3600.0  # seconds; a test that waits for it fails


@pytest.fixture
def batcher():
    batcher = Batcher(max_batch=4, max_delay=0)
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
    batcher = Batcher(max_batch=2, max_delay=FOREVER)
    batcher.start()
    try:
        first = batcher.submit(function, 1)
        other = batcher.submit(function, 7, key="of another shape")  # it does not complete the batch
        second = batcher.submit(function, 2)
        assert results([first, second]) == [10, 20]
        assert calls == [[1, 2]]
        assert not other.done()
        batcher.submit(function, 8, size=2, key="of another shape")  # it does not fit in, so waiting is of no use
        assert results([other]) == [70]
    finally:
        batcher.stop()


def test_a_full_batch_overtakes_an_item_that_waits_for_others_but_not_one_that_has_waited():
    for max_delay, order in ((FOREVER, [[1, 2]]), (0, [[7], [1, 2]])):
        calls, done = [], threading.Event()
        function = recording(calls)
        batcher = Batcher(max_batch=2, max_delay=max_delay)
        batcher.submit(function, 7, key="alone")
        futures = [batcher.submit(function, item) for item in (1, 2)]
        futures[1].add_done_callback(lambda _, done=done: done.set())
        batcher.start()
        assert done.wait(60)
        batcher.stop()
        assert calls == order


def test_nobody_waits_for_others_that_do_not_exist():
    batcher = Batcher(max_batch=4, max_delay=FOREVER, num_clients=lambda: 2)
    calls = []
    futures = [batcher.submit(recording(calls), item, key=item) for item in (1, 2)]
    batcher.start()
    assert futures[0].result(timeout=60) == 10
    batcher.num_clients = lambda: 1
    futures.append(batcher.submit(recording(calls), 3))  # the other one has gone
    results(futures[2:])
    batcher.stop()


def test_cancelled_items_leave_the_queue(batcher):
    calls = []
    function = recording(calls)
    futures = [batcher.submit(function, item) for item in range(5)]
    futures[1].cancel()
    batcher.start()
    results(future for future in futures if not future.cancelled())
    assert calls == [[0, 2, 3, 4]]


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), SystemExit("a bug")])
def test_a_bug_fails_its_own_items_and_the_thread_goes_on(batcher, caplog, error):
    def broken(items):
        raise error

    failing = [batcher.submit(broken, item) for item in range(2)]
    good = batcher.submit(recording([]), 1)
    batcher.start()
    assert good.result(timeout=60) == 10
    for future in failing:
        with pytest.raises(BatchFailed):
            future.result(timeout=60)
    assert f"{type(error).__name__}: a bug" in caplog.text


def test_too_few_results_are_a_bug_not_another_clients_answer(batcher):
    futures = [batcher.submit(lambda items: items[1:], item) for item in range(2)]
    batcher.start()
    for future in futures:
        with pytest.raises(BatchFailed):
            future.result(timeout=60)


def test_stopping_drops_what_waits_and_does_not_wait_for_a_call_without_end(batcher):
    running, go_on = threading.Event(), threading.Event()

    def slow(items):
        running.set()
        assert go_on.wait(60)
        return items

    batcher.start()
    first = batcher.submit(slow, 1)
    assert running.wait(60)
    second = batcher.submit(slow, 2)
    batcher.stop(timeout=0)
    assert not first.done()
    with pytest.raises(ServiceStopping):
        second.result(timeout=60)
    with pytest.raises(ServiceStopping):
        batcher.submit(slow, 3)
    go_on.set()
    batcher.stop()
    assert first.done()
    batcher.start()
    assert batcher.submit(slow, 4).result(timeout=60) == 4


def test_an_error_while_a_call_is_counted_fails_the_call_and_not_the_thread():
    batcher = Batcher(max_batch=4, max_delay=0, on_batch=lambda size, seconds: 1 / 0)
    batcher.start()
    for number in (1, 2):
        with pytest.raises(BatchFailed):
            batcher.submit(recording([]), 1).result(timeout=60)
        assert (batcher.num_failures, batcher.is_running) == (number, True)
    batcher.stop()
    assert not batcher.is_running


def test_calls_are_measured():
    measured = []
    batcher = Batcher(max_batch=4, max_delay=0, on_batch=lambda size, seconds: measured.append((size, seconds >= 0)))
    function = recording([])
    futures = [batcher.submit(function, 1, size=size) for size in (1, 3)]
    batcher.start()
    results(futures)
    batcher.stop()
    assert measured == [(4, True)]
