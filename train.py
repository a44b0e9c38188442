"""Trains a model and evaluates it on the validation videos.

python train.py                                         the built-in data set, a 3D CNN
python train.py DIR model=cnn_lstm                      videos in one folder per class, see docs/data.md
python train.py -m model=conv3d,cnn_lstm optimizer.lr=1e-3,3e-3
python train.py resume=RUN
python train.py --help                                  all choices and keys
"""

import sys

from stvid.exits import exit_on_sigterm, interrupt_normally, report_errors
from stvid.run.overrides import prepare_arguments

if __name__ == "__main__":  # a mistake in the command line does not wait for the imports below
    with report_errors():
        sys.argv[1:] = prepare_arguments(sys.argv[1:])

import logging
from functools import partial

import hydra
import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig

from stvid.data.loading import probe_cache
from stvid.device import resolve_precision, set_up_cpu
from stvid.evaluation.diagnosis import diagnose
from stvid.evaluation.evaluate import evaluate, load_manifest
from stvid.evaluation.results import write_result
from stvid.evaluation.text import headline
from stvid.preprocess import Preprocess
from stvid.report.report import draw_report
from stvid.run.accelerator import check_accelerator
from stvid.run.checkpoint import checkpoint_record, load_checkpoint
from stvid.run.config_errors import hydra_errors_as_input_errors
from stvid.run.config_tree import escape_interpolations, to_plain
from stvid.run.data_set import load_training_data
from stvid.run.first_model import build_or_resume_model
from stvid.run.folder import RunFolder, display_path, project_root
from stvid.run.provenance import run_record
from stvid.run.start import (
    finished_accuracy,
    is_multirun,
    locked_run,
    log_next_commands,
    open_run,
    run_summary,
    save_run,
    with_used_values,
)
from stvid.sweep.proposals import pruning_reporter
from stvid.sweep.sweep import register_sweeper
from stvid.training import ignore_expected_warnings
from stvid.training.batch_size import plan_batch
from stvid.training.callbacks import build_callbacks, build_plugins, close_logger, logger_arguments
from stvid.training.callbacks.bad_videos import read_bad_videos
from stvid.training.callbacks.preemption import keep_interrupts
from stvid.training.callbacks.progress import EpochTable
from stvid.training.feature_encoding import store_features
from stvid.training.lr_finder import find_lr
from stvid.training.refit import refit
from stvid.training.run_length import num_epochs
from stvid.training.task import ClassificationTask

log = logging.getLogger("stvid")


def train(config: DictConfig, folder: RunFolder, *, draws_report: bool) -> float:
    """Trains and evaluates one run. Returns its video accuracy on val; with `find_lr` the learning rate, or NaN."""
    ignore_expected_warnings()
    settings = to_plain(config)
    log.info("training %s; run folder %s", run_summary(settings), display_path(folder.path))

    # seed
    check_accelerator(config.trainer.accelerator, augment_device=config.augment.get("device"))
    pl.seed_everything(config.seed, workers=True, verbose=False)

    # data: the manifest with its splits, and which videos are unreadable
    data = load_training_data(config)
    class_names = data.manifest.class_names
    settings["class_names"] = list(class_names)
    log.info("%d training videos, %d validation videos, %d classes", len(data.train), len(data.val), len(class_names))

    # model: a new one, or that of the run's last checkpoint
    checkpoint = folder.last_ckpt if config.resume and folder.last_ckpt.is_file() else None
    model, data.position = build_or_resume_model(checkpoint, settings, data.clip, num_classes=len(class_names))

    # trainer: device, precision, callbacks, logger
    precision = resolve_precision(config.trainer.precision, config.trainer.accelerator)
    plugins = build_plugins(config.trainer.sync_batchnorm)
    make_trainer = partial(
        instantiate, config.trainer, _convert_="all", precision=precision, plugins=plugins, sync_batchnorm=False
    )
    arguments = escape_interpolations(logger_arguments(config.logger, folder.path)) if config.logger else {}
    logger = instantiate(config.logger, **arguments) if config.logger else False
    epoch_table = EpochTable(path=folder.metrics_csv, headspace=config.headspace)
    callbacks = build_callbacks(
        data,
        best_checkpoint=folder.best_ckpt,
        select=config.checkpoint,
        last_checkpoint=folder.last_ckpt,
        bad_videos=folder.bad_videos_csv,
        has_logger=bool(logger),
        save_every=config.save_every,
        requeue=config.requeue,
        ema=config.ema,
        early_stopping=config.early_stopping,
        report=pruning_reporter(folder.path),
    )
    trainer = make_trainer(logger=logger, callbacks=[*callbacks, epoch_table])
    device = trainer.strategy.root_device
    set_up_cpu(device.type)

    # batch size: as configured, or the largest one that fits
    optimization = instantiate(config.optimizer, _convert_="all")
    data.batch_size = plan_batch(model, optimization, data, device, precision, trainer.world_size, config.ema)
    settings = with_used_values(settings, precision=precision, batch_size=data.batch_size)

    # task: the training and validation steps
    make_task = partial(
        ClassificationTask,
        preprocess=Preprocess(clip=data.clip),
        optimization=optimization,
        loss=instantiate(config.loss),
        mixing=instantiate(config.mixing),
        class_weights=data.class_weights,
        seed=config.seed,
        record=checkpoint_record(config=settings, clip=data.clip, class_names=class_names, protocol=data.protocol),
    )
    task = make_task(model=model)
    encode = partial(
        store_features, precision=precision, device=device, config=settings["model"], verify=trainer.is_global_zero
    )
    epoch_table.encoding_seconds = encode(data, task)

    # fit
    if config.find_lr:
        return find_lr(make_trainer, task, data, folder.lr_finder_csv, picture=folder.lr_finder_png) or float("nan")
    if trainer.is_global_zero:
        save_run(folder, settings, data.manifest, data.infos)
    planned_epochs = partial(num_epochs, config.trainer.max_epochs, config.min_steps, data, trainer)
    trainer.fit_loop.max_epochs = planned_epochs()
    with keep_interrupts():
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    close_logger(logger)

    # result: the best checkpoint (see config.checkpoint), evaluated on val
    trained = load_checkpoint(folder.evaluated_ckpt, calibrated=False, trust=config.trust)
    val = load_manifest(trained, split="val")
    result, predictions = evaluate(trained, val, split="val", device=device, num_workers=data.num_workers)
    if config.refit:
        pl.seed_everything(config.seed, workers=True, verbose=False)
        data.move_val_to_train()
        model, _ = build_or_resume_model(None, settings, data.clip, num_classes=len(class_names))
        task = make_task(model=model, class_weights=data.class_weights)
        encode(data, task)
        epochs = min(trained.epoch, planned_epochs())  # of more videos, fewer epochs have as many steps
        refit(make_trainer, task, data, folder.refit_ckpt, folder.bad_videos_csv, num_epochs=epochs, ema=config.ema)
    if trainer.is_global_zero:
        training = {"device": device.type, "precision": precision, **epoch_table.summary()}
        bad = read_bad_videos(folder.bad_videos_csv)
        record = run_record(data.manifest, num_bad=len(bad), code=project_root() / "train.py")
        result = {**result, "seed": config.seed, **training, **record, "config": settings}
        write_result(folder.path, result, predictions)
        log.info("\n%s, epoch %d of %d", headline(result), result["epoch"], trainer.current_epoch)
        for line in diagnose(result, epoch_table.rows):
            log.info("%s", line)
        log_next_commands(folder, has_test=bool(data.manifest.select("test")))
        if draws_report:
            draw_report(trained, folder.path, cache=probe_cache(data.manifest))
            log.info("look at it   %s", display_path(folder.report_html))
    return result["video_accuracy"]


def train_unless_finished(config: DictConfig) -> float:
    """Trains, except for a resumed run that is already finished. Returns the video accuracy on val."""
    accuracy = finished_accuracy(config)
    if accuracy is not None:
        return accuracy
    is_trial = is_multirun()
    config, folder = open_run(config)
    return train(config, folder, draws_report=config.report and not is_trial)  # a sweep would draw one for each trial


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config: DictConfig) -> float:
    if is_multirun():  # stvid.sweep handles the errors of its trials
        with locked_run():
            return train_unless_finished(config)
    with report_errors(), hydra_errors_as_input_errors(), exit_on_sigterm(), locked_run():
        return train_unless_finished(config)


if __name__ == "__main__":
    interrupt_normally()
    register_sweeper()
    with report_errors(), hydra_errors_as_input_errors():
        main()
