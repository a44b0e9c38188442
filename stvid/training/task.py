"""The LightningModule: model + loss + metrics + optimizer, wired, and no more.

B clips in a batch   T frames   C channels   H, W height and width   K classes
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
from stvid.training.losses import FiniteCheck
from stvid.training.mixing import Mixing
from stvid.training.optim import OptimizerFactory
from stvid.training.parallel import SyncedBatchNorm, shard


class Accuracies(NamedTuple):
    """Of one pass over a split's views. Accuracies are fractions in [0, 1].

    Attributes:
        loss: mean negative log probability of the true class, video level.
        clip_accuracy: share of views judged right, each for itself.
        video_accuracy: share of videos judged right by the mean of their views.

    A video that could not be read counts as wrong, with all its views; it is not in the loss.
    """

    loss: float
    clip_accuracy: float
    video_accuracy: float


class ViewMetric(Metric):
    """Gathers the logits of views, on any number of processes, and judges them (`Accuracies`) at the end of a pass."""

    full_state_update = False

    def __init__(self):
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
        right_V, right_N = logits.argmax(1) == labels, probabilities_NK.argmax(1) == labels_N
        views_a_video = len(right_V) / len(right_N)
        return Accuracies(
            loss=log_loss(probabilities_NK, labels_N),
            clip_accuracy=(right_V.sum() / (len(right_V) + failed * views_a_video)).item(),
            video_accuracy=(right_N.sum() / (len(right_N) + failed)).item(),
        )


class ClassificationTask(pl.LightningModule):
    """Trains a model to tell classes apart.

    Logs `train_loss`, `train_clip_accuracy` (on augmented clips; of mixed ones, the greater share counts), `val_loss`,
    `val_clip_accuracy` and `val_video_accuracy`.

    All that chance decides in a step is a function of the seed, the epoch, the step in it and the process; so a run
    that goes on from any step is the same run. Gradients are means over samples, however they lie on the processes; a
    step in which one of several processes could read none of its videos is left out by all.

    Args:
        model: `B x C x T x H x W` (and lengths) -> logits `B x K`.
        preprocess: uint8 batches to the model's input.
        optimization: how it learns.
        loss: `(logits_BK, targets_BK, class_weights_K) -> (loss_B, weight_B)`, see `stvid.training.losses`.
        mixing: of the clips of a batch; None: they stay as they are.
        class_weights: what a clip of each class counts in the training loss; None: all alike.
        seed: see above.
        record: plain data that goes into every checkpoint under `stvid`, from which the model can be rebuilt.
    """

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
        self.register_buffer("class_weights", weights, persistent=False)  # follows from the data, not from training
        self.seed, self.record = seed, record
        self.num_classes = len(record["class_names"])
        self.totals = torch.zeros(4)  # of the epoch until here: loss, weights, clips judged right, clips
        self.finite = FiniteCheck()
        self.stop_signal = lambda: 0  # that has told this process to stop (`Preemption` knows); 0: none
        self.agreed_signal = 0  # that had told any process to stop when the current step began
        self.val_metric = ViewMetric()

    def configure_model(self) -> None:
        """Under a strategy that spreads the model over devices, before there is an optimizer.

        Raises:
            InputError: features have been stored, so that the model is not called as a whole.
        """
        if self.device_mesh is not None:
            if getattr(self.trainer.datamodule, "cached", None):
                raise InputError("trainer=fsdp spreads a whole model: with a frozen encoder, add data.features=off")
            if self.trainer.strategy.sync_batchnorm:
                SyncedBatchNorm().apply(self.model)
            shard(self.model, self.device_mesh["data_parallel"])

    def forward(self, clips_BTCHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """uint8 `B x T x C x H x W` -> logits `B x K`."""
        return run_model(self.model, self.preprocess, clips_BTCHW, lengths_B)

    def _answer(self, inputs: Tensor, batch: Mapping) -> Tensor:
        """Logits `B x K` of a batch's clips, or of the features that have been stored of them."""
        if "features" in batch:
            return self.model.classify(inputs, batch["lengths"])
        return self(inputs, batch["lengths"])

    def on_train_start(self) -> None:
        self.totals = self.totals.to(self.device)

    def on_train_epoch_start(self) -> None:
        self.totals = torch.zeros(4, device=self.device)

    def on_train_batch_start(self, batch: dict, batch_idx: int) -> None:
        self.rng = np.random.default_rng((self.seed, self.current_epoch, batch_idx, self.global_rank))
        torch.manual_seed(int(self.rng.integers(2**63)))

    def training_step(self, batch: dict, batch_idx: int) -> Tensor | None:
        if not self._agree_on_step(len(batch["labels"])):
            alone = get_world_size() == 1
            return None if alone else sum((p * 0).sum() for p in self.model.parameters() if p.requires_grad)
        inputs = batch["features"] if "features" in batch else batch["clips"]
        targets_BK = inputs.new_zeros(len(inputs), self.num_classes, dtype=torch.float32)
        targets_BK.scatter_(1, batch["labels"][:, None], 1.0)
        if self.mixing is not None:
            inputs, _, targets_BK = self.mixing(inputs, batch["lengths"], targets_BK, self.rng)
        logits_BK = self._answer(inputs, batch).float()
        loss_B, weight_B = self.loss(logits_BK, targets_BK, self.class_weights)
        loss = loss_B.sum() / all_reduce(weight_B.sum()) * get_world_size() * self._window(batch_idx)
        self._take_note(batch, logits_BK.detach(), targets_BK, loss_B.detach(), weight_B)
        return loss

    def _agree_on_step(self, num_clips: int) -> bool:
        """Whether every process has clips of this batch: one without would leave the others waiting.

        The only exchange of a step whose result a GPU is waited for, and none of one process. With it, all processes
        learn whether one was told to stop, and whether the step before was bad.

        Raises:
            InputError: it was, see `FiniteCheck`; in every process alike.
        """
        if get_world_size() == 1:
            self.finite.look()
            return num_clips > 0
        has_none, signal = (
            torch.full((), float(value), device=self.device) for value in (num_clips == 0, self.stop_signal())
        )
        together = torch.stack([has_none, signal, self.finite.is_bad(self.device)])
        any_has_none, signal, is_bad = all_reduce(together, take="max").tolist()
        self.agreed_signal = int(signal)
        self.finite.resolve(bool(is_bad))
        return not any_has_none

    def _window(self, batch_idx: int) -> float:
        """Makes the mean over the batches of an optimizer step of Lightning's sum, also where an epoch ends early."""
        size = self.trainer.accumulate_grad_batches
        left = self.trainer.num_training_batches - batch_idx // size * size
        return size / min(size, left)

    def _take_note(self, batch: dict, logits_BK: Tensor, targets_BK: Tensor, loss_B: Tensor, weight_B: Tensor) -> None:
        right = (logits_BK.argmax(1) == targets_BK.argmax(1)).sum()
        num_clips = len(loss_B)
        sums = torch.stack([loss_B.sum(), weight_B.sum(), right.to(loss_B), loss_B.new_full((), num_clips)])
        self.totals = self.totals.to(sums.device) + sums.to(self.totals.dtype)
        self.finite.add_batch(batch["paths"], sums[0])
        self.log("train_loss_step", sums[0] / sums[1], batch_size=num_clips)

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None, gradient_clip_algorithm: str | None
    ) -> None:
        """Clips the gradients' norm as told, after a look whether it is a number at all.

        Raises:
            InputError: the loss or a gradient of this step or one before is not finite, see `FiniteCheck`.
        """
        if not self.finite.batches:  # nothing was read: no step, not even by momentum
            optimizer.zero_grad(set_to_none=True)
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.gradient_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        scaled = self.trainer.precision == "16-mixed"  # there the scaler leaves out steps that overflow
        self.finite.add_step(None if scaled else self.gradient_norm, number=self.global_step)
        if gradient_clip_val is None or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            parameters = (p for group in optimizer.param_groups for p in group["params"])
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    def on_train_batch_end(self, outputs: object, batch: dict, batch_idx: int) -> None:
        steps = self.trainer.max_steps
        if self.trainer.is_last_batch or 0 < steps <= self.global_step:
            self.finite.settle(self.device)
            loss, weight, right, num_clips = all_reduce(self.totals).tolist()
            logged = {"train_loss": loss / weight, "train_clip_accuracy": right / num_clips} if num_clips else {}
            self.log_dict(logged, on_step=False, on_epoch=True, batch_size=1)

    def on_validation_epoch_start(self) -> None:
        self.finite.settle(self.device)
        nothing = torch.empty(0, dtype=torch.int64, device=self.device)  # of what a process may have none
        self.val_metric.update(torch.empty(0, self.num_classes, device=self.device), nothing, nothing)

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        if len(batch["labels"]):
            logits_VK = self._answer(batch["features"] if "features" in batch else batch["clips"], batch)
            self.val_metric.update(logits_VK, batch["labels"], batch["videos"])
        self.val_metric.num_failed += len(batch["failed"])

    def on_validation_epoch_end(self) -> None:
        found = self.val_metric.compute()
        self.val_metric.reset()
        logged = {
            "val_loss": found.loss,
            "val_clip_accuracy": found.clip_accuracy,
            "val_video_accuracy": found.video_accuracy,
        }
        self.log_dict({name: torch.tensor(value, device=self.device) for name, value in logged.items()})
        for schedule in self.trainer.lr_scheduler_configs:  # Lightning's turn comes after the epoch's checkpoint
            if isinstance(schedule.scheduler, ReduceLROnPlateau):
                schedule.scheduler.step(found.loss)

    def configure_optimizers(self) -> tuple[list, list]:
        num_steps = int(self.trainer.estimated_stepping_batches)
        optimizer, schedules = self.optimization.configure(self.model, num_steps)
        return [optimizer], schedules

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        self.finite.settle(self.device)  # or bad weights would be saved
        checkpoint["stvid"] = dict(self.record)
        checkpoint["totals"] = all_reduce(self.totals)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        totals = checkpoint["totals"].cpu()
        self.totals = totals if self.global_rank == 0 else torch.zeros_like(totals)
