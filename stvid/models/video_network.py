"""torchvision's 3D networks, with any number of classes.

B batch   C channels   T frames   H, W height and width   K classes   F features (`num_features`)
"""

from __future__ import annotations

import torchvision
from torch import Tensor, nn

from stvid.models.conv import with_safe_convolutions
from stvid.models.lengths import each_length
from stvid.models.pretrained import find_weights

NAMES = ("r3d_18", "mc3_18", "r2plus1d_18")


class VideoNetwork(nn.Module):
    """r3d_18, mc3_18 or r2plus1d_18 (Tran et al. 2018, arXiv:1711.11248).

    The network's stages one after the other, the mean over time and space, a linear head. That is what torchvision
    computes; any clip of at least one frame and one pixel will do.

    Args:
        num_classes: K.
        name: one of `NAMES`.
        weights: None, `DEFAULT`, or the name of one of the network's torchvision weights (downloaded on first use; of
            Kinetics-400). Their head is kept where K is theirs, else a new one is learned.
        dropout: probability before the head, in [0, 1).
        freeze: stages, counted from the input, that stay as they are, statistics of batch norm included; there are 5.

    Raises:
        ValueError: unknown network or weights, more stages to freeze than there are.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        name: str = "r3d_18",
        weights: str | None = None,
        dropout: float = 0.0,
        freeze: int = 0,
    ):
        super().__init__()
        if name not in NAMES:
            raise ValueError(f"model.name (={name}) must be one of {', '.join(NAMES)}")
        network = torchvision.models.get_model(name, weights=find_weights(name, weights))
        network = with_safe_convolutions(network)
        self.stages = nn.ModuleList([network.stem, *(getattr(network, f"layer{i}") for i in range(1, 5))])
        head = network.fc
        if not 0 <= freeze <= len(self.stages):
            raise ValueError(
                f"model.freeze (={freeze}) must lie between 0 and {len(self.stages)}, the stages of {name}"
            )
        self.num_features = head.in_features
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.num_features, num_classes)
        if weights is not None and head.out_features == num_classes:
            self.head.load_state_dict(head.state_dict())
        self.freeze = freeze
        self.stages[:freeze].requires_grad_(False)

    def train(self, mode: bool = True) -> VideoNetwork:
        """As ever, but for the frozen stages: they stay in evaluation mode."""
        super().train(mode)
        self.stages[: self.freeze].eval()
        return self

    def forward_features(self, clips_BCTHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """`B x C x T x H x W` -> `B x F`: the mean over the last volume of each clip's valid frames."""
        return each_length(self._features, clips_BCTHW, lengths_B)

    def _features(self, clips_BCTHW: Tensor) -> Tensor:
        x = clips_BCTHW
        for stage in self.stages:
            x = stage(x)
        return x.mean(dim=(2, 3, 4))

    def forward(self, clips_BCTHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """`B x C x T x H x W` (and the number of valid frames of each, at least 1) -> logits `B x K`."""
        return self.head(self.dropout(self.forward_features(clips_BCTHW, lengths_B)))
