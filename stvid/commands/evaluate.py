"""`stvid evaluate`: evaluates a run, or the runs of a cross-validation, and writes the results."""

from __future__ import annotations

import argparse
import errno
import sys

from stvid.device import default_device, set_up_cpu
from stvid.distributed import init_distributed, is_distributed, launch_processes
from stvid.evaluation.cross_validation import evaluate_folds, folds_text
from stvid.evaluation.evaluation_run import EvaluationOptions, evaluate_run
from stvid.evaluation.temporal_audit import audit_text
from stvid.evaluation.text import result_text, unknown_text
from stvid.files import write_json
from stvid.run.checkpoint import load_checkpoint
from stvid.run.folder import RunFolder, display_path, resolve_runs
from stvid.terminal import show


def run(options: argparse.Namespace) -> None:
    if options.processes > 1 and not is_distributed():
        raise SystemExit(launch_processes(options.run_again, options.processes))
    set_up_cpu(default_device().type)
    with init_distributed() as is_main_process:
        _evaluate(options, is_main_process)


def _evaluate(options: argparse.Namespace, is_main_process: bool) -> None:
    """Every process takes its share of the videos; the main one writes and prints the results."""
    evaluation_options = EvaluationOptions(
        split=options.split,
        num_clips=options.clips,
        num_crops=options.crops,
        manifest=options.manifest,
        allow_leaks=options.allow_leaks,
        audit=options.audit,
        calibrate=options.calibrate,
        unknown=options.unknown,
        background=options.background,
        num_workers=options.workers,
        cache_features=options.feature_cache,
        trust=options.trust,
        data_root=options.data_root,
    )
    runs, folder = resolve_runs(options.runs)
    if folder is None:
        evaluation = evaluate_run(runs[0], evaluation_options, is_main_process=is_main_process)
    else:
        evaluation = evaluate_folds(runs, evaluation_options, folder=folder, is_main_process=is_main_process)
    if not is_main_process:
        return
    result = evaluation.result
    show(result_text(result))
    for key, section in (("folds", folds_text), ("audit", audit_text), ("unknown", unknown_text)):
        if key in result:
            show(f"\n{section(result)}")
    sys.stdout.flush()  # what follows may fail: the disk may be full
    if options.json:
        write_json(options.json, result)
    home = RunFolder(evaluation.folder)
    if (error := evaluation.not_written) is not None:
        if error.errno == errno.EROFS or isinstance(error, PermissionError):
            show(f"\nnot written: {display_path(home.path)}: {error.strerror}")
            return
        raise error
    has_report = home.report_html.exists()  # that of an earlier evaluation with the same result
    if options.report and not has_report:
        from stvid.report.report import draw_report  # it imports Lightning, which takes seconds

        draw_report(load_checkpoint(runs[0], trust=options.trust), home.path, cache=evaluation.probe_cache)
    files = [home.result_json, home.predictions_csv, *([home.report_html] if options.report else [])]
    files += [home.unknown_csv] if options.unknown else []
    show(f"\nwritten to {display_path(home.path)}/ ({', '.join(file.name for file in files)})")
