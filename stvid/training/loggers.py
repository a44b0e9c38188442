"""Where curves go; `metrics.csv` is always written beside them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

from stvid.errors import InputError

PACKAGES = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}  # that a logger needs, each an extra of its own name


def logger_arguments(config: Mapping, run: Path) -> dict[str, str]:
    """What a choice of `configs/logger` leaves open: `save_dir`, the run folder; with MLflow also `tracking_uri`.

    That one is the config's, else the environment's `MLFLOW_TRACKING_URI`, else a data base in the run folder, since
    MLflow 3 refuses plain folders.

    Raises:
        InputError: the logger's package is not installed.
    """
    name = str(config["_target_"]).rsplit(".", 1)[-1]
    package = PACKAGES.get(name)
    if package and importlib.util.find_spec(package) is None:
        raise InputError(f"logger={package} needs a package that is not installed: pip install 'stvid[{package}]'")
    if name != "MLFlowLogger":
        return {"save_dir": str(run)}
    known = config.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI")
    return {"save_dir": str(run), "tracking_uri": known or f"sqlite:///{run.absolute()}/mlflow.db"}


def close_logger(logger: object) -> None:
    """Ends what a logger has begun: Weights & Biases would take the next run of a sweep for the same one."""
    if type(logger).__name__ == "WandbLogger":
        import wandb  # an extra

        wandb.finish()
