"""Commands that take overrides, before a run: cost, check, prepare."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stvid.errors import InputError


def compose_data_set(options: argparse.Namespace):
    """The manifest, clip and number of processes that the overrides name; all cores where it is left to us."""
    from hydra.utils import instantiate

    import stvid.run  # noqa: F401  (registers what configs/train.yaml refers to)
    from stvid.config import compose_config
    from stvid.data.loading import resolve_workers
    from stvid.machine import num_cores

    config = compose_config(options.overrides)
    manifest = instantiate(config.data.datamodule.manifest, _convert_="all")
    workers = config.data.num_workers
    workers = num_cores() if workers == "auto" else max(resolve_workers(workers), 1)
    clip = instantiate(config.clip, _convert_="all", **({"num_frames": None} if config.data.whole_video else {}))
    return manifest, clip, workers, config.data.probe_timeout


def run_cost(options: argparse.Namespace) -> None:
    from stvid.cost.growth import check_picture, draw_growth, growth_table
    from stvid.files import write_json
    from stvid.pricing import compare_costs, cost_text, plan

    if options.out and not options.compare:
        raise InputError(f"--out {options.out}: a picture is drawn of a comparison only; add --compare")
    if not options.compare:
        planned = plan(options.overrides, classes=options.classes, frames=options.frames, device=options.device)
        report = planned.price(planned.chosen_batch())
        if options.json:
            write_json(options.json, report.to_dict())
        print(cost_text(planned, report))
        return
    if options.frames is not None:
        raise InputError(f"--frames {options.frames}: --compare prices clips of 1 to 1,000 frames; leave it out")
    if options.out:
        check_picture(options.out)
    reports = compare_costs(options.overrides, classes=options.classes, device=options.device)
    if options.json:
        write_json(options.json, {name: [report.to_dict() for report in series] for name, series in reports.items()})
    print(growth_table(reports))
    if options.out:
        draw_growth(reports, options.out)
        print(f"\ndrawn to {options.out}")


def run_check(options: argparse.Namespace) -> None:
    from stvid.data.check import check_videos, is_bad
    from stvid.data.check_page import check_text
    from stvid.data.loading import probe_cache
    from stvid.files import write_json

    manifest, clip, workers, timeout = compose_data_set(options)
    report = check_videos(
        manifest,
        clip=clip,
        num_workers=workers,
        cache=probe_cache(manifest),
        timeout=timeout,
        progress=sys.stderr.isatty(),
    )
    if options.json:
        write_json(options.json, report)
    print(check_text(report))
    if is_bad(report):
        raise SystemExit(1)


def run_prepare(options: argparse.Namespace) -> None:
    from stvid.data.prepare import prepare
    from stvid.data.prepare_page import prepare_text
    from stvid.files import write_json

    manifest, clip, workers, _ = compose_data_set(options)
    sizes = {"short_side": options.short_side, "gop": options.gop, "crf": options.crf}
    progress = sys.stderr.isatty()
    summary = prepare(manifest, out=Path(options.out), clip=clip, num_workers=workers, progress=progress, **sizes)
    if options.json:
        write_json(options.json, summary)
    print(prepare_text(summary))
    if summary["num_bad"]:
        raise SystemExit(1)
