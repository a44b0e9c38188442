"""Signals that stop a run; tests/test_resume.py sends them to real runs."""

import os
import signal

import pytest
import pytorch_lightning as pl
from pytorch_lightning.demos.boring_classes import BoringModel
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


def fit(*callbacks):
    trainer = pl.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=list(callbacks),
    )
    with preemption.keep_interrupts():
        trainer.fit(BoringModel())


@pytest.fixture
def handler():
    """A handler of the program itself, which is asked for after the training."""

    def handle(number, frame):
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, handle) for number in preemption.SIGNALS}
    yield handle
    for number, old in before.items():
        signal.signal(number, old)


def test_after_the_training_the_handlers_from_before_come_back(handler):
    fit(Preemption())
    assert all(signal.getsignal(number) is handler for number in preemption.SIGNALS)


class Stop(pl.Callback):
    """Sends a signal before the training, when the handlers are still those of the program."""

    def __init__(self, number):
        self.number = number

    def on_fit_start(self, trainer, task):
        os.kill(os.getpid(), self.number)


def test_a_signal_before_the_training_ends_the_program_with_its_code(handler):
    with pytest.raises(SystemExit) as stop:
        fit(Preemption(), Stop(signal.SIGTERM))
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is handler


def test_ctrl_c_before_the_training_stays_an_interrupt():
    with pytest.raises(KeyboardInterrupt):
        fit(Preemption(), Stop(signal.SIGINT))
