"""ECO: a 2D CNN for every frame, and a 3D CNN over its feature maps (Zolfaghari et al. 2018, arXiv:1804.09066).

B batch   C channels   T frames   H, W height and width   G, G' the grid of a feature map   F' features of a frame
D features of a clip   K classes
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from stvid.errors import InputError
from stvid.models.base import check_probability
from stvid.models.continual import ContinualModel, FrameByFrame
from stvid.models.encoders import build_encoder, encode_frames
from stvid.models.feature_maps import FeatureMaps, are_counts
from stvid.models.framewise import FramewiseModel, without_autocast
from stvid.models.layers import ConvLayer, Residual, mean_of_frames, norm_frames
from stvid.models.weights import load_weights, names_file, read_weights


class ECO(FramewiseModel, ContinualModel):
    """The lower part of an image network for each frame; 3D convolutions over the maps of all frames; a linear head.

    The 3D part is batch norm, a 1 x 1 x 1 convolution to the first width, then a 3 x 3 x 3 convolution for each width,
    all with batch norm and ReLU; the mean over time and space. A convolution that keeps the shape is added to its
    input, and adds nothing before it is trained (He et al. 2016, arXiv:1512.03385): so a network of such convolutions
    begins as one that treats each frame by itself. The 2D weights of an image network serve a 3D network, and with a
    frozen encoder its maps are cached.

    Args:
        num_classes: K.
        in_channels: C, 3 or 6; 6 are two images, encoded one by one, whose maps are concatenated.
        encoder: a torchvision classification network by name, `timm/NAME`, or `efficientnet_lite0` to `2`.
        weights: of the encoder: `DEFAULT`, a name, or a file; or a checkpoint of this class for the whole model, whose
            head is used if K is equal. None: random.
        stage: the last stage of the encoder that is used, by name; its output is the map. None: the whole network up
            to its pooling.
        grid: height and width to which maps are pooled (mean), so that frames may have any size. None: one place.
        encoder_chunk: see `CNNLSTM`.
        freeze: stages of the encoder that are not trained: their number, the name of the last one, or `all`.
        widths: output channels of the 3 x 3 x 3 convolutions.
        strides: of these, as [time, height, width].
        dropout: probability before the head, in [0, 1).

    Raises:
        InputError: an unknown name, a stage without a map, a value out of range.
    """

    exports_lengths = True

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        encoder: str = "resnet18",
        weights: str | None = None,
        stage: str | None = None,
        grid: Sequence[int] | None = (4, 4),
        encoder_chunk: int | None = None,
        freeze: int | str = 0,
        widths: Sequence[int] = (128, 128),
        strides: Sequence[Sequence[int]] = ((1, 1, 1), (2, 2, 2)),
        dropout: float = 0.5,
    ):
        super().__init__()
        if in_channels not in (3, 6):
            raise InputError(f"model.in_channels (={in_channels}) must be 3, or 6 (frame and difference image)")
        if encoder_chunk is not None and encoder_chunk < 1:
            raise InputError(f"model.encoder_chunk (={encoder_chunk}) must be at least 1, or null")
        _check_convolutions(list(widths), list(strides))
        check_probability("dropout", dropout)
        self.in_channels, self.max_chunk = in_channels, encoder_chunk
        file = weights if weights is not None and names_file(weights) else None
        image_network = build_encoder(encoder, weights=None if file else weights)
        self.encoder: FeatureMaps = FeatureMaps(image_network, stage, (1, 1) if grid is None else grid, name=encoder)
        state = None if file is None else read_weights(file)
        is_whole = state is not None and any(name.startswith("volume.") for name in state)
        if state is not None and not is_whole:
            image_network.load(state, source=f"{file} for {encoder}")  # type: ignore[operator] # an `ImageNetwork`
        self.normalization = self.encoder.normalization
        self.freeze_stages(freeze)
        channels = self.encoder.channels * in_channels // 3
        # what a learned scale and shift would do, the weights of the convolution and the norm behind it can do as well
        layers: list[nn.Module] = [nn.BatchNorm3d(channels, affine=False), ConvLayer(channels, widths[0], kernel=1)]
        for before, width, stride in zip((widths[0], *widths), widths, strides, strict=False):
            keeps_shape = before == width and tuple(stride) == (1, 1, 1)
            layers.append(Residual(width) if keeps_shape else ConvLayer(before, width, stride=tuple(stride)))  # type: ignore[arg-type]
        self.volume = nn.Sequential(*layers)
        self.num_features = widths[-1]
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.num_features, num_classes)
        if state is not None and is_whole:
            load_weights(self, state, source=f"{file} for {encoder}")

    def aggregate(self, features_BTF: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Maps of frames, as `encode` returns them, `B x T x F'` -> features of clips `B x D`."""
        with without_autocast(features_BTF.device):
            x = _as_volume(features_BTF, self.encoder.grid)
            norm, *layers = self.volume
            x = norm_frames(norm, x, lengths_B)  # type: ignore[arg-type]
            for layer in layers:
                x = layer(x, lengths_B)
                lengths_B = layer.out_lengths(lengths_B)  # type: ignore[operator] # of a `ConvLayer` or `Residual`
            return mean_of_frames(x, lengths_B)

    def pooled_network(self) -> nn.Module:
        """See `ContinualModel`."""
        return nn.Sequential(MapVolume(self.encoder), *self.volume, nn.AdaptiveAvgPool3d(1), nn.Flatten())


class MapVolume(FrameByFrame):
    """The maps of all frames as a volume.

    Args:
        encoder: the `FeatureMaps`.
    """

    def __init__(self, encoder: FeatureMaps):
        super().__init__()
        self.encoder = encoder

    def forward(self, clips_BCTHW: Tensor) -> Tensor:
        """`B x C x T x H x W` -> `B x C' x T x G x G'`."""
        return _as_volume(encode_frames(self.encoder, clips_BCTHW, None), self.encoder.grid)


def _as_volume(features_BTF: Tensor, grid: tuple[int, int]) -> Tensor:
    return features_BTF.unflatten(2, (-1, *grid)).transpose(1, 2)


def _check_convolutions(widths: list[int], strides: list[Sequence[int]]) -> None:
    if not widths or not are_counts(widths, number=len(strides)):
        raise InputError(
            f"model.widths (={widths}) and model.strides (={strides}) must have one entry for each convolution, widths "
            "whole numbers of at least 1"
        )
    if not all(are_counts(stride, number=3) for stride in strides):
        raise InputError(f"model.strides (={strides}) must be three whole numbers of at least 1 for each convolution")
