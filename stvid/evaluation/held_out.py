"""Which videos a trained model is judged by, and that it has not seen them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from stvid.checkpoint import TrainedModel
from stvid.data.duplicates import content_keys
from stvid.data.manifest import SPLITS, Item, Manifest
from stvid.errors import InputError, listing, nearest

MANIFEST_NAME = "manifest.csv"


def select_test_split(
    trained: TrainedModel, *, split: str, manifest: str | Path | None = None, allow_leaks: bool = False
) -> Manifest:
    """The data the run was trained with, or another manifest of some or all of its classes, with videos in the split.

    Args:
        trained: the model.
        split: the split that is to be judged.
        manifest: a CSV instead of the run's own.
        allow_leaks: let the CSV's split hold what the run has seen, see `seen_in_training`.

    Raises:
        InputError: no manifest beside the run, no such split, an empty one, classes that the model does not know,
            videos that are no longer there, or that the run has seen.
    """
    if split not in SPLITS:
        raise InputError(f"--split {split}: must be one of {', '.join(SPLITS)}")
    path = Path(manifest).expanduser() if manifest else trained.folder / MANIFEST_NAME
    if not path.is_file():
        raise InputError(f"{path} does not exist: it says which videos are held out. Name one with --manifest FILE.csv")
    data = Manifest.read_csv(path, class_names=trained.class_names, only_these=False)
    unknown = data.class_names[len(trained.class_names) :]
    if unknown:
        hint = nearest(unknown[0], trained.class_names)
        raise InputError(f"{path} has classes that the model does not know: {listing(unknown)}{hint}")
    items = data.select(split)
    if not items:
        there = ", ".join(name for name in SPLITS if data.select(name)) or "none"
        raise InputError(f"--split {split}: {path} has no videos in it; splits with videos: {there}")
    missing = [item.path for item in items if not os.path.exists(item.path)]
    if len(missing) == len(items):
        raise InputError(f"none of the {len(items)} videos of {path} are there, the first: {missing[0]}. Moved?")
    if manifest and not allow_leaks and (seen := seen_in_training(trained, items)):
        raise InputError(
            f"{len(seen)} of {len(items)} videos in {path} belong to the run's own train or val (same file, same "
            f"content, or same group of the same data set), the first: {seen[0].path}. Take them out, or insist with "
            "--allow-leaks"
        )
    return data


def absent_classes(data: Manifest, split: str) -> list[str]:
    """Classes of a manifest that a split has no videos of, in the manifest's order."""
    there = {item.label for item in data.select(split)}
    return [name for name in data.class_names if name not in there]


def seen_in_training(trained: TrainedModel, items: Sequence[Item]) -> list[Item]:
    """Those that the run was trained on, or whose val chose its checkpoint.

    A video counts as seen where train or val of the run's own manifest holds

    - the same file, by whatever path: relative ones are made absolute and links are followed;
    - another file with the same bytes, for instance a copy in another folder. Only files that have the size of one of
      the run's are read. Folders of images and the run's own test videos are not compared in this way (`stvid check`
      does so);
    - a video of the same group, and both are of one data set: the file lies in the folder that all videos of the run's
      manifest have in common, or below it. Elsewhere, `person01` is another person.
    """
    own = trained.folder / MANIFEST_NAME
    if not own.is_file():
        return []
    table = Manifest.read_csv(own, class_names=trained.class_names)
    real = {path: os.path.realpath(path) for path in {item.path for item in (*table.items, *items)}}
    known = [item for item in table.items if item.split != "test"]
    files = {real[item.path] for item in known}
    groups = {item.group for item in known if item.group is not None}
    homes = _common_folders(real[item.path] for item in table.items)
    copies = _copies({real[item.path] for item in items} - {real[item.path] for item in table.items}, files)

    def is_seen(item: Item) -> bool:
        path = real[item.path]
        in_group = item.group in groups and any(Path(path).is_relative_to(home) for home in homes)
        return path in files or path in copies or in_group

    return [item for item in items if is_seen(item)]


def _common_folders(files: Iterable[str]) -> list[str]:
    """The folder that all files have in common; where they lie on several drives (Windows), one for each."""
    drives = defaultdict(set)
    for file in files:
        drives[os.path.splitdrive(file)[0]].add(os.path.dirname(file))
    return [os.path.commonpath(folders) for folders in drives.values()]


def _copies(files: Iterable[str], originals: Iterable[str]) -> set[str]:
    """Those of the files that hold the same bytes as an original; empty files are nobody's copy."""
    sizes, known = (
        {path: os.path.getsize(path) for path in paths if os.path.isfile(path)} for paths in (files, originals)
    )
    alike = (set(sizes.values()) & set(known.values())) - {0}
    compared = [path for path, size in (sizes | known).items() if size in alike]
    keys = content_keys(compared, progress=False)
    contents = {keys[path] for path in known if path in keys}
    return {path for path in sizes if keys.get(path) in contents}
