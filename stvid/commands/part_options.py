"""`--shard I/N`, `--engine ray` and `stvid merge`: their checks, and the settings that the parts of a command share.

The merge is the command itself, after all of its parts: it finds the work done. So it writes what one process does,
with the same exit code.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stvid import __version__
from stvid.checks import anything, fields, list_of, maybe, number, text
from stvid.data.manifest import Manifest
from stvid.data.parts import MAX_PARTS, Parts, Setting, digest_files, digest_rows
from stvid.errors import REASONS, listing
from stvid.run.overrides import split_override

if TYPE_CHECKING:
    from stvid.run.checkpoint import TrainedModel

_REASON, _SECONDS = text(*REASONS), maybe(number())
_CHECKS = {
    "check": list_of(fields({"path": text(), "reason": _REASON, "detail": text()})),
    "prepare": fields(
        {
            "num_kept": number(0, whole=True),
            "bad": list_of(
                fields({"path": text(), "start": _SECONDS, "end": _SECONDS, "reason": _REASON, "detail": text()})
            ),
        }
    ),
}
PREPARE = ("short_side", "gop", "crf", "uncompressed")  # options that determine the files
PREDICT = ("top", "segments", "threshold", "window", "hop", "min_duration", "background", "srt", "vtt", "out")


def find_part_mistakes(options: argparse.Namespace) -> Iterator[str]:
    """Yields what is wrong with --shard, --engine and --shards."""
    if options.part is not None:
        if options.merge:
            yield "stvid merge joins all parts; leave --shard out"
        if options.engine == "ray":
            yield "--engine ray runs all parts; leave --shard out, or say how many: --shards N"
    if options.shards is not None and options.engine != "ray":
        yield f"--shards {options.shards} is for --engine ray; one part of N is --shard I/N"
    if options.shards is not None and not 1 <= options.shards <= MAX_PARTS:
        yield f"--shards (={options.shards}) must be from 1 to {MAX_PARTS}"
    if options.engine == "ray" and options.merge:
        yield "stvid merge needs no engine, and --engine ray merges by itself; leave one of them out"
    elif options.engine == "ray" and importlib.util.find_spec("ray") is None:
        yield "--engine ray needs Ray: pip install 'stvid[ray]'"
    in_parts = options.part is not None or options.merge or options.engine == "ray"
    if in_parts and options.command in ("check", "predict") and not options.json:
        yield f"the parts of stvid {options.command} are kept beside its --json; name it: --json F"


def is_in_parts(options: argparse.Namespace) -> bool:
    """Whether this call does one part, or merges them."""
    return options.part is not None or options.merge


def part_text(options: argparse.Namespace) -> str:
    """What a part says when it is finished."""
    return (
        f"part {options.part} is finished; after all {options.part.count}: the same command as "
        f"stvid merge {options.command} ..., without --shard"
    )


def find_parts(options: argparse.Namespace, manifest: Manifest, *, output: Path | None = None) -> Parts | None:
    """The parts of a command that reads a data set; None if this call is no part and no merge.

    Args:
        options: of the command.
        manifest: the data set.
        output: what the command writes, if no option names it.
    """
    if not is_in_parts(options):
        return None
    rows = ((i.path, i.label, i.split, i.group, i.start, i.end) for i in manifest.items)
    content = [digest_rows(rows), digest_files(item.path for item in manifest.items)]
    settings = {
        "stvid version": Setting(__version__),
        **_override_settings(options.overrides),
        **_option_settings(options, PREPARE if options.command == "prepare" else ()),
        "data set": Setting(f"{len(manifest.items)} items", digest_rows(content)),
    }
    target = output or (options.out if options.command == "prepare" else options.json)
    return Parts(target, command=options.command, settings=settings, check=_CHECKS.get(options.command, anything))


def predict_parts(options: argparse.Namespace, trained: TrainedModel) -> Parts:
    """The parts of `stvid predict`."""
    from stvid.deploy.predictions import ENTRIES  # imports torch

    videos = digest_files(os.path.abspath(source.path) for source in options.all_found)
    settings = {
        "stvid version": Setting(__version__),
        "RUN": Setting(options.run, digest_bytes(Path(trained.path))[:16]),
        "calibration": Setting(f"temperature {trained.temperature}, threshold {trained.threshold}"),
        **_option_settings(options, PREDICT),
        "SOURCE": Setting(listing(options.sources), videos),
    }
    return Parts(options.json, command="predict", settings=settings, check=ENTRIES)


def _override_settings(overrides: Sequence[str]) -> dict[str, Setting]:
    """Without those that cannot change the result: a machine may have its own number of workers."""
    pairs = [split_override(override) or (override, "given") for override in overrides]
    return {key: Setting(value) for key, value in pairs if key != "data.num_workers"}


def _option_settings(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Setting]:
    values = {f"--{name.replace('_', '-')}": getattr(options, name) for name in names}
    return {name: Setting(_value_text(value)) for name, value in values.items() if value not in (None, [])}


def _value_text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(value) if isinstance(value, list) else str(value)


def digest_bytes(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def without_engine(arguments: Sequence[str]) -> list[str]:
    """A command line without --engine and --shards, which a part and the merge do not take."""
    kept, skip = [], False
    for word in arguments:
        if not skip and word.partition("=")[0] not in ("--engine", "--shards"):
            kept.append(word)
        skip = not skip and word in ("--engine", "--shards")
    return kept
