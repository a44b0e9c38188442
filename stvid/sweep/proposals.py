"""The values that each trial of a sweep gets: the next of a grid, or a proposal of Optuna. Early stopping of trials."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stvid.errors import InputError
from stvid.run.folder import RunFolder
from stvid.sweep.settings import Settings, read_sweep
from stvid.sweep.space import Choice, Interval, Space, grid_points
from stvid.sweep.trials import Trial

if TYPE_CHECKING:
    import optuna

STUDY_NAME = "sweep"
STOPPED_EPOCH = "stopped_at_epoch"  # user attribute of a trial in the journal


class GridSearch:
    """Every combination, in order; `sweep.trials` limits their number.

    Args:
        folder: of the sweep; not used, a grid keeps no state.
        space: what varies.
        settings: of the sweep.
    """

    def __init__(self, *, folder: Path, space: Space, settings: Settings) -> None:
        self.points = grid_points(space)[: settings.trials]
        self.total = len(self.points)

    def propose(self, number: int) -> dict[str, str]:
        """The values of trial `number`, from 0."""
        return self.points[number]

    def record(self, trial: Trial) -> None:
        """Does nothing: the points of a grid do not depend on results."""

    def stopped_epoch(self, number: int) -> int | None:
        """The epoch after which a trial was stopped early: always None."""


class OptunaSearch:
    """Proposals of Optuna, kept in a journal in the sweep's folder. The journal is append-only; trials write to it too.

    The values of a trial depend on (seed, number, earlier trials) only, so a resumed sweep equals an uninterrupted one.

    Args:
        folder: of the sweep.
        space: what varies.
        settings: of the sweep.
    """

    def __init__(self, *, folder: Path, space: Space, settings: Settings) -> None:
        self.journal = RunFolder(folder).journal_log
        truncate_partial_line(self.journal)
        self.study = open_study(self.journal, settings)
        self.dimensions, self.settings = space.varied, settings
        assert settings.trials is not None  # only a grid needs none
        self.total = settings.trials

    def propose(self, number: int) -> dict[str, str]:
        """The values of trial `number`, from 0; read from the journal if a kill came right after the proposal."""
        trials = self.study.get_trials(deepcopy=False)
        if number > len(trials):
            raise InputError(
                f"{self.journal.name} holds {len(trials)} trials, but {number} were started: it was cut or changed"
            )
        if number == len(trials):
            self.study.sampler = _sampler(self.settings, number)
            self.study.ask({key: _distribution(dimension) for key, dimension in self.dimensions.items()})
            trials = self.study.get_trials(deepcopy=False)
        params = trials[number].params
        return {key: _override_value(dimension, params[key]) for key, dimension in self.dimensions.items()}

    def record(self, trial: Trial) -> None:
        """Writes the result of a trial to the journal, unless it is there."""
        from optuna.trial import TrialState

        if self.study.get_trials(deepcopy=False)[trial.number].state.is_finished():
            return
        if trial.has_failed:
            self.study.tell(trial.number, state=TrialState.FAIL)
        elif self.stopped_epoch(trial.number) is not None:
            self.study.tell(trial.number, state=TrialState.PRUNED)
        else:
            self.study.tell(trial.number, trial.metrics["video_accuracy"])

    def stopped_epoch(self, number: int) -> int | None:
        """The epoch after which a trial was stopped early, or None."""
        return self.study.get_trials(deepcopy=False)[number].user_attrs.get(STOPPED_EPOCH)


class PruningReporter:
    """Reports the accuracy of a trial after each epoch, and returns whether the trial must stop.

    Runs in the trial's process and talks to the sweep through the journal.

    Args:
        folder: of the sweep.
        number: of the trial.
    """

    def __init__(self, *, folder: Path, number: int) -> None:
        from optuna.trial import Trial

        _, self.settings = read_sweep(folder)
        study = open_study(RunFolder(folder).journal_log, self.settings)
        self.number = number
        self.trial = Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)

    def __call__(self, epoch: int, value: float) -> bool:
        """Whether to stop after this epoch.

        Args:
            epoch: from 1. A value that was reported before a kill is not replaced.
            value: the objective; higher is better.
        """
        trial = self.trial
        if epoch not in trial.storage.get_trial(trial._trial_id).intermediate_values:
            trial.report(value, epoch)
        stop = self.number >= self.settings.startup_trials and trial.should_prune()
        # a trial that was stopped and then killed may pass when it resumes: other trials have ended since
        if stop or trial.user_attrs.get(STOPPED_EPOCH) is not None:
            trial.set_user_attr(STOPPED_EPOCH, epoch if stop else None)
        return stop


def pruning_reporter(run: Path) -> PruningReporter | None:
    """The reporter of a run; None unless the run is an unfinished trial of a sweep with a pruner.

    Args:
        run: the run's folder. A trial's folder is named by its number and lies in the sweep's folder.
    """
    sweep = RunFolder(run.parent)
    if not run.name.isdecimal() or not sweep.is_sweep or not sweep.journal_log.is_file():
        return None
    _, settings = read_sweep(sweep.path)
    if settings.pruner == "none":
        return None
    trials = open_study(sweep.journal_log, settings).get_trials(deepcopy=False)
    number = int(run.name)
    is_running = number < len(trials) and not trials[number].state.is_finished()
    return PruningReporter(folder=sweep.path, number=number) if is_running else None


def check_method(space: Space, settings: Settings) -> None:
    """Raises InputError if the method cannot search the space: a grid with an interval, no values, Optuna missing."""
    if settings.method == "grid":
        grid_points(space)
    elif not space.varied:
        example = "optimizer.lr=tag(log,interval(1e-4,1e-2))"
        raise InputError(f"sweep={settings.method}: nothing varies. Give a key several values, such as '{example}'")
    elif importlib.util.find_spec("optuna") is None:
        raise InputError(f"sweep={settings.method} needs Optuna: pip install 'stvid[search]'")


def open_study(journal: Path, settings: Settings) -> optuna.Study:
    """The study in a journal file; creates it if there is none."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))),
        study_name=STUDY_NAME,
        direction="maximize",
        load_if_exists=True,
        sampler=_sampler(settings, 0),
        pruner=_pruner(settings),
    )


def truncate_partial_line(journal: Path) -> None:
    """Removes a last line that a kill left incomplete: Optuna cannot read entries after it."""
    if not journal.is_file():
        return
    content = journal.read_bytes()
    if content and not content.endswith(b"\n"):
        with journal.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def _sampler(settings: Settings, number: int) -> optuna.samplers.BaseSampler:
    import optuna

    # one seed per trial: a single random stream would repeat its first values after a kill
    seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
    if settings.method == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # constant_liar treats running trials as poor ones, which keeps parallel proposals apart
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=settings.startup_trials, constant_liar=settings.parallel > 1
        )


def _pruner(settings: Settings) -> optuna.pruners.BasePruner:
    """Stops no trial before the end of epoch `warmup_epochs`; epochs count from 1."""
    import optuna

    if settings.pruner == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=settings.startup_trials, n_warmup_steps=settings.warmup_epochs
        )
    if settings.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=settings.warmup_epochs, reduction_factor=3)
    return optuna.pruners.NopPruner()


def _distribution(dimension: Choice | Interval) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Choice):
        if dimension.ordered:  # the index in the range, so that Optuna knows which values are neighbours
            return IntDistribution(0, len(dimension.values) - 1)
        return CategoricalDistribution(dimension.values)
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _override_value(dimension: Choice | Interval, value: str | float | int) -> str:
    """A value of Optuna's, written as in an override."""
    if isinstance(dimension, Choice):
        return dimension.values[int(value)] if dimension.ordered else str(value)
    return repr(value)
