"""Optimizer and learning rate over a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from stvid.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """An optimizer without decay on norms and biases, and a learning rate that warms up and then falls as a cosine.

    `lr(s) = lr * (s + 1) / W` for the first W steps, then `lr * (1 + cos(pi * (s - W) / (S - W))) / 2`, S the steps
    of the run (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts).

    Attributes:
        optimizer: builds the optimizer from parameter groups, for example `partial(torch.optim.AdamW, betas=...)`.
        lr: greatest learning rate, above 0.
        backbone_lr: greatest learning rate of what the model calls its backbone (of cnn_lstm the encoder, of the 3D
            networks all but the head), above 0; None: `lr`. Smaller for a backbone that has been trained before.
        weight_decay: of weights of two dimensions and more; everything else has none.
        warmup: share of the run's steps that warm up, in [0, 1).
    """

    optimizer: Callable[[Iterable[dict]], Optimizer]
    lr: float
    backbone_lr: float | None = None
    weight_decay: float = 0.0
    warmup: float = 0.1

    def __post_init__(self):
        if self.lr <= 0:
            raise InputError(f"optimizer.lr (={self.lr}) must be above 0")
        if self.backbone_lr is not None and self.backbone_lr <= 0:
            raise InputError(f"optimizer.backbone_lr (={self.backbone_lr}) must be above 0; model.freeze=all stops it")
        if self.weight_decay < 0:
            raise InputError(f"optimizer.weight_decay (={self.weight_decay}) must be 0 or more")
        if not 0 <= self.warmup < 1:
            raise InputError(f"optimizer.warmup (={self.warmup}) must lie in [0, 1)")

    def configure(self, model: nn.Module, num_steps: int) -> tuple[Optimizer, LambdaLR]:
        """For the model's trainable parameters and a run of `num_steps` optimizer steps.

        Raises:
            InputError: there is a `backbone_lr`, and nothing it is for: the model does not tell its
                `backbone_parameters`, or all of them are frozen.
        """
        backbone: set[int] = set()
        if self.backbone_lr is not None:
            if not hasattr(model, "backbone_parameters"):
                name = type(model).__name__
                raise InputError(f"optimizer.backbone_lr (={self.backbone_lr}): {name} has no backbone_parameters()")
            backbone = {id(parameter) for parameter in model.backbone_parameters() if parameter.requires_grad}
            if not backbone:
                raise InputError(f"optimizer.backbone_lr (={self.backbone_lr}): all of the backbone is frozen")
        groups = []
        for inside, lr in ((False, self.lr), (True, self.backbone_lr)):
            part = [p for p in model.parameters() if p.requires_grad and (id(p) in backbone) == inside]
            decayed = {"params": [p for p in part if p.ndim >= 2], "weight_decay": self.weight_decay, "lr": lr}
            others = {"params": [p for p in part if p.ndim < 2], "weight_decay": 0.0, "lr": lr}
            groups += [group for group in (decayed, others) if group["params"]]
        optimizer = self.optimizer(groups, lr=self.lr)
        return optimizer, LambdaLR(optimizer, lambda step: self.factor(step, num_steps))

    def factor(self, step: int, num_steps: int) -> float:
        """Share of `lr` at a step, counted from 0."""
        warm = max(round(self.warmup * num_steps), 1)
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * min((step - warm) / max(num_steps - warm, 1), 1.0)))
