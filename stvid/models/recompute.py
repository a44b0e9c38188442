"""Activations are computed again in the backward pass instead of being kept (Chen et al. 2016, arXiv:1604.06174)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stvid.models.freezing import StagedLayers, VideoModel


def checkpointed(function: Callable, module: nn.Module, *arguments):
    """`function(*arguments)` such that what it computes is not kept; `module`'s batch norms take note of it once."""

    def contexts():
        return contextlib.nullcontext(), _without_statistics(module)

    return checkpoint(function, *arguments, use_reentrant=False, context_fn=contexts)


def checkpoint_stages(model: VideoModel) -> None:
    """From now on, of what a model's blocks (or stages) compute in training only the input is kept.

    Results stay what they are, for about a third more computation.
    """
    for block in model.blocks():
        if any(parameter.requires_grad for parameter in block.parameters()):
            block.forward = functools.partial(_forward, block, block.forward)
    for row in model.modules():
        if isinstance(row, StagedLayers):
            row.forward = functools.partial(_stage_by_stage, row)


def _forward(part: nn.Module, forward: Callable, *arguments):
    return checkpointed(forward, part, *arguments) if part.training else forward(*arguments)


def _stage_by_stage(row: StagedLayers, x: Tensor) -> Tensor:
    for stage in row.stages:
        learns = row.training and any(parameter.requires_grad for parameter in stage.parameters())
        x = checkpointed(stage, stage, x) if learns else stage(x)
    return x


@contextlib.contextmanager
def _without_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms in training mode leave their running statistics alone; what they compute and keep is the same."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    norms = [norm for norm in norms if norm.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, num_batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(num_batches)
