"""A per-frame CNN whose features an LSTM reads (Donahue et al. 2015, arXiv:1411.4389).

B batch   C channels   T frames   H, W height and width   F features of a frame   D features of a clip   K classes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stvid.errors import InputError
from stvid.models.base import VideoModel, check_clips, check_probability, freeze_stages
from stvid.models.encoders import build_encoder, encode_frames
from stvid.models.recurrent import RECURRENT, Pooled, Pooling, Recurrent
from stvid.models.weights import load_weights, names_file, read_weights


class StreamState(NamedTuple):
    """What a stream's frames so far leave behind; its size does not grow with them."""

    recurrent: object | None
    pooled: Pooled


class CNNLSTM(VideoModel):
    """Every frame through an image network cut before its decision layer, the `T x F` sequence through an LSTM.

    Args:
        num_classes: K.
        in_channels: C, 3 or 6; of 6, each half is an image of its own to the encoder, and F is twice its features.
        encoder: `small` (a few strided convolutions of our own), a torchvision classification network by name,
            `timm/NAME`, or `efficientnet_lite0` (the last two need the extras `timm` and `lite0`).
        weights: of the encoder: `DEFAULT`, a name, or a file; or a checkpoint of this class, for the whole model, whose
            head is kept where K is the same. None starts from random ones.
        image_size: pixels a side that the encoder is built for, of networks that are built for one size (ViT, Swin v2
            of timm); None: the network's own.
        encoder_chunk: frames encoded at once, their activations computed again in the backward pass, so that memory
            grows with the chunk and not with T; None: all frames, activations kept. See `encode_frames`.
        freeze: stages of the encoder that stay as they are: how many, the name of the last one, or `all`.
        recurrent: `lstm`, `gru`, or `none`: the features themselves are pooled, in which order has no influence then.
        hidden_size: width of a recurrent layer.
        num_layers: recurrent layers.
        bidirectional: read the sequence from both ends; D is then twice `hidden_size`.
        dropout: probability between recurrent layers and before the head, in [0, 1).
        recurrent_dropout: share of the weights from step to step that a batch leaves out, in [0, 1).
        pooling: `last`: the state at the last valid frame (where both ways are read, where each ends); `mean`, `max`,
            or `attention` (a learned weighting) over all valid frames.

    Raises:
        InputError: an unknown name, a value out of its range, a bidirectional model without anything recurrent.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        encoder: str = "small",
        weights: str | None = None,
        image_size: int | None = None,
        encoder_chunk: int | None = None,
        freeze: int | str = 0,
        recurrent: str = "lstm",
        hidden_size: int = 96,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.2,
        recurrent_dropout: float = 0.0,
        pooling: str = "last",
    ):
        super().__init__()
        if recurrent not in (*RECURRENT, "none"):
            raise InputError(f"model.recurrent (={recurrent}) must be one of {', '.join(RECURRENT)}, none")
        if recurrent == "none" and bidirectional:
            raise InputError("model.bidirectional (=True) needs something recurrent: model.recurrent is none")
        if encoder_chunk is not None and encoder_chunk < 1:
            raise InputError(f"model.encoder_chunk (={encoder_chunk}) must be at least 1, or null")
        if in_channels not in (3, 6):
            raise InputError(f"model.in_channels (={in_channels}) must be 3, or 6 for two pictures a frame")
        check_probability("dropout", dropout)
        self.in_channels, self.encoder_chunk = in_channels, encoder_chunk
        file = weights if weights is not None and names_file(weights) else None
        self.encoder = build_encoder(encoder, weights=None if file else weights, image_size=image_size)
        self.frozen = freeze_stages(*self.backbone(), freeze)
        size = self.encoder.num_features * in_channels // 3
        self.recurrent = None
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
        self.pooling = Pooling(pooling, num_features=size, both_ways=bidirectional)
        self.num_features = size
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(size, num_classes)
        if file is not None:
            self._load(file, encoder)

    @property
    def pixels(self) -> tuple | None:
        """Mean and deviation that the encoder's weights were trained with; None: random weights."""
        return self.encoder.pixels

    @property
    def encoder_is_frozen(self) -> bool:
        """Whether a frame's features never change, so that they can be computed once."""
        return len(self.frozen) == len(self.encoder.stages)

    def backbone(self) -> tuple[nn.Module, Mapping[str, nn.Module]]:
        """The encoder, see `VideoModel`."""
        return self.encoder, self.encoder.stages

    def _load(self, file: str, encoder: str) -> None:
        state, source = read_weights(file), f"{file} for {encoder}"
        if any(name.startswith("encoder.") and name in state for name in self.state_dict()):
            load_weights(self, state, source=source)
        elif encoder == "small":
            raise InputError(f"model.weights (={file}) is no checkpoint of a model with the small encoder")
        else:
            self.encoder.load(state, source=source)

    def encode(
        self, clips_BCTHW: Tensor, lengths_B: Tensor | None = None, *, prepare: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """`B x C x T x H x W` -> float32 `B x T x F`; what lies past a clip's length is not read and comes out 0.

        prepare: where given, the clips are `B x T x C x H x W` as they were read, and this makes model input of them,
        chunk by chunk.
        """
        check_clips(clips_BCTHW if prepare is None else clips_BCTHW.transpose(1, 2), self.in_channels)
        how = {"chunk": self.encoder_chunk, "prepare": prepare}
        return encode_frames(self.encoder, clips_BCTHW, lengths_B, **how).float()

    def read(self, features_BTF: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """What `encode` gave -> features of the clip `B x D`."""
        # in float32 under autocast too: low precision adds up over the steps, and CPU kernels mix types
        with torch.autocast(features_BTF.device.type, enabled=False):
            states_BTD = features_BTF if self.recurrent is None else self.recurrent(features_BTF, lengths_B)
            return self.pooling(states_BTD, lengths_B)

    def classify(self, features_BTF: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """What `encode` gave -> logits `B x K`."""
        return self.head(self.dropout(self.read(features_BTF, lengths_B)))

    def forward_features(self, clips_BCTHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """`B x C x T x H x W` -> features `B x D`."""
        return self.read(self.encode(clips_BCTHW, lengths_B), lengths_B)

    def forward(
        self, clips_BCTHW: Tensor, lengths_B: Tensor | None = None, *, prepare: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """`B x C x T x H x W` (and the number of valid frames of each, at least 1) -> logits `B x K`.

        prepare: see `encode`.
        """
        return self.classify(self.encode(clips_BCTHW, lengths_B, prepare=prepare), lengths_B)

    @property
    def supports_streaming(self) -> bool:
        """Whether `stream_step` works: a bidirectional model reads from the end, which a stream does not have."""
        return not self.pooling.both_ways

    def stream_step(self, frame_BCHW: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """The next frame of a stream: logits `B x K` over all frames until now, and the state to come back with.

        Memory and time do not depend on how many frames there were. In evaluation mode the logits are those of the
        whole sequence until here.

        Args:
            frame_BCHW: as a frame of `forward`'s clips.
            state: what the frame before returned; None in the beginning.

        Raises:
            InputError: the model is bidirectional.
        """
        if not self.supports_streaming:
            raise ValueError("a bidirectional model cannot go frame by frame")
        before, pooled = (None, None) if state is None else state
        features_BF = self.encode(frame_BCHW[:, :, None])[:, 0]
        with torch.autocast(features_BF.device.type, enabled=False):
            if self.recurrent is not None:
                features_BF, before = self.recurrent.step(features_BF, before)
            features_BD, pooled = self.pooling.step(features_BF, pooled)
        return self.head(self.dropout(features_BD)), StreamState(before, pooled)
