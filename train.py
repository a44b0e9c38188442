"""Trains a model and judges it on validation videos.

python train.py                                         the built-in data set, a 3D CNN
python train.py model=cnn_lstm data=folder data.root=DIR
python train.py -m model=conv3d,cnn_lstm optimizer.lr=1e-3,3e-3
python train.py resume=RUN
"""

import logging
from pathlib import Path

import hydra
import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import TensorBoardLogger

from stvid.checkpoint import CHECKPOINTS, build_model, check_fit, load, record
from stvid.clip import Preprocess
from stvid.config import report_errors
from stvid.evaluation.evaluate import MANIFEST_NAME, evaluate, headline, held_out
from stvid.files import write_json
from stvid.pricing import plan_batch
from stvid.run import CONFIG_NAME, is_sweep, leaving_no_empty_run, open_run, shown, tell_next_steps
from stvid.training.bad_videos import BadVideos
from stvid.training.checkpoints import checkpoints
from stvid.training.epochs import EpochTable, ProgressBar
from stvid.training.features import store_features
from stvid.training.hardware import leave_cores_to_readers, resolve_precision
from stvid.training.task import ClassificationTask

log = logging.getLogger("stvid")


def train(config: DictConfig, run: Path) -> float:
    """One run, from its config to `result.json`; returns the video accuracy on val."""
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = instantiate(config.data.datamodule, _convert_="all")
    data.setup()
    classes = data.manifest.class_names
    plain = {**OmegaConf.to_container(config, resolve=True), "class_names": list(classes)}
    last = file if config.resume and (file := run / CHECKPOINTS / "last.ckpt").is_file() else None
    sizes = {"num_classes": len(classes), "in_channels": data.clip.channels}
    model = load(last).model.train() if last else build_model(plain["model"], **sizes)
    check_fit(model, data.clip)
    task = ClassificationTask(
        model=model,
        preprocess=Preprocess(clip=data.clip),
        optimization=instantiate(config.optimizer, _convert_="all"),
        class_weights=data.class_weights,
        label_smoothing=config.label_smoothing,
        seed=config.seed,
        record=record(config=plain, clip=data.clip, class_names=classes, protocol=data.protocol),
    )
    precision = resolve_precision(config.trainer.precision, config.trainer.accelerator)
    trainer = instantiate(
        config.trainer,
        _convert_="all",
        precision=precision,
        logger=TensorBoardLogger(save_dir=run, name="tensorboard", version=""),
        callbacks=[
            *checkpoints(run / CHECKPOINTS),
            LearningRateMonitor(logging_interval="step"),
            BadVideos(path=run / "bad_videos.csv", most=data.most_bad, known=data.bad),
            ProgressBar(),
            table := EpochTable(path=run / "metrics.csv"),
        ],
    )
    leave_cores_to_readers((device := trainer.strategy.root_device).type)
    log.info("%d training videos, %d to validate on; run folder %s", len(data.train), len(data.val), shown(run))
    data.batch_size = plan_batch(task, data, device, precision, trainer.world_size)
    plain["data"]["datamodule"]["batch_size"] = data.batch_size
    store_features(data, task, precision=precision, device=device, config=plain["model"])
    if trainer.is_global_zero and not (config.resume and (run / MANIFEST_NAME).exists()):
        data.manifest.write_csv(run / MANIFEST_NAME)
        OmegaConf.save(OmegaConf.create(plain), run / CONFIG_NAME)
    trainer.fit(task, datamodule=data, ckpt_path=last, weights_only=True)
    if not trainer.is_global_zero:
        return 0.0

    held = held_out(trained := load(run), split="val")
    result, _ = evaluate(trained, held, split="val", device=device, num_workers=data.num_workers)
    write_json(run / "result.json", {**result, "seed": config.seed, "training_seconds": table.seconds})
    log.info("\n%s, epoch %d of %d", headline(result), trained.epoch, trainer.current_epoch)
    tell_next_steps(run, has_test=bool(data.manifest.select("test")))
    return result["video_accuracy"]


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config: DictConfig) -> float:
    if is_sweep():  # Hydra takes note of a run that failed and goes on with the next
        return train(*open_run(config))
    with report_errors(), leaving_no_empty_run():
        return train(*open_run(config))


if __name__ == "__main__":
    with report_errors():
        main()
