"""What the borrowed 3D networks share: a trunk, dropout, a linear head.

B batch   C channels   T frames   H, W height and width   K classes   F features (`num_features`)
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from stvid.models.freezing import VideoModel, stages_of
from stvid.models.lengths import forward_by_length
from stvid.models.limits import check_clips


class BackboneModel(VideoModel):
    """Features of a volume, one linear layer over them; a subclass builds the three parts.

    Attributes:
        network: `B x C x T x H x W` -> `B x F`, knows nothing of lengths.
        dropout: before the head.
        head: `B x F` -> `B x K`.
        in_channels: C.
    """

    in_channels: int
    network: nn.Module
    dropout: nn.Module
    head: nn.Module

    def backbone(self) -> tuple[nn.Module, Mapping[str, nn.Module]]:
        """All but the head, see `VideoModel`."""
        return self.network, stages_of(self.network)

    def forward_features(self, clips_BCTHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """`B x C x T x H x W` -> `B x F`: the mean over the last volume of each clip's valid frames."""
        check_clips(clips_BCTHW, self.in_channels)
        return forward_by_length(self.network, clips_BCTHW, lengths_B)

    def forward(self, clips_BCTHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """`B x C x T x H x W` (and the number of valid frames of each, at least 1) -> logits `B x K`."""
        return self.head(self.dropout(self.forward_features(clips_BCTHW, lengths_B)))
