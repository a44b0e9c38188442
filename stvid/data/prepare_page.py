"""How much faster a prepared data set is read, and the summary as a few lines of text."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

from stvid.clip import ClipSpec
from stvid.data.dataset import Failure, TrainingClips
from stvid.data.drawing import SampleKey
from stvid.data.manifest import Item
from stvid.data.prepare_plan import Job
from stvid.data.transforms import Augment
from stvid.video.info import VideoInfo
from stvid.video.probe import probe_all

_TIMED_CLIPS, _TIMED_SECONDS = 64, 30.0  # at most so many clips are timed, and about so long


def prepare_text(summary: dict) -> str:
    """The summary for a person: a few aligned lines."""
    before, after = summary["bytes_before"], summary["bytes_after"]
    speeds = summary["clips_per_second_before"], summary["clips_per_second_after"]
    counts = ", ".join(f"{summary[f'num_{what}']} {what}" for what in ("made", "kept", "bad"))
    lines = [("videos", f"{summary['num_files']} ({counts})")]
    lines += [("bad", f"{bad['path']}: {bad['reason']}") for bad in summary["bad"][:20]]
    if len(summary["bad"]) > 20:
        lines += [("", f"and {len(summary['bad']) - 20} more, see bad_videos.csv")]
    if after:
        lines += [("size", f"{_bytes(before)} -> {_bytes(after)} ({_times(before, after)})")]
    if None not in speeds:
        times = f"{speeds[1] / speeds[0]:.3g} times as fast"
        lines += [("clips/second", f"{speeds[0]:.3g} -> {speeds[1]:.3g} read by one process ({times})")]
    lines += [("train on it", summary["command"])]
    return "\n".join(f"{name:<12}  {text}" for name, text in lines)


def _times(before: float, after: float) -> str:
    return f"{before / after:.3g} times smaller" if after <= before else f"{after / before:.3g} times larger"


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def clips_per_second(
    jobs: Sequence[Job], infos: Mapping[str, VideoInfo], *, clip: ClipSpec, num_workers: int
) -> tuple[float | None, float | None]:
    """Training clips that this process reads in a second from originals and from copies: the same ones from both."""
    chosen = [jobs[i * len(jobs) // _TIMED_CLIPS] for i in range(_TIMED_CLIPS)] if len(jobs) > _TIMED_CLIPS else jobs
    copies = [Item(path=str(job.target), label=job.item.label, split=job.item.split) for job in chosen]
    unknown = [job.item.path for job in chosen if job.item.path not in infos] + [copy.path for copy in copies]
    found = dict(zip(unknown, probe_all(unknown, num_workers=num_workers, progress=False), strict=True)) | infos
    how = {"class_names": (), "clip": dataclasses.replace(clip, short="repeat_last"), "augment": Augment()}
    data_sets = [
        TrainingClips(items=items, infos=[found[item.path] for item in items], **how)
        for items in ([job.item for job in chosen], copies)
    ]
    seconds, num_clips = [0.0, 0.0], 0
    for index in range(len(chosen)):
        if any(isinstance(data_set[SampleKey(0, index)], Failure) for data_set in data_sets):
            continue  # and if not, both files now lie in memory
        for which, data_set in enumerate(data_sets):
            began = time.perf_counter()
            data_set[SampleKey(0, index)]
            seconds[which] += time.perf_counter() - began
        num_clips += 1
        if sum(seconds) > _TIMED_SECONDS:
            break
    return tuple(round(num_clips / spent, 1) if spent else None for spent in seconds)
