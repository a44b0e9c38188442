"""`stvid check` in parts: each decodes its files; the merge is a check that finds them decoded."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from stvid.data.check import probe_files
from stvid.data.manifest import Manifest
from stvid.data.parts import Part, Parts
from stvid.errors import VideoError
from stvid.files import file_lock, replacing
from stvid.video.probe_cache import ProbeCache

_ENDING = ".probe.jsonl"


def check_part(
    parts: Parts, part: Part, manifest: Manifest, *, cache: Path | None, num_workers: int, limits: Mapping
) -> None:
    """Decodes the files of one part, and writes what the merge needs: a probe cache, and the bad files.

    The cache of a part is a file of its own: several machines may not append to one file of a network. It starts as a
    copy of that of the data set, so that nothing is decoded twice.
    """
    own = parts.file(part, _ENDING)
    parts.claim(part)
    if cache is not None and cache.is_file() and not own.exists():
        with replacing(own) as partial:
            shutil.copyfile(cache, partial)
    paths = part.of(item.path for item in manifest.items)
    probed = probe_files(paths, num_workers=num_workers, cache=own, progress=sys.stderr.isatty(), **limits)
    parts.write(
        part, [{"path": e.path, "reason": e.reason, "detail": e.detail} for e in probed if isinstance(e, VideoError)]
    )


def merge_checks(parts: Parts, manifest: Manifest, cache: Path | None) -> tuple[Path, dict[str, VideoError]]:
    """Joins the probe caches of all parts, also into that of the data set; returns the joined one and bad files.

    Of the cache of a part, only the files of this part count: what it has about others is the older copy.
    """
    results = parts.read()
    bad = {row["path"]: VideoError(**row) for result in results for row in result}
    joined = ProbeCache(parts.folder / f"merged{_ENDING}")  # the folder of the data set may be read-only
    joined.include(ProbeCache(cache))
    for number in range(1, len(results) + 1):
        part = Part(number, len(results))
        names = map(os.path.abspath, part.of(item.path for item in manifest.items))
        joined.include(ProbeCache(parts.file(part, _ENDING)), names=names)
    joined.save()
    assert joined.path is not None
    if cache is not None:
        with file_lock(cache):
            known = ProbeCache(cache)
            known.include(joined)
            known.save()
    return joined.path, bad
