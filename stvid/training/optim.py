"""Optimizer, parameter groups and learning rates."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from stvid.errors import InputError, nearest
from stvid.training.schedules import Schedule

SETTINGS = ("lr", "weight_decay")
SHOWN = 3  # names of parameters in a message


@dataclass(frozen=True, kw_only=True)
class ParamGroups:
    """The greatest learning rate and the decay of every parameter.

    The head (all that the model does not call its backbone) has `lr`. Of the L stages of the backbone, number i counted
    from 0 at the input has `(backbone_lr or lr) * layer_decay ** (L - i)` (Clark et al. 2020, arXiv:2003.10555; Bao et
    al. 2021, arXiv:2106.08254); the stages are those that `model.freeze` counts. Weights of two dimensions and more
    have `weight_decay`, norms and biases none, in `groups` too. What `groups` says of a parameter replaces the rest.

    Attributes: see `Optimization`.
    """

    lr: float
    backbone_lr: float | None = None
    layer_decay: float | None = None
    weight_decay: float = 0.0
    groups: Mapping[str, Mapping[str, float]] | None = None

    def __post_init__(self):
        if self.lr <= 0:
            raise InputError(f"optimizer.lr (={self.lr}) must be above 0")
        if self.backbone_lr is not None and self.backbone_lr <= 0:
            raise InputError(f"optimizer.backbone_lr (={self.backbone_lr}) must be above 0; model.freeze=all stops it")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise InputError(f"optimizer.layer_decay (={self.layer_decay}) must lie in (0, 1]")
        if self.weight_decay < 0:
            raise InputError(f"optimizer.weight_decay (={self.weight_decay}) must be 0 or more")
        for pattern, settings in (self.groups or {}).items():
            _check_group(str(pattern), settings)

    def parameter_groups(self, model: nn.Module) -> list[dict]:
        """The trainable parameters for an optimizer, those of equal settings together; first those with the run's `lr`.

        Raises:
            InputError: settings that reach no trainable parameter of this model.
        """
        rates = self._rates_of_the_backbone(model)
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        chosen = self._chosen(named, [name for name, _ in model.named_parameters()])
        together: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in named.items():
            own = chosen.get(name, {})
            lr = own.get("lr", rates.get(id(parameter), self.lr))
            decay = own.get("weight_decay", self.weight_decay) if parameter.ndim >= 2 else 0.0
            together.setdefault((lr, decay), []).append(parameter)
        ordered = sorted(together.items(), key=lambda item: (item[0][0] != self.lr, -item[0][0], -item[0][1]))
        return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in ordered]

    def _rates_of_the_backbone(self, model: nn.Module) -> dict[int, float]:
        """Of the backbone's parameters, by their `id`, where they are not just `lr`."""
        asked = [key for key in ("backbone_lr", "layer_decay") if getattr(self, key) is not None]
        if not asked:
            return {}
        told = f"optimizer.{asked[0]} (={getattr(self, asked[0])})"
        stages = model.stage_parameters()
        if not any(parameter.requires_grad for stage in stages for parameter in stage):
            raise InputError(f"{told}: all of the backbone is frozen")
        top, decay = self.lr if self.backbone_lr is None else self.backbone_lr, self.layer_decay or 1.0
        return {id(p): top * decay ** (len(stages) - i) for i, stage in enumerate(stages) for p in stage}

    def _chosen(self, trainable: Iterable[str], every: list[str]) -> dict[str, Mapping[str, float]]:
        """For the names of parameters that `groups` is about, what it says of them."""
        chosen: dict[str, Mapping[str, float]] = {}
        for pattern, settings in (self.groups or {}).items():
            found = [name for name in every if re.search(str(pattern), name)]
            learning = [name for name in found if name in trainable]
            free = [name for name in learning if name not in chosen]
            if not free:
                told = f"optimizer.groups: {str(pattern)!r} "
                if not found:
                    close = difflib.get_close_matches(str(pattern), every, n=SHOWN, cutoff=0)
                    raise InputError(f"{told}is found in no parameter's name; there is, among others: {_some(close)}")
                if not learning:
                    raise InputError(f"{told}names frozen parameters only: {_some(found)}")
                raise InputError(f"{told}names only what patterns before it have taken: {_some(learning)}")
            chosen |= dict.fromkeys(free, settings)
        return chosen


def _check_group(pattern: str, settings: object) -> None:
    told = f"optimizer.groups: {pattern!r} "
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f"{told}is no regular expression: {error}") from error
    if not isinstance(settings, Mapping) or not settings:
        raise InputError(f"{told}(={settings!r}) must be given {' or '.join(SETTINGS)}, as in {{lr: 1e-4}}")
    for key, value in settings.items():
        if key not in SETTINGS:
            raise InputError(f"{told}has an unknown key {key}{nearest(str(key), SETTINGS)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or (key == "lr" and not value):
            least = "above 0; model.freeze stops a stage" if key == "lr" else "0 or more"
            raise InputError(f"{told}has {key} (={value!r}), which must be a number {least}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@dataclass(frozen=True, kw_only=True)
class OptimizerFactory:
    """An optimizer without decay on norms and biases, every parameter's rate, and how the rates go over a run.

    `schedules.Schedule` has the formulas of the schedules, `groups.ParamGroups` those of the rates.

    Attributes:
        optimizer: builds the optimizer from parameter groups, for example `partial(torch.optim.AdamW, betas=...)`.
        lr: greatest learning rate, above 0.
        backbone_lr: greatest learning rate of what the model calls its backbone (of cnn_lstm the encoder, of the 3D
            networks all but the head), above 0; None: `lr`. Smaller for a backbone that has been trained before.
        layer_decay: times which a stage of the backbone learns slower than the one above it, in (0, 1]; None: 1.
        weight_decay: of weights of two dimensions and more; everything else has none.
        groups: for parameters in whose names (`head.weight`) a regular expression is found, their own greatest `lr`
            (above 0; not a factor), their own `weight_decay`, or both; of several expressions, the first that is found.
        schedule: `cosine`, `linear`, `constant`, `multi_step`, `one_cycle` or `plateau`.
        warmup: share of the run's steps that warm up, in [0, 1).
        milestones: of `multi_step`, shares of the run in (0, 1), ascending; None: 0.5 and 0.75.
        gamma: of `multi_step` and `plateau`, what the rate is multiplied by, in (0, 1); None: 0.1.
        patience: of `plateau`, validations without a better loss that are put up with; None: 5.

    Raises:
        InputError: a value out of its range, or without effect.
    """

    optimizer: Callable[[Iterable[dict]], Optimizer]
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

    def __post_init__(self):
        self._rates()  # both tell what is wrong with their values
        self._schedule()

    def _rates(self) -> ParamGroups:
        return ParamGroups(
            lr=self.lr,
            backbone_lr=self.backbone_lr,
            layer_decay=self.layer_decay,
            weight_decay=self.weight_decay,
            groups=self.groups,
        )

    def _schedule(self) -> Schedule:
        return Schedule(
            name=self.schedule,
            warmup=self.warmup,
            milestones=self.milestones,
            gamma=self.gamma,
            patience=self.patience,
        )

    def configure(self, model: nn.Module, num_steps: int) -> tuple[Optimizer, list[dict]]:
        """For the model's trainable parameters and a run of `num_steps` optimizer steps.

        Returns:
            The optimizer, and its schedulers as Lightning wants them; see `Schedule.schedulers` about `plateau`.

        Raises:
            InputError: `backbone_lr`, `layer_decay` or a pattern of `groups` reaches no trainable parameter.
        """
        optimizer = self.optimizer(self._rates().parameter_groups(model), lr=self.lr)
        return optimizer, self._schedule().schedulers(optimizer, num_steps)
