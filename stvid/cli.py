"""The `stvid` command."""

from __future__ import annotations

import argparse
import functools
import io
import logging
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from stvid import __version__
from stvid.commands import check, cost, evaluate, predict, prepare, report
from stvid.errors import InputError

USAGE = """stvid: train, test and use models that recognise actions in video

  stvid train    [overrides]                       train a model (in a checkout also: python train.py)
  stvid cost     [overrides] [--json F]            what the model will need: parameters, memory, compute
  stvid check    [overrides] [--json F]            decode every video of the data set, say what is wrong with it
  stvid prepare  [overrides] --out DIR             transcode it to small files that are read several times faster
  stvid evaluate RUN... [--split test] [--clips N] [--crops N] [--audit] [--calibrate] [--manifest F] [--json F]
  stvid report   RUN... [--split S] [--out F.html] [--json F]   a page about a run, or about several side by side
  stvid predict  RUN SOURCE... [--top N] [--json F]

Before a run you override a config (model=cnn_lstm data.root=DIR); after a run you point at the run.
stvid COMMAND --help says more.
"""


DATA_SET = "which data set: the same overrides as for train, such as data=folder data.root=DIR"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 2 the input is wrong, 1 anything else; 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _run(arguments)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _run(arguments: list[str]) -> None:
    options = None if arguments[:1] == ["train"] else _parse(arguments)
    from stvid.run.config import (  # what takes seconds to import waits until the words are understood
        home,
        report_errors,
    )

    if options is None:
        train_file = home() / "train.py"
        sys.argv = [str(train_file), *arguments[1:]]
        runpy.run_path(str(train_file), run_name="__main__")
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files and classes may be no text
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with report_errors():
        for word in ("json", "out"):
            _check_file(
                f"--{word}", getattr(options, word, None) if options.command is not prepare.run_prepare else None
            )
        options.again = functools.partial(main, arguments)  # the same command, in another process
        options.command(options)


def _check_file(option: str, name: str | None) -> None:
    path = Path(name or "-").absolute()
    if path.is_dir():
        raise InputError(f"{option} {name}: that is a folder; name a file")
    if not path.parent.is_dir():
        raise InputError(f"{option} {name}: there is no folder {path.parent}")


def _parse(arguments: list[str]) -> argparse.Namespace:
    """The options; overrides may stand before, between and behind them."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stvid", usage=USAGE, add_help=True, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"stvid {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, prog="stvid")

    _add_before_a_run(commands)
    _add_after_a_run(commands)
    # `stvid train` is handed to train.py before anything is parsed; this is for --help
    commands.add_parser(allow_abbrev=False, name="train", help="train a model; takes config overrides")
    return parser


def _add_before_a_run(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(allow_abbrev=False, name="cost", help="what a model needs, before it is trained")
    command.set_defaults(command=cost.run_cost)
    _add_overrides(command, "the same as for train, such as model=r3d_18 clip.size=112 data.batch_size=8")
    command.add_argument(
        "--classes", type=int, metavar="N", help="outputs (default: those of a published data set, else 400)"
    )
    command.add_argument("--frames", type=int, metavar="N", help="of a clip (default: clip.num_frames)")
    command.add_argument("--device", choices=("cpu", "cuda"), help="need not be there (default: what would train)")
    command.add_argument("--compare", action="store_true", help="conv3d and cnn_lstm side by side, 1 to 1,000 frames")
    command.add_argument("--out", metavar="F", help="with --compare: draw it here, .png, .svg or .pdf")
    command.add_argument("--json", metavar="F", help="write the report here too")

    command = commands.add_parser(
        allow_abbrev=False, name="check", help="decode every video of a data set, say what is wrong with it"
    )
    command.set_defaults(command=check.run_check)
    _add_overrides(command)
    command.add_argument("--json", metavar="F", help="write the report here too, with every file in it")

    command = commands.add_parser(
        allow_abbrev=False, name="prepare", help="transcode a data set to small files that are read faster"
    )
    command.set_defaults(command=prepare.run_prepare)
    _add_overrides(command)
    command.add_argument("--out", metavar="DIR", required=True, help="a new folder, or one to go on with")
    number = {"type": int, "metavar": "N"}
    command.add_argument("--short-side", **number, default=128, help="pixels; never enlarged (default: 128)")
    command.add_argument("--gop", **number, default=8, help="frames from keyframe to keyframe (default: 8)")
    command.add_argument("--crf", **number, default=23, help="0 (lossless) to 51 (default: 23)")
    command.add_argument("--json", metavar="F", help="write the summary here too")


def _add_after_a_run(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        allow_abbrev=False, name="evaluate", help="judge a run, or a cross-validation, on held-out videos"
    )
    command.set_defaults(command=evaluate.run_evaluate)
    words = "a run folder or a checkpoint; several runs or a sweep's folder: a cross-validation"
    command.add_argument("runs", metavar="RUN", nargs="+", help=words)
    command.add_argument("--split", default="test", help="train, val or test (default: test)")
    command.add_argument("--clips", type=int, help="clips spread over each video (default: as in training)")
    command.add_argument("--crops", type=int, help="crops of each clip: 1, 3 or 5 (default: as in training)")
    words = "does the model use time? Frozen, shuffled, reversed, at half and double speed"
    command.add_argument("--audit", action="store_true", help=words)
    command.add_argument("--calibrate", action="store_true", help="fit a temperature on val, and keep it with the run")
    command.add_argument("--no-report", dest="report", action="store_false", help="draw no report.html")
    command.add_argument("--manifest", metavar="F", help="other videos: path,label,split (default: the run's own)")
    command.add_argument("--allow-leaks", action="store_true", help="let --manifest hold what the run was trained on")
    command.add_argument("--workers", default="auto", help="processes that read videos (default: one for two cores)")
    command.add_argument("--processes", type=int, default=1, metavar="N", help="that judge, one a GPU (default: 1)")
    command.add_argument("--json", metavar="F", help="write the result here too")

    command = commands.add_parser(
        allow_abbrev=False, name="report", help="a page about a run or an evaluation, or a comparison of several"
    )
    command.set_defaults(command=report.run_report)
    command.add_argument("runs", metavar="RUN", nargs="+", help="a run folder or a checkpoint; several are compared")
    words = "which evaluation (default: of one run the training's own on val, of several test)"
    command.add_argument("--split", help=words)
    command.add_argument("--out", metavar="F.html", help="write the page here")
    command.add_argument("--json", metavar="F", help="write the comparison here")

    command = commands.add_parser(allow_abbrev=False, name="predict", help="the most probable classes of video files")
    command.set_defaults(command=predict.run_predict)
    command.add_argument("run", metavar="RUN", help="a run folder or a checkpoint")
    command.add_argument("sources", metavar="SOURCE", nargs="+", help="video files, or folders of them")
    command.add_argument("--top", type=int, default=5, help="how many classes to name (default: 5)")
    command.add_argument("--workers", default="auto", help="processes that read videos (default: one for two cores)")
    command.add_argument("--json", metavar="F", help="write the predictions here")


def _add_overrides(command: argparse.ArgumentParser, words: str = DATA_SET) -> None:
    command.add_argument("overrides", metavar="overrides", nargs="*", default=[], help=words)


if __name__ == "__main__":
    main()
