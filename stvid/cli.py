"""The `stvid` command: parses the options, then imports and runs the module of the command.

Nothing here imports torch, so `--help` and errors in options appear at once.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import io
import logging
import re
import runpy
import sys
from collections.abc import Sequence

from stvid.commands.arguments import check_arguments
from stvid.commands.options import build_parser
from stvid.commands.part_options import without_engine
from stvid.data.parts import COMMANDS
from stvid.errors import InputError, nearest
from stvid.exits import ConsoleHandler, exit_on_interrupt, interrupt_normally, report_errors
from stvid.run.folder import project_root
from stvid.terminal import LogFormatter


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 2 the input is wrong, 1 anything else, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with report_errors():
        if arguments[:1] == ["train"]:
            _train(arguments[1:])
        else:
            _run_command(arguments)


def _train(overrides: Sequence[str]) -> None:
    script = project_root() / "train.py"
    sys.argv = [str(script), *overrides]
    runpy.run_path(str(script), run_name="__main__")


def _run_command(arguments: Sequence[str]) -> None:
    options = _parse_merge(arguments) if arguments[:1] == ["merge"] else _parse(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file and class names need not be valid Unicode
    handler = ConsoleHandler(sys.stdout)
    handler.setFormatter(LogFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    check_arguments(options)
    if getattr(options, "engine", None) == "ray":
        interrupt_normally()
        options = _run_parts_on_ray(options, arguments)
    options.run_again = functools.partial(main, arguments)  # for other processes, see --processes
    exit_on_interrupt()
    command = importlib.import_module(f"stvid.commands.{options.command}")
    interrupt_normally()
    command.run(options)


def _run_parts_on_ray(options: argparse.Namespace, arguments: Sequence[str]) -> argparse.Namespace:
    """Runs all parts of a command; returns the options of their merge."""
    from stvid.commands.ray_engine import run_parts

    own = without_engine(arguments)
    run_parts(main, own, command=options.command, num_parts=options.shards)
    options = _parse_merge(["merge", *own])
    check_arguments(options)
    return options


def _parse_merge(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of `stvid merge COMMAND ...`: those of the command."""
    words = arguments[1:]
    if words[:1] in (["-h"], ["--help"]):
        return _parse(arguments)
    if not words or words[0] not in COMMANDS:
        raise InputError(
            f"stvid merge{' ' + words[0] if words else ''}: name a command whose parts are finished, with its words "
            f"and without --shard: stvid merge {'|'.join(COMMANDS)} ..."
        )
    options = _parse(words)
    options.merge = True
    return options


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; overrides may come before, between and after them.

    Raises:
        InputError: a command or an option that does not exist, with the nearest one.
    """
    parser, commands = build_parser()
    first = next(iter(arguments), "-")
    if not first.startswith("-") and first not in commands:
        raise InputError(f"stvid has no command {first}{nearest(first, commands)}")
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(text.startswith("-") for text in rest)):
        known = re.findall(r"(?<![\w-])--?[a-z][\w-]*", commands[options.command].format_usage())
        unknown = [text for text in rest if text.startswith("-")] or rest
        one_too_many = f"; stvid {options.command} --help shows what it takes"
        hint = nearest(unknown[0].partition("=")[0], known) if unknown[0].startswith("-") else one_too_many
        raise InputError(f"stvid {options.command} does not know {' '.join(unknown)}{hint}")
    if rest:
        options.overrides += rest
    return options


if __name__ == "__main__":
    main()
