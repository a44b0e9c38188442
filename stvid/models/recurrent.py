"""LSTM and GRU over sequences of different lengths, in the same float32 whatever surrounds them.

B batch   T steps   F size of a step   D size of a state
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from stvid.errors import InputError
from stvid.models.limits import check_probability

RECURRENT = {"lstm": nn.LSTM, "gru": nn.GRU}


class Recurrent(nn.Module):
    """torch's LSTM or GRU, told about lengths.

    Args:
        kind: `lstm` (Hochreiter & Schmidhuber 1997) or `gru` (Cho et al. 2014, arXiv:1406.1078).
        input_size: F.
        hidden_size: width of a layer; D, or half of it where both ways are read.
        num_layers: one above the other.
        bidirectional: read the sequence from both ends.
        dropout: probability of an output between two layers to be left out, in [0, 1).
        recurrent_dropout: share of the weights between a step and the next that a batch leaves out, the same ones in
            all steps, in [0, 1) (DropConnect of AWD-LSTM, Merity et al. 2018, arXiv:1708.02182).

    Raises:
        InputError: a value out of its range.
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
        _remember_by_default(self.layers)

    def forward(self, features_BTF: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """`B x T x F` -> states `B x T' x D`; T' is the greatest length, steps past a clip's own length are 0."""
        if lengths_B is None:
            return self._run(features_BTF)
        packed = pack_padded_sequence(features_BTF, lengths_B.cpu(), batch_first=True, enforce_sorted=False)
        states_BTD, _ = pad_packed_sequence(self._run(packed), batch_first=True)
        return states_BTD

    def step(self, features_BF: Tensor, state: object | None) -> tuple[Tensor, object]:
        """One more step: its state `B x D`, and what to come back with (None in the beginning)."""
        out_B1D, state = self.layers(features_BF[:, None], state)
        return out_B1D[:, 0], state

    def _run(self, sequence: Tensor | PackedSequence) -> Tensor | PackedSequence:
        if not self.training or self.recurrent_dropout == 0:
            return self.layers(sequence)[0]
        kept = {
            name: nn.functional.dropout(weight, self.recurrent_dropout)
            for name, weight in self.layers.named_parameters()
            if name.startswith("weight_hh")
        }
        return _with_weights(self.layers, sequence, kept)


def _with_weights(layers: nn.LSTM | nn.GRU, sequence: Tensor | PackedSequence, weights: dict[str, Tensor]):
    """What `layers(sequence)[0]` would be with other weights; the modules themselves only take parameters."""
    function = torch.lstm if isinstance(layers, nn.LSTM) else torch.gru
    flat = [weights.get(name, getattr(layers, name)) for name in layers._flat_weights_names]
    directions = 2 if layers.bidirectional else 1
    how = (layers.bias, layers.num_layers, layers.dropout, layers.training, layers.bidirectional)
    data, batch_sizes = (
        (sequence.data, sequence.batch_sizes) if isinstance(sequence, PackedSequence) else (sequence, None)
    )
    batch = len(sequence) if batch_sizes is None else int(batch_sizes[0])
    zeros = data.new_zeros(layers.num_layers * directions, batch, layers.hidden_size)
    start = (zeros, zeros) if isinstance(layers, nn.LSTM) else zeros
    if batch_sizes is None:
        return function(data, start, flat, *how, layers.batch_first)[0]
    return sequence._replace(data=function(data, batch_sizes, start, flat, *how)[0])


@torch.no_grad()
def _remember_by_default(layers: nn.LSTM | nn.GRU) -> None:
    """Recurrent weights orthogonal; forget gates of an LSTM open (bias 1, Jozefowicz et al. 2015).

    torch stores the gates one below the other: of an LSTM input, forget, cell, output.
    """
    size = layers.hidden_size
    for name, parameter in layers.named_parameters():
        if name.startswith("weight_hh"):
            for gate in parameter.split(size):
                nn.init.orthogonal_(gate)
        elif name.startswith("bias_ih") and isinstance(layers, nn.LSTM):
            nn.init.ones_(parameter[size : 2 * size])
