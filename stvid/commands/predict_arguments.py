"""Checks of the options of `stvid predict`, and of those that `stvid stream` shares, before torch is imported."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
from collections.abc import Iterator

from stvid.commands.part_options import is_in_parts
from stvid.deploy.inputs import EACH, find_output_mistakes, find_sources
from stvid.errors import InputError

SINGLE = ("json", "csv", "parquet")  # options that name one file for all videos
OF_SEGMENTS = ("threshold", "window", "hop", "min_duration", "background", "csv", "srt", "vtt", "out")


def find_predict_mistakes(options: argparse.Namespace) -> Iterator[str]:
    """Yields the mistakes; sets `options.found` to the videos, and `options.segments` if another option needs them."""
    if options.top < 1:
        yield f"--top (={options.top}) must be at least 1"
    yield from _find_wrong_numbers(options)
    given = [name for name in OF_SEGMENTS if getattr(options, name) not in (None, [])]
    if options.segments is False and given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        yield f"--no-segments: {names} {'are' if len(given) > 1 else 'is'} about segments; leave one of them out"
    elif given:
        options.segments = True
    if options.resume and options.json is None:
        yield "--resume continues the list in --json; name it: --json F"
    if options.parquet is not None and importlib.util.find_spec("pyarrow") is None:
        yield "--parquet needs PyArrow: pip install 'stvid[parquet]'"
    try:
        options.found = find_sources(options.sources)
    except InputError as error:
        yield str(error)
        return
    options.all_found = options.found
    if options.part is not None:
        mine = set(options.part.of(os.path.abspath(source.path) for source in options.found))
        options.found = [source for source in options.found if os.path.abspath(source.path) in mine]
    single = {name: value for name in SINGLE if (value := getattr(options, name))}
    each = {name: value for name in EACH if (value := getattr(options, name)) is not None}
    for name in [name for name, value in each.items() if not value]:
        yield f"--{name} has no value; name a file"
        del each[name]
    yield from find_output_mistakes(
        options.all_found, options.sources, single=single, each=each, resume=options.resume or is_in_parts(options)
    )


def _find_wrong_numbers(options: argparse.Namespace) -> Iterator[str]:
    yield from find_wrong_limits(options)
    for name in ("window", "hop"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            yield f"--{name} (={value:g}) must be above 0 seconds"


def find_wrong_limits(options: argparse.Namespace) -> Iterator[str]:
    """Yields what is wrong with `--threshold` and `--min-duration`."""
    if options.threshold is not None and not 0 < options.threshold <= 1:
        yield f"--threshold (={options.threshold:g}) must be above 0 and at most 1"
    if options.min_duration is not None and not 0 <= options.min_duration < math.inf:
        yield f"--min-duration (={options.min_duration:g}) must be 0 or more seconds"
