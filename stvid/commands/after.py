"""Commands that point at a run: evaluate, report, predict."""

from __future__ import annotations

import argparse
from pathlib import Path

from stvid.errors import InputError

COMPARISON_NAME = "comparison.html"


def _workers(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def evaluate(options: argparse.Namespace) -> None:
    from stvid.launch import is_spread, joined, spread

    if options.processes < 1:
        raise InputError(f"--processes (={options.processes}) must be at least 1")
    if options.processes > 1 and not is_spread():
        raise SystemExit(spread(options.again, options.processes))
    with joined() as first:
        _judge(options, first)


def _judge(options: argparse.Namespace, first: bool) -> None:
    from stvid.evaluation.audit import describe_audit
    from stvid.evaluation.describe import describe
    from stvid.evaluation.folds import describe_folds
    from stvid.evaluation.judge import Question, judge, judge_folds
    from stvid.evaluation.runs import runs_of
    from stvid.files import write_json
    from stvid.run import shown

    question = Question(
        split=options.split,
        num_clips=options.clips,
        num_crops=options.crops,
        manifest=options.manifest,
        allow_leaks=options.allow_leaks,
        audit=options.audit,
        calibrate=options.calibrate,
        report=options.report,
        num_workers=_workers(options.workers),
    )
    runs, folder = runs_of(options.runs)
    if folder is None:
        judgement = judge(runs[0], question, speak=first)
    else:
        judgement = judge_folds(runs, question, folder=folder, speak=first)
    if not first:
        return
    result = judgement.result
    if options.json:
        write_json(options.json, result)
    print(describe(result))
    for key, section in (("folds", describe_folds), ("audit", describe_audit)):
        if key in result:
            print(f"\n{section(result)}")
    files = "result.json, predictions.csv" + ", report.html" * options.report
    print(f"\nwritten to {shown(judgement.folder)}/ ({files})")


def report(options: argparse.Namespace) -> None:
    if options.out and Path(options.out).suffix not in (".html", ".htm"):
        raise InputError(f"--out {options.out}: the page must end in .html")
    if len(options.runs) > 1:
        _compare(options)
        return
    from stvid.checkpoint import load
    from stvid.evaluation.report import REPORT_NAME, report_of_run, write_report
    from stvid.evaluation.runs import RESULT_NAME, runs_of
    from stvid.run import shown

    if options.json:
        raise InputError(f"--json {options.json}: a comparison of several runs is written there; here is one")
    runs, sweep = runs_of(options.runs)
    trained = load(runs[0])
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
    print(f"written to {shown(out.absolute())}")


def _compare(options: argparse.Namespace) -> None:
    from stvid.evaluation.compare import compare, describe
    from stvid.evaluation.evaluations import read_evaluation
    from stvid.evaluation.report import write_comparison
    from stvid.files import write_json
    from stvid.run import shown

    split = options.split or "test"
    comparison = compare([read_evaluation(run, split) for run in options.runs])
    print(describe(comparison))
    if options.json:
        write_json(options.json, comparison.to_dict())
    out = Path(options.out or COMPARISON_NAME)
    if not options.out and out.exists() and not _is_ours(out):
        raise InputError(f"{out} is there already, and no page of stvid's; name another file with --out")
    write_comparison(comparison, out)
    print(f"\nwritten to {shown(out.absolute())}")


def _is_ours(page: Path) -> bool:
    return b'name="generator" content="stvid' in page.read_bytes()[:10_000]


def predict(options: argparse.Namespace) -> None:
    from stvid.checkpoint import load
    from stvid.deploy.predict import expand, predict
    from stvid.files import write_json

    paths = expand(options.sources)
    predictions = predict(load(options.run), paths, top=options.top, num_workers=_workers(options.workers))
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
