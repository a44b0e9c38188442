"""LSTM and GRU over sequences of different lengths, what stands before them, and pooling of their states to one vector.

B batch   T steps   F size of a step   D size of a state   G gates: 4 D (LSTM) or 3 D (GRU)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from stvid.errors import InputError
from stvid.models.base import check_probability

SequenceT = TypeVar("SequenceT", Tensor, PackedSequence)
RECURRENT = {"lstm": nn.LSTM, "gru": nn.GRU}
POOLING = ("last", "mean", "max", "attention")
FEATURE_NORM = ("none", "batch")


class FrameFeatures(nn.Module):
    """Batch norm of the features of frames, then a linear layer with ReLU; each is optional.

    With several places, F are the features of a map: both layers see each place by itself, with batch norm behind the
    linear layer too, and the mean over the places follows.

    Args:
        size: F.
        norm: `batch` (Ioffe & Szegedy 2015, arXiv:1502.03167) or `none`.
        projection: outputs of the linear layer; None: no such layer.
        places: of a map, from 1; F is a multiple of it.

    Attributes:
        num_features: size of a frame's features behind it.

    Raises:
        InputError: an unknown norm, a projection below 1, several places without a projection.
    """

    def __init__(self, size: int, *, norm: str = "none", projection: int | None = None, places: int = 1):
        super().__init__()
        if norm not in FEATURE_NORM:
            raise InputError(f"model.feature_norm (={norm}) must be one of {', '.join(FEATURE_NORM)}")
        if projection is not None and projection < 1:
            raise InputError(f"model.projection (={projection}) must be at least 1, or null for no such layer")
        if places > 1 and projection is None:  # the mean over the places would be what the encoder's own pooling gives
            raise InputError("model.grid needs a layer for each place of the map: set model.projection, such as 128")
        self.num_features, self.places = projection or size, places
        self.layers = nn.Sequential()
        norms_outputs = norm == "batch" and places > 1
        if norm == "batch":  # a scale and shift could do no more than the linear layer and the norm behind it
            self.layers.append(nn.BatchNorm1d(size // places, affine=not norms_outputs))
        if projection is not None:
            self.layers.append(nn.Linear(size // places, projection, bias=not norms_outputs))
            if norms_outputs:
                self.layers.append(nn.BatchNorm1d(projection))
            self.layers.append(nn.ReLU())

    def forward(self, features_BTF: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """`B x T x F` -> `B x T x num_features`; steps after a length do not enter batch norm statistics."""
        if not len(self.layers):
            return features_BTF
        batch, steps = features_BTF.shape[:2]
        if lengths_B is None or not self.training:
            return self._apply_layers(features_BTF.flatten(0, 1)).unflatten(0, (batch, steps))
        valid_BT = torch.arange(steps, device=features_BTF.device)[None] < lengths_B[:, None]
        out_BTF = features_BTF.new_zeros(batch, steps, self.num_features)
        out_BTF[valid_BT] = self._apply_layers(features_BTF[valid_BT])
        return out_BTF

    def _apply_layers(self, features_NF: Tensor) -> Tensor:
        if self.places == 1:
            return self.layers(features_NF)
        places_NPC = features_NF.unflatten(1, (-1, self.places)).transpose(1, 2)
        return self.layers(places_NPC.flatten(0, 1)).unflatten(0, (-1, self.places)).mean(dim=1)


class Recurrent(nn.Module):
    """torch's LSTM or GRU over sequences of different lengths.

    Args:
        kind: `lstm` (Hochreiter & Schmidhuber 1997) or `gru` (Cho et al. 2014, arXiv:1406.1078).
        input_size: F.
        hidden_size: hidden units of a layer; D, or half of D if bidirectional.
        num_layers: number of stacked layers.
        bidirectional: read the sequence in both directions.
        dropout: probability between two layers, in [0, 1).
        recurrent_dropout: probability of dropping a recurrent weight, in [0, 1); the same weights in all steps of a
            batch (DropConnect of AWD-LSTM, Merity et al. 2018, arXiv:1708.02182).

    Raises:
        InputError: a value out of range.
    """

    def __init__(
        self,
        kind: str,
        *,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
    ):
        super().__init__()
        if min(hidden_size, num_layers) < 1:
            raise InputError(f"model.hidden_size (={hidden_size}) and num_layers (={num_layers}) must be at least 1")
        check_probability("recurrent_dropout", recurrent_dropout)
        self.layers = RECURRENT[kind](
            input_size,
            hidden_size,
            num_layers=num_layers,
            bidirectional=bidirectional,
            dropout=dropout if num_layers > 1 else 0.0,
            batch_first=True,
        )
        self.recurrent_dropout = recurrent_dropout
        self.num_features = hidden_size * (2 if bidirectional else 1)
        _initialize(self.layers)

    def forward(self, features_BTF: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """`B x T x F` -> states `B x T' x D`; T' is the greatest length, states after a sequence's length are 0."""
        if torch.compiler.is_exporting():
            return self._run_masked(features_BTF, lengths_B)
        if lengths_B is None:
            return self._run(features_BTF)
        packed = pack_padded_sequence(features_BTF, lengths_B.cpu(), batch_first=True, enforce_sorted=False)
        states_BTD, _ = pad_packed_sequence(self._run(packed), batch_first=True)
        return states_BTD

    def step(self, features_BF: Tensor, state: object | None) -> tuple[Tensor, object]:
        """The next step of a sequence, `B x F` -> `B x D`, and the state for the step after it (None: the first)."""
        out_B1D, state = self.layers(features_BF[:, None], state)
        return out_B1D[:, 0], state

    def stack(self, states: Sequence[Any]) -> Any:
        """One state for a batch of sequences, from those that `step` returned for each; torch's batch axis is 1."""
        if isinstance(self.layers, nn.LSTM):
            return tuple(torch.cat(parts, dim=1) for parts in zip(*states, strict=True))
        return torch.cat(list(states), dim=1)

    def split(self, state: Any) -> list[Any]:
        """The state of each sequence of a batch, contiguous: cuDNN takes no other."""
        if isinstance(self.layers, nn.LSTM):
            return list(zip(*map(_split, state), strict=True))
        return _split(state)

    def _run_masked(self, sequence_BTF: Tensor, lengths_B: Tensor | None) -> Tensor:
        """The same for an exporter, which cannot trace packed sequences: a direction of a layer on all steps."""
        for layer in range(self.layers.num_layers):
            states = [_run_layer(self.layers, sequence_BTF, f"_l{layer}")]
            if self.layers.bidirectional:
                backward_BTF = _reverse(sequence_BTF, lengths_B)
                states.append(_reverse(_run_layer(self.layers, backward_BTF, f"_l{layer}_reverse"), lengths_B))
            sequence_BTF = torch.cat(states, dim=2)
        return sequence_BTF if lengths_B is None else sequence_BTF * valid_steps(sequence_BTF, lengths_B)[..., None]

    def _run(self, sequence: SequenceT) -> SequenceT:
        if not self.training or self.recurrent_dropout == 0:
            return self.layers(sequence)[0]
        kept = {
            name: nn.functional.dropout(weight, self.recurrent_dropout)
            for name, weight in self.layers.named_parameters()
            if name.startswith("weight_hh")
        }
        return _with_weights(self.layers, sequence, kept)


def _with_weights(layers: nn.RNNBase, sequence: SequenceT, weights: dict[str, Tensor]) -> SequenceT:
    """`layers(sequence)[0]` with other weights; the modules themselves only use their parameters."""
    function: Callable[..., tuple[Tensor, ...]] = torch.lstm if isinstance(layers, nn.LSTM) else torch.gru
    flat = [weights.get(name, getattr(layers, name)) for name in layers._flat_weights_names]
    directions = 2 if layers.bidirectional else 1
    options = (layers.bias, layers.num_layers, layers.dropout, layers.training, layers.bidirectional)
    data, batch_sizes = (
        (sequence.data, sequence.batch_sizes) if isinstance(sequence, PackedSequence) else (sequence, None)
    )
    batch = len(sequence) if batch_sizes is None else int(batch_sizes[0])
    zeros = data.new_zeros(layers.num_layers * directions, batch, layers.hidden_size)
    initial = (zeros, zeros) if isinstance(layers, nn.LSTM) else zeros
    if isinstance(sequence, PackedSequence):
        return sequence._replace(data=function(data, batch_sizes, initial, flat, *options)[0])
    return function(data, initial, flat, *options, layers.batch_first)[0]


def _split(state_LBD: Tensor) -> list[Tensor]:
    return [part.contiguous() for part in state_LBD.split(1, dim=1)]


def _run_layer(layers: nn.RNNBase, sequence_BTF: Tensor, suffix: str) -> Tensor:
    """The states of one layer in one direction, `B x T x F` -> `B x T x D`."""
    weights = [getattr(layers, name + suffix) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    zeros = sequence_BTF.new_zeros(1, sequence_BTF.shape[0], layers.hidden_size)
    is_lstm = isinstance(layers, nn.LSTM)
    function: Callable[..., tuple[Tensor, ...]] = torch.lstm if is_lstm else torch.gru
    return function(sequence_BTF, (zeros, zeros) if is_lstm else zeros, weights, True, 1, 0.0, False, False, True)[0]


def _reverse(sequence_BTF: Tensor, lengths_B: Tensor | None) -> Tensor:
    """The valid steps of each sequence in reversed order; the steps after its length stay where they are."""
    if lengths_B is None:
        return sequence_BTF.flip(1)
    steps_T = torch.arange(sequence_BTF.shape[1], device=sequence_BTF.device)
    order_BT = torch.where(valid_steps(sequence_BTF, lengths_B), lengths_B[:, None] - 1 - steps_T, steps_T)
    return sequence_BTF.gather(1, order_BT[..., None].expand_as(sequence_BTF))


def valid_steps(sequence_BTF: Tensor, lengths_B: Tensor) -> Tensor:
    """Which steps lie before the length of their sequence: bool `B x T`."""
    return torch.arange(sequence_BTF.shape[1], device=sequence_BTF.device)[None] < lengths_B[:, None]


@torch.no_grad()
def _initialize(layers: nn.RNNBase) -> None:
    """Makes recurrent weights orthogonal and forget gates of an LSTM open (bias 1, Jozefowicz et al. 2015).

    torch stores the gates of an LSTM in the order input, forget, cell, output.
    """
    size = layers.hidden_size
    for name, parameter in layers.named_parameters():
        if name.startswith("weight_hh"):
            for gate in parameter.split(size):
                nn.init.orthogonal_(gate)
        elif name.startswith("bias_ih") and isinstance(layers, nn.LSTM):
            nn.init.ones_(parameter[size : 2 * size])


class Pooled(NamedTuple):
    """State of pooling after some steps of a stream; its size does not depend on their number."""

    vector_BD: Tensor  # last: the state; mean, attention: the weighted sum; max: the maximum
    weight_B1: Tensor  # mean: the number of steps; attention: the sum of the weights
    score_B1: Tensor  # attention: the greatest score; weights are relative to it


class Pooling(nn.Module):
    """`last | mean | max | attention` over the valid steps only.

    `attention` is the mean weighted by `softmax_t(w . s_t)` with a learned `w` (Bahdanau et al. 2015, arXiv:1409.0473,
    without a query).

    Args:
        kind: one of `POOLING`.
        num_features: D.
        bidirectional: the second half of a state was computed from the end backwards; its last step is the first one.
    """

    def __init__(self, kind: str, *, num_features: int, bidirectional: bool = False):
        super().__init__()
        if kind not in POOLING:
            raise InputError(f"model.pooling (={kind}) must be one of {', '.join(POOLING)}")
        self.kind, self.num_features, self.bidirectional = kind, num_features, bidirectional
        if kind == "attention":
            self.score = nn.Linear(num_features, 1, bias=False)

    def forward(self, states_BTD: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """`B x T x D` -> `B x D`; steps after a length have no influence."""
        if lengths_B is None:
            return self._pool_all(states_BTD)
        batch, _, size = states_BTD.shape
        if self.kind == "last":
            last_BD = states_BTD[torch.arange(batch, device=states_BTD.device), lengths_B - 1]
            if not self.bidirectional:
                return last_BD
            return torch.cat([last_BD[:, : size // 2], states_BTD[:, 0, size // 2 :]], dim=1)
        valid_BT1 = valid_steps(states_BTD, lengths_B)[..., None]
        if self.kind == "mean":
            return (states_BTD * valid_BT1).sum(dim=1) / lengths_B[:, None]
        if self.kind == "max":
            return states_BTD.masked_fill(~valid_BT1, -torch.inf).amax(dim=1)
        weights_BT1 = self.score(states_BTD).masked_fill(~valid_BT1, -torch.inf).softmax(dim=1)
        return (states_BTD * weights_BT1).sum(dim=1)

    def _pool_all(self, states_BTD: Tensor) -> Tensor:
        """The same if all steps are valid."""
        if self.kind == "last":
            half = states_BTD.shape[2] // 2
            last_BD = states_BTD[:, -1]
            return torch.cat([last_BD[:, :half], states_BTD[:, 0, half:]], dim=1) if self.bidirectional else last_BD
        if self.kind == "mean":
            return states_BTD.mean(dim=1)
        if self.kind == "max":
            return states_BTD.amax(dim=1)
        return (states_BTD * self.score(states_BTD).softmax(dim=1)).sum(dim=1)

    def step(self, state_BD: Tensor, pooled: Pooled | None) -> tuple[Tensor, Pooled]:
        """Adds a step, `B x D`: the pooled vector of all steps so far, `B x D`, and the state for the next step."""
        ones = state_BD.new_ones(state_BD.shape[0], 1)  # not `len`, which torch.export takes for a constant
        score = self.score(state_BD) if self.kind == "attention" else ones
        if pooled is None or self.kind == "last":
            return state_BD, Pooled(state_BD, ones, score)
        if self.kind == "max":
            vector = torch.maximum(pooled.vector_BD, state_BD)
            return vector, Pooled(vector, ones, score)
        # relative to the greatest score so far, so that no exponential can overflow; for `mean` all scores are 1
        greatest = torch.maximum(pooled.score_B1, score)
        old, new = (pooled.score_B1 - greatest).exp(), (score - greatest).exp()
        vector = pooled.vector_BD * old + state_BD * new
        weight = pooled.weight_B1 * old + new
        return vector / weight, Pooled(vector, weight, greatest)
