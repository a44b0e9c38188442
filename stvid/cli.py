"""The `stvid` command."""

from __future__ import annotations

import argparse
import functools
import logging
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from stvid import __version__
from stvid.errors import InputError

USAGE = """stvid: train, test and use models that recognise actions in video

  stvid train    [overrides]                       same as python train.py [overrides]
  stvid cost     [overrides] [--json F]            what the model will need: parameters, memory, compute
  stvid check    [overrides] [--json F]            decode every video of the data set, say what is wrong with it
  stvid prepare  [overrides] --out DIR             transcode it to small files that are read several times faster
  stvid evaluate RUN [--split test] [--clips N] [--crops N] [--manifest F] [--json F]
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
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _run(arguments: list[str]) -> None:
    options = None if arguments[:1] == ["train"] else _parse(arguments)
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
        options.words = arguments
        options.command(options)


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
    commands.add_parser("train", help="train a model; takes config overrides")
    return parser


def _add_before_a_run(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("cost", help="what a model needs, before it is trained")
    command.set_defaults(command=_cost)
    _add_overrides(command, "the same as for train, such as model=r3d_18 clip.size=112 data.batch_size=8")
    command.add_argument(
        "--classes", type=int, metavar="N", help="outputs (default: those of a published data set, else 400)"
    )
    command.add_argument("--frames", type=int, metavar="N", help="of a clip (default: clip.num_frames)")
    command.add_argument("--device", choices=("cpu", "cuda"), help="need not be there (default: what would train)")
    command.add_argument("--compare", action="store_true", help="conv3d and cnn_lstm side by side, 1 to 1,000 frames")
    command.add_argument("--out", metavar="F", help="with --compare: draw it here, .png, .svg or .pdf")
    command.add_argument("--json", metavar="F", help="write the report here too")

    command = commands.add_parser("check", help="decode every video of a data set, say what is wrong with it")
    command.set_defaults(command=_check)
    _add_overrides(command)
    command.add_argument("--json", metavar="F", help="write the report here too, with every file in it")

    command = commands.add_parser("prepare", help="transcode a data set to small files that are read faster")
    command.set_defaults(command=_prepare)
    _add_overrides(command)
    command.add_argument("--out", metavar="DIR", required=True, help="a new folder, or one to go on with")
    number = {"type": int, "metavar": "N"}
    command.add_argument("--short-side", **number, default=128, help="pixels; never enlarged (default: 128)")
    command.add_argument("--gop", **number, default=8, help="frames from keyframe to keyframe (default: 8)")
    command.add_argument("--crf", **number, default=23, help="0 (lossless) to 51 (default: 23)")
    command.add_argument("--json", metavar="F", help="write the summary here too")


def _add_after_a_run(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("evaluate", help="judge a run on held-out videos")
    command.set_defaults(command=_evaluate)
    command.add_argument("run", metavar="RUN", help="a run folder or a checkpoint")
    command.add_argument("--split", default="test", help="train, val or test (default: test)")
    command.add_argument("--clips", type=int, help="clips spread over each video (default: as in training)")
    command.add_argument("--crops", type=int, help="crops of each clip: 1 or 3 (default: as in training)")
    command.add_argument("--manifest", metavar="F", help="other videos: path,label,split (default: the run's own)")
    command.add_argument("--allow-leaks", action="store_true", help="let --manifest hold what the run was trained on")
    command.add_argument("--workers", default="auto", help="processes that read videos (default: one for two cores)")
    command.add_argument("--processes", type=int, default=1, metavar="N", help="that judge, one a GPU (default: 1)")
    command.add_argument("--json", metavar="F", help="write the result here too")

    command = commands.add_parser("predict", help="the most probable classes of video files")
    command.set_defaults(command=_predict)
    command.add_argument("run", metavar="RUN", help="a run folder or a checkpoint")
    command.add_argument("sources", metavar="SOURCE", nargs="+", help="video files, or folders of them")
    command.add_argument("--top", type=int, default=5, help="how many classes to name (default: 5)")
    command.add_argument("--workers", default="auto", help="processes that read videos (default: one for two cores)")
    command.add_argument("--json", metavar="F", help="write the predictions here")


def _add_overrides(command: argparse.ArgumentParser, words: str = DATA_SET) -> None:
    command.add_argument("overrides", metavar="overrides", nargs="*", default=[], help=words)


def _workers(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _data_set(options: argparse.Namespace):
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


def _cost(options: argparse.Namespace) -> None:
    from stvid.cost.growth import check_picture, draw_growth, growth_table
    from stvid.files import write_json
    from stvid.pricing import compare, describe, plan

    if options.out and not options.compare:
        raise InputError(f"--out {options.out}: a picture is drawn of a comparison only; add --compare")
    if not options.compare:
        planned = plan(options.overrides, classes=options.classes, frames=options.frames, device=options.device)
        report = planned.price(planned.chosen_batch())
        if options.json:
            write_json(options.json, report.to_dict())
        print(describe(planned, report))
        return
    if options.frames is not None:
        raise InputError(f"--frames {options.frames}: --compare prices clips of 1 to 1,000 frames; leave it out")
    if options.out:
        check_picture(options.out)
    reports = compare(options.overrides, classes=options.classes, device=options.device)
    if options.json:
        write_json(options.json, {name: [report.to_dict() for report in series] for name, series in reports.items()})
    print(growth_table(reports))
    if options.out:
        draw_growth(reports, options.out)
        print(f"\ndrawn to {options.out}")


def _check(options: argparse.Namespace) -> None:
    from stvid.data.check import check_videos, is_bad
    from stvid.data.check_page import describe
    from stvid.data.loading import probe_cache
    from stvid.files import write_json

    manifest, clip, workers, timeout = _data_set(options)
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
    print(describe(report))
    if is_bad(report):
        raise SystemExit(1)


def _prepare(options: argparse.Namespace) -> None:
    from stvid.data.prepare import prepare
    from stvid.data.prepare_page import describe
    from stvid.files import write_json

    manifest, clip, workers, _ = _data_set(options)
    sizes = {"short_side": options.short_side, "gop": options.gop, "crf": options.crf}
    progress = sys.stderr.isatty()
    summary = prepare(manifest, out=Path(options.out), clip=clip, num_workers=workers, progress=progress, **sizes)
    if options.json:
        write_json(options.json, summary)
    print(describe(summary))
    if summary["num_bad"]:
        raise SystemExit(1)


def _evaluate(options: argparse.Namespace) -> None:
    from stvid.launch import is_spread, joined, spread

    if options.processes < 1:
        raise InputError(f"--processes (={options.processes}) must be at least 1")
    if options.processes > 1 and not is_spread():
        raise SystemExit(spread(functools.partial(main, options.words), options.processes))
    with joined() as first:
        _judge(options, first)


def _judge(options: argparse.Namespace, first: bool) -> None:
    from stvid.checkpoint import load
    from stvid.evaluation.evaluate import describe, evaluate, held_out, write_predictions
    from stvid.files import write_json
    from stvid.run import shown

    trained = load(options.run)
    data = held_out(trained, split=options.split, manifest=options.manifest, allow_leaks=options.allow_leaks)
    views = {"num_clips": options.clips, "num_crops": options.crops}
    result, predictions = evaluate(trained, data, split=options.split, num_workers=_workers(options.workers), **views)
    if not first:
        return
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


if __name__ == "__main__":
    main()
