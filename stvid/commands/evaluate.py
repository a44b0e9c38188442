"""`stvid evaluate`: evaluates a run, or the runs of a cross-validation, and writes the results."""

from __future__ import annotations

import argparse

from stvid.device import default_device, limit_cpu_threads
from stvid.distributed import init_distributed, is_distributed, launch_processes
from stvid.errors import InputError
from stvid.evaluation.cross_validation import folds_text
from stvid.evaluation.evaluation_run import EvaluationOptions, evaluate_folds, evaluate_run
from stvid.evaluation.temporal_audit import audit_text
from stvid.evaluation.text import result_text
from stvid.files import write_json
from stvid.report.report import draw_report
from stvid.run.checkpoint import load_checkpoint
from stvid.run.folder import display_path, runs_of


def run(options: argparse.Namespace) -> None:
    if options.processes < 1:
        raise InputError(f"--processes (={options.processes}) must be at least 1")
    if options.processes > 1 and not is_distributed():
        raise SystemExit(launch_processes(options.again, options.processes))
    limit_cpu_threads(default_device().type)
    with init_distributed() as first:
        _judge(options, first)


def _judge(options: argparse.Namespace, first: bool) -> None:
    question = EvaluationOptions(
        split=options.split,
        num_clips=options.clips,
        num_crops=options.crops,
        manifest=options.manifest,
        allow_leaks=options.allow_leaks,
        audit=options.audit,
        calibrate=options.calibrate,
        num_workers=options.workers,
        trust=options.trust,
    )
    runs, folder = runs_of(options.runs)
    if folder is None:
        judgement = evaluate_run(runs[0], question, speak=first)
    else:
        judgement = evaluate_folds(runs, question, folder=folder, speak=first)
    if not first:
        return
    if options.report:
        draw_report(load_checkpoint(runs[0], trust=options.trust), judgement.folder, cache=judgement.probe_cache)
    result = judgement.result
    if options.json:
        write_json(options.json, result)
    print(result_text(result))
    for key, section in (("folds", folds_text), ("audit", audit_text)):
        if key in result:
            print(f"\n{section(result)}")
    files = "result.json, predictions.csv" + ", report.html" * options.report
    print(f"\nwritten to {display_path(judgement.folder)}/ ({files})")
