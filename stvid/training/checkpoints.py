"""Checkpoints in a run folder that may be moved or copied between a run's beginning and its end."""

from __future__ import annotations

import os
from pathlib import Path

from pytorch_lightning.callbacks import ModelCheckpoint


def checkpoints(folder: Path) -> list[ModelCheckpoint]:
    """`best.ckpt`, by `val_criterion`, and `last.ckpt`, after every epoch whether it was validated or not."""
    return [
        RunCheckpoint(folder, "best", "val_criterion", mode="max", enable_version_counter=False),
        RunCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False),
    ]


class RunCheckpoint(ModelCheckpoint):
    """Lightning's, which forgets what its best so far was when the folder has another name than at the last save."""

    def load_state_dict(self, state_dict: dict) -> None:
        def here(path: str) -> str:
            return os.path.join(self.dirpath, os.path.basename(path)) if path else path

        paths = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): value for path, value in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})
