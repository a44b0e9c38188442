"""What a clip's logits cost, clip by clip, so that the mean over any number of processes can be taken.

B batch   K classes   p softmax of the logits   t targets   s targets after smoothing   w class weights
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stvid.errors import InputError


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """`-sum_k w_k s_k log p_k`, `s = (1 - label_smoothing) t + label_smoothing / K` (Szegedy et al. 2016).

    Where every target is one class, `sum(loss) / sum(weight)` is torch's `cross_entropy(weight=, label_smoothing=)`.

    Attributes:
        label_smoothing: share of the truth that is spread over all classes, in [0, 1).
    """

    label_smoothing: float = 0.0

    def __post_init__(self):
        _check_smoothing(self.label_smoothing)

    def __call__(
        self, logits_BK: Tensor, targets_BK: Tensor, class_weights_K: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of every clip, and what it counts in the mean `sum(loss) / sum(weight)`.

        Args:
            logits_BK: of any floating point type; computed in float32.
            targets_BK: share of each class in the clip, 0 or more, summing to 1.
            class_weights_K: what a clip of each class counts; None: all 1.

        Returns:
            Loss and weight, float32 `B` each; the weight is `sum_k w_k t_k`.
        """
        each_BK = -logits_BK.float().log_softmax(1)
        return _weighted(each_BK, targets_BK, class_weights_K, self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class Focal:
    """`-sum_k w_k s_k (1 - p_k)^gamma log p_k` (Lin et al. 2017, arXiv:1708.02002): what is easy counts little.

    Attributes:
        gamma: 0 or more; with 0 it is cross entropy.
        label_smoothing: as of `CrossEntropy`.
    """

    gamma: float = 2.0
    label_smoothing: float = 0.0

    def __post_init__(self):
        if self.gamma < 0:
            raise InputError(f"loss.gamma (={self.gamma}) must be 0 or more")
        _check_smoothing(self.label_smoothing)

    def __call__(
        self, logits_BK: Tensor, targets_BK: Tensor, class_weights_K: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of every clip, and what it counts in the mean; see `CrossEntropy`."""
        log_p_BK = logits_BK.float().log_softmax(1)
        # not exactly 0, where the derivative of a power below 1 is infinite
        others_BK = (-torch.expm1(log_p_BK)).clamp_min(torch.finfo(torch.float32).tiny)
        return _weighted(-(others_BK**self.gamma) * log_p_BK, targets_BK, class_weights_K, self.label_smoothing)


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise InputError(f"loss.label_smoothing (={label_smoothing}) must lie in [0, 1)")


def _weighted(
    each_BK: Tensor, targets_BK: Tensor, class_weights_K: Tensor | None, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Losses as if each class were the truth -> loss and weight of every clip."""
    targets_BK = targets_BK.float()
    smoothed_BK = (1 - label_smoothing) * targets_BK + label_smoothing / targets_BK.shape[1]
    if class_weights_K is None:
        return (each_BK * smoothed_BK).sum(1), torch.ones_like(each_BK[:, 0])
    return (each_BK * smoothed_BK * class_weights_K).sum(1), (targets_BK * class_weights_K).sum(1)
