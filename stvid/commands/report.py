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
from stvid.run.folder import COMPARISON_HTML, RunFolder, display_path, resolve_runs
from stvid.terminal import show


def run(options: argparse.Namespace) -> None:
    limit_cpu_threads(default_device().type)
    if options.out and Path(options.out).suffix not in (".html", ".htm"):
        raise InputError(f"--out {options.out}: the page must end in .html")
    if len(options.runs) > 1:
        _compare(options)
        return
    if options.json:
        raise InputError(f"--json {options.json}: only a comparison of several runs is written there; this is one run")
    runs, sweep = resolve_runs(options.runs)
    trained = load_checkpoint(runs[0], trust=options.trust)
    split = options.split or ("test" if sweep else "val")
    folder = _evaluation_folder(RunFolder(sweep or trained.folder), split, is_given=bool(options.split or sweep))
    if not folder.result_json.is_file():
        command = f"stvid evaluate {options.runs[0]} --split {split}"
        raise InputError(f"{options.runs[0]} was not evaluated on {split}: no {folder.result_json}. First: {command}")
    out = Path(options.out) if options.out else folder.report_html
    write_report(report_of_run(trained, folder.path), out)
    show(f"written to {display_path(out.absolute())}")


def _evaluation_folder(run: RunFolder, split: str, *, is_given: bool) -> RunFolder:
    """The folder of a run's evaluation: of the given split, else (and for val without another one) the run's own."""
    evaluation = run.evaluation(split)
    if not is_given or (split == "val" and not run.is_sweep and not evaluation.path.is_dir()):
        return run
    return evaluation


def _compare(options: argparse.Namespace) -> None:
    split = options.split or "test"
    comparison = compare_runs([read_evaluation(run, split, trust=options.trust) for run in options.runs])
    show(comparison_text(comparison))
    if options.json:
        write_json(options.json, comparison.to_dict())
    out = Path(options.out or COMPARISON_HTML)
    if not options.out and out.exists() and not _is_page_of_stvid(out):
        raise InputError(f"{out} exists, but stvid did not write it; choose another file with --out")
    write_comparison(comparison, out)
    show(f"\nwritten to {display_path(out.absolute())}")


def _is_page_of_stvid(page: Path) -> bool:
    return b'name="generator" content="stvid' in page.read_bytes()[:10_000]
