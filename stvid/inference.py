"""Inference on many videos: sampling, preprocessing, forward pass and the mean over views, on one or more processes.

V views   N videos   K classes   T frames   C channels   H, W height and width
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from stvid.data.dataset import Failure, Views, collate
from stvid.data.loading import check_enough_frames, check_short, check_views, probe_items, resolve_workers, views_loader
from stvid.data.manifest import Item
from stvid.device import autocast, default_device, inference_precision
from stvid.distributed import all_gather_object, get_rank, get_world_size
from stvid.errors import InputError, VideoError
from stvid.metrics import average_views
from stvid.preprocess import Preprocess, channels_last, encode_clips, run_model
from stvid.progress import Bar
from stvid.run.checkpoint import TrainedModel
from stvid.video.types import VideoInfo


@dataclass(frozen=True, kw_only=True)
class ViewPredictions:
    """Predictions for videos and for each of their views.

    Attributes:
        probabilities_NK: mean over the views of each video that was read.
        videos_N: positions of these videos among the items, ascending.
        logits_VK: logits of every view.
        videos_V: the video of each view.
        failed: position -> reason, for the videos that could not be read.
    """

    probabilities_NK: Tensor
    videos_N: Tensor
    logits_VK: Tensor
    videos_V: Tensor
    failed: dict[int, str]


def classify(
    trained: TrainedModel,
    items: Sequence[Item],
    *,
    num_clips: int | None = None,
    num_crops: int | None = None,
    playback: str = "normal",
    device: torch.device | None = None,
    batch_size: int | None = None,
    num_workers: int | str = "auto",
    cache: Path | None = None,
    decode_all: bool = False,
    cache_features: bool = False,
    progress: bool = True,
) -> ViewPredictions:
    """Classifies every item, in the precision of the run's training.

    With several processes (`stvid.distributed`) each takes some of the batches, every item exactly once, and all
    return the same predictions as a single process would.

    Args:
        trained: the model.
        items: the videos; their labels are not used.
        num_clips: clips per video; None: as in the run's validation.
        num_crops: crops per clip; None: as in the run's validation.
        playback: how the videos are played, one of `sampling.PLAYBACKS`.
        device: where to compute; None: an accelerator if there is one, else the CPU.
        batch_size: approximate number of views per forward pass; None: as in training.
        num_workers: processes that read videos.
        cache: file that keeps the results of probing, see `loading.probe_cache`; None: no cache.
        decode_all: count a video as readable only if every frame decodes, not only those of its views.
        cache_features: with a frozen encoder, use the feature cache of training, see `cached_views.cached_views`.
        progress: show a progress bar.

    Raises:
        InputError: impossible numbers of clips or crops; more clips than a video has frames; a video shorter than a
            clip with `clip.short=error`; outputs of the model that are not finite.
    """
    num_workers = resolve_workers(num_workers)
    batch_size = batch_size or batch_size_of(trained)
    infos = probe_items(
        items, num_workers=num_workers, cache=cache, decode_all=decode_all, max_pixels=trained.max_pixels
    )
    dataset = make_views(trained, items, infos, num_clips=num_clips, num_crops=num_crops, playback=playback)
    rank, world_size = get_rank(), get_world_size()
    runner = ModelRunner(trained, device=device)
    cached = None
    collate_fn: Callable = collate
    if cache_features and uses_feature_cache(trained):
        from stvid.cached_views import cached_views, collate_features  # imported here for h5py, which others do without

        cached = cached_views(trained, dataset, runner, cache, batch_size=batch_size, num_workers=num_workers)
        collate_fn = collate_features if cached else collate
    loader = views_loader(
        dataset,
        batch_size=batch_size,
        num_workers=0 if cached else min(num_workers, len(items)),
        cached=cached,
        collate_fn=collate_fn,
        rank=rank,
        world_size=world_size,
    )
    with Bar("reading and classifying", total=len(items), unit="videos", shown=progress and rank == 0) as bar:
        part = _run_batches(loader, runner, len(trained.class_names), bar)
    if cached is not None:
        cached.cache.close()
    logits_VK, videos_V, failed = _merge(all_gather_object(part))
    check_finite(logits_VK, trained)
    probabilities_NK, videos_N = average_views(logits_VK, videos_V)
    return ViewPredictions(
        probabilities_NK=probabilities_NK, videos_N=videos_N, logits_VK=logits_VK, videos_V=videos_V, failed=failed
    )


def classify_each(
    trained: TrainedModel,
    items: Sequence[Item],
    infos: Sequence[VideoInfo | VideoError],
    *,
    runner: ModelRunner,
    num_workers: int | str = "auto",
) -> Iterator[tuple[int, Tensor | Failure]]:
    """Yields position and probabilities `K` of each item as soon as its batch is done; what `classify` computes.

    Args:
        trained: the model.
        items: at least one.
        infos: for each item what `probe` found, or the error it met.
        runner: the model on its device.
        num_workers: processes that read videos.

    Raises:
        InputError: see `classify`.
    """
    dataset = make_views(trained, items, infos)
    num_workers = min(resolve_workers(num_workers), len(items))
    loader = views_loader(dataset, batch_size=batch_size_of(trained), num_workers=num_workers)
    for batch in loader:
        for failure in batch["failed"]:
            yield failure.video, failure
        if len(batch["videos"]):
            logits_VK = runner(batch["clips"], batch["lengths"]).cpu()
            check_finite(logits_VK, trained)
            probabilities_NK, videos_N = average_views(logits_VK, batch["videos"])
            yield from zip(videos_N.tolist(), probabilities_NK, strict=True)


def batch_size_of(trained: TrainedModel) -> int:
    """Views per forward pass, as in training."""
    return trained.config["data"]["datamodule"]["batch_size"]


def check_finite(logits_VK: Tensor, trained: TrainedModel) -> None:
    """Raises InputError for a model whose outputs are not finite."""
    if not logits_VK.isfinite().all():
        raise InputError(f"{trained.path}: the model's outputs are not finite; its weights are damaged")


def make_views(
    trained: TrainedModel,
    items: Sequence[Item],
    infos: Sequence[VideoInfo | VideoError],
    *,
    num_clips: int | None = None,
    num_crops: int | None = None,
    playback: str = "normal",
    frames: Tensor | None = None,
) -> Views:
    """The views of items, after checking that the videos have them; for the arguments see `classify`.

    Args:
        infos: for each item what `probe` found, or the error it met.
        frames: uint8 `T x 3 x H x W`, in the place of the (only) item's file.
    """
    given = num_clips is not None
    num_clips = trained.protocol["num_clips"] if num_clips is None else num_clips
    num_crops = trained.protocol["num_crops"] if num_crops is None else num_crops
    check_views(num_clips, num_crops, trained.clip)
    dataset = Views(
        items=items,
        infos=infos,
        class_names=trained.class_names,
        clip=trained.clip,
        max_pixels=trained.max_pixels,
        num_clips=num_clips,
        num_crops=num_crops,
        playback=playback,
        frames=frames,
    )
    check_short(dataset)
    if given and playback == "normal":
        check_enough_frames(dataset)
    return dataset


def uses_feature_cache(trained: TrainedModel) -> bool:
    """Whether the run's training used the feature cache: a frozen encoder, and `data.features=auto`."""
    features = trained.config["data"]["datamodule"].get("features", "off")  # missing in checkpoints of older versions
    return features != "off" and trained.model.supports_feature_cache and trained.model.backbone_is_frozen


def _run_batches(
    loader: DataLoader, runner: ModelRunner, num_classes: int, bar: Bar
) -> tuple[Tensor, Tensor, dict[int, str]]:
    """Logits of every view, the video of each view, and the reasons for videos that could not be read."""
    logits, videos = [torch.empty(0, num_classes)], [torch.empty(0, dtype=torch.int64)]
    failed: dict[int, str] = {}
    for batch in loader:
        failed |= {failure.video: failure.reason for failure in batch["failed"]}
        if len(batch["videos"]):
            is_encoded = "features" in batch
            run = runner.classify_features if is_encoded else runner
            logits.append(run(batch["features" if is_encoded else "clips"], batch["lengths"]).cpu())
            videos.append(batch["videos"])
        bar.advance(len(batch["videos"].unique()) + len(batch["failed"]))
    return torch.cat(logits), torch.cat(videos), failed


def _merge(parts: Sequence[tuple[Tensor, Tensor, dict[int, str]]]) -> tuple[Tensor, Tensor, dict[int, str]]:
    """The results of all processes, ordered by video, so that the order does not depend on the number of processes."""
    videos_V = torch.cat([videos for _, videos, _ in parts])
    order = videos_V.argsort(stable=True)
    logits_VK = torch.cat([logits for logits, _, _ in parts])[order]
    failed = {video: reason for _, _, reasons in parts for video, reason in reasons.items()}
    return logits_VK, videos_V[order], failed


class Runner(Protocol):
    """What classifies clips: the model itself, or a way to it that many share.

    Attributes:
        device: where the model computes.
    """

    device: torch.device

    def __call__(self, clips_VTCHW: Tensor, lengths_V: Tensor | None = None, /) -> Tensor:
        """uint8 `V x T x C x H x W` -> float32 logits `V x K`, at the model's temperature."""


class ModelRunner:
    """A trained model on a device: uint8 clips to logits, in the run's precision and at its temperature.

    Args:
        trained: the model; it is moved to the device.
        device: None: an accelerator if there is one, else the CPU.
    """

    def __init__(self, trained: TrainedModel, *, device: torch.device | None = None):
        self.device = device or default_device()
        self.precision = inference_precision(trained.config["trainer"]["precision"], self.device.type)
        self.autocast = autocast(self.device, self.precision)
        self.temperature = trained.temperature
        self.preprocess = Preprocess(clip=trained.clip).to(self.device)
        self.model = channels_last(trained.model.to(self.device).eval())
        self.num_frames = trained.clip.num_frames

    @torch.inference_mode()
    def start_stream(self) -> Any:
        """`VideoModel.start_stream` with the present weights. Streams that start from one state can share steps."""
        return self.model.start_stream(self.num_frames)

    @torch.inference_mode()
    def __call__(self, clips_VTCHW: Tensor, lengths_V: Tensor | None = None) -> Tensor:
        """uint8 `V x T x C x H x W` -> float32 logits `V x K`, on the device."""
        clips = clips_VTCHW.to(self.device, non_blocking=True)
        lengths = None if lengths_V is None else lengths_V.to(self.device)
        with self.autocast:
            return run_model(self.model, self.preprocess, clips, lengths).float() / self.temperature

    @torch.inference_mode()
    def encode(self, clips_VTCHW: Tensor, lengths_V: Tensor | None = None) -> Tensor:
        """uint8 `V x T x C x H x W` -> float32 features of every frame `V x T x F`, on the CPU.

        Only of models that support the feature cache, as `classify_features`.
        """
        clips = clips_VTCHW.to(self.device, non_blocking=True)
        lengths = None if lengths_V is None else lengths_V.to(self.device)
        with self.autocast:
            return encode_clips(self.model, self.preprocess, clips, lengths).cpu()

    @torch.inference_mode()
    def classify_features(self, features_VTF: Tensor, lengths_V: Tensor | None = None) -> Tensor:
        """What `encode` returns -> float32 logits `V x K`, on the device: those of the clips."""
        features = features_VTF.to(self.device, non_blocking=True)
        lengths = None if lengths_V is None else lengths_V.to(self.device)
        with self.autocast:
            states_VF = self.model.aggregate(features, lengths)
            return self.model.forward_head(states_VF).float() / self.temperature
