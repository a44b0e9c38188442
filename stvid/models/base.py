"""The contract of every model (`VideoModel`): stages, freezing, clips of different lengths, optional capabilities.

B batch   C channels   T frames   H, W height and width   K classes   F features (`num_features`)
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stvid.clip import ClipSpec
from stvid.errors import InputError

log = logging.getLogger(__name__)
CONTAINERS = ("features", "trunk_output", "layers", "blocks", "_blocks", "stages", "encoder")  # each child is a stage
WHOLE_VIDEO_FRAMES = 16  # frames of the test clip of `check_input` if a model reads whole videos


class Normalization(NamedTuple):
    """Mean and standard deviation per channel, of pixels in [0, 1], that weights were trained with."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class VideoModel(nn.Module):
    """A model that classifies clips: a backbone that gives features, and a head that gives logits.

    A subclass sets `num_features` and `head` and defines `forward_features`; everything else has a default. Its
    constructor takes the keyword `num_classes`, and `in_channels` if it accepts more than RGB.

    Attributes:
        num_features: F, size of what `forward_features` returns.
        in_channels: C of the clips.
        normalization: mean and standard deviation that the weights were trained with; None: unknown or random weights.
        dropout: before the head.
        head: `B x F` -> `B x K`.
        frozen: names of the frozen stages, see `freeze_stages`. Names, because a module can be replaced later, as
            batch norms are by synchronised ones.
        max_chunk: frames that `encode` processes at once; None: all. If it is set, `encode` and `forward` also take
            `preprocess`, see `encode`.
        exports_lengths: whether an exported model takes `lengths_B`. While `torch.compiler.is_exporting()`, `forward`
            then has no loop over them and no shape that depends on them.
        supports_streaming: whether `stream_step` is defined, and `start_stream` if it needs a first state. Streams can
            share a step if `stream_key` says so.
        supports_feature_cache: whether `encode` and `aggregate` are defined.
    """

    num_features: int
    in_channels: int = 3
    normalization: Normalization | None = None
    frozen: Sequence[str] = ()
    max_chunk: int | None = None
    exports_lengths: bool = False
    supports_streaming: bool = False
    supports_feature_cache: bool = False
    head: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.dropout: nn.Module = nn.Identity()  # not annotated above: configs are checked against that

    @property
    def stages(self) -> Mapping[str, nn.Module]:
        """The parts of the backbone by name, in the order from input to output.

        `model.freeze`, layer-wise learning rates, activation checkpointing and sharding go by them. By default all
        children with parameters, except `head`.
        """
        return {name: child for name, child in self.named_children() if name != "head" and has_parameters(child)}

    @property
    def backbone(self) -> nn.Module:
        """The module of all stages, and of parameters that belong to no stage (such as a class token)."""
        return nn.ModuleList(self.stages.values())

    def blocks(self) -> list[nn.Module]:
        """The parts of the stages, for a stage that is a sequence of modules with children; otherwise the stages.

        Only modules that are called: a stage of `StagedLayers` is a slice, made for each call, and a stage of a network
        that torch.fx has traced only holds layers. These have no blocks.
        """
        own, blocks = set(self.modules()), []
        for stage in self.stages.values():
            parts = list(stage.children())
            is_sequence = isinstance(stage, nn.Sequential | nn.ModuleList)
            blocks += parts if is_sequence and all(list(part.children()) for part in parts) else [stage]
        return [block for block in blocks if block in own and type(block) is not nn.Module]

    @property
    def backbone_is_frozen(self) -> bool:
        """Whether all stages are frozen, so that the same clip always has the same features."""
        return 0 < len(self.stages) == len(self.frozen)

    def stage_parameters(self) -> list[list[nn.Parameter]]:
        """Every parameter of the backbone exactly once, frozen ones too, by stage.

        A parameter that belongs to no stage goes with the stage defined after it, the last if there is none.
        """
        stages = self.stages
        owner = {id(p): i for i, stage in enumerate(stages.values()) for p in stage.parameters()}
        groups: list[list[nn.Parameter]] = [[] for _ in stages]
        following = len(stages) - 1
        for parameter in reversed(list(self.backbone.parameters())):
            following = owner.get(id(parameter), following)
            groups[following].append(parameter)
        return [group[::-1] for group in groups]

    def freeze_stages(self, freeze: int | str) -> None:
        """Excludes the first stages from training, batch norm statistics included.

        Parameters that belong to no stage are frozen with the stage defined after them.

        Args:
            freeze: the number of stages from the input on; the name of the last one; or `all`.

        Raises:
            InputError: no such stage, or more than there are.
        """
        stages = self.stages
        names = list(stages)
        count = len(names) if freeze == "all" else names.index(freeze) + 1 if freeze in names else freeze
        if not isinstance(count, int) or not 0 <= count <= len(names):
            raise InputError(
                f"model.freeze (={freeze}) must be all, a number from 0 to {len(names)}, or the last stage to freeze: "
                + ", ".join(names)
            )
        for group in self.stage_parameters()[:count]:
            for parameter in group:
                parameter.requires_grad_(False)
        self.frozen = tuple(names[:count])
        self.train(self.training)

    def train(self, mode: bool = True) -> VideoModel:
        """As in `nn.Module`, but frozen stages stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            stages = self.stages
            for part in [self.backbone] if self.backbone_is_frozen else [stages[name] for name in self.frozen]:
                part.eval()
        return self

    def forward_features(self, clips_BCTHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Features of clips: float `B x C x T x H x W` -> `B x F`.

        Args:
            clips_BCTHW: preprocessed clips.
            lengths_B: number of valid frames of each clip, 1 to T; the frames after them must not change the features.
                None: all frames are valid.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no forward_features")

    def forward_head(self, features_BF: Tensor) -> Tensor:
        """`B x F` -> logits `B x K`."""
        return self.head(self.dropout(features_BF))

    def forward(self, clips_BCTHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Float `B x C x T x H x W` (and the number of valid frames of each, at least 1) -> logits `B x K`.

        In training mode, a model of R branches may return `B x R x K`: each branch then has a loss of its own.
        """
        return self.forward_head(self.forward_features(clips_BCTHW, lengths_B))

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the head by a randomly initialised one for `num_classes` classes, on the same device."""
        like = next(self.head.parameters())
        self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)

    def start_stream(self, num_frames: int | None) -> Any:
        """The state of a stream before its first frame (if `supports_streaming`); None by default.

        States are never changed, so several streams can start from one.

        Args:
            num_frames: T of the clips of training, for a model whose answers cover so many frames; None: whole videos.
        """
        return None

    def stream_step(self, frame_BCHW: Tensor, state: Any) -> tuple[Tensor | None, Any]:
        """One frame of a stream (if `supports_streaming`): new logits, and the new state.

        Args:
            frame_BCHW: the next frame, as in `forward`'s clips.
            state: what the call for the previous frame returned, for the first frame what `start_stream` returned.

        Returns:
            Logits `B x K`, or None if this frame brings no new ones; and the state, whose size does not depend on the
            number of frames.
        """
        raise NotImplementedError(f"{type(self).__name__} does not support streaming")

    def stream_key(self, state: Any) -> Hashable | None:
        """Which streams can share a `stream_step`: those with equal keys. None, the default: this one shares none.

        A model that returns a key also defines `stack_states` and `split_states`. The logits of a stream do not depend
        on the streams that it shares a step with.

        Args:
            state: of one stream, before its next frame.
        """
        return None

    def stack_states(self, states: Sequence[Any]) -> Any:
        """One state for the batch of these streams, B = 1 each, whose keys are equal (see `stream_key`)."""
        raise NotImplementedError(f"{type(self).__name__} does not stack the states of streams")

    def split_states(self, state: Any, num_streams: int) -> list[Any]:
        """What `stream_step` returned for a batch of B = `num_streams` streams, as a state for each of them."""
        raise NotImplementedError(f"{type(self).__name__} does not split the states of streams")

    def encode(
        self, clips_BCTHW: Tensor, lengths_B: Tensor | None = None, *, preprocess: Callable | None = None
    ) -> Tensor:
        """Features of every frame (if `supports_feature_cache`): `B x C x T x H x W` -> float32 `B x T x F'`.

        Args:
            clips_BCTHW: preprocessed clips.
            lengths_B: number of valid frames of each clip; the features of other frames are 0. None: all are valid.
            preprocess: used only if `max_chunk` is set: the clips are then uint8 `B x T x C x H x W`, and this turns
                each chunk of them into model input, so that a long video is never in float32 as a whole.
        """
        raise NotImplementedError(f"{type(self).__name__} does not encode frames")

    def encoding_runtime(self, *, precision: str, device: torch.device) -> str | None:
        """Name and version of what computes `encode` faster than torch there, for `encode_with`; None: torch is used.

        Args:
            precision: Lightning's name, such as `32-true`.
            device: of the model.
        """
        return None

    def encode_with(self, runtime: str | None) -> contextlib.AbstractContextManager:
        """In the block, `encode` uses what `encoding_runtime` named. The features are those of torch to rounding."""
        return contextlib.nullcontext()

    def aggregate(self, features_BTF: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """What `encode` returns, `B x T x F'`, -> features of the clips `B x F` (if `supports_feature_cache`)."""
        raise NotImplementedError(f"{type(self).__name__} does not aggregate features of frames")


class StagedLayers(nn.Sequential):
    """The layers of all stages in one sequence; their names are their numbers in it.

    Args:
        stages: the layers of each stage.
    """

    def __init__(self, *stages: Sequence[nn.Module]):
        super().__init__(*itertools.chain(*stages))
        self.sizes = [len(stage) for stage in stages]

    @property
    def stages(self) -> list[nn.Module]:
        """Slices, made for each call, of the current layers: a layer may have been replaced by another."""
        ends = list(itertools.accumulate(self.sizes))
        return [self[end - size : end] for end, size in zip(ends, self.sizes, strict=True)]

    def __getitem__(self, index: int | slice) -> nn.Module:  # type: ignore[override] # torch has two overloads
        """A layer, or for a slice a plain `nn.Sequential`."""
        return nn.Sequential(*list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)


def find_stages(network: nn.Module) -> dict[str, nn.Module]:
    """The parts of a network that have parameters, by name, in order; of `CONTAINERS`, their children."""
    stages: dict[str, nn.Module] = {}
    for name, child in network.named_children():
        if name in CONTAINERS:
            stages |= {f"{name}.{part}": module for part, module in find_stages(child).items()}
        elif has_parameters(child):
            stages[name] = child
    return stages


def has_parameters(module: nn.Module) -> bool:
    """Whether a module has a parameter, trainable or not."""
    return next(module.parameters(), None) is not None


def forward_by_length(network: Callable[[Tensor], Tensor], clips_BCTHW: Tensor, lengths_B: Tensor | None) -> Tensor:
    """Applies a network to clips without their padding, to all clips of one length together.

    Args:
        network: `B x C x T x H x W` -> `B x F`.
        clips_BCTHW: the frames after a clip's length are never read.
        lengths_B: number of valid frames of each clip, 1 to T; None: all.

    Returns:
        `B x F`, in the order of the clips.
    """
    if lengths_B is None or bool((lengths_B == clips_BCTHW.shape[2]).all()):
        return network(clips_BCTHW)
    positions, features = [], []
    for length in lengths_B.unique().tolist():
        position = (lengths_B == length).nonzero()[:, 0]
        positions.append(position)
        features.append(network(clips_BCTHW[position, :, :length]))
    return torch.cat(features)[torch.cat(positions).argsort()]


def check_clips(clips_BCTHW: Tensor, in_channels: int) -> None:
    """Raises InputError for another number of channels than `in_channels`, ValueError for another number of axes."""
    message = f"clips must be B x {in_channels} x T x H x W, got {tuple(clips_BCTHW.shape)}"
    if clips_BCTHW.ndim != 5:
        raise ValueError(message)
    if clips_BCTHW.shape[1] != in_channels:
        raise InputError(message)


def check_probability(key: str, value: float) -> None:
    """Raises InputError for a value of `model.KEY` outside of [0, 1)."""
    if not 0 <= value < 1:
        raise InputError(f"model.{key} (={value}) must lie in [0, 1)")


@torch.no_grad()
def check_input(model: VideoModel, clip: ClipSpec) -> None:
    """Runs one grey clip through a model, so that an error comes before any video is read. The model does not change.

    Warns if the clips are normalised in another way than those that the model's weights were trained with.

    Raises:
        InputError: from the model, about clips that it does not take.
        Exception: any other error of the model; the shape of the clip is logged.
    """
    if model.normalization is not None:
        _check_normalization(model.normalization, clip)
    shape = (1, clip.channels, clip.num_frames or WHOLE_VIDEO_FRAMES, *clip.size)
    training = model.training
    try:
        model.eval()(torch.zeros(shape))
    except InputError:
        raise
    except Exception:
        sizes = " x ".join(map(str, shape))
        log.error("%s failed on one clip, B x C x T x H x W = %s", type(model).__name__, sizes)
        raise
    finally:
        model.train(training)


def _check_normalization(expected: Normalization, clip: ClipSpec) -> None:
    mean, std = ([round(value, 4) for value in values] for values in expected)
    is_equal = [abs(a - b) < 0.01 for a, b in zip((*clip.mean, *clip.std), (*mean, *std), strict=True)]
    if clip.normalize != "fixed" or not all(is_equal):
        log.warning(
            "the weights were trained on pixels normalised by mean %s and std %s; here clip.normalize is %s, or the "
            "values differ. clip=imagenet, clip=kinetics and clip=lite0 set what weights of these names expect",
            *(mean, std, clip.normalize),
        )
