"""A per-frame CNN whose features an LSTM reads (Donahue et al. 2015, arXiv:1411.4389).

B batch   C channels   T frames   H, W height and width   F features of a frame   D features of a clip   K classes
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from stvid.models.encoders import SmallEncoder, TorchvisionEncoder, encode_frames

POOLING = ("last", "mean")


class CNNLSTM(nn.Module):
    """Every frame through an image network cut before its decision layer, the `T x F` sequence through an LSTM.

    Args:
        num_classes: K.
        encoder: `small` (a few strided convolutions of our own), or a torchvision classification network by name.
        weights: torchvision weights of the encoder (`DEFAULT` or a name); None starts from random ones.
        hidden_size: width of the LSTM.
        num_layers: of the LSTM.
        bidirectional: read the sequence from both ends; D is then twice `hidden_size`.
        dropout: probability between LSTM layers and before the head, in [0, 1).
        pooling: `last`: the state at the last valid frame (of a bidirectional LSTM, where each direction ends);
            `mean`: the mean of the states at all valid frames.

    Raises:
        ValueError: an unknown encoder, weights or pooling, or sizes below 1.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        encoder: str = "small",
        weights: str | None = None,
        hidden_size: int = 96,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.2,
        pooling: str = "last",
    ):
        super().__init__()
        if pooling not in POOLING:
            raise ValueError(f"model.pooling (={pooling}) must be one of {', '.join(POOLING)}")
        if min(hidden_size, num_layers) < 1:
            raise ValueError(f"model.hidden_size (={hidden_size}) and num_layers (={num_layers}) must be at least 1")
        if encoder == "small" and weights is not None:
            raise ValueError(f"model.weights (={weights}): the small encoder has none; name a torchvision network")
        self.encoder = SmallEncoder() if encoder == "small" else TorchvisionEncoder(name=encoder, weights=weights)
        self.lstm = nn.LSTM(
            self.encoder.num_features,
            hidden_size,
            num_layers=num_layers,
            bidirectional=bidirectional,
            dropout=dropout if num_layers > 1 else 0.0,
            batch_first=True,
        )
        _init_lstm(self.lstm)
        self.pooling = pooling
        self.num_features = hidden_size * (2 if bidirectional else 1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.num_features, num_classes)

    def forward_features(self, clips_BCTHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """`B x C x T x H x W` -> features `B x D`; frames past a clip's length are neither encoded nor read."""
        if clips_BCTHW.ndim != 5:
            raise ValueError(f"clips must be B x C x T x H x W, got {tuple(clips_BCTHW.shape)}")
        features_BTF = encode_frames(self.encoder, clips_BCTHW, lengths_B)
        # in float32 under autocast too: low precision adds up over the steps, and CPU kernels mix types
        with torch.autocast(features_BTF.device.type, enabled=False):
            return self._read(features_BTF.float(), lengths_B)

    def forward(self, clips_BCTHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """`B x C x T x H x W` (and the number of valid frames of each, at least 1) -> logits `B x K`."""
        return self.head(self.dropout(self.forward_features(clips_BCTHW, lengths_B)))

    def _read(self, features_BTF: Tensor, lengths_B: Tensor | None) -> Tensor:
        if lengths_B is None:
            states_BTD, (last, _) = self.lstm(features_BTF)
            counts_B1 = features_BTF.shape[1]
        else:
            packed = pack_padded_sequence(features_BTF, lengths_B.cpu(), batch_first=True, enforce_sorted=False)
            packed, (last, _) = self.lstm(packed)
            states_BTD, _ = pad_packed_sequence(packed, batch_first=True)  # zeros past the length
            counts_B1 = lengths_B[:, None]
        if self.pooling == "mean":
            return states_BTD.sum(dim=1) / counts_B1
        directions = 2 if self.lstm.bidirectional else 1
        return torch.cat(list(last[-directions:]), dim=1)


@torch.no_grad()
def _init_lstm(lstm: nn.LSTM) -> None:
    """Remembers by default: forget gates open (bias 1, Jozefowicz et al. 2015), recurrent weights orthogonal.

    torch stores the gates one below the other: input, forget, cell, output.
    """
    size = lstm.hidden_size
    for name, parameter in lstm.named_parameters():
        if name.startswith("bias_ih"):
            nn.init.ones_(parameter[size : 2 * size])
        elif name.startswith("weight_hh"):
            for gate in parameter.split(size):
                nn.init.orthogonal_(gate)
