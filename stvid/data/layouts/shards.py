"""`data=shards`: videos in tar files that `stvid prepare ... --tar-size SIZE` has made, on a disk or at a URL.

The index lists labels, splits, groups and properties, so that nothing is searched and no video is probed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from stvid.data.layouts.discovery import resolve_folder
from stvid.data.manifest import Item, Manifest
from stvid.errors import raise_mistakes
from stvid.video.shard_cache import default_folder, fetch_index, has_source, is_url
from stvid.video.shard_index import INDEX, Shard, read_index


def shards(*, root: str, cache: str | None = None, cache_gb: float = 50.0) -> Manifest:
    """The items of a folder of tar files, in the order of the table that they were made from.

    Args:
        root: the folder with `index.jsonl`, or a URL that fsspec reads.
        cache: folder for the tars of a URL, each fetched when one of its videos is first read. None: a folder for this
            URL in `~/.cache/stvid/shards`.
        cache_gb: GB (10^9 bytes) of tars kept there.

    Raises:
        InputError: no such folder or URL; no index, or a damaged one; a tar is missing or has another size than the
            index says.
    """
    if is_url(root):
        folder = Path(cache).expanduser().absolute() if cache else default_folder(root)
        fetch_index(root, folder, name=INDEX, max_bytes=cache_gb * 1e9)
    else:
        folder = resolve_folder(root)
    index = read_index(folder)
    if not has_source(folder):
        _check_tars(index.shards)
    items = (
        Item(path=os.path.join(folder, *key.split("/")), label=label, split=split, group=group)
        for key, label, split, group in index.rows
    )
    return Manifest(items=tuple(items), class_names=index.class_names)


def _check_tars(tars: Sequence[Shard]) -> None:
    mistakes = []
    for tar in tars:
        try:
            size = os.stat(tar.path).st_size
        except OSError:
            mistakes.append(f"{tar.path} does not exist, and the index lists it")
            continue
        if size != tar.num_bytes:
            state = "is not complete" if size < tar.num_bytes else "is another file than the index lists"
            mistakes.append(f"{tar.path} {state}: it has {size:,} bytes, the index says {tar.num_bytes:,}")
    if mistakes:
        mistakes[-1] += ". Copy the tars and the index again, or repeat the stvid prepare that has made them"
    raise_mistakes(mistakes)
