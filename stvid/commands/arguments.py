"""Checks of a command's words and files: a mistake is told before torch is imported, which takes seconds."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from stvid.commands.part_options import PREPARE, find_part_mistakes
from stvid.commands.predict_arguments import find_predict_mistakes, find_wrong_limits
from stvid.data.layouts.discovery import is_frame_folder, resolve_folder
from stvid.data.layouts.recognition import VIDEO
from stvid.data.manifest import SPLITS
from stvid.data.prepare_plan import check_output, encoding_settings, parse_size
from stvid.deploy.display import check_display
from stvid.deploy.inputs import find_sources
from stvid.errors import InputError, raise_mistakes
from stvid.evaluation.split_check import check_table
from stvid.export.packages import check_onnx_packages
from stvid.files import file_in_the_way, is_special, why_not_writable
from stvid.run.folder import RunFolder, check_runs_exist, find_checkpoint, resolve_runs
from stvid.serve.options import (
    bind_port,
    check_packages,
    check_ray,
    find_ray_mistakes,
    find_serve_mistakes,
    has_proxy,
)
from stvid.video.sources import check_source, kind_of

PICTURE_SUFFIXES = (".png", ".svg", ".pdf")
CROPS = (1, 3, 5)
PREPARE_LIMITS = {"short_side": (16, 4096), "gop": (1, 1000), "crf": (0, 51)}


def check_arguments(options: argparse.Namespace) -> None:
    """Raises InputError for all mistakes in the options of a command."""
    mistakes: list[str] = []
    for check in (_check_output_files, _check_parts, CHECKS[options.command]):
        try:
            mistakes += check(options) or []
        except InputError as error:
            mistakes.append(str(error))
    raise_mistakes(mistakes)


def _check_output_files(options: argparse.Namespace) -> Iterable[str]:
    """Files that cannot be written are found before the work, not after it."""
    for option in options.output_files:
        name = getattr(options, option)
        if name is None:
            continue
        path = Path(name).absolute()
        if not name:
            yield f"--{option} has no value; name a file"
        elif path.is_dir():
            yield f"--{option} {name}: that is a folder; name a file"
        elif is_special(path):
            yield f"--{option} {name}: that is no ordinary file, and would be replaced; name another file"
        elif not path.parent.is_dir():
            yield f"--{option} {name}: there is no folder {path.parent}"
        elif (reason := why_not_writable(path.parent)) is not None:
            yield f"--{option} {name}: no file can be written there: {reason}"


def _check_parts(options: argparse.Namespace) -> Iterable[str]:
    return find_part_mistakes(options) if hasattr(options, "part") else ()


def _check_data_set(options: argparse.Namespace) -> None:
    from stvid.run.config import compose_config  # other commands do without Hydra
    from stvid.run.config_errors import hydra_errors_as_input_errors
    from stvid.run.data_set import read_manifest_early
    from stvid.run.overrides import to_overrides

    options.overrides = to_overrides(options.overrides)
    with hydra_errors_as_input_errors():
        config = compose_config(options.overrides, needs_data=options.command != "cost")
        if options.command != "cost":
            options.data_set = read_manifest_early(config)


def _check_prepare(options: argparse.Namespace) -> Iterable[str]:
    encoding = encoding_settings(**{name: getattr(options, name) for name in PREPARE})
    mistakes = [
        f"--{name.replace('_', '-')}: {name} (={encoding[name]}) must be between {low} and {high}"
        for name, (low, high) in PREPARE_LIMITS.items()
        if not low <= encoding[name] <= high
    ]
    if not options.out:
        mistakes.append("--out has no value; name a folder")
    if options.tar_size is not None:
        try:
            parse_size(options.tar_size)
        except ValueError as error:
            mistakes.append(f"--tar-size {error}")
    yield from mistakes
    _check_data_set(options)
    if options.data_set is not None and not mistakes:
        check_output(options.data_set, Path(options.out), encoding)


def _check_cost(options: argparse.Namespace) -> Iterable[str]:
    for name in ("classes", "frames"):
        value = getattr(options, name)
        if value is not None and value < 1:
            yield f"--{name} (={value}) must be at least 1"
    if options.out and not options.compare:
        yield f"--out {options.out}: only a comparison has a picture; add --compare"
    elif options.out and Path(options.out).suffix not in PICTURE_SUFFIXES:
        yield f"--out {options.out}: the picture must end in {', '.join(PICTURE_SUFFIXES)}"
    if options.compare and options.frames is not None:
        yield f"--frames {options.frames}: --compare always uses 1 to 1,000 frames; leave it out"
    _check_data_set(options)


def _check_evaluate(options: argparse.Namespace) -> Iterable[str]:
    if options.split not in SPLITS:
        yield f"--split {options.split}: must be one of {', '.join(SPLITS)}"
    if options.clips is not None and options.clips < 1:
        yield f"--clips: num_clips (={options.clips}) must be at least 1"
    if options.crops is not None and options.crops not in CROPS:
        yield f"--crops: num_crops (={options.crops}) must be 1 (centre), 3 (both ends and centre) or 5 (corners too)"
    yield from _workers(options)
    if options.processes < 1:
        yield f"--processes (={options.processes}) must be at least 1"
    has_table = options.manifest is None or (path := Path(options.manifest).expanduser()).is_file()
    if not has_table:
        problem = "is a folder" if path.is_dir() else "does not exist"
        yield f"--manifest {path} {problem}; name a CSV table path,label,split"
    _check_runs(options.runs)
    folder = RunFolder.of(options.runs[0])
    is_one_run = len(options.runs) == 1 and not folder.is_sweep  # the runs of a sweep are looked at later
    yield from _unknown_mistakes(options, is_one_run)
    if is_one_run and has_table and options.split in SPLITS:
        check_table(folder, options.split, manifest=options.manifest, data_root=options.data_root)


def _unknown_mistakes(options: argparse.Namespace, is_one_run: bool) -> Iterable[str]:
    if options.unknown is None:
        if options.background:
            yield f"--background {options.background[0]} needs --unknown DIR"
        return
    if not is_one_run:
        yield "--unknown needs one run, because each run has its own threshold; name one of them"
    resolve_folder(options.unknown, key="--unknown")
    try:
        find_sources([options.unknown])
    except InputError as error:
        yield f"--unknown: {error}"


def _check_report(options: argparse.Namespace) -> Iterable[str]:
    if options.out and Path(options.out).suffix not in (".html", ".htm"):
        yield f"--out {options.out}: the page must end in .html"
    if options.json and len(options.runs) == 1:
        yield f"--json {options.json}: only a comparison of several runs is written there; this is one run"
    check_runs_exist(options.runs)
    if options.data_root:
        resolve_folder(options.data_root, key="--data-root")
    if len(options.runs) == 1:
        options.evaluation = evaluation_of(options.runs[0], options.split)


def _check_predict(options: argparse.Namespace) -> Iterable[str]:
    _check_is_no_video("predict", options.run, options.sources)
    yield from find_predict_mistakes(options)
    yield from _workers(options)
    _check_runs([options.run])


def _check_is_no_video(verb: str, run: str, sources: Sequence[str]) -> None:
    """Raises InputError for a video that was named in the place of the run."""
    if Path(run).is_file() and VIDEO.fullmatch(Path(run).name):
        runs = [source for source in sources if Path(source).is_dir()]
        command = shlex.join(["stvid", verb, *(runs[:1] or ["RUN"]), run])
        raise InputError(f"{run} is a video; the run comes first: {command}")


def _check_stream(options: argparse.Namespace) -> Iterable[str]:
    mistakes = check_source(options.source, size=options.size, fps=options.fps, realtime=options.realtime)
    yield from mistakes
    is_file = not mistakes and kind_of(options.source) == "file"
    if is_file and (path := Path(options.source)).is_dir() and not is_frame_folder(path):
        yield f"{options.source} is a folder without images; name one video, or a folder of its images"
    if options.source == "-" and sys.stdin.isatty():
        yield "-: stdin is the terminal; let another program write raw frames to it"
    yield from find_wrong_limits(options)
    if options.duration is not None and not options.duration > 0:
        yield f"--duration (={options.duration:g}) must be above 0 seconds"
    if options.out is not None:
        yield from _recording(Path(options.out))
    if options.show:
        check_display()
    _check_is_no_video("stream", options.run, [options.source])
    _check_runs([options.run])


def _check_serve(options: argparse.Namespace) -> Iterable[str]:
    mistakes = [*find_serve_mistakes(options), *find_ray_mistakes(options)]
    yield from mistakes
    check_packages()
    if options.ray:
        check_ray()
    _check_runs([options.run])
    if mistakes or (options.ray and has_proxy(options.host, options.port)):
        return
    options.listener = bind_port(options.host, options.port)
    if options.ray:  # the port is for Ray's own process
        options.listener.close()


def _check_demo(options: argparse.Namespace) -> Iterable[str]:
    mistakes = list(find_serve_mistakes(options))
    yield from mistakes
    check_packages()
    _check_runs([options.run])
    if not mistakes:
        options.listener = bind_port(options.host, options.port)


def _check_export(options: argparse.Namespace) -> Iterable[str]:
    suffix = {"onnx": ".onnx", "torch": ".pt2"}[options.format]
    if options.format == "onnx":
        check_onnx_packages()
    if options.out and Path(options.out).suffix != suffix:
        yield f"--out {options.out}: a file of --format {options.format} must end in {suffix}"
    if options.triton and (options.out or options.format != "onnx"):
        other = "--out" if options.out else "--format torch"
        yield f"--triton {options.triton} writes ONNX into that folder, so it cannot be combined with {other}"
    yield from _int8_mistakes(options)
    _check_runs([options.run])
    find_checkpoint(options.run)  # a sweep has none
    folder = RunFolder.of(options.run)
    if options.triton:
        yield from _triton_model(options, folder)
        return
    default = {
        "onnx": folder.stream_onnx if options.stream else folder.model_onnx,
        "torch": folder.stream_pt2 if options.stream else folder.model_pt2,
    }[options.format]
    if options.int8:
        default = folder.model_int8_onnx
    path = Path(options.out or default)
    if os.path.lexists(path) and not (options.out and path.is_dir()):  # of an option, that is told already
        yield f"{path} exists already; delete it, or name another file with --out"
    elif not options.out and (reason := why_not_writable(path.parent)) is not None:
        yield f"{path} cannot be written: {reason}; name another file with --out"
    options.out = str(path)


def _int8_mistakes(options: argparse.Namespace) -> Iterable[str]:
    others = {"--format torch": options.format == "torch", "--stream": options.stream, "--triton": options.triton}
    if options.int8 and any(others.values()):
        other = next(name for name, given in others.items() if given)
        yield f"--int8 writes an ONNX file for whole clips, so it cannot be combined with {other}"
    if options.max_loss is not None and not options.int8:
        yield f"--max-loss {options.max_loss:g} needs --int8"
    if options.max_loss is not None and not 0 <= options.max_loss <= 1:
        yield f"--max-loss {options.max_loss:g}: a loss of accuracy must be from 0 to 1"


def _triton_model(options: argparse.Namespace, folder: RunFolder) -> Iterable[str]:
    """The model in the repository has the name of the run's folder."""
    repository, model = options.triton, Path(options.triton) / folder.path.resolve().name
    options.triton = str(model)
    if (file := file_in_the_way(repository)) is not None:
        yield f"--triton {repository}: {file} is a file; name a folder"
    elif os.path.lexists(model):
        yield f"{model} exists already; delete it, or name another folder with --triton"
    elif (reason := why_not_writable(repository)) is not None:
        yield f"{model} cannot be written: {reason}; name another folder with --triton"


def _recording(path: Path) -> Iterable[str]:
    if path.suffix.lower() != ".mp4":
        yield f"--out {path}: the recording must end in .mp4"
    elif path.is_file():
        yield f"--out {path} exists already; name another file"


def _workers(options: argparse.Namespace) -> Iterable[str]:
    if not (options.workers == "auto" or (isinstance(options.workers, int) and options.workers >= 0)):
        yield f"--workers: num_workers (={options.workers}) must be 'auto' or a whole number, 0 or more"


def _check_runs(runs: Sequence[str]) -> None:
    """Every run exists, and has a file that may be a checkpoint; the runs of a sweep are looked at later."""
    check_runs_exist(runs)
    for run in runs:
        if not RunFolder(Path(run).expanduser()).is_sweep:
            checkpoint = find_checkpoint(run)
            if not zipfile.is_zipfile(checkpoint):
                raise InputError(f"{checkpoint} is no readable checkpoint: truncated, or another kind of file")


def evaluation_of(run: str, split: str | None) -> RunFolder:
    """The folder with the evaluation of one run or cross-validation that a page is drawn of.

    Args:
        run: as the user named it.
        split: the split, or None: test for a cross-validation; else val, which may be the run's own evaluation.

    Raises:
        InputError: there is no such evaluation.
    """
    runs, sweep = resolve_runs([run])
    name = split or ("test" if sweep else "val")
    whole = RunFolder(sweep) if sweep else RunFolder.of(find_checkpoint(runs[0]))
    folder = whole.evaluation(name)
    if not (split or sweep) or (name == "val" and not whole.is_sweep and not folder.path.is_dir()):
        folder = whole
    if not folder.result_json.is_file():
        command = shlex.join(["stvid", "evaluate", run, "--split", name])
        raise InputError(f"{run} was not evaluated on {name}: no {folder.result_json}. First: {command}")
    return folder


CHECKS: dict[str, Callable[[argparse.Namespace], Iterable[str] | None]] = {
    "check": _check_data_set,
    "prepare": _check_prepare,
    "cost": _check_cost,
    "evaluate": _check_evaluate,
    "report": _check_report,
    "encode": _check_data_set,
    "predict": _check_predict,
    "stream": _check_stream,
    "serve": _check_serve,
    "demo": _check_demo,
    "export": _check_export,
}
