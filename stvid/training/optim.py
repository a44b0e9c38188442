"""Optimizer, parameter groups and learning-rate schedules.

S steps of the run   W warm-up steps   s the step, counted from 0
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, ReduceLROnPlateau

from stvid.errors import InputError, nearest

GROUP_KEYS = ("lr", "weight_decay")
NAMES_SHOWN = 3  # parameter names in an error message
SCHEDULES = ("cosine", "linear", "constant", "multi_step", "one_cycle", "plateau")
USED_BY = {"milestones": ("multi_step",), "gamma": ("multi_step", "plateau"), "patience": ("plateau",)}
MILESTONES, GAMMA, PATIENCE = (0.5, 0.75), 0.1, 5  # defaults; the first two as in He et al. 2016 for CIFAR-10
ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25.0, 1 / 25.0 / 1e4  # factors of the peak learning rate


@dataclass(frozen=True, kw_only=True)
class OptimizerFactory:
    """Builds an optimizer, its parameter groups and its learning-rate schedule.

    The head (every parameter outside the model's backbone) has the learning rate `lr`. Stage i of the L stages of the
    backbone, counted from 0 at the input, has `(backbone_lr or lr) * layer_decay ** (L - i)` (Clark et al. 2020,
    arXiv:2003.10555; Bao et al. 2021, arXiv:2106.08254). The stages are those that `model.freeze` counts. These are
    peak learning rates; `Schedule` gives the factor at each step.

    Weights with two or more dimensions have `weight_decay`; norms and biases have none, even if `groups` sets it.

    Attributes:
        optimizer: builds the optimizer from parameter groups, for example `partial(torch.optim.AdamW, betas=...)`.
        lr: peak learning rate, above 0.
        backbone_lr: peak learning rate of the backbone (cnn_lstm: the encoder; 3D networks: all but the head), above 0;
            None: `lr`. A pretrained backbone usually needs a lower rate than the head.
        layer_decay: learning-rate factor from one backbone stage to the one below, in (0, 1]; None: 1.
        weight_decay: 0 or more.
        groups: regular expression -> `lr` (a peak learning rate above 0, not a factor), `weight_decay`, or both, for
            all parameters whose name (such as `head.weight`) contains a match. The first matching expression wins.
        schedule: name, see `Schedule`; likewise `warmup`, `milestones`, `gamma` and `patience`.

    Raises:
        InputError: a value is out of range or has no effect.
    """

    optimizer: Callable[..., Optimizer]
    lr: float
    backbone_lr: float | None = None
    layer_decay: float | None = None
    weight_decay: float = 0.0
    groups: Mapping[str, Mapping[str, float]] | None = None
    schedule: str = "cosine"
    warmup: float = 0.1
    milestones: Sequence[float] | None = None
    gamma: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise InputError(f"optimizer.lr (={self.lr}) must be above 0")
        if self.backbone_lr is not None and self.backbone_lr <= 0:
            raise InputError(
                f"optimizer.backbone_lr (={self.backbone_lr}) must be above 0; model.freeze=all freezes the backbone"
            )
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise InputError(f"optimizer.layer_decay (={self.layer_decay}) must lie in (0, 1]")
        if self.weight_decay < 0:
            raise InputError(f"optimizer.weight_decay (={self.weight_decay}) must be 0 or more")
        for pattern, settings in (self.groups or {}).items():
            _check_group(str(pattern), settings)
        self._schedule()  # checks its own values

    def configure(self, model: nn.Module, num_steps: int) -> tuple[Optimizer, list[dict]]:
        """The optimizer of the model's trainable parameters, and its schedulers, for a run of `num_steps` steps.

        Returns:
            The optimizer, and the schedulers in Lightning's format; see `Schedule.schedulers` about `plateau`.

        Raises:
            InputError: `backbone_lr`, `layer_decay` or a pattern of `groups` applies to no trainable parameter.
        """
        optimizer = self.optimizer(self.param_groups(model), lr=self.lr)
        return optimizer, self._schedule().schedulers(optimizer, num_steps)

    def param_groups(self, model: nn.Module) -> list[dict]:
        """The trainable parameters, grouped by learning rate and weight decay; groups with `lr` itself come first.

        Raises:
            InputError: see `configure`.
        """
        backbone_rates = self._backbone_rates(model)
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        overrides = self._group_settings(trainable, [name for name, _ in model.named_parameters()])
        by_settings: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in trainable.items():
            settings = overrides.get(name, {})
            lr = settings.get("lr", backbone_rates.get(id(parameter), self.lr))
            decay = settings.get("weight_decay", self.weight_decay) if parameter.ndim >= 2 else 0.0
            by_settings.setdefault((lr, decay), []).append(parameter)
        ordered = sorted(by_settings.items(), key=lambda item: (item[0][0] != self.lr, -item[0][0], -item[0][1]))
        return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in ordered]

    def _schedule(self) -> Schedule:
        return Schedule(
            name=self.schedule,
            warmup=self.warmup,
            milestones=self.milestones,
            gamma=self.gamma,
            patience=self.patience,
        )

    def _backbone_rates(self, model: nn.Module) -> dict[int, float]:
        """`id` of each backbone parameter -> its peak learning rate; empty if all have `lr`."""
        keys = [key for key in ("backbone_lr", "layer_decay") if getattr(self, key) is not None]
        if not keys:
            return {}
        setting = f"optimizer.{keys[0]} (={getattr(self, keys[0])})"
        stages = model.stage_parameters()  # type: ignore[operator] # a `VideoModel`
        if not any(parameter.requires_grad for stage in stages for parameter in stage):
            raise InputError(f"{setting}: all of the backbone is frozen")
        top, decay = self.lr if self.backbone_lr is None else self.backbone_lr, self.layer_decay or 1.0
        return {id(p): top * decay ** (len(stages) - i) for i, stage in enumerate(stages) for p in stage}

    def _group_settings(self, trainable: Iterable[str], names: list[str]) -> dict[str, Mapping[str, float]]:
        """Name of each trainable parameter that a pattern of `groups` matches -> its settings."""
        chosen: dict[str, Mapping[str, float]] = {}
        for pattern, settings in (self.groups or {}).items():
            matches = [name for name in names if re.search(str(pattern), name)]
            trained = [name for name in matches if name in trainable]
            new = [name for name in trained if name not in chosen]
            if not new:
                group = f"optimizer.groups: {str(pattern)!r}"
                if not matches:
                    similar = difflib.get_close_matches(str(pattern), names, n=NAMES_SHOWN, cutoff=0)
                    raise InputError(f"{group} matches no parameter; similar names: {_first_names(similar)}")
                if not trained:
                    raise InputError(f"{group} matches only frozen parameters: {_first_names(matches)}")
                raise InputError(f"{group} matches only parameters of earlier patterns: {_first_names(trained)}")
            chosen |= dict.fromkeys(new, settings)
        return chosen


def _check_group(pattern: str, settings: object) -> None:
    group = f"optimizer.groups: {pattern!r}"
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f"{group} is not a regular expression: {error}") from error
    if not isinstance(settings, Mapping) or not settings:
        raise InputError(f"{group} (={settings!r}) must set {' or '.join(GROUP_KEYS)}, as in {{lr: 1e-4}}")
    for key, value in settings.items():
        if key not in GROUP_KEYS:
            raise InputError(f"{group} has an unknown key {key}{nearest(str(key), GROUP_KEYS)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or (key == "lr" and not value):
            limit = "above 0; model.freeze freezes a stage" if key == "lr" else "of 0 or more"
            raise InputError(f"{group} has {key} (={value!r}), which must be a number {limit}")


def _first_names(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate at each step, as a factor of the peak learning rate.

    Except for `plateau`, the factor depends only on s and S. Resuming a run or training it longer therefore needs no
    state. The warm-up is `(s + 1) / W` for s < W, except for `one_cycle`.

    Attributes:
        name: `cosine`: `(1 + cos(pi * (s - W) / (S - W))) / 2` (Loshchilov & Hutter 2017, arXiv:1608.03983, without
            restarts). `linear`: `1 - (s - W) / (S - W)`. `constant`: 1. `multi_step`: `gamma ** n` after n milestones.
            `one_cycle`: a cosine from 1/25 up to 1 during the warm-up, then a cosine down to 1/250,000 (Smith & Topin
            2018, arXiv:1708.07120, as in torch's OneCycleLR, without momentum cycling). `plateau`: multiplied by
            `gamma` after more than `patience` validations in a row without a `val_loss` lower by at least 0.01 %.
        warmup: W as a share of the run, in [0, 1); at least one step.
        milestones: shares of the run in (0, 1), ascending; None: 0.5 and 0.75.
        gamma: in (0, 1); None: 0.1.
        patience: validations, 0 or more; None: 5.

    Raises:
        InputError: a value is out of range, or the schedule does not use it.
    """

    name: str = "cosine"
    warmup: float = 0.1
    milestones: Sequence[float] | None = None
    gamma: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise InputError(f"optimizer.schedule (={self.name}) must be one of {', '.join(SCHEDULES)}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"optimizer.warmup (={self.warmup}) must lie in [0, 1)")
        for key, users in USED_BY.items():
            if getattr(self, key) is not None and self.name not in users:
                raise InputError(
                    f"optimizer.{key} (={getattr(self, key)}) has no effect with optimizer.schedule={self.name}; it is "
                    f"for {' and '.join(users)}"
                )
        if self.gamma is not None and not 0 < self.gamma < 1:
            raise InputError(f"optimizer.gamma (={self.gamma}) must lie in (0, 1)")
        if self.patience is not None and self.patience < 0:
            raise InputError(f"optimizer.patience (={self.patience}) must be 0 or more validations")
        if self.milestones is not None:
            bounds = [0, *self.milestones, 1]
            are_numbers = len(bounds) > 2 and all(isinstance(bound, int | float) for bound in bounds)
            if not are_numbers or any(low >= high for low, high in pairwise(bounds)):
                raise InputError(
                    f"optimizer.milestones (={list(self.milestones)}) must be shares of the run in (0, 1), ascending"
                )

    def factor(self, step: int, num_steps: int) -> float:
        """Factor of the peak learning rate at a step; for `plateau`, its warm-up only."""
        if self.name == "one_cycle":
            return self._one_cycle(step, num_steps)
        num_warmup = self._num_warmup_steps(num_steps)
        warmup_factor = min((step + 1) / num_warmup, 1.0)
        if self.name == "multi_step":
            milestones = [round(milestone * num_steps) for milestone in self.milestones or MILESTONES]
            return warmup_factor * (self.gamma or GAMMA) ** bisect_right(milestones, step)
        if step < num_warmup or self.name in ("constant", "plateau"):
            return warmup_factor
        progress = min((step - num_warmup) / max(num_steps - num_warmup, 1), 1.0)
        return 1 - progress if self.name == "linear" else _cosine(1.0, 0.0, progress)

    def schedulers(self, optimizer: Optimizer, num_steps: int) -> list[dict]:
        """The schedulers in Lightning's format, for a run of `num_steps` steps.

        With `plateau`, Lightning only stores the second scheduler in checkpoints; the task calls its `step(val_loss)`
        after each validation. Lightning would call it after the checkpoint of the epoch is written, so a resumed run
        would miss that call.
        """
        if self.name != "plateau":
            scheduler = LambdaLR(optimizer, lambda step: self.factor(step, num_steps))
            return [{"scheduler": scheduler, "interval": "step"}]
        num_warmup = self._num_warmup_steps(num_steps)
        # LinearLR multiplies the current learning rate, and only during the warm-up; LambdaLR would reset it
        warmup = LinearLR(optimizer, start_factor=1 / num_warmup, total_iters=num_warmup - 1)
        patience = PATIENCE if self.patience is None else self.patience
        plateau = ReduceLROnPlateau(optimizer, factor=self.gamma or GAMMA, patience=patience)
        never = {"interval": "epoch", "frequency": sys.maxsize}
        return [{"scheduler": warmup, "interval": "step"}, {"scheduler": plateau, "monitor": "val_loss", **never}]

    def _num_warmup_steps(self, num_steps: int) -> int:
        return max(round(self.warmup * num_steps), 1)

    def _one_cycle(self, step: int, num_steps: int) -> float:
        peak, last = self.warmup * num_steps - 1, num_steps - 1
        if peak > 0 and step <= peak:
            return _cosine(ONE_CYCLE_START, 1.0, step / peak)
        return _cosine(1.0, ONE_CYCLE_END, min((step - peak) / (last - peak), 1.0))


def _cosine(start: float, end: float, progress: float) -> float:
    """Cosine interpolation from `start` to `end`, for `progress` from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
