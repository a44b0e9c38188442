"""The `stvid` command."""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from stvid import __version__
from stvid.errors import InputError

USAGE = """stvid: train, test and use models that recognise actions in video

  stvid train    [overrides]                       same as python train.py [overrides]
  stvid evaluate RUN [--split test] [--clips N] [--crops N] [--manifest F] [--json F]
  stvid predict  RUN SOURCE... [--top N] [--json F]

Before a run you override a config (model=cnn_lstm data.root=DIR); after a run you point at the run.
stvid COMMAND --help says more.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 2 the input is wrong, 1 anything else."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = None if arguments[:1] == ["train"] else _parser().parse_args(arguments)
    from stvid.config import home, report_errors  # what takes seconds to import waits until the words are understood

    if options is None:
        train_file = home() / "train.py"
        sys.argv = [str(train_file), *arguments[1:]]
        runpy.run_path(str(train_file), run_name="__main__")
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with report_errors():
        if options.json and not Path(options.json).absolute().parent.is_dir():
            raise InputError(f"--json {options.json}: there is no folder {Path(options.json).absolute().parent}")
        options.command(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stvid", usage=USAGE, add_help=True, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"stvid {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, prog="stvid")

    command = commands.add_parser("evaluate", help="judge a run on held-out videos")
    command.set_defaults(command=_evaluate)
    command.add_argument("run", metavar="RUN", help="a run folder or a checkpoint")
    command.add_argument("--split", default="test", help="train, val or test (default: test)")
    command.add_argument("--clips", type=int, help="clips spread over each video (default: as in training)")
    command.add_argument("--crops", type=int, help="crops of each clip: 1 or 3 (default: as in training)")
    command.add_argument("--manifest", metavar="F", help="other videos: path,label,split (default: the run's own)")
    command.add_argument("--allow-leaks", action="store_true", help="let --manifest hold what the run was trained on")
    command.add_argument("--workers", default="auto", help="processes that read videos (default: one for two cores)")
    command.add_argument("--json", metavar="F", help="write the result here too")

    command = commands.add_parser("predict", help="the most probable classes of video files")
    command.set_defaults(command=_predict)
    command.add_argument("run", metavar="RUN", help="a run folder or a checkpoint")
    command.add_argument("sources", metavar="SOURCE", nargs="+", help="video files, or folders of them")
    command.add_argument("--top", type=int, default=5, help="how many classes to name (default: 5)")
    command.add_argument("--workers", default="auto", help="processes that read videos (default: one for two cores)")
    command.add_argument("--json", metavar="F", help="write the predictions here")

    # `stvid train` is handed to train.py before anything is parsed; this is for --help
    commands.add_parser("train", help="train a model; takes config overrides")
    return parser


def _workers(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _evaluate(options: argparse.Namespace) -> None:
    from stvid.checkpoint import load
    from stvid.evaluation.evaluate import describe, evaluate, held_out, write_predictions
    from stvid.files import write_json
    from stvid.run import shown

    trained = load(options.run)
    data = held_out(trained, split=options.split, manifest=options.manifest, allow_leaks=options.allow_leaks)
    result, predictions = evaluate(
        trained,
        data,
        split=options.split,
        num_clips=options.clips,
        num_crops=options.crops,
        num_workers=_workers(options.workers),
    )
    name = f"{options.split}_{Path(options.manifest).stem}" if options.manifest else options.split
    folder = trained.folder / "evaluate" / name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "result.json", result)
    write_predictions(folder / "predictions.csv", predictions, trained.class_names)
    if options.json:
        write_json(options.json, result)
    print(describe(result))
    print(f"\nwritten to {shown(folder)}/ (result.json, predictions.csv)")


def _predict(options: argparse.Namespace) -> None:
    from stvid.checkpoint import load
    from stvid.deploy.predict import expand, predict
    from stvid.files import write_json

    paths = expand(options.sources)
    predictions = predict(load(options.run), paths, top=options.top, num_workers=_workers(options.workers))
    for prediction in predictions:
        print(prediction["path"])
        if "error" in prediction:
            print(f"  could not be read: {prediction['error']}")
        for one in prediction["top"]:
            print(f"  {one['probability']:6.1%}  {one['class']}")
    if options.json:
        write_json(options.json, predictions)
    if any("error" in prediction for prediction in predictions):
        raise SystemExit(1)
