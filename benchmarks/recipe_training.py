"""Trains the model behind a frozen encoder on stored features, as `train.py` does, but without Lightning: in seconds.

B clips in a batch   T frames   F features of a frame   N videos   K classes
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from stvid.data.cached_clips import FeatureSample, collate_features
from stvid.data.datamodule import VideoDataModule
from stvid.data.manifest import Item, Manifest
from stvid.data.sampler import EpochSampler, SampleKey
from stvid.device import resolve_precision
from stvid.metrics import average_views, log_loss
from stvid.preprocess import Preprocess
from stvid.run.config import compose_config
from stvid.run.config_tree import to_plain
from stvid.run.model import build_model
from stvid.training.ema import WeightEMA
from stvid.training.feature_encoding import store_features
from stvid.training.losses import by_branch, loss_of_branches
from stvid.training.task import ClassificationTask


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of a table.

    Attributes:
        name: of the row.
        overrides: of `train.py`.
        select: which epoch is tested: `best` on val, `smoothed` (best mean val loss of neighbouring epochs), `last`.
        average: test the moving average of the weights (`ema`), else the weights themselves.
        refit: train on train and val; only with `select: last`.
        images: images of each frame whose features are used, of those that were encoded; None: all.
        centred: of these images, the mean over the clip is subtracted from the features, which hides the scene.
        frames: frames of each clip that are used: `every N`, or `spread N` over the whole clip; None: all.
        beside: overrides of a second encoding of the same clips, whose images follow those of the first.
        draw: number of the random draw of first weights and batches; rows that differ in it alone are one ensemble.
        num_train: training videos that are used, chosen at random: how the recipe does with fewer; None: all.
        ensemble: names of settings of the study, whose probabilities are averaged, instead of all above.
    """

    name: str
    overrides: Sequence[str] = ()
    select: str = "best"
    average: bool = False
    refit: bool = False
    images: Sequence[int] | None = None
    centred: Sequence[int] = ()
    frames: str | None = None
    beside: Sequence[str] = ()
    draw: int = 0
    num_train: int | None = None
    ensemble: Sequence[str] = ()


@functools.lru_cache(maxsize=4)
def encode(items: tuple[Item, ...], overrides: tuple[str, ...]) -> tuple[VideoDataModule, list[list[list[Tensor]]]]:
    """The data module of a config with all items in train and in val, and the cached features of each item.

    Returns:
        Features `[0]`: those of val, one array `T x F` per view and item; `[1 + p]`: of the training clip of pass p.
    """
    config = compose_config(overrides)
    class_names = tuple(sorted({item.label for item in items}))
    twice = [replace(item, split=split, group=None) for split in ("train", "val") for item in items]
    node = config.data.datamodule
    del node.manifest, node.allow_leaks
    make = instantiate(node, _partial_=True, _convert_="all")
    data = make(manifest=Manifest(items=tuple(twice), class_names=class_names), allow_leaks=True)
    data.setup()
    settings = to_plain(config)
    torch.manual_seed(config.seed)
    model = build_model(settings["model"], num_classes=len(class_names), in_channels=data.clip.channels)
    task = ClassificationTask(
        model=model,
        preprocess=Preprocess(clip=data.clip),
        optimization=instantiate(config.optimizer, _convert_="all"),
        loss=instantiate(config.loss),
        record={"class_names": class_names},
    )
    precision = resolve_precision(config.trainer.precision, "cpu")
    store_features(data, task, precision=precision, device=torch.device("cpu"), config=settings["model"])
    passes = [("val", 0), *(("train", p) for p in range(data.passes))]
    features = [[list(data.cached[s][SampleKey(p, i)]["features"]) for i in range(len(items))] for s, p in passes]
    return data, features


def choose(features_TF: Tensor, setting: Setting, num_images: int) -> Tensor:
    """The images and frames that a setting uses."""
    if setting.frames is not None:
        kind, _, number = setting.frames.partition(" ")
        count, length = int(number), len(features_TF)
        middles = [(2 * i + 1) * length // (2 * count) for i in range(count)]
        features_TF = features_TF[::count] if kind == "every" else features_TF[middles]
    if setting.images is None and not setting.centred:
        return features_TF
    parts = list(features_TF.chunk(num_images, dim=1))
    for image in setting.centred:
        parts[image] = parts[image] - parts[image].mean(dim=0)
    return torch.cat([parts[image] for image in setting.images or range(num_images)], dim=1)


class Features:
    """The features of all items of a data set as a setting uses them, and their labels.

    Args:
        items: of the data set.
        setting: the row.
        base: overrides of the study.
    """

    def __init__(self, items: tuple[Item, ...], setting: Setting, base: tuple[str, ...]):
        self.class_names = sorted({item.label for item in items})
        self.labels = [self.class_names.index(item.label) for item in items]
        data, passes = encode(items, (*base, *setting.overrides))
        num_images = data.clip.channels // 3
        if setting.beside:
            more, others = encode(items, (*base, *setting.overrides, *setting.beside))
            num_images += more.clip.channels // 3
            passes = [
                [[torch.cat(pair, dim=1) for pair in zip(*views, strict=True)] for views in zip(*both, strict=True)]
                for both in zip(passes, others, strict=True)
            ]
        self.passes = [[[choose(view, setting, num_images) for view in views] for views in one] for one in passes]
        self.num_images = len(setting.images) if setting.images else num_images
        lengths = [len(views[0]) for views in self.passes[0]]
        self.lengths = lengths if data.clip.num_frames is None else None  # batches of similar lengths

    def batch(self, keys: Sequence[SampleKey], *, held_out: bool = False) -> dict:
        """Training clips, or all views of held-out items."""
        samples = [
            FeatureSample(
                features=torch.stack(self.passes[0 if held_out else 1 + key.epoch][key.index]),
                label=self.labels[key.index],
                video=key.index,
                path="",
            )
            for key in keys
        ]
        return dict(collate_features(samples))


def head_logits(model: nn.Module, batch: Mapping) -> Tensor:
    return model.forward_head(model.aggregate(batch["features"], batch["lengths"])).float()


@torch.inference_mode()
def predict(model: nn.Module, features: Features, indices: Sequence[int]) -> Tensor:
    """Probabilities `N x K` of held-out items, the mean over their views."""
    if not indices:
        return torch.empty(0, len(features.class_names))
    model.eval()
    batch = features.batch([SampleKey(0, index) for index in indices], held_out=True)
    probabilities_NK, videos_N = average_views(head_logits(model, batch), batch["videos"])
    model.train()
    place = {video: i for i, video in enumerate(videos_N.tolist())}
    return probabilities_NK[[place[index] for index in indices]]


class Average:
    """The moving average of all that is trained, as `WeightEMA` computes it; `decay` None: the weights themselves."""

    def __init__(self, model: nn.Module, decay: float | None):
        self.ema, self.step = None if decay is None else WeightEMA(decay=decay), 0
        self.average = copy.deepcopy(model)
        own, current = self.average.state_dict(), model.state_dict()  # they share the memory of the modules
        names = [name for name in own if not name.startswith("encoder.")]
        self.floats = [(own[name], current[name]) for name in names if own[name].is_floating_point()]
        self.others = [(own[name], current[name]) for name in names if not own[name].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        decay = self.ema.decay_at(self.step) if self.ema and self.step else 0.0
        for mean, weight in self.others:
            mean.copy_(weight)
        means, weights = map(list, zip(*self.floats, strict=True))
        torch._foreach_lerp_(means, weights, 1 - decay)
        self.step += 1


def train_fold(
    settings: Mapping, features: Features, parts: Mapping[str, Sequence[int]], *, config: DictConfig, seed: int
) -> dict:
    """Trains the model behind the encoder once.

    Returns:
        `weights` and `average`: for each epoch the accuracy and loss on val, and the share of right test videos (with
        no val, only for the last one). `probabilities`: of both on test, after the last epoch.
    """
    torch.manual_seed(seed)
    names, train = features.class_names, parts["train"]
    model = build_model(settings["model"], num_classes=len(names), in_channels=3 * features.num_images)
    batch_size, max_epochs = settings["data"]["batch_size"], settings["trainer"]["max_epochs"]
    sampler = EpochSampler(
        num_items=len(train),
        shuffle=True,
        seed=seed,
        lengths=features.lengths and [features.lengths[i] for i in train],
        batch_size=batch_size,
        passes=len(features.passes) - 1,
    )
    num_batches = max(len(train) // batch_size, 1)
    max_epochs = max(max_epochs, math.ceil((settings["min_steps"] or 0) / num_batches))
    optimizer, (schedule,) = instantiate(config.optimizer, _convert_="all").configure(model, num_batches * max_epochs)
    loss_of, mixing = instantiate(config.loss), instantiate(config.mixing)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    average, truth = Average(model, settings["ema"]), torch.tensor(features.labels)
    curves: dict[str, list] = {"weights": [], "average": []}
    for epoch in range(max_epochs):
        sampler.set_epoch(epoch)
        keys = [key._replace(index=train[key.index]) for key in sampler]
        for number in range(num_batches):
            rng = np.random.default_rng((seed, epoch, number, 0))
            torch.manual_seed(int(rng.integers(2**63)))
            batch = features.batch(keys[number * batch_size : (number + 1) * batch_size])
            targets_BK = nn.functional.one_hot(batch["labels"], len(names)).float()
            if mixing is not None:
                batch["features"], _, targets_BK = mixing(batch["features"], batch["lengths"], targets_BK, rng)
            loss_B, weight_B = loss_of_branches(loss_of, by_branch(head_logits(model, batch)), targets_BK)
            optimizer.zero_grad()
            (loss_B.sum() / weight_B.sum()).backward()
            nn.utils.clip_grad_norm_(trained, settings["trainer"]["gradient_clip_val"])
            optimizer.step()
            schedule["scheduler"].step()
            average.update()
        if parts["val"] or epoch + 1 == max_epochs:
            for name, tested in {"weights": model, "average": average.average}.items():
                probabilities = [predict(tested, features, parts[part]) for part in ("val", "test")]
                curves[name].append(_point(*probabilities, truth[parts["val"]], truth[parts["test"]]))
    last = {
        name: predict(tested, features, parts["test"]).tolist()
        for name, tested in (("weights", model), ("average", average.average))
    }
    return {**curves, "probabilities": last}


def _point(val_NK: Tensor, test_NK: Tensor, val_N: Tensor, test_N: Tensor) -> list[float | None]:
    right = (test_NK.argmax(1) == test_N).float().mean().item()
    if not len(val_N):
        return [None, None, right]
    return [(val_NK.argmax(1) == val_N).float().mean().item(), log_loss(val_NK, val_N), right]
