"""Makes the planned files of `prepare` in worker processes: each source is decoded once for all of its files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from stvid.data.dataset import item_frames
from stvid.data.prepare_plan import Job, Key, item_key
from stvid.errors import VideoError
from stvid.progress import Bar
from stvid.video.probe import probe
from stvid.video.transcode import FrameRange, read_comment, transcode
from stvid.video.types import VideoInfo
from stvid.video.workers import map_files


def make_files(
    jobs: Sequence[Job],
    *,
    encoding: Mapping[str, int],
    num_workers: int,
    timeout: float,
    max_pixels: int,
    progress: bool,
) -> tuple[dict[str, VideoInfo], dict[Key, VideoError]]:
    """Makes the files. Returns the infos of the readable sources, and the errors of the others.

    Args:
        jobs: the files that are missing.
        encoding: see `encoding_settings`; for the other arguments see `prepare`.
    """
    by_source: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        by_source[job.item.path].append(job)
        job.target.parent.mkdir(parents=True, exist_ok=True)
    infos: dict[str, VideoInfo] = {}
    errors: dict[Key, VideoError] = {}
    transcode_file = partial(_transcode_source, jobs=dict(by_source), encoding=encoding, max_pixels=max_pixels)
    results = map_files(transcode_file, list(by_source), num_workers=num_workers, timeout=timeout)
    bar = Bar("transcoding videos", total=len(by_source), unit="videos", shown=progress)
    with bar, closing(results):
        for path, result in results:
            bar.advance()
            if isinstance(result, VideoError):  # some files may have been finished before
                unfinished = (job for job in by_source[path] if read_comment(job.target) != job.comment)
                errors |= {item_key(job.item): result for job in unfinished}
            else:
                infos[path], item_errors = result
                errors |= item_errors
    return infos, {item_key(job.item): errors[item_key(job.item)] for job in jobs if item_key(job.item) in errors}


def _transcode_source(
    path: str, *, jobs: Mapping[str, Sequence[Job]], encoding: Mapping[str, Any], max_pixels: int
) -> tuple[VideoInfo, dict[Key, VideoError]]:
    """Makes the files of one source; returns its info, and the errors of items without frames."""
    for decode_all in (False, True):  # if counting packets gave too many frames, decode all of them
        info, ranges, errors = probe(path, decode_all=decode_all, max_pixels=max_pixels), [], {}
        for job in jobs[path]:
            try:
                frames = item_frames(job.item, info)
            except VideoError as error:
                errors[item_key(job.item)] = error
            else:
                ranges.append(
                    FrameRange(target=job.target, first=frames[0], num_frames=len(frames), comment=job.comment)
                )
        try:
            if ranges:
                transcode(path, ranges, info=info, max_pixels=max_pixels, **encoding)
            return info, errors
        except VideoError:
            if info.decoded:
                raise
    raise AssertionError("not reached")
