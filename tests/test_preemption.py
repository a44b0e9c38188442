"""Signals that stop a run; tests/test_resume.py sends them to real runs."""

import signal

import pytest
from test_task import Means, new_task

from stvid.training import task
from stvid.training.callbacks import preemption
from stvid.training.callbacks.preemption import Preemption


@pytest.mark.parametrize("module", [preemption, task])
def test_a_signal_during_the_exchange_between_processes_is_not_lost(monkeypatch, module):
    """At the end of an epoch (preemption) and in a step (task)."""
    stopper, training = Preemption(), new_task(Means())
    training.stop_signal = lambda: stopper.received
    for name in (preemption, task):
        monkeypatch.setattr(name, "get_world_size", lambda: 2)

    def is_requested(all_reduce):
        monkeypatch.setattr(module, "all_reduce", all_reduce)
        if module is preemption:
            return stopper.is_requested_anywhere(training)
        training._sync_step_flags(4)
        return stopper.is_requested(training)

    def interrupted_all_reduce(values, op):
        stopper._handle(signal.SIGTERM, None)
        return values

    assert not is_requested(interrupted_all_reduce)
    assert is_requested(lambda values, op: values)
    assert stopper.agreed == signal.SIGTERM
