"""The batch size of a run: estimated from the free memory and, on a GPU, confirmed by real training steps."""

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
MAX_SIMULATED_CHUNKS = 200  # chunks of frames in a step; simulating them takes tens of seconds
MIN_BATCH_SIZE = 2  # clips; batch norm may need two


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
    """Logs the estimated cost of a run before it starts, and returns its batch size.

    `auto` is the largest batch that fits into 80 % of the free memory, at most 256 clips and at most the number of
    training videos; 16 if the free memory is unknown. The estimate does not include cuDNN's workspaces. Therefore, on a
    CUDA device, two training steps are run, and the batch size is halved as long as they run out of memory. A given
    number is returned unchanged; if a step needs more memory than is free, a warning names the largest batch that fits.

    For whole videos, the estimate assumes that every video is as long as the longest. It ignores stored features.
    Training continues without an estimate, unless `auto` needs one, if the model cannot be simulated, or if a step
    encodes frames in more than 200 chunks, which takes long to simulate. An error in the simulation is logged with its
    traceback; if the model is wrong, training raises it again.

    Args:
        model: on the CPU; not changed.
        optimization: builds its optimizer.
        data: set up.
        device: device of the training; the model need not be there yet.
        precision: Lightning's name, from `resolve_precision`.
        num_processes: number of processes that train together.
        ema: decay of the moving average of the weights; None: no average.
        try_step: trains on the given number of clips, or raises torch.OutOfMemoryError; None: `try_training`.

    Raises:
        InputError: `auto`, and not even 2 clips fit; `auto` with several processes, which might choose different sizes.
    """
    optimization.configure(model, 1)  # raises InputError before the simulation, which logs all errors as the model's
    clip, size, classes = data.clip, data.batch_size, len(data.manifest.class_names)
    log.info("%s for %d classes on %s, precision %s", type(model).__name__, classes, device, precision)
    num_frames = clip.num_frames or max(clip_lengths(data.train) or ())
    clip = replace(clip, num_frames=num_frames)
    if size == "auto" and num_processes > 1:
        raise InputError(
            f"data.batch_size=auto does not work with {num_processes} processes, which need the same batch size: "
            "`stvid cost` shows the largest one, set data.batch_size to that number"
        )
    chunk: int | None = model.max_chunk  # type: ignore[assignment] # a `VideoModel`
    max_clips = None if chunk is None else MAX_SIMULATED_CHUNKS * chunk / num_frames
    is_slow_to_simulate = isinstance(size, int) and max_clips is not None and size > max_clips
    plan = Plan(
        model=model,
        num_classes=classes,
        clip=clip,
        make_optimizer=lambda model: optimization.configure(model, 1)[0],
        precision=precision,
        device=device,
        batch_size=size,
        ema=ema is not None,
    )
    if isinstance(size, str):  # auto
        size = plan.resolve_batch_size(limit=max(len(data.train), 2))
        if device.type == "cuda":
            size = _confirm_by_training(plan, optimization, size, try_step)
        log.info("data.batch_size=auto: %d clips, of %d training videos", size, len(data.train))
    if is_slow_to_simulate:
        log.info("cost not known: a step with this many chunks takes long to simulate; `stvid cost` does it")
    else:
        _log_estimate(plan, size)
    return size


def _log_estimate(plan: Plan, size: int) -> None:
    try:
        report = plan.estimate(size)
    except InputError as error:
        log.info("cost not known: %s", error)
    except Exception:  # a model that uses NumPy, for example, can be trained but not simulated
        log.warning("cost not known: the simulation of a training step failed; training continues", exc_info=True)
    else:
        log.info("%s", summary_line(report))
        _warn_if_too_large(plan, report)


def _confirm_by_training(
    plan: Plan, optimization: OptimizerFactory, size: int, try_step: Callable[[int], None] | None
) -> int:
    """The batch size, or a smaller one if training steps run out of memory."""

    def run_steps(batch_size: int) -> None:
        try_training(
            plan.model,
            optimization,
            plan.clip,
            batch_size=batch_size,
            device=plan.device,
            precision=plan.precision,
            ema=plan.ema,
        )

    confirmed = halve_until_it_fits(size, try_step or run_steps)
    if not confirmed:
        raise InputError(
            f"data.batch_size=auto: a training step with 2 clips runs out of memory on {plan.device}. "
            "Choose a smaller clip.size or clip.num_frames, or another model"
        )
    return confirmed


def _warn_if_too_large(plan: Plan, report: CostReport) -> None:
    free = free_bytes(plan.device)
    if free is None or report.peak_train_bytes <= free:
        return
    largest = plan.largest_batch(limit=report.batch_size)
    hint = f"the largest batch that fits: data.batch_size={largest}" if largest else "not even 2 clips fit"
    log.warning("only %s of memory are free, training will probably run out of memory; %s", bytes_text(free), hint)


def halve_until_it_fits(size: int, step: Callable[[int], None]) -> int:
    """Halves the batch size until a training step no longer runs out of memory; 0: not even 2 clips fit.

    Args:
        size: clips, at least 2.
        step: trains on the given number of clips; raises torch.OutOfMemoryError if they do not fit.
    """
    while size >= MIN_BATCH_SIZE:
        if _fits(size, step):
            return size
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.info("a training step with %d clips runs out of memory", size)
        size //= 2
    return 0


def _fits(size: int, step: Callable[[int], None]) -> bool:
    try:
        step(size)
    except RuntimeError as error:
        if is_out_of_memory(error):
            return False
        raise
    return True


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU had too little memory."""
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)  # the latter in cuDNN and cuBLAS


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
    """Runs two training steps on random pixels; from the second on, the optimizer's state is in memory too.

    Restores weights, buffers and random generators, also after an error.

    Args:
        model: without gradients, and not on the device yet.
        optimization: builds its optimizer.
        clip: `num_frames` is a number.
        batch_size: clips.
        device: device to train on.
        precision: Lightning's name, from `resolve_precision`.
        ema: training keeps a moving average of the weights.

    Raises:
        torch.OutOfMemoryError: there is too little memory.
    """
    assert clip.num_frames is not None
    with _restored_state(model, device):
        channels_last(model).to(device)
        preprocess = Preprocess(clip=clip).to(device)
        optimizer, _ = optimization.configure(model, 1)
        average = [tensor.detach().clone() for tensor in _tensors(model)] if ema else []
        shape = (batch_size, clip.num_frames, clip.channels, *clip.size)
        for _ in range(2):
            clips_BTCHW = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
            with autocast(device, precision):
                logits = run_model(model, preprocess, clips_BTCHW).float()
            logits_NK = logits.flatten(0, -2)  # of all branches
            loss = nn.functional.cross_entropy(logits_NK, logits_NK.new_zeros(len(logits_NK), dtype=torch.int64))
            optimizer.zero_grad()  # as in training: gradients of the last step stay in memory until here
            loss.backward()
            optimizer.step()
        del average  # in memory until here


@contextlib.contextmanager
def _restored_state(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restores the model and the random generators at the end of the block."""
    saved = [tensor.detach().clone() for tensor in _tensors(model)]
    saved_device = next(_tensors(model)).device
    compiled, model._compiled_call_impl = model._compiled_call_impl, None  # no compilation for unused batch sizes
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        model._compiled_call_impl = compiled
        model.zero_grad()
        model.to(saved_device)
        with torch.no_grad():
            for tensor, value in zip(_tensors(model), saved, strict=True):
                tensor.copy_(value)


def _tensors(model: nn.Module) -> chain[torch.Tensor]:
    return chain(model.parameters(), model.buffers())
