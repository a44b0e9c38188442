"""Does a batch fit onto the device? Tried out with real training steps, after which the model is what it was before."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import nn

from stvid.clip import ClipSpec, Preprocess, channels_last, run_model
from stvid.training.hardware import autocast
from stvid.training.optim import OptimizerFactory

log = logging.getLogger("stvid")

LEAST = 2  # clips in a batch, because batch norm may need two


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
