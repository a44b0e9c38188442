"""`stvid predict`: the most probable classes of videos, and for long ones what happens when."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from stvid.commands.part_options import is_in_parts, part_text, predict_parts
from stvid.data.dataset import Failure
from stvid.data.loading import probe_items, resolve_workers
from stvid.data.manifest import Item
from stvid.data.parts import Parts
from stvid.deploy.annotate import annotate
from stvid.deploy.inputs import EACH, Source, exists_text, output_files
from stvid.deploy.predictions import PredictionFiles, fingerprint_of, make_entry
from stvid.deploy.segmentation import (
    SegmentOptions,
    VideoSegments,
    check_classes,
    num_clips_in,
    resolve_threshold,
    segment_video,
)
from stvid.deploy.segments import UNKNOWN
from stvid.deploy.subtitles import subtitles, write_subtitles
from stvid.deploy.window_plan import plan_windows
from stvid.deploy.windows import Window
from stvid.device import default_device, set_up_cpu
from stvid.disks import full_disk_error
from stvid.errors import UNREADABLE, InputError, VideoError, raise_mistakes
from stvid.exits import exit_on_sigterm
from stvid.inference import ModelRunner, classify_each
from stvid.progress import Bar
from stvid.run.checkpoint import TrainedModel, load_checkpoint
from stvid.terminal import aligned, clock, show, visible
from stvid.video.playback import clock_start
from stvid.video.redraw import read_comment
from stvid.video.types import VideoInfo

LONG = 4  # clips; longer videos are divided into segments
MARK = "stvid predict "  # begins the comment in the files of --out; the fingerprint follows


def run(options: argparse.Namespace) -> None:
    set_up_cpu(default_device().type)
    trained = load_checkpoint(options.run, trust=options.trust)
    check_classes(options.background, trained.class_names, option="--background")
    parts = predict_parts(options, trained) if is_in_parts(options) else None
    if parts is not None and options.part is None:
        _merge(parts, options)
        return
    if parts is not None:
        parts.claim(options.part)
        options.json, options.resume = str(parts.file(options.part, ".predictions.json")), True
        options.csv = options.parquet = None
    batch = Batch(trained, options)
    num_failed = 0
    with exit_on_sigterm():
        try:
            for entry in batch.predict():
                show(entry_text(entry))
                num_failed += "error" in entry
        except KeyboardInterrupt:
            if options.json is not None and batch.files.entries:
                again = "with --resume " if parts is None else f"with --shard {options.part} "
                show(f"{visible(options.json)} keeps what is finished; the same command {again}goes on from there")
            raise
        finally:
            batch.files.write()
    raise_mistakes(batch.unwritten)
    if parts is not None:
        parts.write(options.part, [batch.files.entries[str(source.path)] for source in batch.sources])
        show(part_text(options))
    elif num_failed:
        raise SystemExit(1)


def _merge(parts: Parts, options: argparse.Namespace) -> None:
    """Writes the files of all videos, and prints what one process prints of each."""
    paths = [source.path for source in options.found]
    entries = {os.path.abspath(entry["path"]): entry for result in parts.read() for entry in result}
    files = PredictionFiles(paths, json=options.json, csv=options.csv, parquet=options.parquet, resume=options.resume)
    in_order = [{**entries[os.path.abspath(path)], "path": str(path)} for path in paths]
    for entry in in_order:
        files.add(entry)
    files.write()
    for entry in sorted(in_order, key=lambda entry: (not is_unread(entry), "segments" in entry)):
        show(entry_text(entry))
    parts.remove()
    if any("error" in entry for entry in in_order):
        raise SystemExit(1)


def is_unread(entry: Mapping) -> bool:
    """Whether nothing of a video could be read."""
    return "error" in entry and "segments" not in entry


class Batch:
    """All videos of one call: short ones in batches, long ones each in one pass.

    Args:
        trained: the model.
        options: of the command; `options.found` are the videos.
    """

    def __init__(self, trained: TrainedModel, options: argparse.Namespace):
        self.trained, self.options = trained, options
        self.sources: Sequence[Source] = options.found
        self.segment_options = SegmentOptions(
            threshold=options.threshold, window=options.window, hop=options.hop, min_duration=options.min_duration
        )
        paths = [source.path for source in self.sources]
        self.files = PredictionFiles(
            paths, json=options.json, csv=options.csv, parquet=options.parquet, resume=options.resume
        )
        self.outputs: dict[Path, dict[str, Path]] = {source.path: {} for source in self.sources}  # option -> file
        for option, ending in EACH.items():
            if (target := getattr(options, option)) is not None:
                all_files = output_files(target, options.all_found, ending=ending)
                for source, file in zip(options.all_found, all_files, strict=True):
                    if source.path in self.outputs:  # else it is in another part
                        self.outputs[source.path][option] = file
        self.fingerprints = {path: self._fingerprint(path) for path in paths}
        self.annotated = self._find_annotated()
        self.unwritten: list[str] = []  # messages about files that could not be written

    def predict(self) -> Iterator[dict]:
        """Yields the entry of each video, as soon as it is done; see `make_entry`."""
        paths = [source.path for source in self.sources if not self._is_finished(source.path)]
        if len(paths) < len(self.sources):
            show(f"{len(self.sources) - len(paths)} of {len(self.sources)} videos were finished before (--resume)")
        items = [Item(path=str(path.absolute()), label="", split="test") for path in paths]
        workers = resolve_workers(self.options.workers)
        results = probe_items(
            items, num_workers=workers, cache=None, decode_all=False, max_pixels=self.trained.max_pixels
        )
        probed = dict(zip(paths, results, strict=True))
        infos = {path: result for path, result in probed.items() if isinstance(result, VideoInfo)}
        long = {path: info for path, info in infos.items() if self._is_long(info)}
        for path, info in long.items():  # a mistake is told before hours of work
            plan_windows(self.trained, info, path=path, window=self.options.window, hop=self.options.hop)
        self._announce(infos, long)
        for path, result in probed.items():
            if isinstance(result, VideoError):
                yield self._failed(path, result.reason)
        runner = ModelRunner(self.trained)
        short = [(path, info) for path, info in infos.items() if path not in long]
        if short:
            yield from self._predict_short(short, runner, workers)
        for path, info in long.items():
            yield self._segment(path, info, runner)

    def _fingerprint(self, path: Path) -> str:
        options, segments = self.options, self.segment_options
        threshold, _ = resolve_threshold(self.trained, options.threshold)
        limits = (segments.window, segments.hop, segments.min_duration)
        return fingerprint_of(
            path, self.trained, [options.top, options.segments, threshold, *limits, *sorted(options.background)]
        )

    def _find_annotated(self) -> set[Path]:
        """The files of --out that an earlier call has written, with these settings.

        Raises:
            InputError: a file exists that is of no earlier call.
        """
        annotated, mistakes = set(), []
        for path, outputs in self.outputs.items():
            if (file := outputs.get("out")) is not None and file.exists():
                comment = read_comment(file)
                if comment == MARK + self.fingerprints[path]:
                    annotated.add(file)
                elif not comment.startswith(MARK):
                    mistakes.append(exists_text(f"--out {self.options.out}", file))
        raise_mistakes(mistakes)
        return annotated

    def _is_finished(self, path: Path) -> bool:
        """With --resume, whether this video, its file and these settings have been done before."""
        return self.files.is_finished(path, self.fingerprints[path]) and all(
            file in self.annotated if option == "out" else file.exists() for option, file in self.outputs[path].items()
        )

    def _is_long(self, info: VideoInfo) -> bool:
        if self.options.segments is not None:
            return self.options.segments
        return num_clips_in(self.trained, info) > LONG

    def _announce(self, infos: Mapping[Path, VideoInfo], long: Collection[Path]) -> None:
        """Says which videos are divided into segments, and which are shorter than a clip."""
        if long:
            reason = "" if self.options.segments else f", because they are longer than {LONG} clips (--no-segments)"
            threshold, origin = resolve_threshold(self.trained, self.options.threshold)
            show(f"segments for {len(long)} of {len(infos)} videos{reason}; threshold {threshold:g} ({origin})")
        if short := [path for path, info in infos.items() if num_clips_in(self.trained, info) < 1]:
            show(
                f"{len(short)} of {len(infos)} videos are shorter than a clip (clip.short={self.trained.clip.short}), "
                f"the first: {visible(short[0])}"
            )

    def _done(self, path: Path, entry: dict) -> dict:
        if "error" not in entry:
            entry["fingerprint"] = self.fingerprints[path]
        self.files.add(entry)
        return entry

    def _failed(self, path: Path, reason: str) -> dict:
        return self._done(path, {"path": str(path), "top": [], "error": reason})

    def _predict_short(
        self, videos: Sequence[tuple[Path, VideoInfo]], runner: ModelRunner, workers: int
    ) -> Iterator[dict]:
        items = [Item(path=str(path.absolute()), label="", split="test") for path, _ in videos]
        infos = [info for _, info in videos]
        results = classify_each(self.trained, items, infos, runner=runner, num_workers=workers)
        with Bar("reading and classifying", total=len(items), unit="videos", shown=len(items) > 20) as bar:
            for number, result in results:
                path, info = videos[number]
                bar.advance()
                if isinstance(result, Failure):
                    yield self._failed(path, result.reason)
                else:
                    limits = {"top": self.options.top, "threshold": self.trained.threshold}
                    yield self._done(path, make_entry(path, info, result.numpy(), self.trained.class_names, **limits))

    def _segment(self, path: Path, info: VideoInfo, runner: ModelRunner) -> dict:
        try:
            with RealTimeBar(path, info) as bar:
                result = segment_video(
                    self.trained, path, info=info, runner=runner, options=self.segment_options, on_window=bar.move
                )
        except VideoError as error:
            return self._failed(path, error.reason)
        entry = make_entry(
            path,
            info,
            result.probabilities_K,
            self.trained.class_names,
            top=self.options.top,
            segments=result.segments,
            error=result.error,
        )
        self.files.add(entry)  # the segments are kept, whatever happens; without a fingerprint, --resume repeats them
        is_complete = True
        for option, file in self.outputs[path].items():
            try:
                self._write_output(option, path, file, info, result)
            except VideoError as error:
                entry["error"] = error.reason
            except (OSError, InputError) as error:
                if full_disk_error(error) is not None:  # the other files would not fit either
                    raise
                is_complete = False
                self.unwritten.append(write_error_text(file, error))
                show(visible(self.unwritten[-1]))
        return self._done(path, entry) if is_complete else entry

    def _write_output(self, option: str, path: Path, file: Path, info: VideoInfo, result: VideoSegments) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        if option in ("srt", "vtt"):
            offset = clock_start(path, max_pixels=self.trained.max_pixels)
            background = self.options.background
            write_subtitles(file, subtitles(result.segments, kind=option, offset=offset, background=background))
        elif result.error is not None:
            show(f"{visible(file)} was not written: {visible(path)} could not be read to its end")
        elif file not in self.annotated:
            self._annotate(path, file, info, result)

    def _annotate(self, path: Path, file: Path, info: VideoInfo, result: VideoSegments) -> None:
        with Bar(f"writing {file.name}", total=info.num_frames, unit="frames") as bar:
            annotate(
                path,
                file,
                segments=result.segments,
                class_names=self.trained.class_names,
                info=info,
                windows=result.windows,
                background=self.options.background,
                max_pixels=self.trained.max_pixels,
                comment=MARK + self.fingerprints[path],
                advance=bar.advance,
            )


class RealTimeBar:
    """Shows how much of a video is done, and how many times faster than it plays.

    Args:
        path: the video.
        info: the result of `probe`.
    """

    def __init__(self, path: Path, info: VideoInfo):
        self.info, self.shown, self.began = info, 0, time.monotonic()
        self.bar = Bar(path.name, total=max(int(info.end - info.start), 1), unit="s")

    def __enter__(self) -> RealTimeBar:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def move(self, window: Window) -> None:
        """Moves the bar to the end of a window."""
        seconds = window.end - self.info.start
        note = f"{seconds / (time.monotonic() - self.began):.0f}x real time" if self.bar.due else None
        self.bar.advance(int(seconds) - self.shown, note=note)
        self.shown = int(seconds)


def write_error_text(file: Path, error: OSError | InputError) -> str:
    """The message about an output that cannot be written."""
    if isinstance(error, InputError):
        return str(error)
    cause = f"{error.filename}: " if error.filename not in (None, str(file)) else ""
    return f"{file} cannot be written: {cause}{error.strerror or error}"


def entry_text(entry: Mapping) -> str:
    """What the command prints about one video."""
    lines = [visible(entry["path"])]
    if "error" in entry:
        reason = "no video, or damaged" if entry["error"] == UNREADABLE else entry["error"]
        until = f" after {clock(entry['segments'][-1]['end'], digits=2)}" if entry.get("segments") else ""
        lines.append(f"  could not be read{until}: {visible(reason)}")
    if entry.get("unknown"):
        lines.append(f"  {UNKNOWN}: no class reaches the threshold of the run")
    lines += [f"  {result['probability']:6.1%}  {visible(result['class'])}" for result in entry["top"]]
    if entry.get("segments"):
        lines.append(_indented(segment_table(entry["segments"])))
    return "\n".join(lines)


def segment_table(segments: Iterable[Mapping]) -> str:
    """Segments as a table with the columns start, end, probability and class."""
    rows = [["start", "end", "probability", "class"]]
    for segment in segments:
        times = [clock(segment[name], digits=2) for name in ("start", "end")]
        rows.append([*times, f"{segment['probability']:.1%}", segment["class"]])
    return aligned(rows, left=0, text=True)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
