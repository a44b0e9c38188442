"""C3D as published: eight convolutions of 3x3x3, five poolings, two wide layers (Tran et al. 2015, arXiv:1412.0767).

B batch   C channels   T frames   H, W height and width   K classes
"""

from __future__ import annotations

from torch import Tensor, nn

from stvid.models.base import StagedLayers, check_clips, check_probability, forward_by_length
from stvid.models.continual import ContinualModel
from stvid.models.layers import Conv3d, GridPool3d
from stvid.models.weights import load_weights, read_weights

# (output channels of the convolutions before a pooling, the pooling's kernel and stride as time, height, width)
STAGES = (
    ((64,), (1, 2, 2)),
    ((128,), (2, 2, 2)),
    ((256, 256), (2, 2, 2)),
    ((512, 512), (2, 2, 2)),
    ((512, 512), (2, 2, 2)),
)
GRID = (1, 4, 4)  # T x H x W of the last volume for the published clips of 16 x 112 x 112


class C3D(ContinualModel):
    """The network of the paper; 78 million parameters, most of them in the two wide layers.

    A clip of 16 x 112 x 112 gives a volume of 512 x 1 x 4 x 4. Clips of other sizes are pooled to that grid, and the
    pooling layers keep incomplete windows at the edges, so a clip may have any size from one pixel on.

    Args:
        num_classes: K.
        in_channels: C of the input.
        weights: None (random), or a file of this class, such as a run's checkpoint; its head is used if K is equal.
        dropout: probability after each of the two wide layers, in [0, 1).
        freeze: stages that are not trained: their number from the input on, the name of the last one (`stage1` to
            `stage5`, each up to a pooling layer; `wide`), or `all` (all but the head).

    Raises:
        InputError: a value out of range, no such stage, weights of another architecture.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        weights: str | None = None,
        dropout: float = 0.5,
        freeze: int | str = 0,
    ):
        super().__init__()
        check_probability("dropout", dropout)
        stages, channels = [], in_channels
        for number, (widths, pool) in enumerate(STAGES, start=1):
            layers = []
            for width in widths:
                layers += [Conv3d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            padding = (0, 1, 1) if number == len(STAGES) else 0
            stages.append([*layers, nn.MaxPool3d(pool, stride=pool, padding=padding, ceil_mode=True)])
        self.layers = StagedLayers(*stages)
        self.in_channels = in_channels
        self.pool = GridPool3d(GRID)
        self.num_features = 4096
        self.wide = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * GRID[0] * GRID[1] * GRID[2], self.num_features),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(self.num_features, self.num_features),
            nn.ReLU(inplace=True),
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.num_features, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv3d):  # without batch norm, torch's default is too small for eight layers
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        if weights is not None:
            load_weights(self, read_weights(weights), source=weights)
        self.freeze_stages(freeze)

    @property
    def stages(self) -> dict[str, nn.Module]:
        """`stage1` to `stage5`, and `wide`; see `VideoModel`."""
        stages = {f"stage{number}": stage for number, stage in enumerate(self.layers.stages, start=1)}
        return {**stages, "wide": self.wide}

    def forward_features(self, clips_BCTHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """`B x C x T x H x W` -> `B x 4096`: the paper's fc7, of the valid frames of each clip."""
        check_clips(clips_BCTHW, self.in_channels)
        return forward_by_length(self._features, clips_BCTHW, lengths_B)

    def _features(self, clips_BCTHW: Tensor) -> Tensor:
        return self.wide(self.pool(self.layers(clips_BCTHW)))

    def pooled_network(self) -> nn.Module:
        """See `ContinualModel`."""
        return nn.Sequential(*self.layers, self.pool, self.wide)
