"""What a trained model costs, for a page that says how good it is."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping

from stvid.checkpoint import TrainedModel
from stvid.clip import Preprocess
from stvid.cost.estimate import estimate
from stvid.cost.report import CostReport
from stvid.errors import InputError
from stvid.models.recompute import checkpoint_stages
from stvid.training.hardware import resolve_precision

log = logging.getLogger(__name__)

WHOLE_VIDEO = 16  # frames that are priced where a model sees whole videos
MANY_CHUNKS = 200  # of frames in a step; more take long to price
AUTO = {"cpu": "32-true", "cuda": "bf16-mixed"}  # what trainer.precision=auto most often was, where a run does not say


def trained_on(trained: TrainedModel, run: Mapping) -> tuple[str, str]:
    """The kind of device (`cpu` or `cuda`) and the precision of a training, whatever machine asks.

    Args:
        trained: the model.
        run: the run's own `result.json`, or nothing. Where it does not say (a run that was not finished, or one of an
            older version), a GPU's memory tells the device, and the config the precision.
    """
    device = "cuda" if on_gpu(run) else "cpu"
    precision = run.get("precision") or trained.config["trainer"]["precision"]
    return device, AUTO[device] if precision == "auto" else resolve_precision(precision, device)


def on_gpu(run: Mapping) -> bool:
    """Whether a run was trained on CUDA devices, by its own `result.json`."""
    if "device" in run:
        return run["device"] == "cuda"
    return run.get("peak_memory_gib", {}).get("gpu") is not None


def price(trained: TrainedModel, run: Mapping) -> CostReport | None:
    """What the model needs as it was trained (`trained_on`), with AdamW; None where it cannot be simulated.

    Args:
        trained: the model.
        run: the run's own `result.json`, or nothing.
    """
    config, clip = trained.config, trained.clip
    device, precision = trained_on(trained, run)
    model = trained.model
    if config.get("gradient_checkpointing"):
        model = copy.deepcopy(model)
        checkpoint_stages(model)
    num_frames = clip.num_frames or WHOLE_VIDEO
    try:
        return estimate(
            model,
            (clip.channels, num_frames, *clip.size),
            batch_size=_batch_size(trained, num_frames),
            precision=precision,
            device=device,
            preprocess=Preprocess(clip=clip),
            ema=config.get("ema") is not None,
        )
    except InputError as error:
        log.info("cost not known: %s", error)
    except Exception:  # a model that computes with NumPy, for example, answers and cannot be simulated
        log.warning("cost not known: the simulation of a training step failed", exc_info=True)
    return None


def _batch_size(trained: TrainedModel, num_frames: int) -> int:
    """As in training; one clip where frames go through the model in very many chunks."""
    size, chunk = trained.config["data"]["datamodule"]["batch_size"], getattr(trained.model, "encoder_chunk", None)
    if not isinstance(size, int) or (chunk is not None and size * num_frames > MANY_CHUNKS * chunk):
        return 1
    return size
