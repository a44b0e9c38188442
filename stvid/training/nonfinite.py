"""A loss or a gradient that is no number stops a run before it can spoil the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stvid.errors import SHOWN, InputError
from stvid.training.processes import gathered, over_all


def check_finite(batches: Sequence[tuple[Sequence[str], Tensor]], norm: Tensor | None, *, step: int) -> None:
    """Looks at all that one optimizer step would be made of.

    Args:
        batches: the files, and the loss, of each batch that takes part.
        norm: of the gradients, over all processes; None: not to be looked at.
        step: how many there have been.

    Raises:
        InputError: something is infinite or not a number; names the files of the batches whose loss is, or of all
            where only a gradient is. In every process alike.
    """
    if not batches:  # nothing in them could be read
        return
    values = torch.stack([loss for _, loss in batches] + ([] if norm is None else [norm.to(batches[0][1])]))
    if not over_all((~torch.isfinite(values).all()).float(), take="max"):
        return
    bad = [paths for paths, loss in batches if not torch.isfinite(loss)]
    everybody = gathered((bad, [paths for paths, _ in batches]))
    losses = [path for bad, _ in everybody for paths in bad for path in paths]
    files = sorted(set(losses or [path for _, paths in everybody for batch in paths for path in batch]))
    what = "the loss" if losses else "a gradient"
    more = f"\n  and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    shown = "\n".join(f"  {path}" for path in files[:SHOWN])
    raise InputError(
        f"{what} is not finite after {step} steps. Stopped before the next one, so the weights and the checkpoints are "
        f"sound. The clips were of:\n{shown}{more}\n"
        "What often helps: a smaller optimizer.lr, trainer.gradient_clip_val=1, trainer.precision=32-true"
    )
