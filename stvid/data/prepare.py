"""Transcodes a data set to small files with fast random access, which training reads several times faster.

    summary = prepare(manifest, out=Path("small"), clip=ClipSpec(), num_workers=4)

`out` then contains manifest.csv, the files in videos/, prepare.json (settings and summary), with `tar_size` the tars in
shards/ and, if videos could not be read, bad_videos.csv. After an interrupted call, the next one keeps the finished
files.
"""

from __future__ import annotations

import csv
import dataclasses
import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from stvid.clip import ClipSpec
from stvid.data.dataset import Failure, TrainingClips
from stvid.data.manifest import Item, Manifest, are_numbers
from stvid.data.prepare_files import make_files
from stvid.data.prepare_parts import PartResult
from stvid.data.prepare_plan import Job, Key, encoding_settings, item_key, plan_output, remove_partials, to_text
from stvid.data.sampler import SampleKey
from stvid.data.shard_writer import Entry, write_shards
from stvid.data.transforms import Augment
from stvid.errors import InputError, VideoError, train_command
from stvid.files import replacing, write_json
from stvid.video.probe import probe_all
from stvid.video.transcode import read_comment
from stvid.video.types import MAX_PIXELS, VideoInfo

log = logging.getLogger(__name__)
_HYDRA_KEYWORDS = ("null", "true", "false", "nan", "inf")  # not strings unless quoted
_TIMED_CLIPS, _TIMED_SECONDS = 64, 30.0  # limits of the speed measurement


def prepare(
    manifest: Manifest,
    *,
    out: Path,
    clip: ClipSpec,
    short_side: int = 128,
    gop: int = 8,
    crf: int = 23,
    uncompressed: bool = False,
    num_workers: int,
    timeout: float = 600.0,
    max_pixels: int = MAX_PIXELS,
    tar_size: int | None = None,
    progress: bool = True,
    merged: PartResult | None = None,
) -> dict:
    """Transcodes every video of a data set; each item becomes a row of `out`/manifest.csv, in the same order.

    An item that is a part of a video becomes a separate file. The row of a video that cannot be read points to the
    original. Returns the result of `_summarize`, which is also written to `out`/prepare.json.

    Args:
        manifest: the data set.
        out: a folder that does not exist, is empty, or was started by a call with the same settings.
        clip: clips that are read from originals and copies to compare their speeds.
        short_side: pixels of the shorter side; frames are never enlarged.
        gop: maximum distance between two keyframes: small values read faster, large values need less disk space.
        crf: 0 (lossless) to 51.
        uncompressed: files of uncompressed pixels, which take about 50 times the room and are read faster; `gop` and
            `crf` then mean nothing.
        num_workers: processes; 0 works in this process, where a crash or a hang cannot be survived.
        timeout: seconds without a new frame after which a video is given up.
        max_pixels: of a frame; larger videos cannot be read.
        tar_size: also pack the copies into `out`/shards: tar files with at most so many bytes of videos each, see
            `write_shards`. None: no tars.
        progress: show a progress bar if there are files to make.
        merged: what the parts of a divided call have found, see `prepare_parts`.

    Raises:
        InputError: an invalid setting or `out`.
        OSError: `out` cannot be written.
    """
    out = Path(out).absolute()
    encoding = encoding_settings(short_side=short_side, gop=gop, crf=crf, uncompressed=uncompressed)
    settings, jobs = plan_output(manifest, out, encoding)
    remove_partials(out)
    known = {} if merged is None else merged.bad
    todo = [job for key, job in jobs.items() if key not in known and read_comment(job.target) != job.comment]
    num_kept = len(jobs) - len(todo) if merged is None else merged.num_kept
    try:
        infos, bad = make_files(
            todo,
            encoding=encoding,
            num_workers=num_workers,
            timeout=timeout,
            max_pixels=max_pixels,
            progress=progress,
        )
    finally:  # an error stops the other processes
        remove_partials(out)
    bad = {key: error for key in jobs if (error := bad.get(key) or known.get(key)) is not None}
    good = [job for key, job in jobs.items() if key not in bad]
    speeds = measure_clips_per_second(good, infos, clip=clip, num_workers=num_workers)
    summary = _summarize(good, bad, num_kept=num_kept, speeds=speeds)
    summary["command"] = _training_command(manifest, out / "manifest.csv")
    _write_bad(out / "bad_videos.csv", bad)
    write_json(out / "prepare.json", {"settings": settings, "summary": summary})
    copies = {item_key(job.item): job.target for job in good}
    items = tuple(_point_to_copy(item, copies.get(item_key(item))) for item in manifest.items)
    copied = dataclasses.replace(manifest, items=items)
    _warn_of_missing(out / "manifest.csv", copied)
    copied.write_csv(out / "manifest.csv")
    if tar_size is not None:
        entries = _shard_entries(manifest, copied, jobs, bad, out)
        options: dict = {"max_bytes": tar_size, "num_workers": num_workers, "timeout": timeout, "progress": progress}
        tars = write_shards(entries, out / "shards", class_names=manifest.class_names, **options)
        root = _quote(to_text(str(out / "shards")))
        summary["tars"] = {**tars, "command": train_command("data=shards", f"data.root={root}")}
        write_json(out / "prepare.json", {"settings": settings, "summary": summary})
    return summary


def _shard_entries(
    manifest: Manifest, copied: Manifest, jobs: Mapping[Key, Job], bad: Mapping[Key, VideoError], out: Path
) -> list[Entry]:
    entries = []
    for original, item in zip(manifest.items, copied.items, strict=True):
        job, error = jobs[item_key(original)], bad.get(item_key(original))
        name = job.target.relative_to(out).as_posix()
        entries.append(Entry(item=item, name=name, file=job.target, comment=job.comment, error=error))
    return entries


def _point_to_copy(item: Item, copy: Path | None) -> Item:
    """The item with the path of its copy. The group of a part is its source, which keeps the parts in one split."""
    if copy is None:
        return item
    is_part = item.start is not None or item.end is not None
    group = to_text(item.path) if is_part and item.group is None else item.group
    return dataclasses.replace(item, path=str(copy), start=None, end=None, group=group)


def _warn_of_missing(path: Path, copied: Manifest) -> None:
    """Warns if the manifest of an earlier call has videos that this data set does not have."""
    try:
        before = Manifest.read_csv(path, allow_new_classes=True) if path.exists() else None
    except InputError:  # it is replaced
        before = None
    paths = {item.path for item in copied.items}
    missing = [] if before is None else [item.path for item in before.items if item.path not in paths]
    if before is not None and missing:
        log.warning(
            "%s: %d of the %d videos of the last time are not in the data set now, such as %s; their files stay",
            path,
            len(missing),
            len(before.items),
            missing[0],
        )


def _summarize(
    good: Sequence[Job],
    bad: Mapping[Key, VideoError],
    *,
    num_kept: int,
    speeds: tuple[float | None, float | None],
) -> dict:
    """Counts of files, sizes in bytes, clips per second (None if none could be read)."""
    return {
        "num_files": len(good) + len(bad),
        "num_made": len(good) - num_kept,
        "num_kept": num_kept,
        "num_bad": len(bad),
        "bad": [{"path": to_text(key[0]), "reason": e.reason, "detail": e.detail} for key, e in bad.items()],
        "bytes_before": sum({job.item.path: job.source_size for job in good}.values()),
        "bytes_after": sum(job.target.stat().st_size for job in good),
        "clips_per_second_before": speeds[0],
        "clips_per_second_after": speeds[1],
    }


def _training_command(manifest: Manifest, path: Path) -> str:
    """The command that trains on the new manifest; it lists the classes if `read_csv` would change their order."""
    overrides = ["data=manifest", f"data.path={_quote(to_text(str(path)))}"]
    names = manifest.class_names
    if names != tuple(sorted({item.label for item in manifest.items})) or are_numbers(names):
        overrides.append(f"data.class_names=[{','.join(map(_quote, names))}]")
    return train_command(*overrides)


def _quote(text: str) -> str:
    """Quotes a string for a Hydra override if necessary."""
    if re.fullmatch(r"[A-Za-z_/][\w./-]*", text, re.ASCII) and text.lower() not in _HYDRA_KEYWORDS:
        return text
    escaped = re.sub(r"\\+(?='|$)", lambda slashes: 2 * slashes[0], text).replace("'", r"\'")
    return f"'{escaped}'"


def _write_bad(path: Path, bad: Mapping[Key, VideoError]) -> None:
    if not bad:
        path.unlink(missing_ok=True)
        return
    rows = dict.fromkeys((key[0], error.reason) for key, error in bad.items())
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([("path", "reason"), *rows])


def measure_clips_per_second(
    jobs: Sequence[Job], infos: Mapping[str, VideoInfo], *, clip: ClipSpec, num_workers: int
) -> tuple[float | None, float | None]:
    """How many training clips this process reads per second from originals and from copies; the same clips of both."""
    chosen = [jobs[i * len(jobs) // _TIMED_CLIPS] for i in range(_TIMED_CLIPS)] if len(jobs) > _TIMED_CLIPS else jobs
    copies = [Item(path=str(job.target), label=job.item.label, split=job.item.split) for job in chosen]
    to_probe = [job.item.path for job in chosen if job.item.path not in infos] + [copy.path for copy in copies]
    known = dict(zip(to_probe, probe_all(to_probe, num_workers=num_workers, progress=False), strict=True)) | dict(infos)
    clip = dataclasses.replace(clip, short="repeat_last")
    datasets = [
        TrainingClips(
            items=items, infos=[known[item.path] for item in items], class_names=(), clip=clip, augment=Augment()
        )
        for items in ([job.item for job in chosen], copies)
    ]
    seconds, num_clips = [0.0, 0.0], 0
    for index in range(len(chosen)):
        if any(isinstance(dataset[SampleKey(0, index)], Failure) for dataset in datasets):
            continue  # this also loads both files into the page cache
        for i, dataset in enumerate(datasets):
            began = time.perf_counter()
            dataset[SampleKey(0, index)]
            seconds[i] += time.perf_counter() - began
        num_clips += 1
        if sum(seconds) > _TIMED_SECONDS:
            break
    originals, of_copies = (round(num_clips / spent, 1) if spent else None for spent in seconds)
    return originals, of_copies
