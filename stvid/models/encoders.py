"""Per-frame encoders: an image network by its name, and how the frames of clips go through it.

B batch   C channels   T frames   H, W height and width   N images   F features of an image (`num_features`)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from stvid.errors import InputError
from stvid.models.base import StagedLayers
from stvid.models.layers import checkpointed


class SmallEncoder(nn.Module):
    """Strided 3x3 convolutions with batch norm and ReLU, then one linear layer over the whole remaining grid.

    Flattening the grid instead of pooling it keeps where things are, which is what moves from frame to frame.

    Args:
        widths: output channels of each convolution; each halves height and width.
        num_features: F.
        grid: height and width that the last volume is averaged down (or up) to before it is flattened, so that any
            input size will do; 4 is what four convolutions leave of 64 x 64.
    """

    pixels = None  # there are no weights that would expect any

    def __init__(
        self,
        *,
        widths: Sequence[int] = (16, 32, 64, 96),
        num_features: int = 96,
        grid: int = 4,
    ):
        super().__init__()
        steps, channels = [], 3
        for width in widths:
            conv = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
            steps.append([conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)])
            channels = width
        self.layers = StagedLayers(*steps)
        self.pool = nn.AdaptiveAvgPool2d(grid)
        self.project = nn.Sequential(nn.Flatten(), nn.Linear(channels * grid**2, num_features))
        self.num_features = num_features

    @property
    def stages(self) -> dict[str, nn.Module]:
        """By name, from the input on: each convolution with its batch norm and ReLU, then the linear layer."""
        return {**{f"layers.{i}": step for i, step in enumerate(self.layers.stages)}, "project": self.project}

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """`N x C x H x W` -> `N x F`."""
        return self.project(self.pool(self.layers(images_NCHW)))


def build_encoder(name: str, *, weights: str | None = None, image_size: int | None = None) -> nn.Module:
    """`small`, `efficientnet_lite0`, `timm/NAME`, or any torchvision classification network by name.

    Args:
        name: of the encoder.
        weights: of the image network, see the functions of `image_networks`; None: random ones.
        image_size: pixels a side, for networks that are built for one size; None: the network's own.

    Returns:
        A module `N x 3 x H x W` -> `N x F` with `num_features` (F), `stages` (its parts by name, from the input on)
        and `pixels` (mean and deviation that the weights were trained with; None without weights).

    Raises:
        InputError: unknown name or weights, a missing package, a size that the network cannot be built for.
    """
    if name == "small":
        if weights is not None or image_size is not None:
            what = f"weights (={weights})" if weights is not None else f"image_size (={image_size})"
            raise InputError(f"model.{what}: the small encoder has none; name an image network, or give a run's")
        return SmallEncoder()
    from stvid.models.image_networks import efficientnet_lite0, timm_network, torchvision_network  # torchvision

    if name == "efficientnet_lite0":
        if image_size is not None:
            raise InputError(f"model.image_size (={image_size}): efficientnet_lite0 takes any; leave it out")
        return efficientnet_lite0(weights)
    if name.startswith("timm/"):
        return timm_network(name.removeprefix("timm/"), weights, image_size)
    return torchvision_network(name, weights, image_size)


def encode_frames(
    encoder: nn.Module,
    clips_BCTHW: Tensor,
    lengths_B: Tensor | None,
    *,
    chunk: int | None = None,
    prepare: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """`B x C x T x H x W` -> features `B x T x (C/3 * F)`; what lies past a clip's length comes out as 0.

    Leaving such frames out, rather than masking them afterwards, keeps them out of batch norm's statistics too. Where
    C is 6, a frame is two images (picture and difference image) whose features are put side by side.

    Args:
        encoder: `N x 3 x H x W` -> `N x F`, F being `encoder.num_features`.
        clips_BCTHW: C is a multiple of 3.
        lengths_B: how many frames each clip has; None: all T.
        chunk: frames that are encoded at once, at least 1; None: all. In training the activations of a chunk are
            computed again in the backward pass instead of being kept (Chen et al. 2016, arXiv:1604.06174), so memory
            grows with the chunk and not with T. Batch norm in training mode then knows the chunk's statistics only.
        prepare: where given, the clips are `B x T x C x H x W` of whatever type, and this makes model input of them,
            chunk by chunk: so a long video need not be held in float32 as a whole.

    Raises:
        InputError: the encoder gives something else than `N x F`.
    """
    clips_BTCHW = clips_BCTHW.transpose(1, 2) if prepare is None else clips_BCTHW
    batch, num_frames = clips_BTCHW.shape[:2]
    images_NCHW = clips_BTCHW.flatten(0, 1)
    wanted = None
    if lengths_B is not None:
        valid_BT = torch.arange(num_frames, device=images_NCHW.device)[None] < lengths_B[:, None]
        wanted = valid_BT.flatten().nonzero()[:, 0]
    total = len(images_NCHW) if wanted is None else len(wanted)
    run = functools.partial(_encode, encoder)
    if chunk is None or chunk >= total:
        chunk = total
    elif torch.is_grad_enabled() and any(parameter.requires_grad for parameter in encoder.parameters()):
        run = functools.partial(checkpointed, run, encoder)
    parts = (slice(i, min(i + chunk, total)) for i in range(0, total, chunk))
    features_NF = torch.cat([run(images_NCHW, wanted, part, prepare) for part in parts])
    if wanted is not None:
        empty = features_NF.new_zeros(batch * num_frames, features_NF.shape[1])
        features_NF = empty.index_copy(0, wanted, features_NF)
    return features_NF.unflatten(0, (batch, num_frames))


def _encode(
    encoder: nn.Module,
    images_NCHW: Tensor,
    wanted: Tensor | None,
    part: slice,
    prepare: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """Features of one part of the wanted images (None: of all)."""
    images = images_NCHW[part] if wanted is None else images_NCHW[wanted[part]]
    if prepare is not None:
        images = prepare(images[:, None])[:, :, 0]
    found = encoder(images.unflatten(1, (-1, 3)).flatten(0, 1))
    if found.ndim != 2 or found.shape[1] != encoder.num_features:
        shape = " x ".join(map(str, found.shape[1:]))
        raise InputError(f"the encoder gives {shape} for an image, where {encoder.num_features} features are due")
    return found.unflatten(0, (len(images), -1)).flatten(1)
