"""Loggers write into the run folder; if the package is missing, the error says how to install it."""

import importlib.util

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from stvid.errors import InputError
from stvid.training.callbacks import logger_arguments


def config(*overrides):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", overrides=list(overrides)).logger


def log_something(logger_config, run):
    logger = instantiate(logger_config, **logger_arguments(logger_config, run))
    logger.log_metrics({"val_loss": 0.5}, step=3)
    logger.finalize("success")
    return logger


def test_the_default_logger_writes_into_the_run_folder(tmp_path):
    log_something(config(), tmp_path)
    assert [path.parent.name for path in tmp_path.rglob("events*")] == ["tensorboard"]


def test_a_run_may_have_no_logger():
    assert config("logger=none") is None


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_an_input_error_with_the_install_command(name, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(InputError, match=rf"logger={name} .*pip install 'stvid\[{name}\]'"):
        logger_arguments(config(f"logger={name}"), tmp_path)


def test_mlflow_uses_a_database_in_the_run_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: object())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    logger_config = config("logger=mlflow")
    assert logger_arguments(logger_config, tmp_path)["tracking_uri"] == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    assert logger_arguments(logger_config, tmp_path)["tracking_uri"] == "http://localhost:5000"
    logger_config = config("logger=mlflow", "logger.tracking_uri=http://server")
    assert logger_arguments(logger_config, tmp_path)["tracking_uri"] == "http://server"


@pytest.mark.filterwarnings("ignore")
def test_mlflow_writes_metrics(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    logger = log_something(config("logger=mlflow"), tmp_path / "run")
    client = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path}/run/mlflow.db")
    (value,) = client.get_metric_history(logger.run_id, "val_loss")
    assert (value.step, value.value) == (3, 0.5)


@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_into_the_run_folder_when_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log_something(config("logger=wandb", "logger.offline=true"), tmp_path)
    wandb.finish()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
