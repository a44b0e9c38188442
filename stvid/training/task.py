"""The LightningModule: model + loss + metrics + optimizer, wired, and no more.

B clips in a batch   T frames   C channels   H, W height and width   K classes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from stvid.clip import Preprocess, answer, channels_last
from stvid.errors import InputError
from stvid.metrics import ViewMetric
from stvid.training.optim import Optimization


class ClassificationTask(pl.LightningModule):
    """Trains a model to tell classes apart.

    Logs `train_loss`, `train_clip_accuracy` (on augmented clips), `val_loss`, `val_clip_accuracy`,
    `val_video_accuracy`, and `val_criterion`, by which the best checkpoint is chosen: the video accuracy, ties broken
    by the loss (`accuracy - 1e-4 * loss`; less would be lost in float32).

    Args:
        model: `B x C x T x H x W` (and lengths) -> logits `B x K`.
        preprocess: uint8 batches to the model's input.
        optimization: how it learns.
        class_weights: what a clip of each class counts in the training loss; None: all alike.
        label_smoothing: share of the truth spread over all classes, in [0, 1) (Szegedy et al. 2016).
        seed: with the epoch and the process, all that dropout depends on; so a resumed run is the same run.
        record: plain data that goes into every checkpoint under `stvid`, from which the model can be rebuilt.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        preprocess: Preprocess,
        optimization: Optimization,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        seed: int = 0,
        record: Mapping,
    ):
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise InputError(f"label_smoothing (={label_smoothing}) must lie in [0, 1)")
        self.model = channels_last(model)
        self.preprocess = preprocess
        self.optimization = optimization
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)  # follows from the data, not from training
        self.seed = seed
        self.record = record
        self.val_metric = ViewMetric()

    def forward(self, clips_BTCHW: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """uint8 `B x T x C x H x W` -> logits `B x K`."""
        return answer(self.model, self.preprocess, clips_BTCHW, lengths_B)

    def _answer(self, batch: Mapping) -> Tensor:
        """Logits `B x K` of a batch: of its clips, or of the features that have been stored of them."""
        if "features" in batch:
            return self.model.classify(batch["features"], batch["lengths"])
        return self(batch["clips"], batch["lengths"])

    def on_train_epoch_start(self) -> None:
        state = np.random.SeedSequence((self.seed, self.current_epoch, self.global_rank)).generate_state(1)
        torch.manual_seed(int(state[0]))

    def training_step(self, batch: dict, batch_idx: int) -> Tensor | None:
        if not len(batch["labels"]):
            # one process of several must not leave the others waiting for its gradients
            alone = self.trainer.world_size == 1
            return None if alone else sum((p * 0).sum() for p in self.model.parameters() if p.requires_grad)
        logits_BK = self._answer(batch)
        loss = nn.functional.cross_entropy(
            logits_BK.float(), batch["labels"], weight=self.class_weights, label_smoothing=self.label_smoothing
        )
        accuracy = (logits_BK.argmax(1) == batch["labels"]).float().mean()
        self.log("train_loss_step", loss.detach())
        logged = {"train_loss": loss.detach(), "train_clip_accuracy": accuracy}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=len(logits_BK), sync_dist=True)
        return loss

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        if len(batch["labels"]):
            logits_VK = self._answer(batch)
        else:
            logits_VK = torch.empty(0, len(self.record["class_names"]), device=self.device)
        self.val_metric.update(logits_VK, batch["labels"], batch["videos"], len(batch["failed"]))

    def on_validation_epoch_end(self) -> None:
        found = self.val_metric.compute()
        self.val_metric.reset()
        logged = {
            "val_loss": found.loss,
            "val_clip_accuracy": found.clip_accuracy,
            "val_video_accuracy": found.video_accuracy,
            "val_criterion": found.video_accuracy - 1e-4 * found.loss,
        }
        self.log_dict({name: torch.tensor(value, device=self.device) for name, value in logged.items()})

    def configure_optimizers(self) -> dict:
        num_steps = int(self.trainer.estimated_stepping_batches)
        optimizer, scheduler = self.optimization.configure(self.model, num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["stvid"] = dict(self.record)
