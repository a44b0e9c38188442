"""The contract that every model keeps (VideoModel), with stages, freezing and clips of different lengths.

B batch   C channels   T frames   H, W height and width   K classes   F features (`num_features`)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from stvid.errors import InputError

# whose own parts are a network's stages
CONTAINERS = ("features", "trunk_output", "layers", "blocks", "_blocks", "stages", "encoder")


class VideoModel(nn.Module):
    """A model of a backbone in stages and what decides; its frozen stages stay in evaluation mode for good.

    So the statistics of their batch norms stay as they are, too.

    Attributes:
        frozen: names of the frozen stages, see `freeze_stages`. Names, because a module can be replaced later, as
            a batch norm is by a synchronised one.
    """

    frozen: Sequence[str] = ()
    supports_streaming = False

    def backbone(self) -> tuple[nn.Module, Mapping[str, nn.Module]]:
        """All but what decides, and its stages by name, those that `freeze` counts, from the input on."""
        raise NotImplementedError(f"{type(self).__name__} does not tell its backbone")

    def blocks(self) -> list[nn.Module]:
        """What the stages consist of, where one is a row of modules with parts of their own, else the stages.

        Only modules of this model are blocks; a stage of `StagedLayers` is none, because it is cut out when asked for.
        """
        own, found = set(self.modules()), []
        for stage in self.backbone()[1].values():
            parts = list(stage.children())
            row = isinstance(stage, nn.Sequential | nn.ModuleList) and all(list(part.children()) for part in parts)
            found += parts if row else [stage]
        return [block for block in found if block in own]

    def backbone_stages(self) -> list[list[nn.Parameter]]:
        """The parameters of the backbone, frozen ones too, by its stages; see `stage_parameters`."""
        return stage_parameters(*self.backbone())

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """All of them, from the input on."""
        return (parameter for stage in self.backbone_stages() for parameter in stage)

    def train(self, mode: bool = True) -> VideoModel:
        """As ever, but for the frozen parts."""
        super().train(mode)
        if self.frozen:
            network, stages = self.backbone()
            whole = len(self.frozen) == len(stages)
            for part in [network] if whole else [stages[name] for name in self.frozen]:
                part.eval()
        return self


class StagedLayers(nn.Sequential):
    """The layers of all stages in one row, named by their number in it.

    Args:
        stages: the layers of each stage.
    """

    def __init__(self, *stages: Sequence[nn.Module]):
        super().__init__(*itertools.chain(*stages))
        self.sizes = [len(stage) for stage in stages]

    @property
    def stages(self) -> list[nn.Sequential]:
        """Made anew by every call, of the layers that are there now: a layer may have been replaced by another."""
        ends = list(itertools.accumulate(self.sizes))
        return [self[end - size : end] for end, size in zip(ends, self.sizes, strict=True)]

    def __getitem__(self, index: int | slice) -> nn.Module:
        """A layer; of a slice, a plain row."""
        return nn.Sequential(*list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)


def stages_of(network: nn.Module) -> dict[str, nn.Module]:
    """The parts of a network that have parameters, by name, from the input on; `CONTAINERS` are opened."""
    stages = {}
    for name, child in network.named_children():
        if name in CONTAINERS:
            stages |= {f"{name}.{part}": module for part, module in stages_of(child).items()}
        elif next(child.parameters(), None) is not None:
            stages[name] = child
    return stages


def stage_parameters(network: nn.Module, stages: Mapping[str, nn.Module]) -> list[list[nn.Parameter]]:
    """Every parameter of a network exactly once, by its stages.

    What belongs to no stage (a class token, an embedding of positions) goes with the stage that is defined after it,
    as in `freeze_stages`; with the last where there is none.

    Args:
        network: its parameters in the order of their definition.
        stages: parts of it by name, in the order they compute.
    """
    owner = {id(p): i for i, stage in enumerate(stages.values()) for p in stage.parameters()}
    found: list[list[nn.Parameter]] = [[] for _ in stages]
    following = len(stages) - 1
    for parameter in reversed(list(network.parameters())):
        following = owner.get(id(parameter), following)
        found[following].append(parameter)
    return [stage[::-1] for stage in found]


def freeze_stages(network: nn.Module, stages: Mapping[str, nn.Module], freeze: int | str) -> tuple[str, ...]:
    """Takes the first stages of a network, and what belongs to none and stands before their end, out of training.

    A `VideoModel` model keeps what is returned as its `frozen`.

    Args:
        network: whose parameters `freeze` is about, in the order of their definition.
        stages: parts of it by name, in the order they compute.
        freeze: how many stages, counted from the input; the name of the last one; or `all`, which is the whole network.

    Returns:
        The names of the frozen stages, which are in evaluation mode; all names: the whole network is.

    Raises:
        InputError: no such stage, or more than there are.
    """
    names = list(stages)
    if freeze in names:
        freeze = names.index(freeze) + 1
    if freeze == "all" or freeze == len(names):
        network.requires_grad_(False).eval()
        return tuple(names)
    if not isinstance(freeze, int) or not 0 <= freeze <= len(names):
        raise InputError(
            f"model.freeze (={freeze}) must be all, a number from 0 to {len(names)}, or the last stage to freeze: "
            + ", ".join(names)
        )
    frozen = [stages[name].eval() for name in names[:freeze]]
    owned = {id(parameter) for stage in frozen for parameter in stage.parameters()}
    parameters = list(network.parameters())
    end = max((i for i, parameter in enumerate(parameters) if id(parameter) in owned), default=-1) + 1
    for parameter in parameters[:end]:
        parameter.requires_grad_(False)
    return tuple(names[:freeze])


class BackboneModel(VideoModel):
    """Features of a volume, one linear layer over them; a subclass builds the three parts.

    Attributes:
        network: `B x C x T x H x W` -> `B x F`, knows nothing of lengths.
        dropout: before the head.
        head: `B x F` -> `B x K`.
        in_channels: C.
    """

    in_channels: int
    network: nn.Module
    dropout: nn.Module
    head: nn.Module

    def backbone(self) -> tuple[nn.Module, Mapping[str, nn.Module]]:
        """All but the head, see `VideoModel`."""
        return self.network, stages_of(self.network)

    def forward_features(self, clips_BCTHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """`B x C x T x H x W` -> `B x F`: the mean over the last volume of each clip's valid frames."""
        check_clips(clips_BCTHW, self.in_channels)
        return forward_by_length(self.network, clips_BCTHW, lengths_B)

    def forward(self, clips_BCTHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """`B x C x T x H x W` (and the number of valid frames of each, at least 1) -> logits `B x K`."""
        return self.head(self.dropout(self.forward_features(clips_BCTHW, lengths_B)))


def forward_by_length(network: Callable[[Tensor], Tensor], clips_BCTHW: Tensor, lengths_B: Tensor | None) -> Tensor:
    """`network` on the clips without their padding: those of one length together, so that no padding can be read.

    Args:
        network: `B x C x T x H x W` -> `B x F`.
        clips_BCTHW: what follows a clip's own frames is never looked at.
        lengths_B: how many frames each clip has, 1 to T; None: all.

    Returns:
        `B x F`, in the order of the clips.
    """
    if lengths_B is None or bool((lengths_B == clips_BCTHW.shape[2]).all()):
        return network(clips_BCTHW)
    places, found = [], []
    for length in lengths_B.unique().tolist():
        place = (lengths_B == length).nonzero()[:, 0]
        places.append(place)
        found.append(network(clips_BCTHW[place, :, :length]))
    return torch.cat(found)[torch.cat(places).argsort()]


def check_clips(clips_BCTHW: Tensor, in_channels: int) -> None:
    """Raises InputError for another number of channels than `in_channels`, ValueError for what are no clips."""
    message = f"clips must be B x {in_channels} x T x H x W, got {tuple(clips_BCTHW.shape)}"
    if clips_BCTHW.ndim != 5:
        raise ValueError(message)
    if clips_BCTHW.shape[1] != in_channels:
        raise InputError(message)


def check_probability(key: str, value: float) -> None:
    """Raises InputError for a value of `model.KEY` outside of [0, 1)."""
    if not 0 <= value < 1:
        raise InputError(f"model.{key} (={value}) must lie in [0, 1)")
