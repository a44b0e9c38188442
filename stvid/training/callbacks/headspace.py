"""Headspace: how much faster the same training would be if its data were free.

At the end of the first epoch, a few training steps are timed on the epoch's last batch, which is on the device already:
forward pass, loss, backward pass, clipping of the gradients and optimizer step. They train a copy of the model with its
own optimizer, and the random generators are restored, so the training goes on as if nothing had been measured. For a
moment, a copy needs memory (weights, gradients, optimizer state). Training the model itself and restoring it would need
as much, and an error or an interruption could leave it changed.
"""

from __future__ import annotations

import copy
import gc
import logging
import math
import time
from collections.abc import Mapping

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn

from stvid.cost.planning import free_bytes
from stvid.training.batch_size import is_out_of_memory
from stvid.training.task import ClassificationTask

log = logging.getLogger(__name__)
MIN_EPOCH_SECONDS = 10.0  # a shorter first epoch tells little, and its training ends soon
MAX_SHARE, MAX_SECONDS = 0.05, 5.0  # time for the measurement: share of the first epoch, and at most
WARM_UP, MAX_STEPS = 2, 8  # steps that are not timed, and timed steps at most
COPIES = 4  # weights, gradients and two moments of an optimizer such as AdamW, each as large as the weights


class HeadspaceProbe:
    """Measures the speed of a training without data, see the module.

    Attributes:
        num_batches: batches of the epoch so far.
        shapes: shapes of a clip in these batches.
        batch: the last batch of the epoch, on the device; None before.
    """

    def __init__(self) -> None:
        self.num_batches = 0
        self.shapes: set[tuple[int, ...]] = set()
        self.batch: Mapping | None = None

    def add(self, batch: Mapping, *, is_last: bool) -> None:
        """Takes note of a batch; keeps the last one of the epoch."""
        self.num_batches += 1
        if len(batch["labels"]):
            self.shapes.add(tuple(batch["features" if "features" in batch else "clips"].shape[1:]))
        self.batch = batch if is_last else None

    def measure(
        self, trainer: pl.Trainer, task: ClassificationTask, *, seconds: float, waiting: float | None
    ) -> float | None:
        """Clips per second if data were free; None if it cannot be measured. Call it once, after the epoch.

        Nothing of the training changes. A line is logged if something but the time is in the way.

        Args:
            trainer: after an epoch of training.
            task: of the training.
            seconds: duration of the epoch, without validation.
            waiting: share of it that was spent waiting for data; None: unknown.
        """
        batch, self.batch = self.batch, None
        steps = num_steps(self.num_batches, seconds, waiting)
        if not steps or batch is None or not len(batch["labels"]):
            return None
        if reason := _reason_against(trainer, task, self.shapes):
            log.info("headspace: not measured, %s", reason)
            return None
        try:
            return free_speed(trainer, task, batch, steps=steps)
        except RuntimeError as error:
            if is_out_of_memory(error):
                log.info("headspace: not measured, a copy of the model does not fit into memory")
            else:
                _warn()
        except Exception:  # a model that cannot be copied, for example, can be trained
            _warn()
        finally:
            gc.collect()
        return None


def _warn() -> None:
    log.warning("headspace: not measured, a step of a copy of the model failed; training continues", exc_info=True)


def num_steps(num_batches: int, seconds: float, waiting: float | None) -> int:
    """Steps to time, from 0 to `MAX_STEPS`, so that they and the warm-up take at most 5 % of the epoch and 5 s.

    Args:
        num_batches: of the epoch.
        seconds: see `HeadspaceProbe.measure`; likewise `waiting`.
    """
    if not num_batches or seconds < MIN_EPOCH_SECONDS:
        return 0
    step_seconds = seconds * (1 - (waiting or 0.0)) / num_batches
    affordable = min(MAX_SHARE * seconds, MAX_SECONDS) / max(step_seconds, 1e-9)
    return int(min(max(affordable - WARM_UP, 0), MAX_STEPS))


def headspace_line(free: float, measured: float) -> str:
    """For the log: `headspace: 1.8x (412.0 clips/s if data were free, 229.0 measured)`."""
    return f"headspace: {free / measured:.1f}x ({free:.1f} clips/s if data were free, {measured:.1f} measured)"


def free_speed(trainer: pl.Trainer, task: ClassificationTask, batch: Mapping, *, steps: int) -> float:
    """Clips per second of training steps on one batch, after `WARM_UP` steps. See the module.

    Args:
        trainer: of one process.
        task: only read.
        batch: on the device of the task, with at least one clip.
        steps: timed steps, at least 1.
    """
    model = copy.deepcopy(task.model)
    optimizer, _ = task.optimization.configure(model, 1)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # the same work, and no weight becomes NaN
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rng = np.random.default_rng(0)

    def run(count: int) -> None:
        for number in range(1, count + 1):
            with trainer.precision_plugin.train_step_context():
                _, _, loss_B, weight_B = task.compute_losses(model, batch, rng)
                loss = loss_B.sum() / weight_B.sum()
            loss.backward()
            if number % trainer.accumulate_grad_batches == 0:
                nn.utils.clip_grad_norm_(parameters, trainer.gradient_clip_val or math.inf)
                optimizer.step()
                optimizer.zero_grad()
        if task.device.type == "cuda":
            torch.cuda.synchronize(task.device)

    with isolate_rng(), torch.enable_grad():
        run(WARM_UP)
        began = time.perf_counter()
        run(steps)
        seconds = time.perf_counter() - began
    return steps * len(batch["labels"]) / max(seconds, 1e-9)


def _reason_against(trainer: pl.Trainer, task: ClassificationTask, shapes: set[tuple[int, ...]]) -> str:
    """Why it cannot be measured, for a message; empty if it can."""
    if trainer.world_size > 1 or task.device_mesh is not None:
        return "the training has several processes"
    if len(shapes) > 1:
        return "the clips have different lengths"
    if task.model._compiled_call_impl is not None:
        return "the model is compiled, and a copy of it would not be"
    free = None if task.device.type == "cuda" else free_bytes(task.device)  # CUDA reports an error
    tensors = [*task.model.parameters(), *task.model.buffers()]
    needed = sum(t.nbytes * (COPIES if t.requires_grad else 1) for t in tensors)
    return "" if free is None or needed < free else "a copy of the model does not fit into memory"
