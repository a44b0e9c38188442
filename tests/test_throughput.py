"""Advice for a run that waits for data; the expected numbers are computed by hand."""

import pytest

from stvid.training.callbacks.throughput import data_bound_advice


def advice(share, *, workers, cores, threads, uses_features=False):
    return data_bound_advice(
        share, num_workers=workers, num_cores=cores, num_threads=threads, uses_features=uses_features
    )


def test_a_run_that_waits_little_gets_no_advice():
    assert advice(0.24, workers=1, cores=8, threads=0) is None


def test_advice_starts_with_the_share_and_ends_with_what_to_do():
    text = advice(0.62, workers=4, cores=16, threads=0)
    assert text.startswith("data-bound 62 %: training waits for videos 62 % of the time; ")
    assert text.endswith("or smaller files: stvid prepare")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("share", "workers", "cores", "number"),
    [
        (0.5, 2, 64, 4),  # twice as many read twice as fast
        (0.75, 2, 64, 8),
        (0.75, 2, 6, 6),  # no more than there are cores
        (0.5, 0, 8, 1),  # reads as long as it trains: one process does both at once
        (0.8, 0, 8, 4),
        (1.0, 2, 8, 8),
    ],
)
def test_with_a_gpu_workers_are_as_many_as_needed_up_to_the_number_of_cores(share, workers, cores, number):
    assert f"data.num_workers={number} (now {workers}," in advice(share, workers=workers, cores=cores, threads=0)


def test_no_more_workers_than_cores():
    text = advice(0.6, workers=8, cores=8, threads=0)
    assert "num_workers" not in text
    assert "reading keeps the 8 cores busy" in text
    assert "stvid prepare" in text


def test_on_a_cpu_cores_are_divided_between_threads_and_workers_like_the_work():
    """4 readers are busy all the time, 4 threads for half of it: 4 to 2, and of 9 cores 6 to 3."""
    assert "OMP_NUM_THREADS=3 and data.num_workers=6 (now 4 threads and 4 workers" in advice(
        0.5, workers=4, cores=9, threads=4
    )


def test_on_a_busy_cpu_more_workers_do_not_help():
    """One reads all the time, one trains for 70 % of it: of two cores, a third of one is left."""
    text = advice(0.3, workers=1, cores=2, threads=1)
    assert "num_workers" not in text
    assert "reading and training keep the 2 cores busy" in text


def test_a_single_thread_that_mostly_waits_shares_its_core():
    assert "data.num_workers=2 (now 1" in advice(0.7, workers=1, cores=2, threads=1)


def test_a_single_core_gets_no_more_workers():
    assert "num_workers" not in advice(0.9, workers=0, cores=1, threads=1)


def test_stored_features_need_neither_workers_nor_smaller_videos():
    text = advice(0.8, workers=0, cores=8, threads=4, uses_features=True)
    assert "num_workers" not in text
    assert "stvid prepare" not in text
