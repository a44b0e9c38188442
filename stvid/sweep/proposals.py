"""Values that each trial of a sweep gets: the next of a grid, or what Optuna proposes."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stvid.errors import InputError
from stvid.sweep.settings import Settings
from stvid.sweep.space import Choice, Interval, Space, grid
from stvid.sweep.trials import Trial

if TYPE_CHECKING:
    import optuna

JOURNAL_NAME = "journal.log"
STUDY_NAME = "sweep"
STOPPED = "stopped_at_epoch"  # user attribute of a trial in the journal


class Grid:
    """Every combination, in order; with `sweep.trials` the first so many. `folder` is where a Study would keep more."""

    def __init__(self, *, folder: Path, space: Space, settings: Settings) -> None:
        self.points = grid(space)[: settings.trials]
        self.total = len(self.points)

    def propose(self, number: int) -> dict[str, str]:
        """The values of trial `number`, from 0."""
        return self.points[number]

    def record(self, trial: Trial) -> None:
        """Takes note of a trial that has ended: a grid learns nothing from it."""

    def stopped_at(self, number: int) -> int | None:
        """The epoch after which a trial was stopped early: never."""


class Study:
    """What Optuna proposes. Its journal in the sweep's folder is only ever added to, and shared with the trials.

    What a trial gets depends on (seed, number, the trials before it) alone, so that a sweep that was killed
    and goes on is the sweep that was not.
    """

    def __init__(self, *, folder: Path, space: Space, settings: Settings) -> None:
        mend(folder / JOURNAL_NAME)
        self.study = open_study(folder / JOURNAL_NAME, settings)
        self.dimensions, self.settings = space.varied, settings
        self.total = settings.trials

    def propose(self, number: int) -> dict[str, str]:
        """The values of trial `number`, from 0; what the journal has already, where a kill came right after it."""
        known = self.study.get_trials(deepcopy=False)
        if number > len(known):
            raise InputError(
                f"{JOURNAL_NAME} holds {len(known)} trials, and {number} were begun: it was cut or changed"
            )
        if number == len(known):
            self.study.sampler = _sampler(self.settings, number)
            self.study.ask({key: _distribution(dimension) for key, dimension in self.dimensions.items()})
            known = self.study.get_trials(deepcopy=False)
        drawn = known[number].params
        return {key: _text(dimension, drawn[key]) for key, dimension in self.dimensions.items()}

    def record(self, trial: Trial) -> None:
        """Takes note of a trial that has ended, if the journal has not."""
        from optuna.trial import TrialState

        if self.study.get_trials(deepcopy=False)[trial.number].state.is_finished():
            return
        if trial.has_failed:
            self.study.tell(trial.number, state=TrialState.FAIL)
        elif self.stopped_at(trial.number) is not None:
            self.study.tell(trial.number, state=TrialState.PRUNED)
        else:
            self.study.tell(trial.number, trial.metrics["video_accuracy"])

    def stopped_at(self, number: int) -> int | None:
        """The epoch after which a trial was stopped early, or None."""
        return self.study.get_trials(deepcopy=False)[number].user_attrs.get(STOPPED)


def check_method(space: Space, settings: Settings) -> None:
    """Raises InputError where a method cannot search a space: an interval in a grid, nothing to draw, no Optuna."""
    if settings.method == "grid":
        grid(space)
    elif not space.varied:
        some = "optimizer.lr=tag(log,interval(1e-4,1e-2))"
        raise InputError(f"sweep={settings.method}: nothing varies. Give what shall, such as '{some}'")
    elif importlib.util.find_spec("optuna") is None:
        raise InputError(f"sweep={settings.method} needs Optuna: pip install 'stvid[search]'")


def open_study(journal: Path, settings: Settings) -> optuna.Study:
    """The study that a journal holds, or a new one in it."""
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


def mend(journal: Path) -> None:
    """Cuts off a last line that a kill left without its end: Optuna could read nothing behind it."""
    if not journal.is_file():
        return
    content = journal.read_bytes()
    if content and not content.endswith(b"\n"):
        with journal.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def _sampler(settings: Settings, number: int) -> optuna.samplers.BaseSampler:
    import optuna

    # of its own for each trial: one that went on drawing would begin anew, with the same values, after a kill
    seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
    if settings.method == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # trials that run at the same time are kept apart by taking those without a result for poor ones
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=settings.startup_trials, constant_liar=settings.parallel > 1
        )


def _pruner(settings: Settings) -> optuna.pruners.BasePruner:
    """Stops after a `warmup_epochs`-th epoch at the earliest; epochs count from 1."""
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
        if dimension.ordered:  # its place in the range, so that neighbours are known as such
            return IntDistribution(0, len(dimension.values) - 1)
        return CategoricalDistribution(dimension.values)
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _text(dimension: Choice | Interval, drawn: str | float | int) -> str:
    """A drawn value as an override writes it."""
    if isinstance(dimension, Choice):
        return dimension.values[drawn] if dimension.ordered else str(drawn)
    return repr(drawn)
