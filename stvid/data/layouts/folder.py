"""`data=folder`: one folder per class, videos at any depth below it."""

from __future__ import annotations

from stvid.data.layouts.class_folders import VIDEO_FILES, from_class_folders
from stvid.data.manifest import Manifest


def folder(
    *,
    root: str,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    group_pattern: str | None = None,
    group_csv: str | None = None,
    seed: int = 0,
) -> Manifest:
    """`root/CLASS/.../VIDEO`.

    Where `train/` (and `val/`, `test/`) folders stand below the root, each holds class folders and they are the
    splits; a missing `val/` is taken out of train. Otherwise a seeded split is made: stratified by class, whole
    groups where groups are known. What was done goes to the log.

    Args:
        root: the folder.
        val_fraction: share of the videos for val, in (0, 1), where the split is made here.
        test_fraction: the same for test.
        group_pattern: regular expression searched in each video's path below its class folder; its first
            parenthesis (or the whole match) names the group.
        group_csv: table `path,group`, paths relative to the root.
        seed: of the split.

    Raises:
        InputError: no such folder, two folders of one split (`val/` and `validation/`), no videos, a pattern or table
            that leaves a video without a group, too few videos for a split.
    """
    return from_class_folders(
        root,
        VIDEO_FILES,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        group_pattern=group_pattern,
        group_csv=group_csv,
        seed=seed,
    )
