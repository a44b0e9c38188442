"""Trains a model and judges it on validation videos.

python train.py                                         the built-in data set, a 3D CNN
python train.py model=cnn_lstm data=folder data.root=DIR
python train.py -m model=conv3d,cnn_lstm optimizer.lr=1e-3,3e-3
python train.py resume=RUN
"""

import logging
from functools import partial
from pathlib import Path

import hydra
import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from stvid.device import limit_cpu_threads, resolve_precision
from stvid.errors import report_errors
from stvid.evaluation.evaluate import evaluate, select_test_split
from stvid.preprocess import Preprocess
from stvid.report.report import write_results
from stvid.run.checkpoint import load_checkpoint, record
from stvid.run.config import hydra_errors_as_input_errors
from stvid.run.folder import display_path
from stvid.run.resume import last_checkpoint, starting_model
from stvid.run.start import as_used, finished, is_multirun, leaving_no_empty_run, open_run, save_run
from stvid.sweep.proposals import pruning_reporter
from stvid.sweep.sweep import register_sweeper
from stvid.training.batch_size import plan_batch
from stvid.training.callbacks import callbacks, close_logger, logger_arguments, plugins
from stvid.training.callbacks.progress import EpochTable
from stvid.training.feature_encoding import store_features
from stvid.training.lr_finder import find_lr
from stvid.training.task import ClassificationTask

log = logging.getLogger("stvid")


def train(config: DictConfig, run: Path) -> float:
    """One run, from its config to `result.json`; returns the video accuracy on val."""
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = instantiate(config.data.datamodule, _convert_="all")
    data.setup()
    classes = data.manifest.class_names
    plain = {**OmegaConf.to_container(config, resolve=True), "class_names": list(classes)}
    last = last_checkpoint(run, resume=bool(config.resume))
    model, data.position = starting_model(last, plain, data.clip, num_classes=len(classes))
    optimization = instantiate(config.optimizer, _convert_="all")

    precision = resolve_precision(config.trainer.precision, config.trainer.accelerator)
    options = {key: config[key] for key in ("save_every", "requeue", "ema", "early_stopping")}
    parts = {"precision": precision, "plugins": plugins(config.trainer.sync_batchnorm), "sync_batchnorm": False}
    make_trainer = partial(instantiate, config.trainer, _convert_="all", **parts)
    logger = instantiate(config.logger, **logger_arguments(config.logger, run)) if config.logger else False
    watching = callbacks(run, data, has_logger=bool(logger), report=pruning_reporter(run), **options)
    trainer = make_trainer(logger=logger, callbacks=[*watching, table := EpochTable(path=run / "metrics.csv")])
    limit_cpu_threads((device := trainer.strategy.root_device).type)
    log.info("%d training videos, %d to validate on; run folder %s", len(data.train), len(data.val), display_path(run))
    data.batch_size = plan_batch(model, optimization, data, device, precision, trainer.world_size, config.ema)
    plain = as_used(plain, precision=precision, batch_size=data.batch_size)

    task = ClassificationTask(
        model=model,
        preprocess=Preprocess(clip=data.clip),
        optimization=optimization,
        loss=instantiate(config.loss),
        mixing=instantiate(config.mixing),
        class_weights=data.class_weights,
        seed=config.seed,
        record=record(config=plain, clip=data.clip, class_names=classes, protocol=data.protocol),
    )
    store_features(data, task, precision=precision, device=device, config=plain["model"])
    if config.find_lr:
        return find_lr(make_trainer, task, data, run) or float("nan")
    if trainer.is_global_zero:
        save_run(run, plain, data.manifest)
    trainer.fit(task, datamodule=data, ckpt_path=last, weights_only=True)
    close_logger(logger)

    held = select_test_split(trained := load_checkpoint(run, calibrated=False, trust=config.trust), split="val")
    result, predictions = evaluate(trained, held, split="val", device=device, num_workers=data.num_workers)
    if trainer.is_global_zero:
        training = {"device": device.type, "precision": precision, **table.summary()}
        facts = {"config": plain, "data": data, "training": training, "epochs": trainer.current_epoch}
        write_results(trained, result, predictions, **facts)
    return result["video_accuracy"]


def train_or_tell(config: DictConfig) -> float:
    """The run, or what it has reached, where there is nothing left to do."""
    reached = finished(config)
    return train(*open_run(config)) if reached is None else reached


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config: DictConfig) -> float:
    if is_multirun():  # Hydra takes note of a run that failed and goes on with the next
        return train_or_tell(config)
    with report_errors(), hydra_errors_as_input_errors(), leaving_no_empty_run():
        return train_or_tell(config)


if __name__ == "__main__":
    register_sweeper()
    with report_errors(), hydra_errors_as_input_errors():
        main()
