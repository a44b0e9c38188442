"""A sweep from its first trial to the table: has trials proposed and run, keeps what came of them."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import OmegaConf

from stvid.errors import InputError, train_command
from stvid.evaluation.cross_validation import folds_text
from stvid.evaluation.evaluation_run import EvaluationOptions, evaluate_folds
from stvid.evaluation.text import result_text
from stvid.report.report import draw_report
from stvid.run.checkpoint import load_checkpoint
from stvid.run.folder import CONFIG_NAME, display_path
from stvid.run.start import kept_manifest
from stvid.sweep.jobs import Jobs
from stvid.sweep.proposals import Grid, Study, check_method
from stvid.sweep.settings import Settings, alone_in, begin, ending_on_sigterm, write_sweep
from stvid.sweep.space import read_space, samples
from stvid.sweep.trials import (
    PICTURE_NAME,
    RUNNING,
    Trial,
    closing_words,
    draw,
    ranked,
    read_trials,
    write_summary,
    write_trials,
)

FOLD = "data.fold"  # a sweep over nothing else is a cross-validation


class Sweep:
    """A new sweep, or the one in the folder, that goes on.

    Args:
        jobs: runs trials.
        settings: how to search.
        overrides: of the command line, but for Hydra's own.

    Raises:
        InputError: what to search, or how, is wrong.
    """

    def __init__(self, *, jobs: Jobs, settings: Settings, overrides: Sequence[str]) -> None:
        self.jobs, self.folder = jobs, jobs.folder
        given = jobs.parser.parse_overrides(list(overrides))
        self.overrides, self.settings = begin(self.folder, given, settings)
        self.space = read_space(self.overrides, jobs.parser)
        check_method(self.space, self.settings)
        for values in samples(self.space):
            jobs.compose([*self.space.fixed, *Trial(number=0, values=values).overrides])

    def run(self) -> None:
        """Searches, shows the table and draws it.

        Raises:
            InputError: the same mistake of the user's met the first two trials; or mistakes are why there is no
                result, or not all that a grid was to give.
            SystemExit: the same for other errors.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with alone_in(self.folder), ending_on_sigterm():
            write_sweep(self.folder, self.overrides, self.settings)
            self.trials = read_trials(self.folder)
            kind = Grid if self.settings.method == "grid" else Study
            self.proposals = kind(folder=self.folder, space=self.space, settings=self.settings)
            try:
                self._search(self._unfinished())
            except (KeyboardInterrupt, SystemExit):
                print(f"\nstopped. Go on with it: {train_command('-m', f'resume={display_path(self.folder)}')}")
                raise
            self._close()

    def _unfinished(self) -> list[Trial]:
        """Trials that a kill interrupted, and failed ones that are to run again."""
        for trial in self.trials:
            if trial.has_failed and self.settings.retry_failed:
                trial.status = RUNNING
            if trial.status != RUNNING:
                self.proposals.record(trial)
        return [trial for trial in self.trials if trial.status == RUNNING]

    def _search(self, waiting: list[Trial]) -> None:
        """Runs what waits, then what is proposed, until there are as many trials as asked for."""
        trials, parallel, total = self.trials, self.settings.parallel, self.proposals.total
        self._announce(done=len(trials) - len(waiting))
        while waiting or len(trials) < total:
            while len(waiting) < parallel and len(trials) < total:
                waiting.append(Trial(number=len(trials), values=self.proposals.propose(len(trials))))
                trials.append(waiting[-1])
            batch, waiting = waiting[:parallel], waiting[parallel:]
            self._keep()
            self.jobs.run(batch, self.space.fixed, self.proposals.stopped_at)
            self._keep()
            for trial in batch:
                self.proposals.record(trial)
                self._tell(trial)
            self._end_where_all_would_fail()

    def _end_where_all_would_fail(self) -> None:
        """Two trials, one mistake, and nothing else yet: a wrong data.root need not be tried a hundred times."""
        ended = [trial for trial in self.trials if trial.status != RUNNING]
        if len(ended) >= 2 and all(trial.is_mistake and trial.status == ended[0].status for trial in ended):
            raise InputError(f"{ended[0].message}\nThe same in all {len(ended)} trials so far; the sweep ends here")

    def _keep(self) -> None:
        write_trials(self.folder, self.trials)
        write_summary(self.folder, self.trials)

    def _announce(self, *, done: int) -> None:
        for key, dimension in self.space.varied.items():
            print(f"{key}: {dimension}")
        before = f", {done} done before" if done else ""
        print(
            f"sweep={self.settings.method}: {self.proposals.total} trials{before}; folder {display_path(self.folder)}",
            flush=True,
        )
        if self.settings.parallel == 1 and not self.jobs.one_by_one:
            print(
                "sweep.parallel=1: the launcher gets one trial at a time; sweep.parallel=N runs N at once", flush=True
            )
        if self.settings.parallel > 1 and self.jobs.one_by_one:
            print(
                f"sweep.parallel={self.settings.parallel}: without hydra/launcher=joblib, ray or submitit, "
                "trials run one after the other",
                flush=True,
            )

    def _tell(self, trial: Trial) -> None:
        best = ranked(self.trials)[0]
        value = f", video accuracy {trial.metrics['video_accuracy']:.4f}" if trial.metrics else ""
        if best.metrics:
            value += f"; best so far {best.metrics['video_accuracy']:.4f}, trial {best.number}"
        print(f"trial {trial.number} ({self.proposals.total} in all): {trial.status}{value}", flush=True)

    def _close(self) -> None:
        """The table, the picture, and an error where there is less than was asked for."""
        is_folds = {key.lstrip("+") for key in self.space.varied} == {FOLD}
        print(closing_words(self.folder, self.space.fixed, self.trials, with_best=not is_folds))
        if self.space.varied and not is_folds and any(trial.metrics for trial in self.trials):
            draw(self.trials, self.space.varied, picture := self.folder / PICTURE_NAME)
            print(f"drawn to      {display_path(picture)}")
        failed = [trial for trial in self.trials if trial.has_failed]
        if is_folds and not failed and len(self.trials) > 1:
            self._cross_validate()
        if failed and (self.settings.method == "grid" or len(failed) == len(self.trials)):
            if all(trial.is_mistake for trial in failed):
                raise InputError(f"{len(failed)} of {len(self.trials)} trials failed: {failed[0].message}")
            raise SystemExit(1)  # each trial's train.log holds the traceback

    def _cross_validate(self) -> None:
        """Only the fold varies, so nothing is chosen here by what comes out, and test may be looked at."""
        runs = [self.folder / str(trial.number) for trial in self.trials]
        if not kept_manifest(run=str(runs[0])).select("test"):
            print("no cross-validation: the data set has no test videos")
            return
        config = OmegaConf.load(runs[0] / CONFIG_NAME)
        question = EvaluationOptions(num_workers=config.data.num_workers)
        judgement = evaluate_folds(runs, question, folder=self.folder)
        if config.report:
            draw_report(load_checkpoint(runs[0]), judgement.folder, cache=None)
        print(f"\n{result_text(judgement.result)}\n\n{folds_text(judgement.result)}")
        print(f"written to    {display_path(judgement.folder)}/")
