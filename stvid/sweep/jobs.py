"""How trials are run: composed, handed to Hydra's launcher, their errors brought back as words."""

from __future__ import annotations

import contextlib
import io
import logging
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

from stvid.errors import report_errors
from stvid.run.config import hydra_errors_as_input_errors
from stvid.sweep.proposals import JOURNAL_NAME, STOPPED, open_study
from stvid.sweep.settings import SWEEP_NAME, read_sweep
from stvid.sweep.trials import Trial, result_of

log = logging.getLogger("stvid")
ONE_BY_ONE = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


class TrialFailed(RuntimeError):
    """An error in a trial, in words: what comes back from another process, or is kept, must not hold its tensors.

    Attributes:
        message: for a person.
        is_mistake: of the user's, which another trial may share.
    """

    def __init__(self, message: str, is_mistake: bool) -> None:
        super().__init__(message, is_mistake)  # both, or it could not be pickled
        self.message, self.is_mistake = message, is_mistake

    def __str__(self) -> str:
        return self.message


class Task:
    """Calls the function that trains, writes its errors into the trial's log and raises them as TrialFailed."""

    def __init__(self, train: Callable[[DictConfig], float]) -> None:
        self.train = train

    def __call__(self, config: DictConfig) -> float:
        try:
            return self.train(config)
        except Exception as error:
            trace = traceback.format_exc()
            mistake = _mistake_of(error)
            failed = TrialFailed(mistake or f"{type(error).__name__}: {error}", mistake is not None)
        log.error("error: %s", mistake or trace)
        raise failed  # outside of the except block: with the error as its context, its frames would stay in memory


class Jobs:
    """Runs trials, each in the folder of its number below the sweep's: hydra.sweep.dir, or that of `resume=SWEEP`."""

    def __init__(self, *, context: HydraContext, task: TaskFunction, config: DictConfig) -> None:
        self.config, self.loader = config, context.config_loader
        self.folder = Path(OmegaConf.select(config, "resume") or config.hydra.sweep.dir).absolute()
        with flag_override(config, ["struct", "readonly"], [False, False]):
            config.hydra.sweep.dir = str(self.folder)  # where launchers keep what is theirs
        self.parser = OverridesParser.create(config_loader=self.loader)
        self.one_by_one = config.hydra.launcher._target_ == ONE_BY_ONE
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=Task(task), config=config
        )
        self.has_worked = False

    def compose(self, overrides: Sequence[str]) -> None:
        """Raises Hydra's errors for overrides that make no config."""
        self.loader.load_sweep_config(self.config, list(overrides))

    def run(self, trials: Sequence[Trial], fixed: Sequence[str], stopped_at: Callable[[int], int | None]) -> None:
        """Runs trials, at once where the launcher can, and notes in each what came of it.

        Args:
            fixed: overrides beside the trials' own.
            stopped_at: number of a trial -> the epoch after which it was told to stop, or None.
        """
        able = []
        for trial in trials:
            try:
                self.compose([*fixed, *trial.overrides])
                able.append(trial)
            except (HydraException, OmegaConfBaseException) as error:
                trial.fail(_mistake_of(error) or str(error), is_mistake=True)
        if not able:
            return
        lost = ""
        try:
            words = [[*fixed, *trial.overrides, *self._places(trial)] for trial in able]
            returns = self.launcher.launch(words, initial_job_idx=able[0].number)
        except Exception as error:  # a launcher raises what it likes when a worker dies, and gives nothing back
            if not self.has_worked:
                raise
            returns, lost = [None] * len(able), f"its process was lost: {type(error).__name__}: {error}"
        self.has_worked = True
        for trial, returned in zip(able, returns, strict=True):
            self._note(trial, returned, lost, stopped_at(trial.number))

    def _note(self, trial: Trial, returned: JobReturn | None, lost: str, stopped_at: int | None) -> None:
        run = self.folder / str(trial.number)
        if returned is None:
            value = result_of(run).get("video_accuracy")
            if value is None:
                trial.fail(lost)
            else:
                trial.end(value, run=run, stopped_at=stopped_at)
        elif returned.status == JobStatus.COMPLETED:
            trial.end(returned.return_value, run=run, stopped_at=stopped_at)
        else:
            error = returned._return_value  # the property raises it
            trial.fail(str(error), is_mistake=isinstance(error, TrialFailed) and error.is_mistake)

    def _places(self, trial: Trial) -> list[str]:
        """Not left to the launcher, which numbers what it is given, nor to `resume`, which a trial must not have."""
        folder = QuotedString(text=str(self.folder), quote=Quote.single).with_quotes()
        return [f"hydra.sweep.dir={folder}", f"hydra.sweep.subdir={trial.number}"]


def _mistake_of(error: Exception) -> str | None:
    """What `report_errors` tells the user of an error; None for one that is not the user's."""
    words = io.StringIO()
    try:
        with contextlib.redirect_stderr(words), report_errors(), hydra_errors_as_input_errors():
            raise error
    except SystemExit:
        return words.getvalue().removeprefix("error: ").strip()
    except Exception:
        return None


class Report:
    """Tells a sweep how a trial goes, and tells the trial whether to stop. Works in a process of its own.

    Args:
        folder: of the sweep.
        number: of the trial.
    """

    def __init__(self, *, folder: Path, number: int) -> None:
        from optuna.trial import Trial

        _, self.settings = read_sweep(folder)
        study = open_study(folder / JOURNAL_NAME, self.settings)
        self.number = number
        self.trial = Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)

    def __call__(self, epoch: int, value: float) -> bool:
        """Whether to stop after this epoch.

        Args:
            epoch: from 1; one that was reported before a kill keeps what was reported then.
            value: the objective, the higher the better.
        """
        trial = self.trial
        if epoch not in trial.storage.get_trial(trial._trial_id).intermediate_values:
            trial.report(value, epoch)
        stop = self.number >= self.settings.startup_trials and trial.should_prune()
        if stop or trial.user_attrs.get(STOPPED) is not None:  # told to stop, killed, and now better than it was
            trial.set_user_attr(STOPPED, epoch if stop else None)
        return stop


def report_of(run: Path) -> Report | None:
    """The way a run reports to its sweep; None where it is no trial of one that is still searching, or none is stopped.

    Args:
        run: the run's folder; a trial's bears its number and lies in the sweep's.
    """
    folder = run.parent
    if not run.name.isdecimal() or not (folder / SWEEP_NAME).is_file() or not (folder / JOURNAL_NAME).is_file():
        return None
    _, settings = read_sweep(folder)
    if settings.pruner == "none":
        return None
    trials = open_study(folder / JOURNAL_NAME, settings).get_trials(deepcopy=False)
    number = int(run.name)
    running = number < len(trials) and not trials[number].state.is_finished()
    return Report(folder=folder, number=number) if running else None
