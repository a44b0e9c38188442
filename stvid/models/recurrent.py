"""LSTM and GRU over sequences of different lengths, and pooling of their states to one vector.

B batch   T steps   F size of a step   D size of a state   G gates: 4 D (LSTM) or 3 D (GRU)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from stvid.errors import InputError
from stvid.models.base import check_probability

SequenceT = TypeVar("SequenceT", Tensor, PackedSequence)
RECURRENT = {"lstm": nn.LSTM, "gru": nn.GRU}
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # of a layer; torch adds `_l0`, ...
POOLING = ("last", "mean", "max", "attention")


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
            return self._scan(features_BTF, lengths_B)
        if lengths_B is None:
            return self._run(features_BTF)
        packed = pack_padded_sequence(features_BTF, lengths_B.cpu(), batch_first=True, enforce_sorted=False)
        states_BTD, _ = pad_packed_sequence(self._run(packed), batch_first=True)
        return states_BTD

    def step(self, features_BF: Tensor, state: object | None) -> tuple[Tensor, object]:
        """The next step of a sequence, `B x F` -> `B x D`, and the state for the step after it (None: the first)."""
        if torch.compiler.is_exporting():
            return self._cells(features_BF, state)
        out_B1D, state = self.layers(features_BF[:, None], state)
        return out_B1D[:, 0], state

    def _cells(self, features_BF: Tensor, state: Any) -> tuple[Tensor, object]:
        """The same for an exporter, which would make a loop of `nn.LSTM`; there must be a state."""
        is_lstm = isinstance(self.layers, nn.LSTM)
        states: list[Any] = []  # of each layer; of an LSTM hidden and cell
        for layer in range(self.layers.num_layers):
            weights = [getattr(self.layers, f"{name}_l{layer}") for name in WEIGHTS]
            old: Any = [part[layer] for part in state] if is_lstm else state[layer]
            gates_BG = F.linear(features_BF, weights[0], weights[2])
            recurrent_BG = F.linear(old[0] if is_lstm else old, weights[1], weights[3])
            states.append(
                _lstm_step(old, gates_BG + recurrent_BG) if is_lstm else _gru_step(old, gates_BG, recurrent_BG)
            )
            features_BF = states[-1][0] if is_lstm else states[-1]
        return features_BF, tuple(map(torch.stack, zip(*states, strict=True))) if is_lstm else torch.stack(states)

    def _scan(self, sequence_BTF: Tensor, lengths_B: Tensor | None) -> Tensor:
        """The same for an exporter: it cannot trace packed sequences, and would unroll the LSTM of the example's T."""
        for layer in range(self.layers.num_layers):
            states = [_scan_layer(self.layers, sequence_BTF, f"_l{layer}")]
            if self.layers.bidirectional:
                backward_BTF = _reverse(sequence_BTF, lengths_B)
                states.append(_reverse(_scan_layer(self.layers, backward_BTF, f"_l{layer}_reverse"), lengths_B))
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


def _lstm_step(state: Sequence[Tensor], gates_BG: Tensor) -> tuple[Tensor, Tensor]:
    """The next state (hidden, cell) for the sums of the gates, as in `nn.LSTM`."""
    take, keep, new, show = gates_BG.chunk(4, dim=1)
    cell_BD = keep.sigmoid() * state[1] + take.sigmoid() * new.tanh()
    return show.sigmoid() * cell_BD.tanh(), cell_BD


def _gru_step(hidden_BD: Tensor, gates_BG: Tensor, recurrent_BG: Tensor) -> Tensor:
    """The next state for the parts of the gates from the input and from the state, as in `nn.GRU`."""
    (reset, keep, new), (old_reset, old_keep, old) = gates_BG.chunk(3, dim=1), recurrent_BG.chunk(3, dim=1)
    new = (new + (reset + old_reset).sigmoid() * old).tanh()
    return new + (keep + old_keep).sigmoid() * (hidden_BD - new)


def _scan_layer(layers: nn.RNNBase, sequence_BTF: Tensor, suffix: str) -> Tensor:
    """The states of one layer in one direction, `B x T x F` -> `B x T x D`, by the operator `scan`.

    The steps are the formulas of `nn.LSTM` and `nn.GRU`; the part of the gates that needs no state is computed before.
    """
    from torch._higher_order_ops.scan import scan  # it has no public name yet

    input_weight, recurrent_weight, input_bias, recurrent_bias = (getattr(layers, name + suffix) for name in WEIGHTS)

    def lstm_step(state: tuple[Tensor, Tensor], gates_BG: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        hidden_BD, cell_BD = _lstm_step(state, gates_BG + F.linear(state[0], recurrent_weight, recurrent_bias))
        return (hidden_BD, cell_BD), hidden_BD.clone()  # an operator's outputs must not share memory

    def gru_step(hidden_BD: Tensor, gates_BG: Tensor) -> tuple[Tensor, Tensor]:
        hidden_BD = _gru_step(hidden_BD, gates_BG, F.linear(hidden_BD, recurrent_weight, recurrent_bias))
        return hidden_BD, hidden_BD.clone()

    zeros_BD = sequence_BTF.new_zeros(sequence_BTF.shape[0], layers.hidden_size)
    gates_TBG = F.linear(sequence_BTF, input_weight, input_bias).transpose(0, 1)
    is_lstm = isinstance(layers, nn.LSTM)
    step, start = (lstm_step, (zeros_BD, zeros_BD.clone())) if is_lstm else (gru_step, zeros_BD)
    return scan(step, start, gates_TBG)[1].transpose(0, 1)


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
        self.kind, self.bidirectional = kind, bidirectional
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
