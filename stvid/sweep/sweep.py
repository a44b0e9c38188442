"""A sweep, `python train.py -m`: proposes trials, runs them, keeps their results, prints the leaderboard."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from stvid.errors import InputError, train_command
from stvid.evaluation.cross_validation import evaluate_folds, folds_text
from stvid.evaluation.evaluation_run import EvaluationOptions
from stvid.evaluation.text import result_text
from stvid.exits import exit_on_sigterm
from stvid.report.report import draw_report
from stvid.run.checkpoint import load_checkpoint
from stvid.run.folder import RunFolder, display_path
from stvid.run.lock import locked_folder
from stvid.run.stored import read_config
from stvid.run.stored_run import stored_manifest
from stvid.run.trust import trusted_modules
from stvid.sweep.jobs import TrialRunner
from stvid.sweep.proposals import GridSearch, OptunaSearch, check_method
from stvid.sweep.settings import Settings, read_settings, resolve_sweep, write_sweep
from stvid.sweep.space import covering_points, read_space
from stvid.sweep.trials import (
    RUNNING,
    Trial,
    check_values,
    draw_summary,
    ranked,
    read_trials,
    summary_text,
    write_summary,
    write_trials,
)
from stvid.terminal import show, visible

log = logging.getLogger(__name__)
SWEEPER_NAME = "hydra_plugins.stvid.TrialSweeper"  # `_target_` in configs/hydra/sweeper/stvid.yaml
FOLD = "data.fold"  # a sweep over this key alone is a cross-validation


class TrialSweeper(Sweeper):
    """Hydra's way into a sweep: `hydra/sweeper=stvid`.

    Args:
        settings: the `sweep` section of the config.
    """

    def __init__(self, *, settings: Mapping[str, object]) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> None:
        assert self.hydra_context is not None  # since `setup`
        assert self.config is not None
        runner = TrialRunner(context=self.hydra_context, task=self.task_function, config=self.config)
        Sweep(runner=runner, settings=read_settings(self.settings), overrides=arguments).run()


def register_sweeper() -> None:
    """Makes `hydra/sweeper=stvid` known to Hydra; call it before `hydra.main`."""
    # Hydra instantiates a sweeper only if its name starts with `hydra_plugins.` and is in this table. An entry of our
    # own avoids a top-level package of that name, which Hydra would import in every program of the environment.
    Plugins.instance().class_name_to_class[SWEEPER_NAME] = TrialSweeper


class Sweep:
    """A new sweep, or the one in the folder, which resumes.

    Args:
        runner: runs trials.
        settings: the keys below `sweep`.
        overrides: all overrides of the command line but those of Hydra's own keys.

    Raises:
        InputError: wrong settings or overrides.
    """

    def __init__(self, *, runner: TrialRunner, settings: Settings, overrides: Sequence[str]) -> None:
        self.runner, self.folder = runner, runner.folder
        command_line = runner.parser.parse_overrides(list(overrides))
        self.overrides, self.settings = resolve_sweep(self.folder, command_line, settings)
        self.space = read_space(self.overrides, runner.parser)
        check_method(self.space, self.settings)
        self.trust: set[str] = set()  # modules outside of stvid that the command names
        for values in covering_points(self.space):
            config = runner.compose([*self.space.fixed, *Trial(number=0, values=values).overrides])
            trust, target = (OmegaConf.select(config, key) for key in ("trust", "model._target_"))
            self.trust |= set(trusted_modules(trust or (), target))

    def run(self) -> None:
        """Runs all trials, then prints the leaderboard and draws it.

        Raises:
            InputError: the first two trials failed by the same mistake; or mistakes are why a grid is incomplete, or
                why no trial succeeded.
            SystemExit: the same for other errors.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked_folder(RunFolder(self.folder)), exit_on_sigterm():
            write_sweep(self.folder, self.overrides, self.settings)
            self.trials = read_trials(self.folder, self.space)
            search_class = GridSearch if self.settings.method == "grid" else OptunaSearch
            self.search = search_class(folder=self.folder, space=self.space, settings=self.settings)
            try:
                self._run_trials(self._unfinished())
            except (KeyboardInterrupt, SystemExit):
                show(f"\nstopped. To resume: {train_command('-m', f'resume={display_path(self.folder)}')}")
                raise
            self._finish()

    def _unfinished(self) -> list[Trial]:
        """Trials that a kill interrupted, and failed trials if `retry_failed`."""
        for trial in self.trials:
            if trial.has_failed and self.settings.retry_failed:
                trial.status = RUNNING
            if trial.status != RUNNING:
                self.search.record(trial)
        return [trial for trial in self.trials if trial.status == RUNNING]

    def _run_trials(self, waiting: list[Trial]) -> None:
        """Runs the waiting trials, then new ones up to the total."""
        trials, parallel, total = self.trials, self.settings.parallel, self.search.total
        self._print_plan(finished=len(trials) - len(waiting))
        while waiting or len(trials) < total:
            while len(waiting) < parallel and len(trials) < total:
                values = self.search.propose(len(trials))
                check_values(self.space, values, where=f"{self.folder}, trial {len(trials)}")
                waiting.append(Trial(number=len(trials), values=values))
                trials.append(waiting[-1])
            batch, waiting = waiting[:parallel], waiting[parallel:]
            self._save()
            self.runner.run(batch, self.space.fixed, self.search.stopped_epoch)
            self._save()
            for trial in batch:
                self.search.record(trial)
                self._print_trial(trial)
            self._stop_if_all_fail_alike()

    def _stop_if_all_fail_alike(self) -> None:
        """Two trials with one mistake and no other result: a wrong data.root need not be tried a hundred times."""
        ended = [trial for trial in self.trials if trial.status != RUNNING]
        if len(ended) >= 2 and all(trial.is_mistake and trial.status == ended[0].status for trial in ended):
            raise InputError(f"{ended[0].message}\nAll {len(ended)} trials so far failed like this; the sweep stops")

    def _save(self) -> None:
        write_trials(self.folder, self.trials)
        write_summary(self.folder, self.trials)

    def _print_plan(self, *, finished: int) -> None:
        for key, dimension in self.space.varied.items():
            show(visible(f"{key}: {dimension}"))
        before = f", {finished} finished before" if finished else ""
        show(f"sweep={self.settings.method}: {self.search.total} trials{before}; folder {display_path(self.folder)}")
        parallel = self.settings.parallel
        if parallel == 1 and not self.runner.is_sequential:
            show("sweep.parallel=1: the launcher gets one trial at a time; sweep.parallel=N runs N in parallel")
        if parallel > 1 and self.runner.is_sequential:
            show(f"sweep.parallel={parallel}: trials run in parallel only with hydra/launcher=joblib, ray or submitit")
        sys.stdout.flush()

    def _print_trial(self, trial: Trial) -> None:
        best = ranked(self.trials)[0]
        value = f", video accuracy {trial.metrics['video_accuracy']:.4f}" if trial.metrics else ""
        if best.metrics:
            value += f"; best so far {best.metrics['video_accuracy']:.4f}, trial {best.number}"
        show(f"trial {trial.number} ({self.search.total} in all): {trial.status}{value}", flush=True)

    def _finish(self) -> None:
        """Prints and draws the leaderboard, or cross-validates; raises if trials failed."""
        is_folds = {key.lstrip("+") for key in self.space.varied} == {FOLD}
        show(summary_text(self.folder, self.space.fixed, self.trials, with_best=not is_folds))
        if self.space.varied and not is_folds and any(trial.metrics for trial in self.trials):
            draw_summary(self.trials, self.space.varied, picture := RunFolder(self.folder).summary_png)
            show(f"drawn to      {display_path(picture)}")
        failed = [trial for trial in self.trials if trial.has_failed]
        if is_folds and not failed and len(self.trials) > 1:
            self._cross_validate()
        if failed and (self.settings.method == "grid" or len(failed) == len(self.trials)):
            if all(trial.is_mistake for trial in failed):
                raise InputError(f"{len(failed)} of {len(self.trials)} trials failed: {failed[0].message}")
            raise SystemExit(1)  # each trial's train.log holds the traceback

    def _cross_validate(self) -> None:
        """Evaluates the test split. That leaks nothing: only the fold varies, so no choice depends on the results."""
        runs = [self.folder / str(trial.number) for trial in self.trials]
        if not stored_manifest(run=str(runs[0])).select("test"):
            show("no cross-validation: the data set has no test videos")
            return
        config = read_config(RunFolder(runs[0]).config_yaml)
        options = EvaluationOptions(num_workers=config.data.num_workers, trust=sorted(self.trust))
        evaluation = evaluate_folds(runs, options, folder=self.folder)
        if config.report:
            draw_report(load_checkpoint(runs[0], trust=sorted(self.trust)), evaluation.folder, cache=None)
        show(f"\n{result_text(evaluation.result)}\n\n{folds_text(evaluation.result)}")
        show(f"written to    {display_path(evaluation.folder)}/")
