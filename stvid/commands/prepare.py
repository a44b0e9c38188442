"""`stvid prepare`: transcodes a data set, and prints how much faster the copy is read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stvid.data.prepare import prepare
from stvid.files import write_json
from stvid.run.config import compose_data_set


def prepare_text(summary: dict) -> str:
    """The summary for a person: a few aligned lines."""
    before, after = summary["bytes_before"], summary["bytes_after"]
    speeds = summary["clips_per_second_before"], summary["clips_per_second_after"]
    counts = ", ".join(f"{summary[f'num_{what}']} {what}" for what in ("made", "kept", "bad"))
    lines = [("videos", f"{summary['num_files']} ({counts})")]
    lines += [("bad", f"{bad['path']}: {bad['reason']}") for bad in summary["bad"][:20]]
    if len(summary["bad"]) > 20:
        lines += [("", f"and {len(summary['bad']) - 20} more, see bad_videos.csv")]
    if after:
        lines += [("size", f"{_bytes(before)} -> {_bytes(after)} ({_times(before, after)})")]
    if None not in speeds:
        times = f"{speeds[1] / speeds[0]:.3g} times as fast"
        lines += [("clips/second", f"{speeds[0]:.3g} -> {speeds[1]:.3g} read by one process ({times})")]
    lines += [("train on it", summary["command"])]
    return "\n".join(f"{name:<12}  {text}" for name, text in lines)


def _times(before: float, after: float) -> str:
    return f"{before / after:.3g} times smaller" if after <= before else f"{after / before:.3g} times larger"


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def run(options: argparse.Namespace) -> None:
    manifest, clip, workers, _ = compose_data_set(options.overrides)
    sizes = {"short_side": options.short_side, "gop": options.gop, "crf": options.crf}
    progress = sys.stderr.isatty()
    summary = prepare(manifest, out=Path(options.out), clip=clip, num_workers=workers, progress=progress, **sizes)
    if options.json:
        write_json(options.json, summary)
    print(prepare_text(summary))
    if summary["num_bad"]:
        raise SystemExit(1)
