"""What every layout ends with: a val split, items in a fixed order, and a line in the log."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from stvid.data.manifest import SPLITS, Item, Manifest
from stvid.data.splitting import split_items

log = logging.getLogger(__name__)


def val_out_of_train(items: Iterable[Item], *, val_fraction: float, seed: int) -> list[Item]:
    """Takes whole groups out of train for val, stratified by class; the other splits stay as they are.

    Args:
        items: of all splits.
        val_fraction: share of the training videos, in (0, 1).
        seed: of the choice.

    Raises:
        InputError: a share outside (0, 1), or too few videos or groups of a class.
    """
    items = list(items)
    train = [item for item in items if item.split == "train"]
    shares = {"train": 1 - val_fraction, "val": val_fraction}
    return [item for item in items if item.split != "train"] + [*split_items(train, fractions=shares, seed=seed)]


def assemble(root: Path, items: Iterable[Item], *, how: str, class_names: Sequence[str] | None = None) -> Manifest:
    """The manifest, after one line in the log: where, how, and how many videos each split has.

    Args:
        root: the data set's folder.
        items: in any order.
        how: where the splits come from, for the log.
        class_names: the data set's own order; those without videos are left out. Without it, the sorted labels.
    """
    items = sorted(items, key=lambda item: (SPLITS.index(item.split), item.path, item.start or 0.0))
    labels = {item.label for item in items}
    names = sorted(labels) if class_names is None else [name for name in class_names if name in labels]
    counts = Counter(item.split for item in items)
    shown = ", ".join(f"{split} {counts[split]}" for split in SPLITS if counts[split])
    log.info("%s: %s (%d classes; %s)", root, how, len(names), shown or "no videos")
    return Manifest(items=tuple(items), class_names=tuple(names))
