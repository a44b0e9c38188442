"""What stands behind the encoder of a `CNNLSTM`: one branch or several, from features of frames to features of a clip.

B batch   T frames   F features of a frame   D features of a clip, of one branch
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from stvid.models.recurrent import FrameFeatures, Pooled, Pooling, Recurrent


class BranchState(NamedTuple):
    """State of a branch after some frames of a stream; its size does not depend on their number."""

    recurrent: object | None  # None: no recurrent layer
    pooled: Pooled | None  # None: no step so far; `last` needs none either


class HasBranch(Protocol):
    """The modules of a branch."""

    frame_features: FrameFeatures
    recurrent: Recurrent | None
    pooling: Pooling


class Branch(nn.Module):
    """Batch norm and a linear layer for each frame, a recurrent layer, pooling over time; all but the last optional.

    Args:
        num_features: F.
        norm, projection, places: see `FrameFeatures`.
        recurrent: `lstm`, `gru`, or `none`.
        pooling: see `Pooling`.
        bidirectional, hidden_size, num_layers, dropout, recurrent_dropout: see `Recurrent`.
    """

    def __init__(
        self,
        num_features: int,
        *,
        norm: str,
        projection: int | None,
        recurrent: str,
        pooling: str,
        bidirectional: bool = False,
        hidden_size: int,
        num_layers: int,
        dropout: float,
        recurrent_dropout: float,
        places: int = 1,
    ):
        super().__init__()
        self.frame_features = FrameFeatures(num_features, norm=norm, projection=projection, places=places)
        size = self.frame_features.num_features
        self.recurrent: Recurrent | None = None
        if recurrent != "none":
            self.recurrent = Recurrent(
                recurrent,
                input_size=size,
                hidden_size=hidden_size,
                num_layers=num_layers,
                bidirectional=bidirectional,
                dropout=dropout,
                recurrent_dropout=recurrent_dropout,
            )
            size = self.recurrent.num_features
        self.pooling = Pooling(pooling, num_features=size, bidirectional=bidirectional)


def aggregate_branch(branch: HasBranch, features_BTF: Tensor, lengths_B: Tensor | None) -> Tensor:
    """`B x T x F` -> `B x D`; frames after a length have no influence."""
    states_BTD = branch.frame_features(features_BTF, lengths_B)
    if branch.recurrent is not None:
        states_BTD = branch.recurrent(states_BTD, lengths_B)
    return branch.pooling(states_BTD, lengths_B)


def step_branch(branch: HasBranch, features_B1F: Tensor, state: BranchState | None) -> tuple[Tensor, BranchState]:
    """The features `B x D` of all frames so far, and the state for the next frame (None: the first)."""
    recurrent, pooled = (None, None) if state is None else state
    features_BF = branch.frame_features(features_B1F)[:, 0]
    if branch.recurrent is not None:
        features_BF, recurrent = branch.recurrent.step(features_BF, recurrent)
    features_BD, pooled = branch.pooling.step(features_BF, pooled)
    return features_BD, BranchState(recurrent, pooled)


def stack_branch(branch: HasBranch, states: Sequence[BranchState]) -> BranchState:
    """One state for a batch of streams."""
    recurrent = None if branch.recurrent is None else branch.recurrent.stack([state.recurrent for state in states])
    pooled = [state.pooled for state in states if state.pooled is not None]  # after a step there always is one
    return BranchState(recurrent, Pooled(*map(torch.cat, zip(*pooled, strict=True))))


def split_branch(branch: HasBranch, state: BranchState, num_streams: int) -> list[BranchState]:
    """The state of each stream of a batch."""
    recurrent = [None] * num_streams if branch.recurrent is None else branch.recurrent.split(state.recurrent)
    assert state.pooled is not None
    pooled = map(Pooled, *(tensor.split(1) for tensor in state.pooled))
    return [BranchState(*parts) for parts in zip(recurrent, pooled, strict=True)]
