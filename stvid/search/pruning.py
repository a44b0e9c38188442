"""How a trial learns, epoch by epoch, that it is not worth going on with."""

from __future__ import annotations

from pathlib import Path

from stvid.search.proposals import JOURNAL_NAME, STOPPED, open_study
from stvid.search.settings import SWEEP_NAME, read_sweep


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
