"""Commands that point at a run: evaluate, report, predict."""

from __future__ import annotations

import argparse
from pathlib import Path

from stvid.errors import InputError

COMPARISON_NAME = "comparison.html"


def num_workers_of(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def run_evaluate(options: argparse.Namespace) -> None:
    from stvid.launch import init_distributed, is_distributed, launch_processes

    if options.processes < 1:
        raise InputError(f"--processes (={options.processes}) must be at least 1")
    if options.processes > 1 and not is_distributed():
        raise SystemExit(launch_processes(options.again, options.processes))
    with init_distributed() as first:
        _judge(options, first)


def _judge(options: argparse.Namespace, first: bool) -> None:
    from stvid.evaluation.audit import audit_text
    from stvid.evaluation.describe import result_text
    from stvid.evaluation.folds import folds_text
    from stvid.evaluation.judge import EvaluationOptions, evaluate_folds, evaluate_run
    from stvid.evaluation.runs import runs_of
    from stvid.files import write_json
    from stvid.run import display_path

    question = EvaluationOptions(
        split=options.split,
        num_clips=options.clips,
        num_crops=options.crops,
        manifest=options.manifest,
        allow_leaks=options.allow_leaks,
        audit=options.audit,
        calibrate=options.calibrate,
        report=options.report,
        num_workers=num_workers_of(options.workers),
    )
    runs, folder = runs_of(options.runs)
    if folder is None:
        judgement = evaluate_run(runs[0], question, speak=first)
    else:
        judgement = evaluate_folds(runs, question, folder=folder, speak=first)
    if not first:
        return
    result = judgement.result
    if options.json:
        write_json(options.json, result)
    print(result_text(result))
    for key, section in (("folds", folds_text), ("audit", audit_text)):
        if key in result:
            print(f"\n{section(result)}")
    files = "result.json, predictions.csv" + ", report.html" * options.report
    print(f"\nwritten to {display_path(judgement.folder)}/ ({files})")


def run_report(options: argparse.Namespace) -> None:
    if options.out and Path(options.out).suffix not in (".html", ".htm"):
        raise InputError(f"--out {options.out}: the page must end in .html")
    if len(options.runs) > 1:
        _compare(options)
        return
    from stvid.checkpoint import load_checkpoint
    from stvid.evaluation.report import REPORT_NAME, report_of_run, write_report
    from stvid.evaluation.runs import RESULT_NAME, runs_of
    from stvid.run import display_path

    if options.json:
        raise InputError(f"--json {options.json}: a comparison of several runs is written there; here is one")
    runs, sweep = runs_of(options.runs)
    trained = load_checkpoint(runs[0])
    folder = sweep or trained.folder
    split = options.split or ("test" if sweep else "val")
    if options.split or sweep:
        folder = folder / "evaluate" / split
    if split == "val" and not sweep and not folder.is_dir():
        folder = trained.folder  # the run's own
    if not (folder / RESULT_NAME).is_file():
        command = f"stvid evaluate {options.runs[0]} --split {split}"
        raise InputError(f"{options.runs[0]} was not evaluated on {split}: no {folder / RESULT_NAME}. First: {command}")
    out = Path(options.out) if options.out else folder / REPORT_NAME
    write_report(report_of_run(trained, folder), out)
    print(f"written to {display_path(out.absolute())}")


def _compare(options: argparse.Namespace) -> None:
    from stvid.evaluation.compare import compare_runs, comparison_text
    from stvid.evaluation.evaluations import read_evaluation
    from stvid.evaluation.report import write_comparison
    from stvid.files import write_json
    from stvid.run import display_path

    split = options.split or "test"
    comparison = compare_runs([read_evaluation(run, split) for run in options.runs])
    print(comparison_text(comparison))
    if options.json:
        write_json(options.json, comparison.to_dict())
    out = Path(options.out or COMPARISON_NAME)
    if not options.out and out.exists() and not _is_ours(out):
        raise InputError(f"{out} is there already, and no page of stvid's; name another file with --out")
    write_comparison(comparison, out)
    print(f"\nwritten to {display_path(out.absolute())}")


def _is_ours(page: Path) -> bool:
    return b'name="generator" content="stvid' in page.read_bytes()[:10_000]


def run_predict(options: argparse.Namespace) -> None:
    from stvid.checkpoint import load_checkpoint
    from stvid.deploy.predict import expand_sources, predict_files
    from stvid.files import write_json

    paths = expand_sources(options.sources)
    predictions = predict_files(
        load_checkpoint(options.run), paths, top=options.top, num_workers=num_workers_of(options.workers)
    )
    for prediction in predictions:
        print(prediction["path"])
        if "error" in prediction:
            print(f"  could not be read: {prediction['error']}")
        for one in prediction["top"]:
            print(f"  {one['probability']:6.1%}  {one['class']}")
    if options.json:
        write_json(options.json, predictions)
    if any("error" in prediction for prediction in predictions):
        raise SystemExit(1)
