"""`stvid report`: a page about one run, or a comparison of several."""

from __future__ import annotations

import argparse
from pathlib import Path

from stvid.device import default_device, limit_cpu_threads
from stvid.errors import InputError
from stvid.evaluation.compare import compare_runs, comparison_text
from stvid.evaluation.results import read_evaluation
from stvid.files import write_json
from stvid.report.report import report_of_run, write_comparison, write_report
from stvid.run.checkpoint import load_checkpoint
from stvid.run.folder import REPORT_NAME, RESULT_NAME, display_path, runs_of

COMPARISON_NAME = "comparison.html"


def run(options: argparse.Namespace) -> None:
    limit_cpu_threads(default_device().type)
    if options.out and Path(options.out).suffix not in (".html", ".htm"):
        raise InputError(f"--out {options.out}: the page must end in .html")
    if len(options.runs) > 1:
        _compare(options)
        return
    if options.json:
        raise InputError(f"--json {options.json}: a comparison of several runs is written there; here is one")
    runs, sweep = runs_of(options.runs)
    trained = load_checkpoint(runs[0], trust=options.trust)
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
    split = options.split or "test"
    comparison = compare_runs([read_evaluation(run, split, trust=options.trust) for run in options.runs])
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
