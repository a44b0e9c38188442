"""Runs trials: composes their configs, passes them to Hydra's launcher, and records results and errors."""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from stvid.exits import report_errors
from stvid.run.config_errors import hydra_errors_as_input_errors
from stvid.sweep.trials import Trial, read_metrics

log = logging.getLogger("stvid")
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


class TrialFailed(RuntimeError):
    """The error of a trial, as text. Holds no traceback, so it can be pickled and keeps no tensors in memory.

    Attributes:
        message: for the user.
        is_mistake: the user's mistake (InputError), which other trials may share.
    """

    def __init__(self, message: str, is_mistake: bool) -> None:
        super().__init__(message, is_mistake)  # pickle calls the class with these arguments
        self.message, self.is_mistake = message, is_mistake

    def __str__(self) -> str:
        return self.message


class TrialFunction:
    """Calls the training function; writes its errors into the trial's log and raises them as TrialFailed."""

    def __init__(self, train: Callable[[DictConfig], float]) -> None:
        self.train = train

    def __call__(self, config: DictConfig) -> float:
        if multiprocessing.get_start_method(allow_none=True) == "loky":
            multiprocessing.set_start_method(None, force=True)  # joblib's workers set one that fails for data loaders
        try:
            return self.train(config)
        except Exception as error:
            trace = traceback.format_exc()
            message = _input_error_message(error)
            failed = TrialFailed(message or f"{type(error).__name__}: {error}", message is not None)
        log.error("error: " + (message or trace))  # several lines
        raise failed  # outside the except block: as its context, the error would keep its frames in memory


class TrialRunner:
    """Runs trials, each in its folder SWEEP/NUMBER. SWEEP is hydra.sweep.dir, or the value of `resume`."""

    def __init__(self, *, context: HydraContext, task: TaskFunction, config: DictConfig) -> None:
        self.config, self.loader = config, context.config_loader
        self.folder = Path(OmegaConf.select(config, "resume") or config.hydra.sweep.dir).absolute()
        with flag_override(config, ["struct", "readonly"], [False, False]):
            config.hydra.sweep.dir = str(self.folder)  # launchers keep their files here
        self.parser = OverridesParser.create(config_loader=self.loader)
        self.is_sequential = config.hydra.launcher._target_ == BASIC_LAUNCHER
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=TrialFunction(task), config=config
        )
        self.launcher_works = False

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The config of a trial. Raises Hydra's errors for overrides that make no config."""
        return self.loader.load_sweep_config(self.config, list(overrides))

    def run(self, trials: Sequence[Trial], fixed: Sequence[str], stopped_epoch: Callable[[int], int | None]) -> None:
        """Runs trials, in parallel if the launcher can, and records the result in each.

        Args:
            trials: to run.
            fixed: overrides that all trials share.
            stopped_epoch: number of a trial -> the epoch after which it was stopped early, or None.
        """
        valid = [trial for trial in trials if self._is_valid(trial, fixed)]
        if not valid:
            return
        launch_error = ""
        try:
            job_overrides = [[*fixed, *trial.overrides, *self._folder_overrides(trial)] for trial in valid]
            returns: Sequence = self.launcher.launch(job_overrides, initial_job_idx=valid[0].number)
        except Exception as error:  # when a worker dies, a launcher raises any error and returns no result
            if not self.launcher_works:
                raise
            launch_error = f"its process died: {type(error).__name__}: {error}"
            returns = [None] * len(valid)
        self.launcher_works = True
        for trial, job_return in zip(valid, returns, strict=True):
            self._record(trial, job_return, launch_error, stopped_epoch(trial.number))

    def _is_valid(self, trial: Trial, fixed: Sequence[str]) -> bool:
        """Whether the overrides compose; if not, the trial fails."""
        try:
            self.compose([*fixed, *trial.overrides])
        except (HydraException, OmegaConfBaseException) as error:
            trial.fail(_input_error_message(error) or str(error), is_mistake=True)
            return False
        return True

    def _record(self, trial: Trial, job_return: JobReturn | None, launch_error: str, stopped_epoch: int | None) -> None:
        run = self.folder / str(trial.number)
        if job_return is None:
            value = read_metrics(run).get("video_accuracy")
            if value is None:
                trial.fail(launch_error)
            else:
                trial.finish(value, run=run, stopped_epoch=stopped_epoch)
        elif job_return.status == JobStatus.COMPLETED:
            trial.finish(job_return.return_value, run=run, stopped_epoch=stopped_epoch)
        else:
            error = job_return._return_value  # the property `return_value` raises it
            trial.fail(str(error), is_mistake=isinstance(error, TrialFailed) and error.is_mistake)

    def _folder_overrides(self, trial: Trial) -> list[str]:
        """The trial's folder. A launcher would number jobs consecutively, but a retry may run trials 1 and 4."""
        folder = QuotedString(text=str(self.folder), quote=Quote.single).with_quotes()
        return [f"hydra.sweep.dir={folder}", f"hydra.sweep.subdir={trial.number}"]


def _input_error_message(error: Exception) -> str | None:
    """The message that `report_errors` prints for a user's mistake; None for any other error."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr), report_errors(), hydra_errors_as_input_errors():
            raise error
    except SystemExit:
        return stderr.getvalue().removeprefix("error: ").strip()
    except Exception:
        return None
