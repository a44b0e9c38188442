"""The options of all commands, and their help. What is wrong with their values is found by `arguments`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from stvid import __version__
from stvid.data.parts import COMMANDS, Part, parse_part
from stvid.errors import InputError

USAGE = """stvid: train, test and use models that recognise actions in video

  stvid train    [DATA] [overrides]                train a model (in a checkout also: python train.py)
  stvid cost     [DATA] [overrides] [--json F]     parameters, memory and compute of a model, before training
  stvid check    [DATA] [overrides] [--json F]     decode every video of a data set, report what is wrong with it
  stvid prepare  [DATA] [overrides] --out DIR      transcode a data set to small files that are read faster
  stvid encode   [DATA] [overrides]                compute the features of a frozen encoder before training
  stvid merge    COMMAND ...                       join the parts of check, prepare, encode, predict (--shard I/N)
  stvid evaluate RUN... [--split test] [--clips N] [--crops N] [--audit] [--calibrate] [--manifest F]
                 [--unknown DIR] [--json F]
  stvid report   RUN... [--split S] [--out F.html] [--json F]   a page about a run, or a comparison of several
  stvid predict  RUN SOURCE... [--top N] [--segments] [--json F] [--csv F] [--srt F] [--out F.mp4]
  stvid export   RUN [--format onnx|torch] [--stream] [--int8] [--out F] [--triton DIR]   a file without stvid
  stvid stream   RUN SOURCE [--json] [--show] [--out F.mp4]   a camera's number, a URL, a file, or - (raw frames)
  stvid serve    RUN [--host H] [--port N] [--token T] [--root DIR]   answer requests of other programs over HTTP
  stvid demo     RUN [--port N] [--no-browser]     open a page to try the model with videos and the webcam

DATA is a folder of videos (data=folder data.root=DATA, or the published data set that is recognised) or a CSV table.
Before a run you override a config (model=cnn_lstm optimizer.lr=1e-3); after a run you name the run.
stvid COMMAND --help lists the options of a command; stvid train --help all config keys.
"""
DATA_SET = "which data set: a folder, a CSV table, or overrides as for train, such as data=kth data.root=DIR"


def build_parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """The parser, and those of the commands by name."""
    parser = argparse.ArgumentParser(prog="stvid", usage=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"stvid {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, prog="stvid", dest="command")
    commands.add_parser("train", allow_abbrev=False, help="train a model; takes config overrides")  # see `stvid.cli`
    _add_cost(commands)
    _add_check(commands)
    _add_prepare(commands)
    _add_encode(commands)
    _add_merge(commands)
    _add_evaluate(commands)
    _add_report(commands)
    _add_predict(commands)
    _add_stream(commands)
    _add_serve(commands)
    _add_demo(commands)
    _add_export(commands)
    return parser, commands.choices


def _add_command(
    commands: argparse._SubParsersAction, name: str, description: str, *, output_files: Sequence[str] = ("json",)
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, allow_abbrev=False, help=description)
    parser.set_defaults(output_files=output_files)
    return parser


def _number_or_text(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _part(text: str) -> Part:
    try:
        return parse_part(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _add_overrides(parser: argparse.ArgumentParser, description: str = DATA_SET) -> None:
    parser.add_argument("overrides", metavar="overrides", nargs="*", default=[], help=description)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    description = "processes that read videos (default: one for two cores)"
    parser.add_argument("--workers", type=_number_or_text, default="auto", help=description)


def _add_trust(parser: argparse.ArgumentParser) -> None:
    description = "import a model of your own, if the run names a class in this package or module; may be repeated"
    parser.add_argument("--trust", metavar="MODULE", action="append", default=[], help=description)


def _add_cost(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands, "cost", "parameters, memory and compute of a model, before training", output_files=("json", "out")
    )
    _add_overrides(parser, "the same as for train, such as model=r3d_18 clip.size=112 data.batch_size=8")
    description = "number of classes (default: those of a published data set, else 400)"
    parser.add_argument("--classes", type=int, metavar="N", help=description)
    parser.add_argument("--frames", type=int, metavar="N", help="frames of a clip (default: clip.num_frames)")
    description = "device to estimate for; this machine need not have it (default: the one training would use)"
    parser.add_argument("--device", choices=("cpu", "cuda"), help=description)
    parser.add_argument("--compare", action="store_true", help="conv3d and cnn_lstm side by side, 1 to 1,000 frames")
    parser.add_argument("--out", metavar="F", help="with --compare: draw the comparison, .png, .svg or .pdf")
    parser.add_argument("--json", metavar="F", help="also write the report to this file")


def _add_check(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(commands, "check", "decode every video of a data set and print what is wrong with it")
    _add_overrides(parser)
    parser.add_argument("--json", metavar="F", help="also write the report, with every file, to this file")
    _add_parts(parser)


def _add_prepare(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(commands, "prepare", "transcode a data set to small files that are read faster")
    _add_overrides(parser)
    parser.add_argument("--out", metavar="DIR", required=True, help="a new folder, or one to continue in")
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("--short-side", **number, default=128, help="pixels; never enlarged (default: 128)")
    parser.add_argument("--gop", **number, default=8, help="frames from keyframe to keyframe (default: 8)")
    parser.add_argument("--crf", **number, default=23, help="0 (lossless) to 51 (default: 23)")
    description = "uncompressed pixels: about 50 times the disk, read faster; --gop and --crf then mean nothing"
    parser.add_argument("--uncompressed", action="store_true", help=description)
    description = "also pack the files into tars with so much video each, such as 1GB, for data=shards"
    parser.add_argument("--tar-size", metavar="SIZE", help=description)
    parser.add_argument("--json", metavar="F", help="also write the summary to this file")
    _add_parts(parser)


def _add_encode(commands: argparse._SubParsersAction) -> None:
    description = "compute and cache the features of a frozen encoder, which training then reads"
    parser = _add_command(commands, "encode", description, output_files=())
    _add_overrides(parser, "the same as for train, such as model=cnn_lstm model.freeze=all data.root=DIR")
    _add_parts(parser)


def _add_merge(commands: argparse._SubParsersAction) -> None:
    """For the help; `stvid.cli` reads the words."""
    parser = _add_command(commands, "merge", "join the parts of a command (--shard)", output_files=())
    verbs = ", ".join(COMMANDS)
    description = f"the command ({verbs}) with the words of its parts (such as --json F, --out DIR), without --shard"
    parser.add_argument("words", metavar="COMMAND ...", nargs="*", help=description)


def _add_parts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "several machines", "the parts of a command, on a file system that all of them see"
    )
    description = "do the I-th of N parts only (of check and predict with --json); then: stvid merge COMMAND ..."
    group.add_argument("--shard", dest="part", type=_part, metavar="I/N", help=description)
    group.add_argument("--engine", choices=("ray",), help="do all parts as tasks of a Ray cluster, and merge them")
    description = "with --engine: how many parts (default: one for each machine of the cluster)"
    group.add_argument("--shards", type=int, metavar="N", help=description)
    parser.set_defaults(merge=False)


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(commands, "evaluate", "evaluate a run, or a cross-validation, on held-out videos")
    description = "a run folder or a checkpoint; several runs, or a sweep's folder, are a cross-validation"
    parser.add_argument("runs", metavar="RUN", nargs="+", help=description)
    parser.add_argument("--split", default="test", help="train, val or test (default: test)")
    parser.add_argument("--clips", type=int, help="clips spread over each video (default: as in training)")
    parser.add_argument("--crops", type=int, help="crops of each clip: 1, 3 or 5 (default: as in training)")
    description = "does the model use time? Frozen, shuffled, reversed, at half and double speed"
    parser.add_argument("--audit", action="store_true", help=description)
    parser.add_argument("--calibrate", action="store_true", help="fit temperature and threshold on val, for this run")
    description = "a folder of videos of none of the classes: does confidence separate them? Sets the threshold"
    parser.add_argument("--unknown", metavar="DIR", help=description)
    description = "with --unknown: a class that means that nothing happens; may be repeated"
    parser.add_argument("--background", metavar="CLASS", action="append", default=[], help=description)
    parser.add_argument("--no-report", dest="report", action="store_false", help="draw no report.html")
    parser.add_argument("--manifest", metavar="F", help="other videos: path,label,split (default: the run's own)")
    parser.add_argument("--data-root", metavar="DIR", help="where the run's videos are now, if they were moved")
    description = "encode every video again, also with a frozen encoder, and store no features"
    parser.add_argument("--no-feature-cache", dest="feature_cache", action="store_false", help=description)
    parser.add_argument("--allow-leaks", action="store_true", help="allow training videos of the run in --manifest")
    _add_workers(parser)
    _add_trust(parser)
    description = "processes that evaluate together, one per GPU (default: 1)"
    parser.add_argument("--processes", type=int, default=1, metavar="N", help=description)
    parser.add_argument("--json", metavar="F", help="also write the result to this file")


def _add_report(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "report",
        "a page about a run or an evaluation, or a comparison of several",
        output_files=("json", "out"),
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run folder or a checkpoint; several are compared")
    description = "which evaluation (default: for one run its own on val, for several test)"
    parser.add_argument("--split", help=description)
    parser.add_argument("--data-root", metavar="DIR", help="where the run's videos are now, if they were moved")
    parser.add_argument("--out", metavar="F.html", help="write the page to this file")
    _add_trust(parser)
    parser.add_argument("--json", metavar="F", help="also write the comparison to this file")


def _add_predict(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "predict",
        "the most probable classes of videos, and for long ones what happens when",
        output_files=("json", "csv", "parquet"),
    )
    parser.add_argument("run", metavar="RUN", help="a run folder or a checkpoint")
    description = "video files, folders of them, patterns in quotes, or a table .csv with a column path"
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help=description)
    parser.add_argument("--top", type=int, default=5, help="how many classes to print (default: 5)")
    description = "divide videos into segments (default: those longer than 4 clips)"
    parser.add_argument("--segments", action=argparse.BooleanOptionalAction, help=description)
    _add_segment_options(parser)
    _add_workers(parser)
    _add_trust(parser)
    parser.add_argument("--json", metavar="F", help="also write the predictions to this file")
    parser.add_argument(
        "--resume", action="store_true", help="with --json: leave out the videos that are finished in its file"
    )
    parser.add_argument("--parquet", metavar="F", help="also write the predictions as a table of Parquet")
    _add_parts(parser)


def _add_segment_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("segments", "each of these options switches --segments on")
    description = "least probability at which a class begins (default: that of evaluate --calibrate, else 0.5)"
    group.add_argument("--threshold", type=float, metavar="P", help=description)
    group.add_argument("--window", type=float, metavar="S", help="seconds of a window (default: one clip)")
    description = "seconds from one window to the next (default: a quarter of a window)"
    group.add_argument("--hop", type=float, metavar="S", help=description)
    description = "seconds of the shortest segment (default: half a window)"
    group.add_argument("--min-duration", type=float, metavar="S", help=description)
    description = "a class that means that nothing happens: grey in --out, left out of subtitles; may be repeated"
    group.add_argument("--background", metavar="CLASS", action="append", default=[], help=description)
    group.add_argument("--csv", metavar="F", help="also write a table with a row for each segment")
    for name in ("srt", "vtt"):
        description = f"also write subtitles (.{name}); a folder for several videos"
        group.add_argument(f"--{name}", metavar="F", help=description)
    description = "also write the video with label and timeline drawn on it; a folder for several videos"
    group.add_argument("--out", metavar="F.mp4", help=description)


def _add_stream(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(commands, "stream", "recognise on a camera, a stream or a file", output_files=("out",))
    parser.add_argument("run", metavar="RUN", help="a run folder or a checkpoint")
    description = "a camera's number (0), a URL (rtsp, http, rtmp, udp), a file, or - for raw RGB frames on stdin"
    parser.add_argument("source", metavar="SOURCE", help=description)
    description = "print JSON lines: one per change of the label and one per second"
    parser.add_argument("--json", action="store_true", help=description)
    description = "play a file at its own pace; take frames from stdin as they come, and drop those that are too many"
    parser.add_argument("--realtime", action="store_true", help=description)
    description = "least probability at which a class begins (default: that of evaluate --calibrate, else 0.5)"
    parser.add_argument("--threshold", type=float, metavar="P", help=description)
    description = "seconds that a new label must last before it is told (default: 0.3)"
    parser.add_argument("--min-duration", type=float, metavar="S", default=0.3, help=description)
    description = "a class that means that nothing happens, told as unknown; may be repeated"
    parser.add_argument("--background", metavar="CLASS", action="append", default=[], help=description)
    description = "the model reads windows as long as its clips, also if it could take one frame at a time"
    parser.add_argument("--windows", action="store_true", help=description)
    parser.add_argument("--size", metavar="WxH", help="of the frames on stdin, or of a camera")
    description = "frames per second: on stdin, of a camera, or of a URL that states none"
    parser.add_argument("--fps", type=float, metavar="F", help=description)
    parser.add_argument("--show", action="store_true", help="open a window with the frames and the label")
    parser.add_argument("--out", metavar="F.mp4", help="record the frames with the label")
    parser.add_argument("--duration", type=float, metavar="S", help="stop after so many seconds of the source")
    _add_trust(parser)


def _add_serve(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(commands, "serve", "answer requests of other programs over HTTP", output_files=())
    parser.add_argument("run", metavar="RUN", help="a run folder or a checkpoint")
    _add_service_options(parser)
    group = parser.add_argument_group("Ray Serve", "several processes that hold the model, on one machine or on many")
    group.add_argument("--ray", action="store_true", help="run on Ray Serve; starts Ray, if it does not run")
    description = "processes that hold the model (default: 1)"
    group.add_argument("--replicas", type=int, metavar="N", default=1, help=description)
    description = "start up to so many under load, and stop them again (default: always as many as --replicas)"
    group.add_argument("--max-replicas", type=int, metavar="N", help=description)


def _add_service_options(parser: argparse.ArgumentParser) -> None:
    """The options of every command that starts the service."""
    description = "address to listen on; another than this machine's own needs a token (default: 127.0.0.1)"
    parser.add_argument("--host", default="127.0.0.1", help=description)
    parser.add_argument("--port", type=int, default=8000, help="0: a free one (default: 8000)")
    description = "what clients must send (default: the variable STVID_TOKEN; on other hosts a new one, which is shown)"
    parser.add_argument("--token", metavar="T", help=description)
    description = "clients may also name videos in this folder, with path= (default: none)"
    parser.add_argument("--root", metavar="DIR", help=description)
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("--max-upload", type=int, metavar="MIB", default=100, help="size of one video (default: 100)")
    description = "milliseconds that a request waits for others, to share a call of the model (default: 5)"
    parser.add_argument("--max-delay", type=float, metavar="MS", default=5.0, help=description)
    description = "clips in one call of the model (default: the batch size of the training)"
    parser.add_argument("--max-batch", **number, help=description)
    description = "requests in work at a time; more are refused with status 429 (default: 64)"
    parser.add_argument("--max-queue", **number, default=64, help=description)
    description = "sockets that send frames at a time; more are refused (default: 16)"
    parser.add_argument("--max-streams", **number, default=16, help=description)
    parser.add_argument("--device", metavar="D", help="such as cpu or cuda:1 (default: an accelerator if there is one)")
    _add_trust(parser)


def _add_demo(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(commands, "demo", "open a page to try the model with videos and the webcam", output_files=())
    parser.add_argument("run", metavar="RUN", help="a run folder or a checkpoint")
    description = "only print the address of the page"
    parser.add_argument("--no-browser", dest="browser", action="store_false", help=description)
    _add_service_options(parser)


def _add_export(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands, "export", "write the model to a file that runs without stvid", output_files=("json", "out")
    )
    parser.add_argument("run", metavar="RUN", help="a run folder or a checkpoint")
    description = "onnx: for onnxruntime and others; torch: for torch.export.load (default: onnx)"
    parser.add_argument("--format", choices=("onnx", "torch"), default="onnx", help=description)
    description = "the new file (default: model.onnx, model.int8.onnx, stream.onnx or .pt2, in the run folder)"
    parser.add_argument("--out", metavar="F", help=description)
    description = "compute with 8-bit integers, calibrated on training clips (onnx); compares the accuracy on val"
    parser.add_argument("--int8", action="store_true", help=description)
    description = "accuracy that --int8 may cost, 0 to 1 (default: 0.01); if it costs more, no file is written"
    parser.add_argument("--max-loss", type=float, metavar="P", help=description)
    description = "the streaming form: the next frames and the state in, probabilities and the new state out"
    parser.add_argument("--stream", action="store_true", help=description)
    description = "the streaming form as a new model in a repository of Triton Inference Server, named as the run"
    parser.add_argument("--triton", metavar="DIR", help=description)
    _add_trust(parser)
    parser.add_argument("--json", metavar="F", help="also write the report of the comparison to this file")
