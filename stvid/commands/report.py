"""`stvid report`: a page about one run, or a comparison of several."""

from __future__ import annotations

import argparse
from pathlib import Path

from stvid.device import default_device, set_up_cpu
from stvid.errors import InputError
from stvid.evaluation.compare import compare_runs, comparison_text
from stvid.evaluation.results import evaluated_checkpoint, read_evaluation
from stvid.files import write_json
from stvid.report.report import report_of_run, write_comparison, write_report
from stvid.run.checkpoint import load_checkpoint
from stvid.run.folder import COMPARISON_HTML, check_stays_inside, display_path, resolve_runs
from stvid.terminal import show


def run(options: argparse.Namespace) -> None:
    set_up_cpu(default_device().type)
    if len(options.runs) > 1:
        _compare(options)
        return
    folder = options.evaluation
    runs, _ = resolve_runs(options.runs)
    if not options.out:
        check_stays_inside(folder.evaluated_run, trains=False)
    trained = load_checkpoint(evaluated_checkpoint(folder.path, runs[0]), trust=options.trust)
    out = Path(options.out) if options.out else folder.report_html
    write_report(report_of_run(trained, folder.path, data_root=options.data_root), out)
    show(f"written to {display_path(out.absolute())}")


def _compare(options: argparse.Namespace) -> None:
    split = options.split or "test"
    comparison = compare_runs([read_evaluation(run, split, trust=options.trust) for run in options.runs])
    show(comparison_text(comparison))
    if options.json:
        write_json(options.json, comparison.to_dict())
    out = Path(options.out or COMPARISON_HTML)
    if not options.out and out.exists() and not (out.is_file() and _is_page_of_stvid(out)):
        raise InputError(f"{out} exists, but stvid did not write it; choose another file with --out")
    write_comparison(comparison, out)
    show(f"\nwritten to {display_path(out.absolute())}")


def _is_page_of_stvid(page: Path) -> bool:
    return b'name="generator" content="stvid' in page.read_bytes()[:10_000]
