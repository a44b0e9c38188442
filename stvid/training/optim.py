"""Optimizer and learning rate over a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from stvid.training.groups import ParamGroups
from stvid.training.schedules import Schedule


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
