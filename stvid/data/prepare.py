"""A data set as small, exactly seekable files, which training reads several times faster than the originals.

    summary = prepare(manifest, out=Path("small"), clip=ClipSpec(), num_workers=4)

`out` then holds manifest.csv, the files in videos/, prepare.json (settings and summary) and, where there is need,
bad_videos.csv. A call that was killed is made good by the next one, which keeps the files that are done.
"""

from __future__ import annotations

import csv
import dataclasses
import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from stvid.clip import ClipSpec
from stvid.data.dataset import Failure, TrainingClips, item_frames
from stvid.data.manifest import Item, Manifest, are_numbers
from stvid.data.prepare_plan import Job, Key, check_folder, common_folder, key_of, plan_files, remove_partials, shown
from stvid.data.sampler import SampleKey
from stvid.data.transforms import Augment
from stvid.errors import VideoError, train_command
from stvid.files import replacing, write_json
from stvid.progress import Bar
from stvid.video.probe import probe, probe_all
from stvid.video.transcode import Part, read_comment, transcode
from stvid.video.types import VideoInfo
from stvid.video.workers import map_files

_HYDRA_WORDS = ("null", "true", "false", "nan", "inf")  # no texts where they stand without quotes
_TIMED_CLIPS, _TIMED_SECONDS = 64, 30.0  # at most so many clips are timed, and about so long


def prepare(
    manifest: Manifest,
    *,
    out: Path,
    clip: ClipSpec,
    short_side: int = 128,
    gop: int = 8,
    crf: int = 23,
    num_workers: int,
    timeout: float = 600.0,
    progress: bool = True,
) -> dict:
    """Transcode every video of a data set; each item becomes a row of `out`/manifest.csv, in the same order.

    An item that is a part of a video becomes a file of its own. A video that cannot be read keeps its row, which
    then points at the original. Returns what `_summary` makes; it stands in `out`/prepare.json, too.

    Args:
        manifest: the data set.
        out: a folder that does not exist, is empty, or was begun by a call with the same settings.
        clip: what is read from originals and copies to compare their speeds.
        short_side: pixels of the shorter side; pictures are never enlarged.
        gop: the longest distance of two keyframes: small is quick to reach, large is small on disk.
        crf: 0 (lossless) to 51.
        num_workers: processes; 0 works in this one, where neither a crash nor a hang can be survived.
        timeout: seconds that one video may take, and one more for each megabyte it has.
        progress: show a bar if there is anything to do.

    Raises:
        InputError: a setting or `out` is wrong.
        OSError: `out` cannot be written.
    """
    common, out = common_folder(manifest), Path(out).absolute()
    how = {"short_side": short_side, "gop": gop, "crf": crf}
    settings = {**how, "sources": shown(common)}
    check_folder(out, settings, common=common, sources={item.path for item in manifest.items})
    if not (out / "prepare.json").exists():  # from here on the folder is known to be ours
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "prepare.json", {"settings": settings})
    remove_partials(out)
    jobs = plan_files(manifest, out / "videos", common=common, how=how)
    todo = [job for job in jobs.values() if read_comment(job.target) != job.comment]
    try:
        infos, bad = _make(todo, how=how, num_workers=num_workers, timeout=timeout, progress=progress)
    finally:  # an error ends the other processes in the midst of their work
        remove_partials(out)
    good = [job for key, job in jobs.items() if key not in bad]
    speeds = clips_per_second(good, infos, clip=clip, num_workers=num_workers)
    summary = _summary(good, bad, num_kept=len(jobs) - len(todo), speeds=speeds)
    summary["command"] = _command(manifest, out / "manifest.csv")
    _write_bad(out / "bad_videos.csv", bad)
    write_json(out / "prepare.json", {"settings": settings, "summary": summary})
    copies = {key_of(job.item): job.target for job in good}
    items = tuple(_renamed(item, copies.get(key_of(item))) for item in manifest.items)
    dataclasses.replace(manifest, items=items).write_csv(out / "manifest.csv")
    return summary


def _renamed(item: Item, copy: Path | None) -> Item:
    """The item with its copy; of parts, the source is still known as their group, that no split may tear it."""
    if copy is None:
        return item
    is_part = item.start is not None or item.end is not None
    group = shown(item.path) if is_part and item.group is None else item.group
    return dataclasses.replace(item, path=str(copy), start=None, end=None, group=group)


def _summary(
    good: Sequence[Job],
    bad: Mapping[Key, VideoError],
    *,
    num_kept: int,
    speeds: tuple[float | None, float | None],
) -> dict:
    """Counts of files, sizes in bytes, clips a second (None where none could be read); `command` is still to come."""
    return {
        "num_files": len(good) + len(bad),
        "num_made": len(good) - num_kept,
        "num_kept": num_kept,
        "num_bad": len(bad),
        "bad": [{"path": shown(key[0]), "reason": e.reason, "detail": e.detail} for key, e in bad.items()],
        "bytes_before": sum({job.item.path: job.size for job in good}.values()),
        "bytes_after": sum(job.target.stat().st_size for job in good),
        "clips_per_second_before": speeds[0],
        "clips_per_second_after": speeds[1],
    }


def _make(
    jobs: Sequence[Job], *, how: Mapping[str, int], num_workers: int, timeout: float, progress: bool
) -> tuple[dict[str, VideoInfo], dict[Key, VideoError]]:
    """Makes the files. Returns facts about the sources that could be read, and what was wrong with the others."""
    by_source: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        by_source[job.item.path].append(job)
        job.target.parent.mkdir(parents=True, exist_ok=True)
    infos, failed = {}, {}
    work = partial(_make_one, jobs=dict(by_source), how=how)
    found = map_files(work, list(by_source), num_workers=num_workers, timeout=timeout)
    bar = Bar("transcoding videos", total=len(by_source), unit="videos", shown=progress)
    with bar, closing(found):
        for path, result in found:
            bar.advance()
            if isinstance(result, VideoError):  # it may have come after some parts were finished
                undone = (job for job in by_source[path] if read_comment(job.target) != job.comment)
                failed |= {key_of(job.item): result for job in undone}
            else:
                infos[path], errors = result
                failed |= errors
    return infos, {key_of(job.item): failed[key_of(job.item)] for job in jobs if key_of(job.item) in failed}


def _make_one(
    path: str, *, jobs: Mapping[str, Sequence[Job]], how: Mapping[str, int]
) -> tuple[VideoInfo, dict[Key, VideoError]]:
    """Makes the files of one source; returns facts about it, and the parts of it that do not exist."""
    for decode_all in (False, True):  # where counting packets promised too much, look again
        info, parts, failed = probe(path, decode_all=decode_all), [], {}
        for job in jobs[path]:
            try:
                frames = item_frames(job.item, info)
            except VideoError as error:
                failed[key_of(job.item)] = error
            else:
                parts.append(Part(target=job.target, first=frames[0], num_frames=len(frames), comment=job.comment))
        try:
            if parts:
                transcode(path, parts, info=info, **how)
            return info, failed
        except VideoError:
            if info.decoded:
                raise
    raise AssertionError("not reached")


def _command(manifest: Manifest, path: Path) -> str:
    """The line that trains on the new manifest; it names the classes where their order is not what reading gives."""
    words = ["data=manifest", f"data.path={_hydra(shown(str(path)))}"]
    names = manifest.class_names
    if names != tuple(sorted({item.label for item in manifest.items})) or are_numbers(names):
        words.append(f"data.class_names=[{','.join(map(_hydra, names))}]")
    return train_command(*words)


def _hydra(text: str) -> str:
    """A text as a value in Hydra's overrides."""
    if re.fullmatch(r"[A-Za-z_/][\w./-]*", text, re.ASCII) and text.lower() not in _HYDRA_WORDS:
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
