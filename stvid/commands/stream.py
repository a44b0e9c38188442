"""`stvid stream`: what happens now, on a camera, a network stream, a file or frames on stdin."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import sys

from stvid.commands.stream_output import JsonLines, Pictures, Screen
from stvid.deploy.live import LiveRecognition
from stvid.deploy.segmentation import check_classes, resolve_threshold
from stvid.deploy.steady_label import SteadyLabel
from stvid.device import default_device, set_up_cpu
from stvid.exits import ConsoleHandler, stop_on_signals
from stvid.run.checkpoint import TrainedModel, load_checkpoint
from stvid.terminal import show
from stvid.video.live import open_source
from stvid.video.sources import size_of


def run(options: argparse.Namespace) -> None:
    if options.json:
        _log_to_stderr()
    set_up_cpu(default_device().type)
    trained = load_checkpoint(options.run, trust=options.trust)
    threshold, origin = resolve_threshold(trained, options.threshold)
    live = _recognition(options, trained, threshold)
    text = sys.stderr if options.json else sys.stdout
    show(f"threshold {threshold:g} ({origin})", file=text, flush=True)
    with contextlib.ExitStack() as stack:
        stopped = stack.enter_context(stop_on_signals())
        stack.callback(lambda: show(summary(live), file=text) if live.meter.num_frames else None)
        title = live.source.name if options.show else None
        pictures = stack.enter_context(Pictures(live, out=options.out, title=title))
        printer = JsonLines(live) if options.json else stack.enter_context(Screen(live))
        events = stack.enter_context(contextlib.closing(live.events()))
        end = math.inf
        for event in events:
            printer.add(event)
            pictures.add(event)
            if end == math.inf and options.duration is not None and event.frame_CHW is not None:  # the first frame
                end = event.seconds + options.duration
            is_over = event.seconds >= end
            if is_over or stopped.is_set() or not pictures.is_open:
                break


def _log_to_stderr() -> None:
    """Only JSON lines go to stdout."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, ConsoleHandler):
            handler.setStream(sys.stderr)


def _recognition(options: argparse.Namespace, trained: TrainedModel, threshold: float) -> LiveRecognition:
    check_classes(options.background, trained.class_names, option="--background")
    label = SteadyLabel(
        trained.class_names,
        threshold=threshold,
        min_duration=options.min_duration,
        background=options.background,
    )
    source = open_source(
        options.source,
        size=None if options.size is None else size_of(options.size),
        fps=options.fps,
        realtime=options.realtime,
        max_pixels=trained.max_pixels,
    )
    return LiveRecognition(trained, source, label=label, windows=options.windows)


def summary(live: LiveRecognition) -> str:
    """One line about the whole stream; the labels of its lines and their numbers are in docs/using.md."""
    meter, slot = live.meter, live.slot
    parts = [
        f"{live.seconds:.1f} s: {meter.num_frames:,} frames, {meter.mean_fps:.1f} frames/s",
        f"latency {meter.mean_ms:.1f} ms on average, 95 % at most {meter.percentile_95_ms:.1f} ms",
        f"{slot.dropped:,} frames dropped",
    ]
    if slot.connections:
        parts.append(f"connected again: {slot.connections}")
    if live.restarts > slot.connections:
        parts.append(f"model started anew: {live.restarts}")
    return "; ".join(parts)
