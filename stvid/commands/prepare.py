"""`stvid prepare`: transcodes a data set, and prints how much faster the copy is read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stvid.data.prepare import prepare
from stvid.data.prepare_plan import parse_size
from stvid.files import write_json
from stvid.run.data_set import compose_data_set
from stvid.terminal import show

MAX_BAD = 20  # lines about bad videos


def run(options: argparse.Namespace) -> None:
    manifest, clip, workers, limits = compose_data_set(options.overrides, options.data_set)
    summary = prepare(
        manifest,
        out=Path(options.out),
        clip=clip,
        num_workers=workers,
        short_side=options.short_side,
        gop=options.gop,
        crf=options.crf,
        max_pixels=limits["max_pixels"],
        tar_size=None if options.tar_size is None else parse_size(options.tar_size),
        progress=sys.stderr.isatty(),
    )
    if options.json:
        write_json(options.json, summary)
    show(prepare_text(summary))
    if summary["num_bad"]:
        raise SystemExit(1)


def prepare_text(summary: dict) -> str:
    """The summary of `prepare` as aligned lines."""
    bytes_before, bytes_after = summary["bytes_before"], summary["bytes_after"]
    speed_before, speed_after = summary["clips_per_second_before"], summary["clips_per_second_after"]
    counts = ", ".join(f"{summary[f'num_{state}']} {state}" for state in ("made", "kept", "bad"))
    rows = [("videos", f"{summary['num_files']} ({counts})")]
    rows += [("bad", f"{video['path']}: {video['reason']}") for video in summary["bad"][:MAX_BAD]]
    if len(summary["bad"]) > MAX_BAD:
        rows.append(("", f"and {len(summary['bad']) - MAX_BAD} more, see bad_videos.csv"))
    if bytes_after:
        ratio = _size_ratio(bytes_before, bytes_after)
        rows.append(("size", f"{_bytes_text(bytes_before)} -> {_bytes_text(bytes_after)} ({ratio})"))
    if speed_before is not None and speed_after is not None:
        ratio = f"{speed_after / speed_before:.3g} times as fast"
        rows.append(("clips/second", f"{speed_before:.3g} -> {speed_after:.3g} read by one process ({ratio})"))
    rows.append(("train on it", summary["command"]))
    if tars := summary.get("tars"):
        num_made = tars["num_tars"] - tars["num_kept"]
        rows.append(
            ("tars", f"{tars['num_tars']} ({num_made} made, {tars['num_kept']} kept), {_bytes_text(tars['bytes'])}")
        )
        rows.append(("on the tars", tars["command"]))
    return "\n".join(f"{name:<12}  {text}" for name, text in rows)


def _size_ratio(before: float, after: float) -> str:
    return f"{before / after:.3g} times smaller" if after <= before else f"{after / before:.3g} times larger"


def _bytes_text(number: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"
