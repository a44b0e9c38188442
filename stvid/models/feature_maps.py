"""Feature maps of an image network: its lower part, with its last map pooled to a grid.

N images   C channels   H, W height and width   F' features of an image
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stvid.errors import InputError, listing
from stvid.models.base import find_stages
from stvid.models.encoders import SmallEncoder

if TYPE_CHECKING:
    from stvid.models.image_networks import ImageNetwork

MAX_BEHIND = 2  # stages behind the pooling of an image network, which make no more maps
NUM_TRACED = 5  # images in a batch whose outputs are told from weights by their number


class FeatureMaps(nn.Module):
    """An image network up to one of its stages, whose map is pooled to a grid. Shares the network's parameters.

    Args:
        image_network: with all its weights.
        stage: name of the stage; None: the whole network up to its pooling.
        grid: height and width of the pooled map.
        name: of the image network, for messages.

    Attributes:
        channels: of the map.
        num_features: F' = channels * height * width of the grid.

    Raises:
        InputError: a grid out of range; an encoder without maps; no such stage; its output is no map; a network that
            torch.fx cannot trace.
    """

    def __init__(
        self, image_network: ImageNetwork | SmallEncoder, stage: str | None, grid: Sequence[int], *, name: str
    ):
        super().__init__()
        from torchvision.models.feature_extraction import create_feature_extractor

        if not are_counts(grid, number=2):
            raise InputError(f"model.grid (={grid}) must be [height, width], whole numbers of at least 1")
        if isinstance(image_network, SmallEncoder):
            raise InputError("model.encoder (=small) has no feature maps: choose an image network, such as resnet18")
        network, names = image_network.network, list(image_network.stages)
        if stage is not None and stage not in names:
            raise InputError(f"model.stage (={stage}) is no stage of {name}: {', '.join(names)}")
        self.grid, self.size, self.normalization = (grid[0], grid[1]), image_network.size, image_network.normalization
        try:
            end = self._last_map(network, names) if stage is None else stage
            self.network = create_feature_extractor(network, {end: "map"}, suppress_diff_warning=True)
        except Exception as error:  # torch.fx raises errors of many kinds
            raise InputError(
                f"model.encoder (={name}) cannot be divided at {stage or 'its pooling'}: {error}. Choose an encoder "
                "with feature maps, such as resnet18"
            ) from error
        shape = self._outputs(self.network, 1)["map"].shape
        if not self._is_map(shape):
            raise InputError(
                f"model.stage (={stage}) of {name} gives {' x '.join(map(str, shape[1:]))} for an image, no map of "
                f"channels, height and width: choose an earlier stage ({', '.join(names[:-1])}), or another encoder"
            )
        self.channels = shape[1]
        self.num_features = self.channels * grid[0] * grid[1]

    @property
    def stages(self) -> dict[str, nn.Module]:
        """The parts of the network by name, from input to output."""
        return find_stages(self.network)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """`N x C x H x W` -> `N x F'`.

        Raises:
            InputError: images of a size that the network does not take.
        """
        self.size.check(*images_NCHW.shape[-2:])
        return F.adaptive_avg_pool2d(self.network(images_NCHW)["map"], self.grid).flatten(1)

    def _last_map(self, network: nn.Module, stages: Sequence[str]) -> str:
        """The operator of a network whose output is its last map of more than one place: what it pools.

        Raises:
            ValueError: more than two stages follow (a classifier has two at most), as the layers of a transformer do.
        """
        from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

        nodes = get_graph_node_names(network, suppress_diff_warning=True)[1]
        outputs = self._outputs(create_feature_extractor(network, nodes, suppress_diff_warning=True), NUM_TRACED)
        shapes: dict[str, tuple[int, ...]]  # also of weights
        shapes = {node: tuple(getattr(outputs[node], "shape", ())) for node in nodes}
        maps = [n for n, shape in shapes.items() if self._is_map(shape) and shape[0] == NUM_TRACED and shape[2] > 1]
        behind = nodes[nodes.index(maps[-1]) + 1 :] if maps else nodes
        following = [name for name in stages if any(f"{node}.".startswith(f"{name}.") for node in behind)]
        if not maps or len(following) > MAX_BEHIND:
            raise ValueError(f"{listing(following)} give no map")
        return maps[-1]

    def _is_map(self, shape: Sequence[int]) -> bool:
        """Some transformers have the channels last: the map of a square image must be square."""
        height, width = self.size.fixed or (1, 1)
        return len(shape) == 4 and (height != width or shape[2] == shape[3])

    @torch.no_grad()
    def _outputs(self, network: nn.Module, num_images: int) -> dict:
        """For images, on the meta device."""
        height, width = self.size.fixed or (max(128, self.size.minimum),) * 2
        own = (*network.named_parameters(), *network.named_buffers())  # also buffers outside of a state dict
        images = torch.empty(num_images, 3, height, width, device="meta")
        state = {key: value.to("meta") for key, value in own}
        outputs = torch.func.functional_call(network.eval(), state, (images,))
        network.train()
        return outputs


def are_counts(values: object, *, number: int) -> bool:
    """Whether it is a list of so many whole numbers of at least 1."""
    if not isinstance(values, Sequence) or len(values) != number:
        return False
    return all(isinstance(value, int) and value >= 1 for value in values)
