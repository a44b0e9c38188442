"""`data=frames`: one folder per class, and in it one folder of images per video."""

from __future__ import annotations

from stvid.data.layouts.class_folders import MediaKind, from_class_folders
from stvid.data.layouts.finding import IMAGE_EXTENSIONS, find_frame_folders, is_frame_folder
from stvid.data.manifest import Manifest

FRAME_FOLDERS = MediaKind(
    name="folders of images",
    find=find_frame_folders,
    is_one=is_frame_folder,
    expected=f"CLASS/.../VIDEO/IMAGE, with one of the extensions {' '.join(sorted(IMAGE_EXTENSIONS))}",
)


def frames(
    *,
    root: str,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    group_pattern: str | None = None,
    group_csv: str | None = None,
    seed: int = 0,
) -> Manifest:
    """`root/CLASS/.../VIDEO/IMAGE`: every folder that directly holds an image, below its class folder, is a video.

    An item's path is the folder. Splits are found or made as by `folder`.

    Args:
        root: the folder of classes, or of `train/` (and `val/`, `test/`) with classes below them.
        val_fraction: share of the videos for val, in (0, 1), where the split is made here.
        test_fraction: the same for test.
        group_pattern: regular expression searched in the path of each video's folder below its class folder; its
            first parenthesis (or the whole match) names the group.
        group_csv: table `path,group`, paths of the videos' folders relative to the root.
        seed: of the split.

    Raises:
        InputError: no such folder, two folders of one split (`val/` and `validation/`), no folder of images below a
            class, a pattern or table that leaves a video without a group, too few videos for a split.
    """
    return from_class_folders(
        root,
        FRAME_FOLDERS,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        group_pattern=group_pattern,
        group_csv=group_csv,
        seed=seed,
    )
