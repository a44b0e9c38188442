"""`stvid prepare`: transcodes a data set, and prints how much faster the copy is read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stvid.commands.part_options import PREPARE, find_parts, part_text
from stvid.data.manifest import Manifest
from stvid.data.parts import Part, Parts
from stvid.data.prepare import prepare
from stvid.data.prepare_parts import PartResult, count_finished, prepare_part
from stvid.data.prepare_plan import encoding_settings, parse_size
from stvid.errors import VideoError
from stvid.files import write_json
from stvid.run.data_set import compose_data_set
from stvid.terminal import show

MAX_BAD = 20  # lines about bad videos


def run(options: argparse.Namespace) -> None:
    manifest, clip, workers, limits = compose_data_set(options.overrides, options.data_set)
    settings: dict[str, Any] = {
        "out": Path(options.out),
        "num_workers": workers,
        "short_side": options.short_side,
        "gop": options.gop,
        "crf": options.crf,
        "uncompressed": options.uncompressed,
        "max_pixels": limits["max_pixels"],
        "progress": sys.stderr.isatty(),
    }
    parts = find_parts(options, manifest)
    if parts is not None and options.part is not None:
        _run_part(parts, options.part, manifest, settings)
        show(part_text(options))
        return
    merged = None if parts is None else _merge_parts(parts)
    tar_size = None if options.tar_size is None else parse_size(options.tar_size)
    summary = prepare(manifest, clip=clip, tar_size=tar_size, merged=merged, **settings)
    if options.json:
        write_json(options.json, summary)
    show(prepare_text(summary))
    if parts is not None:
        parts.remove()
    if summary["num_bad"]:
        raise SystemExit(1)


def _run_part(parts: Parts, part: Part, manifest: Manifest, settings: Mapping[str, Any]) -> None:
    """Makes the files of one part. A part that is started again counts as kept only what its first start has found."""
    parts.claim(part)
    sources = set(part.of(item.path for item in manifest.items))
    num_kept = (parts.earlier(part) or {"num_kept": None})["num_kept"]
    if num_kept is None:
        num_kept = count_finished(manifest, out=settings["out"], sources=sources, encoding=_encoding(settings))
        parts.write(part, {"num_kept": num_kept, "bad": []}, done=False)
    bad = prepare_part(manifest, sources=sources, **settings)
    rows = [
        {"path": path, "start": start, "end": end, "reason": error.reason, "detail": error.detail}
        for (path, start, end), error in bad.items()
    ]
    parts.write(part, {"num_kept": num_kept, "bad": rows})


def _merge_parts(parts: Parts) -> PartResult:
    results = parts.read()
    bad = {
        (row["path"], row["start"], row["end"]): VideoError(row["path"], row["reason"], row["detail"])
        for result in results
        for row in result["bad"]
    }
    return PartResult(sum(result["num_kept"] for result in results), bad)


def _encoding(settings: Mapping[str, Any]) -> dict[str, int]:
    return encoding_settings(**{name: settings[name] for name in PREPARE})


def prepare_text(summary: dict) -> str:
    """The summary of `prepare` as aligned lines."""
    bytes_before, bytes_after = summary["bytes_before"], summary["bytes_after"]
    speed_before, speed_after = summary["clips_per_second_before"], summary["clips_per_second_after"]
    counts = ", ".join(f"{summary[f'num_{state}']} {state}" for state in ("made", "kept", "bad"))
    rows = [("videos", f"{summary['num_files']} ({counts})")]
    rows += [("bad", f"{video['path']}: {video['reason']}") for video in summary["bad"][:MAX_BAD]]
    if len(summary["bad"]) > MAX_BAD:
        rows.append(("", f"and {len(summary['bad']) - MAX_BAD} more, see bad_videos.csv"))
    if bytes_before and bytes_after:
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
