"""A small 3D CNN, similar to C3D (Tran et al. 2015, arXiv:1412.0767), with batch norm.

B batch   C channels   T frames   H, W height and width   K classes
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from stvid.errors import InputError
from stvid.models.base import StagedLayers, check_clips, check_probability
from stvid.models.continual import ContinualModel
from stvid.models.layers import ConvLayer, mean_of_frames
from stvid.models.weights import load_weights, read_weights


class Conv3D(ContinualModel):
    """Stages of [3x3x3 convolution, batch norm, ReLU]; the mean over time and space; a linear head.

    The first convolution of a stage has the stage's stride; along each axis `out = floor((in + 2 - 3) / stride) + 1`.

    Args:
        num_classes: K.
        in_channels: C of the input.
        widths: output channels of each stage.
        depths: convolutions of each stage; one number for all stages, or one for each.
        strides: of each stage's first convolution, as [time, height, width].
        weights: None (random), or a file of this class, such as a run's checkpoint; its head is used if K is equal.
        dropout: probability before the head, in [0, 1).
        freeze: stages that are not trained, batch norm statistics included: their number from the input on, the name
            of the last one (`stage1`, ...), or `all` (all but the head).

    Raises:
        InputError: widths, depths and strides of different lengths, a value out of range, no such stage, weights of
            another architecture.
    """

    exports_lengths = True

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64, 128),
        depths: Sequence[int] | int = 1,
        strides: Sequence[Sequence[int]] = ((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        weights: str | None = None,
        dropout: float = 0.2,
        freeze: int | str = 0,
    ):
        super().__init__()
        depths = [depths] * len(widths) if isinstance(depths, int) else list(depths)
        if not len(widths) == len(depths) == len(strides) or not widths:
            raise InputError(
                f"model.widths ({len(widths)}), model.depths ({len(depths)}) and model.strides ({len(strides)}) must "
                "have one entry for each stage"
            )
        if min(*widths, *depths) < 1 or any(len(stride) != 3 or min(stride) < 1 for stride in strides):
            raise InputError(
                f"model.widths (={list(widths)}) and model.depths (={depths}) must be at least 1, model.strides "
                f"(={[list(stride) for stride in strides]}) three numbers of at least 1 for each stage"
            )
        check_probability("dropout", dropout)
        stages, channels = [], in_channels
        for width, depth, (time, down, right) in zip(widths, depths, strides, strict=True):
            first = ConvLayer(channels, width, stride=(time, down, right))
            stages.append([first, *(ConvLayer(width, width) for _ in range(depth - 1))])
            channels = width
        self.layers = StagedLayers(*stages)
        self.in_channels = in_channels
        self.num_features = channels
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, num_classes)
        if weights is not None:
            load_weights(self, read_weights(weights), source=weights)
        self.freeze_stages(freeze)

    @property
    def stages(self) -> dict[str, nn.Module]:
        """`stage1`, `stage2`, ...; see `VideoModel`."""
        return {f"stage{number}": stage for number, stage in enumerate(self.layers.stages, start=1)}

    def forward_features(self, clips_BCTHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """`B x C x T x H x W` -> `B x F`: the mean over the valid part of the last volume.

        Frames after a clip's length are set to zero before every convolution, as zero padding does at the end of a
        clip, and do not enter the statistics of batch norm. So the features are those of the clip alone.
        """
        check_clips(clips_BCTHW, self.in_channels)
        x = clips_BCTHW
        for layer in self.layers:
            x = layer(x, lengths_B)
            lengths_B = layer.out_lengths(lengths_B)  # type: ignore[operator] # of a `ConvLayer`
        return mean_of_frames(x, lengths_B)

    def pooled_network(self) -> nn.Module:
        """See `ContinualModel`."""
        return nn.Sequential(*self.layers, nn.AdaptiveAvgPool3d(1), nn.Flatten())
