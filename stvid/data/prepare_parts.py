"""`prepare` in parts: each machine makes the files of some sources, and `prepare` then finds them made."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from stvid.data.manifest import Manifest
from stvid.data.prepare_files import make_files
from stvid.data.prepare_plan import Key, encoding_settings, plan_output, remove_dead_partials
from stvid.errors import VideoError
from stvid.video.transcode import read_comment
from stvid.video.types import MAX_PIXELS


class PartResult(NamedTuple):
    """What the parts of a divided call have found.

    Attributes:
        num_kept: files that were finished before their part was started for the first time.
        bad: why files could not be made.
    """

    num_kept: int
    bad: dict[Key, VideoError]


def prepare_part(
    manifest: Manifest,
    *,
    out: Path,
    sources: Collection[str],
    short_side: int,
    gop: int,
    crf: int,
    uncompressed: bool = False,
    num_workers: int,
    timeout: float = 600.0,
    max_pixels: int = MAX_PIXELS,
    progress: bool = True,
) -> dict[Key, VideoError]:
    """Makes the files of some sources as `prepare` does, and nothing else, while other machines make those of others.

    Returns why files could not be made.

    Args:
        manifest: the whole data set, which determines the names of the files.
        out: see `prepare`.
        sources: paths of the videos of this part.
        short_side: see `prepare`; so are the other arguments.
    """
    out = Path(out).absolute()
    encoding = encoding_settings(short_side=short_side, gop=gop, crf=crf, uncompressed=uncompressed)
    _, jobs = plan_output(manifest, out, encoding)
    mine = [job for job in jobs.values() if job.item.path in sources]
    todo = [job for job in mine if read_comment(job.target) != job.comment]
    for job in todo:
        remove_dead_partials(job.target)
    options = {"num_workers": num_workers, "timeout": timeout, "max_pixels": max_pixels, "progress": progress}
    return make_files(todo, encoding=encoding, **options)[1]  # type: ignore[arg-type]


def count_finished(manifest: Manifest, *, out: Path, sources: Collection[str], encoding: Mapping[str, int]) -> int:
    """How many files of some sources an earlier call has made."""
    _, jobs = plan_output(manifest, Path(out).absolute(), encoding)
    return sum(job.item.path in sources and read_comment(job.target) == job.comment for job in jobs.values())
