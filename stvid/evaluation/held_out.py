"""Which videos a trained model is judged by, and that it has not seen them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from stvid.checkpoint import Trained
from stvid.data.manifest import SPLITS, Item, Manifest
from stvid.errors import InputError

MANIFEST_NAME = "manifest.csv"


def held_out(
    trained: Trained, *, split: str, manifest: str | Path | None = None, allow_leaks: bool = False
) -> Manifest:
    """The data the run was trained with, or another manifest with the same classes, and videos in the split.

    Args:
        trained: the model.
        split: the split that is to be judged.
        manifest: a CSV instead of the run's own.
        allow_leaks: let the CSV's split hold files or groups that the run was trained on.

    Raises:
        InputError: no manifest beside the run, no such split, an empty one, other classes than the model's, videos
            that are no longer there, or that the run was trained on.
    """
    if split not in SPLITS:
        raise InputError(f"--split {split}: must be one of {', '.join(SPLITS)}")
    path = Path(manifest).expanduser() if manifest else trained.folder / MANIFEST_NAME
    if not path.is_file():
        raise InputError(f"{path} does not exist: it says which videos are held out. Name one with --manifest FILE.csv")
    data = Manifest.read_csv(path, class_names=trained.class_names, only_these=False)
    there = {item.label for item in data.items}
    if there != set(trained.class_names):
        extra = ", ".join(sorted(there - set(trained.class_names))) or "(nothing)"
        lacking = ", ".join(sorted(set(trained.class_names) - there)) or "(nothing)"
        raise InputError(
            f"{path} has other classes than the model: unknown to the model: {extra}; missing from the file: {lacking}"
        )
    items = data.select(split)
    if not items:
        there = ", ".join(name for name in SPLITS if data.select(name)) or "none"
        raise InputError(f"--split {split}: {path} has no videos in it; splits with videos: {there}")
    missing = [item.path for item in items if not os.path.exists(item.path)]
    if len(missing) == len(items):
        raise InputError(f"none of the {len(items)} videos of {path} are there, the first: {missing[0]}. Moved?")
    if manifest and not allow_leaks and (seen := seen_of(trained, items)):
        raise InputError(
            f"{len(seen)} of {len(items)} videos in {path} belong to the run's own train or val (same file or group), "
            f"the first: {seen[0].path}. Take them out, or insist with --allow-leaks"
        )
    return data


def seen_of(trained: Trained, items: Sequence[Item]) -> list[Item]:
    """Those that the run was trained on, or whose val chose its checkpoint: the same file, or the same group."""
    own = trained.folder / MANIFEST_NAME
    if not own.is_file():
        return []
    table = Manifest.read_csv(own, class_names=trained.class_names)
    known = [item for item in table.items if item.split != "test"]
    files = {os.path.realpath(item.path) for item in known}
    groups = {item.group for item in known if item.group is not None}
    return [item for item in items if os.path.realpath(item.path) in files or item.group in groups]
