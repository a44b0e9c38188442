"""Encoders of single frames: an image network by its name, and its application to the frames of clips.

B batch   C channels   T frames   H, W height and width   N images   F features of an image (`num_features`)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stvid.errors import InputError
from stvid.models.base import Normalization, StagedLayers
from stvid.models.layers import checkpointed

if TYPE_CHECKING:
    from stvid.models.image_networks import ImageNetwork


class SmallEncoder(nn.Module):
    """Strided 3x3 convolutions with batch norm and ReLU, then a linear layer over the flattened grid of features.

    Flattening the grid keeps positions, which change from frame to frame; pooling would lose them.

    Args:
        widths: output channels of each convolution; each halves height and width.
        num_features: F.
        grid: height and width to which the last feature map is pooled before it is flattened, so that images may have
            any size; four convolutions give 4 x 4 for images of 64 x 64.
    """

    normalization: Normalization | None = None  # there are no pretrained weights

    def __init__(
        self,
        *,
        widths: Sequence[int] = (16, 32, 64, 96),
        num_features: int = 96,
        grid: int = 4,
    ):
        super().__init__()
        stages, channels = [], 3
        for width in widths:
            conv = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
            stages.append([conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)])
            channels = width
        self.layers = StagedLayers(*stages)
        self.pool = nn.AdaptiveAvgPool2d(grid)
        self.project = nn.Sequential(nn.Flatten(), nn.Linear(channels * grid**2, num_features))
        self.num_features = num_features

    @property
    def stages(self) -> dict[str, nn.Module]:
        """Each convolution with its batch norm and ReLU, then the linear layer."""
        return {**{f"layers.{i}": stage for i, stage in enumerate(self.layers.stages)}, "project": self.project}

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """`N x C x H x W` -> `N x F`."""
        return self.project(self.pool(self.layers(images_NCHW)))


def build_encoder(
    name: str, *, weights: str | None = None, image_size: int | None = None
) -> SmallEncoder | ImageNetwork:
    """Builds `small`, `efficientnet_lite0` to `2`, `timm/NAME`, or any torchvision classification network by name.

    Args:
        name: of the encoder.
        weights: of the image network, see the functions of `image_networks`; None: random.
        image_size: pixels; input size of networks with a fixed size; None: the network's own.

    Returns:
        A module `N x 3 x H x W` -> `N x F` with `num_features` (F), `stages` (its parts by name, from input to output)
        and `normalization` (mean and standard deviation that the weights were trained with; None without weights).

    Raises:
        InputError: unknown name or weights, a missing package, a size that the network cannot be built for.
    """
    if name == "small":
        if weights is not None or image_size is not None:
            option = f"weights (={weights})" if weights is not None else f"image_size (={image_size})"
            raise InputError(f"model.{option}: the small encoder has none; choose an image network, or give a run")
        return SmallEncoder()
    # imported here, since the small encoder needs no torchvision, whose import takes seconds
    from stvid.models.image_networks import EFFICIENTNET_LITE, efficientnet_lite, timm_network, torchvision_network

    if not isinstance(name, str):
        raise InputError(f"model.encoder (={name!r}) must be the name of an encoder")
    if name in EFFICIENTNET_LITE:
        if image_size is not None:
            raise InputError(f"model.image_size (={image_size}): {name} takes images of any size; leave it out")
        return efficientnet_lite(name, weights)
    if name.startswith("timm/"):
        return timm_network(name.removeprefix("timm/"), weights, image_size)
    return torchvision_network(name, weights, image_size)


def encode_frames(
    encoder: nn.Module,
    clips_BCTHW: Tensor,
    lengths_B: Tensor | None,
    *,
    chunk: int | None = None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """`B x C x T x H x W` -> features `B x T x (C/3 * F)`; those of frames after a clip's length are 0.

    Such frames are not encoded at all, so that they do not enter batch norm statistics (in an exported model, which has
    none, they are). If C is 6, a frame is two
    images (picture and difference image), whose features are concatenated.

    Args:
        encoder: `N x 3 x H x W` -> `N x F` with F = `encoder.num_features`.
        clips_BCTHW: C is a multiple of 3.
        lengths_B: number of valid frames of each clip; None: all T.
        chunk: frames encoded at once, at least 1; None: all. In training, the activations of a chunk are recomputed in
            the backward pass instead of being stored (Chen et al. 2016, arXiv:1604.06174), so memory grows with the
            chunk and not with T. Batch norms in training mode use the statistics of the chunk.
        preprocess: if given, the clips are uint8 `B x T x C x H x W`, and this turns each chunk of them into model
            input, so that a long video is never in float32 as a whole.

    Raises:
        InputError: the encoder returns another shape than `N x F`.
    """
    clips_BTCHW = clips_BCTHW.transpose(1, 2) if preprocess is None else clips_BCTHW
    batch, num_frames = clips_BTCHW.shape[:2]
    images_NCHW = clips_BTCHW.flatten(0, 1)
    valid = None
    if lengths_B is not None:
        valid_BT = torch.arange(num_frames, device=images_NCHW.device)[None] < lengths_B[:, None]
    if torch.compiler.is_exporting():  # without loops, and without shapes that depend on the lengths
        features_NF = _encode_chunk(encoder, images_NCHW, None, slice(None), preprocess)
        features_BTF = features_NF.unflatten(0, (batch, num_frames))
        return features_BTF if lengths_B is None else torch.where(valid_BT[..., None], features_BTF, 0.0)
    if lengths_B is not None:
        valid = valid_BT.flatten().nonzero()[:, 0]
    total = len(images_NCHW) if valid is None else len(valid)
    encode = functools.partial(_encode_chunk, encoder)
    if chunk is None or chunk >= total:
        chunk = total
    elif torch.is_grad_enabled() and any(parameter.requires_grad for parameter in encoder.parameters()):
        encode = functools.partial(checkpointed, encode, encoder)
    chunks = (slice(i, min(i + chunk, total)) for i in range(0, total, chunk))
    features_NF = torch.cat([encode(images_NCHW, valid, part, preprocess) for part in chunks])
    if valid is not None:
        zeros = features_NF.new_zeros(batch * num_frames, features_NF.shape[1])
        features_NF = zeros.index_copy(0, valid, features_NF)
    return features_NF.unflatten(0, (batch, num_frames))


def _encode_chunk(
    encoder: nn.Module,
    images_NCHW: Tensor,
    valid: Tensor | None,
    part: slice,
    preprocess: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """Features of some of the valid images (None: all are valid)."""
    images = images_NCHW[part] if valid is None else images_NCHW[valid[part]]
    if preprocess is not None:
        images = preprocess(images[:, None])[:, :, 0]
    features = encoder(images.unflatten(1, (-1, 3)).flatten(0, 1))
    if features.ndim != 2 or features.shape[1] != encoder.num_features:
        shape = " x ".join(map(str, features.shape[1:]))
        raise InputError(f"the encoder returns {shape} for an image, expected {encoder.num_features} features")
    return features.unflatten(0, (images.shape[0], -1)).flatten(1)  # `len` would be a constant in an exported model
