"""A sequence of states of different lengths to one vector: as a whole, or step by step.

B batch   T steps   D size of a state
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stvid.errors import InputError

POOLING = ("last", "mean", "max", "attention")


class Pooled(NamedTuple):
    """What pooling keeps of the steps so far; its size does not grow with them."""

    vector_BD: Tensor  # last: the state; mean, attention: the weighted sum; max: the maximum
    weight_B1: Tensor  # mean: the number of steps; attention: the sum of the weights
    score_B1: Tensor  # attention: the greatest score, which the weights are relative to


class Pooling(nn.Module):
    """`last | mean | max | attention` over the valid steps only.

    `attention` is the mean weighted by `softmax_t(w . s_t)` with a learned `w` (Bahdanau et al. 2015, arXiv:1409.0473,
    without a query).

    Args:
        kind: one of `POOLING`.
        num_features: D.
        both_ways: the second half of a state was read from the end; `last` is then where each half ends.
    """

    def __init__(self, kind: str, *, num_features: int, both_ways: bool = False):
        super().__init__()
        if kind not in POOLING:
            raise InputError(f"model.pooling (={kind}) must be one of {', '.join(POOLING)}")
        self.kind, self.both_ways = kind, both_ways
        self.score = nn.Linear(num_features, 1, bias=False) if kind == "attention" else None

    def forward(self, states_BTD: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """`B x T x D` -> `B x D`; steps past a length have no influence."""
        batch, steps, size = states_BTD.shape
        if lengths_B is None:
            lengths_B = torch.full((batch,), steps, device=states_BTD.device)
        if self.kind == "last":
            last_BD = states_BTD[torch.arange(batch, device=states_BTD.device), lengths_B - 1]
            if not self.both_ways:
                return last_BD
            return torch.cat([last_BD[:, : size // 2], states_BTD[:, 0, size // 2 :]], dim=1)
        valid_BT1 = (torch.arange(steps, device=states_BTD.device)[None] < lengths_B[:, None])[..., None]
        if self.kind == "mean":
            return (states_BTD * valid_BT1).sum(dim=1) / lengths_B[:, None]
        if self.kind == "max":
            return states_BTD.masked_fill(~valid_BT1, -torch.inf).amax(dim=1)
        weights_BT1 = self.score(states_BTD).masked_fill(~valid_BT1, -torch.inf).softmax(dim=1)
        return (states_BTD * weights_BT1).sum(dim=1)

    def step(self, state_BD: Tensor, so_far: Pooled | None) -> tuple[Tensor, Pooled]:
        """One more state: the vector over all steps until now, `B x D`, and what to come back with."""
        one = state_BD.new_ones(len(state_BD), 1)
        score = self.score(state_BD) if self.kind == "attention" else one
        if so_far is None:
            return state_BD, Pooled(state_BD, one, score)
        if self.kind == "last":
            return state_BD, Pooled(state_BD, one, score)
        if self.kind == "max":
            vector = torch.maximum(so_far.vector_BD, state_BD)
            return vector, Pooled(vector, one, score)
        # relative to the greatest score so far, so that no exponential can overflow; for `mean` all scores are 1
        greatest = torch.maximum(so_far.score_B1, score)
        old, new = (so_far.score_B1 - greatest).exp(), (score - greatest).exp()
        vector = so_far.vector_BD * old + state_BD * new
        weight = so_far.weight_B1 * old + new
        return vector / weight, Pooled(vector, weight, greatest)
