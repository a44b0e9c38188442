"""The batch size of a run: predicted from the free memory, on a GPU confirmed by real training steps."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain

import torch
from torch import nn

from stvid.clip import ClipSpec
from stvid.cost.planning import Plan, free_bytes
from stvid.cost.report import CostReport, bytes_text, summary_line
from stvid.data.datamodule import VideoDataModule
from stvid.data.loading import clip_lengths
from stvid.device import autocast
from stvid.errors import InputError
from stvid.preprocess import Preprocess, channels_last, run_model
from stvid.training.optim import OptimizerFactory

log = logging.getLogger("stvid")
MANY_CHUNKS = 200  # of frames in a step, a simulation of tens of seconds
LEAST = 2  # clips in a batch, because batch norm may need two


def plan_batch(
    model: nn.Module,
    optimization: OptimizerFactory,
    data: VideoDataModule,
    device: torch.device,
    precision: str,
    num_processes: int,
    ema: float | None = None,
    *,
    try_step: Callable[[int], None] | None = None,
) -> int:
    """Says what a run will need before it starts, and returns its batch size.

    `auto` is the largest batch that fits into 80 % of the memory that is free now, at most 256 clips and at most the
    number of training videos; 16 where the free memory is not known. That is a prediction, without the workspaces that
    cuDNN allocates. So on a CUDA device two training steps are tried, and the batch is halved while they run out of
    memory. A number stays as it is; where its step needs more than is free, a warning names the largest batch that
    fits.

    Whole videos are priced as if every one were as long as the longest, and clips as if no features of theirs were
    stored. A model that cannot be simulated is trained unpriced, unless the batch size depends on it, and so is one
    whose frames are encoded in more than 200 chunks, which takes long to simulate. An error in a simulation is logged
    with its traceback: a mistake in the model comes again when it is trained.

    Args:
        model: on the CPU; it stays as it is.
        optimization: how it learns.
        data: set up.
        device: where training will be; the model need not be there yet.
        precision: as `resolve_precision` gives it.
        num_processes: that train together.
        ema: decay of an average of the weights; None: there is none.
        try_step: trains on so many clips, or raises torch.OutOfMemoryError; None: `try_training`.

    Raises:
        InputError: `auto`, and not even 2 clips fit; `auto` for several processes, which would each find another.
    """
    optimization.configure(model, 1)  # a mistake in it is not one of the model's
    clip, size, classes = data.clip, data.batch_size, len(data.manifest.class_names)
    log.info("%s for %d classes on %s, precision %s", type(model).__name__, classes, device, precision)
    if clip.num_frames is None:
        clip = replace(clip, num_frames=max(clip_lengths(data.train)))
    if size == "auto" and num_processes > 1:
        raise InputError(
            f"data.batch_size=auto: {num_processes} processes must have the same batch size; `stvid cost` says "
            "what fits, give the number"
        )
    chunk = model.max_chunk
    if size != "auto" and chunk is not None and size * clip.num_frames > MANY_CHUNKS * chunk:
        log.info("cost not known: so many chunks of frames take long to simulate; `stvid cost` does")
        return size
    planned = Plan(
        model=model,
        num_classes=classes,
        clip=clip,
        make_optimizer=lambda model: optimization.configure(model, 1)[0],
        precision=precision,
        device=device,
        batch_size=size,
        ema=ema is not None,
    )
    if size == "auto":
        size = planned.resolve_batch_size(limit=max(len(data.train), 2))
        if device.type == "cuda":
            size = _confirmed(planned, optimization, size, try_step)
        log.info("data.batch_size=auto takes %d clips, of %d training videos", size, len(data.train))
    try:
        report = planned.estimate(size)
    except InputError as error:
        log.info("cost not known: %s", error)
        return size
    except Exception:  # a model that computes with NumPy, for example, can be trained and not simulated
        log.warning("cost not known: the simulation of a training step failed, training goes on", exc_info=True)
        return size
    log.info("%s", summary_line(report))
    _warn_of_memory(planned, report)
    return size


def _confirmed(planned: Plan, optimization: OptimizerFactory, size: int, try_step: Callable[[int], None] | None) -> int:
    def really(batch_size: int) -> None:
        try_training(
            planned.model,
            optimization,
            planned.clip,
            batch_size=batch_size,
            device=planned.device,
            precision=planned.precision,
            ema=planned.ema,
        )

    found = halve_until_it_fits(size, try_step or really)
    if not found:
        raise InputError(
            f"data.batch_size=auto: a training step on 2 clips runs out of the memory of {planned.device}. "
            "Choose a smaller clip.size or clip.num_frames, or another model"
        )
    return found


def _warn_of_memory(planned: Plan, report: CostReport) -> None:
    free = free_bytes(planned.device)
    if free is None or report.peak_train_bytes <= free:
        return
    fits = planned.largest_batch(limit=report.batch_size)
    hint = f"the largest batch that fits: data.batch_size={fits}" if fits else "not even 2 clips fit"
    log.warning("only %s of memory are free, so this is likely to stop for want of it; %s", bytes_text(free), hint)


def halve_until_it_fits(size: int, step: Callable[[int], None]) -> int:
    """The batch size, halved as often as a step on so many clips runs out of memory; 0: not even 2 clips fit.

    Args:
        size: clips, at least 2.
        step: trains on so many clips; raises torch.OutOfMemoryError where they do not fit.
    """
    while size >= LEAST:
        if _fits(size, step):
            return size
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.info("a training step on %d clips runs out of memory", size)
        size //= 2
    return 0


def _fits(size: int, step: Callable[[int], None]) -> bool:
    try:
        step(size)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error):  # the latter is cuDNN's, cuBLAS's
            return False
        raise
    return True


def try_training(
    model: nn.Module,
    optimization: OptimizerFactory,
    clip: ClipSpec,
    *,
    batch_size: int,
    device: torch.device,
    precision: str,
    ema: bool,
) -> None:
    """Two training steps on random pixels: in the second, the optimizer's state is in memory from the beginning.

    Weights, buffers and random generators are afterwards what they were before, also after an error.

    Args:
        model: without gradients, and not on the device yet.
        optimization: how it learns.
        clip: `num_frames` is a number.
        batch_size: clips.
        device: where to train.
        precision: as `resolve_precision` gives it.
        ema: an average of the weights is kept, too.

    Raises:
        torch.OutOfMemoryError: there is too little memory.
    """
    with _restored(model, device):
        channels_last(model).to(device)
        preprocess = Preprocess(clip=clip).to(device)
        optimizer, _ = optimization.configure(model, 1)
        average = [tensor.detach().clone() for tensor in _tensors(model)] if ema else []
        shape = (batch_size, clip.num_frames, clip.channels, *clip.size)
        for _ in range(2):
            clips_BTCHW = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
            with autocast(device, precision):
                logits_BK = run_model(model, preprocess, clips_BTCHW).float()
            loss = nn.functional.cross_entropy(logits_BK, torch.zeros(batch_size, dtype=torch.int64, device=device))
            optimizer.zero_grad()  # here, as in training: the gradients of the step before outlive the forward pass
            loss.backward()
            optimizer.step()
        del average  # kept until here


@contextlib.contextmanager
def _restored(model: nn.Module, device: torch.device) -> Iterator[None]:
    before = [tensor.detach().clone() for tensor in _tensors(model)]
    home = next(_tensors(model)).device
    compiled, model._compiled_call_impl = (
        model._compiled_call_impl,
        None,
    )  # it would compile for sizes that are not used
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        model._compiled_call_impl = compiled
        model.zero_grad()
        model.to(home)
        with torch.no_grad():
            for tensor, old in zip(_tensors(model), before, strict=True):
                tensor.copy_(old)


def _tensors(model: nn.Module) -> chain[torch.Tensor]:
    return chain(model.parameters(), model.buffers())
