"""The LightningModule: training and validation steps of a model, its loss, metrics and optimizer.

B clips in a batch   T frames   C channels   H, W height and width   K classes   V views   N videos
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import Metric

from stvid.distributed import all_reduce, get_world_size
from stvid.errors import InputError
from stvid.metrics import average_views, log_loss
from stvid.preprocess import Preprocess, channels_last, run_model
from stvid.training.losses import FiniteCheck, by_branch, loss_of_branches
from stvid.training.mixing import Mixing
from stvid.training.optim import OptimizerFactory
from stvid.training.parallel import ShardedStrategy, SyncedBatchNorm, shard


class Accuracies(NamedTuple):
    """Results of one pass over the views of a split. Accuracies are fractions in [0, 1].

    A video that could not be read counts as wrong, with all its views; it does not enter the loss.

    Attributes:
        loss: mean negative log probability of the true class, over videos.
        clip_accuracy: share of correctly classified views.
        video_accuracy: share of videos classified correctly by the mean probability of their views.
    """

    loss: float
    clip_accuracy: float
    video_accuracy: float


class ViewMetric(Metric):
    """Collects the logits of views in all processes and computes `Accuracies` at the end of a pass."""

    full_state_update = False
    logits: list[Tensor]
    labels: list[Tensor]
    videos: list[Tensor]
    num_failed: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("logits", "labels", "videos"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.add_state("num_failed", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits_VK: Tensor, labels_V: Tensor, videos_V: Tensor, num_failed: int = 0) -> None:
        self.num_failed += num_failed
        self.logits.append(logits_VK.float())
        self.labels.append(labels_V)
        self.videos.append(videos_V)

    def compute(self) -> Accuracies:
        failed = int(self.num_failed)
        logits, labels, videos = (
            torch.cat(list(state)) if isinstance(state, list) else state
            for state in (self.logits, self.labels, self.videos)
        )
        if not len(videos):
            return Accuracies(loss=float("nan"), clip_accuracy=0.0, video_accuracy=0.0)
        probabilities_NK, videos_N = average_views(logits, videos)
        labels_N = labels.new_zeros(int(videos_N.max()) + 1).index_put_((videos,), labels)[videos_N]
        correct_V, correct_N = logits.argmax(1) == labels, probabilities_NK.argmax(1) == labels_N
        views_per_video = len(correct_V) / len(correct_N)
        return Accuracies(
            loss=log_loss(probabilities_NK, labels_N),
            clip_accuracy=(correct_V.sum() / (len(correct_V) + failed * views_per_video)).item(),
            video_accuracy=(correct_N.sum() / (len(correct_N) + failed)).item(),
        )


class ClassificationTask(pl.LightningModule):
    """Trains a video classification model.

    Logs `train_loss`, `train_clip_accuracy` (on augmented clips; the target of a mixed clip is its class with the
    larger share), `val_loss`, `val_clip_accuracy` and `val_video_accuracy`.

    All randomness is derived from (seed, epoch, step, rank), so a run resumed at any step gives the same result.
    Gradients are means over the clips of all processes, even if the processes have different numbers of clips. If a
    process could read none of its videos, all processes skip the step.

    Args:
        model: `B x C x T x H x W` (and lengths `B`) -> logits `B x K`.
        preprocess: turns uint8 clips into the model's input.
        optimization: builds the optimizer and the learning-rate schedule.
        loss: `(logits_BK, targets_BK, class_weights_K) -> (loss_B, weight_B)`, see `stvid.training.losses`.
        mixing: mixup or cutmix; None: no mixing.
        class_weights: weight of a clip of each class in the training loss; None: all 1.
        seed: seed of mixing and dropout.
        record: plain data to rebuild the model from; saved in every checkpoint under `stvid`.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        model: nn.Module,
        preprocess: Preprocess,
        optimization: OptimizerFactory,
        loss: Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]],
        mixing: Mixing | None = None,
        class_weights: Sequence[float] | None = None,
        seed: int = 0,
        record: Mapping,
    ):
        super().__init__()
        self.model = channels_last(model)
        self.preprocess, self.optimization = preprocess, optimization
        self.loss, self.mixing = loss, mixing
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)  # computed from the data set
        self.seed, self.record = seed, record
        self.rng = np.random.default_rng(seed)  # that of the step, from `on_train_batch_start` on
        self.num_classes = len(record["class_names"])
        self.totals = torch.zeros(4)  # sums over the epoch so far: loss, weights, correct clips, clips
        self.finite = FiniteCheck()
        self.stop_signal = lambda: 0  # signal that this process received, set by `Preemption`; 0: none
        self.agreed_signal = 0  # signal that any process had received when the current step began; 0: none
        self.val_metric = ViewMetric()

    def configure_model(self) -> None:
        """Shards the model (`trainer=fsdp`), before the optimizer is built.

        Raises:
            InputError: training uses stored features, so the model is never called as a whole.
        """
        if self.device_mesh is not None:
            if getattr(self.trainer.datamodule, "cached", None):  # type: ignore[attr-defined] # set by Lightning
                raise InputError(
                    "trainer=fsdp does not work with the cached features of a frozen encoder: add data.features=off"
                )
            strategy = self.trainer.strategy
            if isinstance(strategy, ShardedStrategy) and strategy.sync_batchnorm:
                SyncedBatchNorm().apply(self.model)
            shard(self.model, self.device_mesh["data_parallel"])

    def forward(self, clips_BTCHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """uint8 `B x T x C x H x W` -> logits `B x K`."""
        return run_model(self.model, self.preprocess, clips_BTCHW, lengths_B)

    def _logits(self, model: nn.Module, inputs: Tensor, batch: Mapping) -> Tensor:
        """Logits `B x K` or `B x R x K` of the clips of a batch, or of their stored features; see `VideoModel`."""
        if "features" in batch:
            features_BF = model.aggregate(inputs, batch["lengths"])  # type: ignore[operator] # a `VideoModel`
            return model.forward_head(features_BF)  # type: ignore[operator]
        return run_model(model, self.preprocess, inputs, batch["lengths"])

    def compute_losses(
        self, model: nn.Module, batch: Mapping, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The forward pass of a training step. The task does not change; batch norms of the model do.

        Args:
            model: the task's, or a copy of it.
            batch: on the model's device, with at least one clip.
            rng: for the mixing of clips.

        Returns:
            Logits `B x R x K` of R branches, targets `B x K` after mixing, and loss and weight of every clip, each `B`.
        """
        inputs = _inputs(batch)
        targets_BK = inputs.new_zeros(len(inputs), self.num_classes, dtype=torch.float32)
        targets_BK.scatter_(1, batch["labels"][:, None], 1.0)
        if self.mixing is not None:
            inputs, _, targets_BK = self.mixing(inputs, batch["lengths"], targets_BK, rng)
        logits_BRK = by_branch(self._logits(model, inputs, batch).float())
        loss_B, weight_B = loss_of_branches(self.loss, logits_BRK, targets_BK, self.class_weights)
        return logits_BRK, targets_BK, loss_B, weight_B

    def on_train_start(self) -> None:
        self.totals = self.totals.to(self.device)

    def on_train_epoch_start(self) -> None:
        self.totals = torch.zeros(4, device=self.device)

    def on_train_batch_start(self, batch: dict, batch_idx: int) -> None:
        self.rng = np.random.default_rng((self.seed, self.current_epoch, batch_idx, self.global_rank))
        torch.manual_seed(int(self.rng.integers(2**63)))

    def training_step(self, batch: dict, batch_idx: int) -> Tensor | None:
        if not self._sync_step_flags(len(batch["labels"])):
            if get_world_size() == 1:
                return None
            # DDP needs a backward pass
            return sum((p * 0).sum() for p in self.model.parameters() if p.requires_grad)  # type: ignore[return-value]
        logits_BRK, targets_BK, loss_B, weight_B = self.compute_losses(self.model, batch, self.rng)
        loss = loss_B.sum() / all_reduce(weight_B.sum()) * get_world_size() * self._accumulation_factor(batch_idx)
        self._record_batch(batch, logits_BRK.detach().mean(1), targets_BK, loss_B.detach(), weight_B)
        return loss

    def _sync_step_flags(self, num_clips: int) -> bool:
        """Whether every process has clips in this batch; a process without clips would block the others.

        Several processes exchange this once per step, the only time a step waits for the GPU. The same all-reduce tells
        all processes whether one of them received a signal to stop, and whether the last step was bad.

        Raises:
            InputError: the last step was bad, see `FiniteCheck`; in every process.
        """
        if get_world_size() == 1:
            self.finite.check()
            return num_clips > 0
        has_none, signal = (
            torch.full((), float(value), device=self.device) for value in (num_clips == 0, self.stop_signal())
        )
        flags = torch.stack([has_none, signal, self.finite.has_bad_step(self.device)])
        any_has_none, signal, is_bad = all_reduce(flags, op="max").tolist()
        self.agreed_signal = int(signal)
        self.finite.finish_all(bool(is_bad))
        return not any_has_none

    def _accumulation_factor(self, batch_idx: int) -> float:
        """Corrects the loss in the last optimizer step of an epoch if it accumulates fewer batches than the others.

        Lightning divides every loss by `accumulate_grad_batches`.
        """
        size = self.trainer.accumulate_grad_batches
        remaining = self.trainer.num_training_batches - batch_idx // size * size
        return size / min(size, remaining)

    def _record_batch(
        self, batch: dict, logits_BK: Tensor, targets_BK: Tensor, loss_B: Tensor, weight_B: Tensor
    ) -> None:
        """Adds a batch to the epoch's sums and to the check for finite values."""
        num_correct = (logits_BK.argmax(1) == targets_BK.argmax(1)).sum()
        num_clips = len(loss_B)
        sums = torch.stack([loss_B.sum(), weight_B.sum(), num_correct.to(loss_B), loss_B.new_full((), num_clips)])
        self.totals = self.totals.to(sums.device) + sums.to(self.totals.dtype)
        self.finite.add_batch(batch["paths"], sums[0])
        self.log("train_loss_step", sums[0] / sums[1], batch_size=num_clips)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the gradients, after the check for NaN and infinite values.

        Raises:
            InputError: the loss or a gradient of this or an earlier step is not finite, see `FiniteCheck`.
        """
        if not self.finite.batches:  # no video was read: without gradients, the optimizer changes nothing
            optimizer.zero_grad(set_to_none=True)
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.gradient_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        has_scaler = self.trainer.precision == "16-mixed"  # the gradient scaler skips steps that overflow
        self.finite.add_step(None if has_scaler else self.gradient_norm, number=self.global_step)
        if gradient_clip_val is None or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            parameters = (p for group in optimizer.param_groups for p in group["params"])
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    def on_train_batch_end(self, outputs: object, batch: dict, batch_idx: int) -> None:
        max_steps = self.trainer.max_steps
        if self.trainer.is_last_batch or 0 < max_steps <= self.global_step:
            self.finite.wait(self.device)
            loss, weight, num_correct, num_clips = all_reduce(self.totals).tolist()
            metrics = {"train_loss": loss / weight, "train_clip_accuracy": num_correct / num_clips} if num_clips else {}
            self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=1)

    def on_validation_epoch_start(self) -> None:
        self.finite.wait(self.device)
        no_indices = torch.empty(0, dtype=torch.int64, device=self.device)  # a process may have no videos of val
        self.val_metric.update(torch.empty(0, self.num_classes, device=self.device), no_indices, no_indices)

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        if len(batch["labels"]):
            logits_VK = self._logits(self.model, _inputs(batch), batch)
            self.val_metric.update(logits_VK, batch["labels"], batch["videos"])
        self.val_metric.num_failed += len(batch["failed"])

    def on_validation_epoch_end(self) -> None:
        results = self.val_metric.compute()
        self.val_metric.reset()
        metrics = {f"val_{name}": torch.tensor(value, device=self.device) for name, value in results._asdict().items()}
        self.log_dict(metrics)
        for config in self.trainer.lr_scheduler_configs:  # Lightning would do this after the epoch's checkpoint
            if isinstance(config.scheduler, ReduceLROnPlateau):
                config.scheduler.step(results.loss)

    def configure_optimizers(self) -> tuple[list, list]:
        num_steps = int(self.trainer.estimated_stepping_batches)
        optimizer, schedulers = self.optimization.configure(self.model, num_steps)
        return [optimizer], schedulers

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        self.finite.wait(self.device)  # before weights that may be NaN are saved
        checkpoint["stvid"] = dict(self.record)
        checkpoint["totals"] = all_reduce(self.totals)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        totals = checkpoint["totals"].cpu()
        self.totals = totals if self.global_rank == 0 else torch.zeros_like(totals)


def _inputs(batch: Mapping) -> Tensor:
    """Stored features `B x T x F` if the batch has them, else uint8 clips `B x T x C x H x W`."""
    return batch["features"] if "features" in batch else batch["clips"]
