"""`data=manifest`: a table that names each video, its label and its split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stvid.data.manifest import Manifest


def read_manifest(*, path: str, class_names: Sequence[str] | None = None) -> Manifest:
    """A CSV of path,label,split[,start,end,group], times in seconds. See `Manifest.read_csv`.

    Args:
        path: the table; relative video paths in it start from its folder.
        class_names: the order of the classes; required where labels are numbers.

    Raises:
        InputError: no such file, or one that `Manifest.read_csv` refuses.
    """
    return Manifest.read_csv(Path(str(path)).expanduser(), class_names=class_names)
