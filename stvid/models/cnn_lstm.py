"""A CNN for every frame and an LSTM over its features (Donahue et al. 2015, arXiv:1411.4389).

B batch   C channels   T frames   H, W height and width   F' features of a frame   D features of a clip   K classes
R branches
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stvid.errors import InputError
from stvid.models.base import check_probability
from stvid.models.branches import (
    Branch,
    BranchState,
    HasBranch,
    aggregate_branch,
    split_branch,
    stack_branch,
    step_branch,
)
from stvid.models.encoders import SmallEncoder, build_encoder
from stvid.models.feature_maps import FeatureMaps
from stvid.models.framewise import FramewiseModel, without_autocast
from stvid.models.recurrent import RECURRENT
from stvid.models.weights import load_weights, names_file, read_weights

StreamState = tuple[BranchState, ...]  # of each branch


class CNNLSTM(FramewiseModel):
    """An image network without its classifier turns each frame into features; an LSTM reads the `T x F'` sequence.

    Args:
        num_classes: K.
        in_channels: C, 3 or 6; 6 are two images, encoded one by one, and F' is then twice the encoder's features.
        encoder: `small` (a few strided convolutions, defined here), a torchvision classification network by name,
            `timm/NAME`, or `efficientnet_lite0` to `2` (the last two need the extras `timm` and `lite`).
        weights: of the encoder: `DEFAULT`, a name, or a file; or a checkpoint of this class for the whole model, whose
            head is used if K is equal. None: random.
        image_size: pixels; input size of networks with a fixed size (ViT, Swin v2 of timm); None: the network's own.
        grid: height and width to which the encoder's last feature map is pooled (mean). Then `feature_norm` and
            `projection` see each place of it by itself, and the mean over the places follows. None: the encoder's own
            pooling.
        encoder_chunk: frames encoded at once, from 1. Their activations are recomputed in the backward pass, so that
            memory grows with the chunk and not with T. None: all frames, activations stored. See `encode_frames`.
        freeze: stages of the encoder that are not trained: their number, the name of the last one, or `all`.
        feature_norm: `batch`: batch norm of the encoder's features, over all valid frames of a batch; `none`.
        projection: outputs of a linear layer with ReLU that every frame's features pass before the recurrent layer;
            None: no such layer.
        recurrent: `lstm`, `gru`, or `none`, which pools the features without regard to their order.
        hidden_size: hidden units of each recurrent layer.
        num_layers: recurrent layers.
        bidirectional: read the frames in both directions; D is then twice `hidden_size`.
        dropout: probability between recurrent layers and before the head, in [0, 1).
        recurrent_dropout: probability of dropping a recurrent weight, in [0, 1).
        pooling: `last`: the state after the last valid frame (bidirectional: after the last one of each direction);
            `mean`, `max`, or `attention` (a learned weighted mean) over all valid frames.
        branches: R, branches behind the encoder, from 1. Each has weights and a loss of its own, and their logits are
            averaged. The second, fourth, ... have no recurrent layer and take the mean over all valid frames.

    Raises:
        InputError: an unknown name, a value out of range, `bidirectional` without a recurrent layer.
    """

    exports_lengths = True
    columns_RD: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        encoder: str = "small",
        weights: str | None = None,
        image_size: int | None = None,
        grid: Sequence[int] | None = None,
        encoder_chunk: int | None = None,
        freeze: int | str = 0,
        feature_norm: str = "none",
        projection: int | None = None,
        recurrent: str = "lstm",
        hidden_size: int = 96,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.2,
        recurrent_dropout: float = 0.0,
        pooling: str = "last",
        branches: int = 1,
    ):
        super().__init__()
        if recurrent not in (*RECURRENT, "none"):
            raise InputError(f"model.recurrent (={recurrent}) must be one of {', '.join(RECURRENT)}, none")
        if recurrent == "none" and bidirectional:
            raise InputError("model.bidirectional (=True) needs a recurrent layer: model.recurrent is none")
        if branches < 1:
            raise InputError(f"model.branches (={branches}) must be at least 1")
        if encoder_chunk is not None and encoder_chunk < 1:
            raise InputError(f"model.encoder_chunk (={encoder_chunk}) must be at least 1, or null")
        if in_channels not in (3, 6):
            raise InputError(f"model.in_channels (={in_channels}) must be 3, or 6 (frame and difference image)")
        check_probability("dropout", dropout)
        self.in_channels, self.max_chunk = in_channels, encoder_chunk
        self.supports_streaming = not bidirectional
        file = weights if weights is not None and names_file(weights) else None
        network = build_encoder(encoder, weights=None if file else weights, image_size=image_size)
        self.encoder = network if grid is None else FeatureMaps(network, None, grid, name=encoder)
        self.normalization = self.encoder.normalization
        self.freeze_stages(freeze)
        make = functools.partial(
            Branch,
            self.encoder.num_features * in_channels // 3,
            norm=feature_norm,
            projection=projection,
            places=1 if grid is None else grid[0] * grid[1],
            hidden_size=hidden_size,
            num_layers=num_layers,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
        )
        first = make(recurrent=recurrent, pooling=pooling, bidirectional=bidirectional)
        # the model itself is the first branch, so that its weights have the names they have without others
        self.frame_features, self.recurrent, self.pooling = first.frame_features, first.recurrent, first.pooling
        self.more_branches = nn.ModuleList(
            make(recurrent="none", pooling="mean")
            if number % 2
            else make(recurrent=recurrent, pooling=pooling, bidirectional=bidirectional)
            for number in range(1, branches)
        )
        sizes = [branch.pooling.num_features for branch in self.branches]
        # for each branch a row with 1 in the columns of its features, and 0 elsewhere
        columns_RD = torch.block_diag(*(torch.ones(1, size) for size in sizes))
        self.register_buffer("columns_RD", columns_RD, persistent=False)
        self.num_features = sum(sizes)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.num_features, num_classes)
        if file is not None:
            self._load(file, network, source=f"{file} for {encoder}")

    def _load(self, file: str, network: nn.Module, *, source: str) -> None:
        state = read_weights(file)
        if any(name.startswith("encoder.") and name in state for name in self.state_dict()):
            load_weights(self, state, source=source)
        elif isinstance(network, SmallEncoder):
            raise InputError(f"model.weights (={file}) is no checkpoint of a model with the small encoder")
        else:
            network.load(state, source=source)  # type: ignore[operator] # an `ImageNetwork`

    @property
    def branches(self) -> list[HasBranch]:
        """The model itself, whose modules are the first branch, and the other branches."""
        return [self, *self.more_branches]

    def aggregate(self, features_BTF: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Features of frames, as `encode` returns them, `B x T x F'` -> features of clips `B x D`, of all branches."""
        # in float32 under autocast too: low precision adds up over the steps, and CPU kernels mix types
        with without_autocast(features_BTF.device):
            return torch.cat([aggregate_branch(branch, features_BTF, lengths_B) for branch in self.branches], dim=1)

    def forward_head(self, features_BD: Tensor) -> Tensor:
        """`B x D` -> logits `B x K`; in training with several branches, those of each, `B x R x K`.

        The head is one linear layer. Given the features of one branch and zeros for the others, it computes the logits
        of that branch; given the features of all, divided by R, the mean of these logits.
        """
        features_BD, num_branches = self.dropout(features_BD), len(self.branches)
        if num_branches == 1:
            return self.head(features_BD)
        return self.head(features_BD[:, None] * self.columns_RD if self.training else features_BD / num_branches)

    def stream_step(self, frame_BCHW: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """One frame of a stream: logits given all frames so far, and the new state; see `VideoModel`.

        In evaluation mode the logits are those of `forward` for all frames so far.

        Raises:
            ValueError: the model is bidirectional.
        """
        if not self.supports_streaming:
            raise ValueError("a bidirectional model reads frames from the end too, so it cannot read a stream")
        states = [None] * len(self.branches) if state is None else state
        features_B1F = self.encode(frame_BCHW[:, :, None])
        with without_autocast(features_B1F.device):
            steps = [step_branch(b, features_B1F, before) for b, before in zip(self.branches, states, strict=True)]
        features, after = zip(*steps, strict=True)
        return self.forward_head(torch.cat(features, dim=1)), after

    def stream_key(self, state: StreamState | None) -> str:
        """All streams share their steps, but for their first ones, which have no state; see `VideoModel`."""
        return "first" if state is None else "later"

    def stack_states(self, states: Sequence[StreamState | None]) -> StreamState | None:
        """One state for a batch of streams; see `VideoModel`."""
        later = [state for state in states if state is not None]
        if not later:
            return None
        parts = zip(*later, strict=True)
        return tuple(stack_branch(branch, states) for branch, states in zip(self.branches, parts, strict=True))

    def split_states(self, state: StreamState, num_streams: int) -> list[StreamState]:
        """The state of each stream of a batch; see `VideoModel`."""
        parts = [split_branch(branch, part, num_streams) for branch, part in zip(self.branches, state, strict=True)]
        return list(zip(*parts, strict=True))
