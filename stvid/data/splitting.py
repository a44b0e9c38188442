"""Random splits: stratified by class, with whole groups."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from stvid.errors import InputError, listing

if TYPE_CHECKING:
    from stvid.data.manifest import Item

_SPLIT_ATTEMPTS = 200  # random orders of the groups to try


def take_val_from_train(items: Iterable[Item], *, val_fraction: float, seed: int) -> list[Item]:
    """Moves whole groups from train to val, stratified by class; other splits are unchanged.

    Args:
        items: the items of all splits.
        val_fraction: fraction of the training videos, in (0, 1).
        seed: of the choice.

    Raises:
        InputError: a fraction outside (0, 1), or too few videos or groups of a class.
    """
    items = list(items)
    train = [item for item in items if item.split == "train"]
    fractions = {"train": 1 - val_fraction, "val": val_fraction}
    return [item for item in items if item.split != "train"] + [*split_items(train, fractions=fractions, seed=seed)]


def make_splits(
    items: Sequence[Item],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    fold: int | None = None,
    num_folds: int = 5,
) -> tuple[list[Item], str]:
    """Splits made at random, stratified by class, with whole groups; by fractions, or as a fold of a cross-validation.

    Args:
        items: their `split` is ignored.
        val_fraction: of the videos, in (0, 1); with a fold, of the videos outside of it.
        test_fraction: the same; not used with a fold.
        seed: of the split.
        fold: from 1 to `num_folds`: its videos are the test; None: fractions.
        num_folds: at least 2.

    Returns:
        The items, and what was done, for the log.

    Raises:
        InputError: a value out of range; a class with too few videos or groups.
    """
    if fold is None:
        fractions = {"train": 1 - val_fraction - test_fraction, "val": val_fraction, "test": test_fraction}
        return list(split_items(items, fractions=fractions, seed=seed)), f"a stratified split was made, seed {seed}"
    if num_folds < 2:
        raise InputError(f"data.num_folds (={num_folds}) must be at least 2")
    if not 1 <= fold <= num_folds:
        raise InputError(f"data.fold (={fold}) must be one of 1 to data.num_folds (={num_folds})")
    parted = hold_out_fold(items, fold=fold, num_folds=num_folds, val_fraction=val_fraction, seed=seed)
    return parted, f"fold {fold} of {num_folds} is the test, val is {val_fraction:.0%} of the rest, seed {seed}"


def hold_out_fold(items: Sequence[Item], *, fold: int, num_folds: int, val_fraction: float, seed: int) -> list[Item]:
    """One split of a cross-validation: a fold for test, val from the rest, both stratified by class with whole groups.

    Args:
        items: their `split` is ignored.
        fold: from 1 to `num_folds`. Every item is in the test of exactly one fold.
        num_folds: at least 2.
        val_fraction: fraction of the other videos for val, in (0, 1).
        seed: of the folds and of val.

    Raises:
        InputError: a class with too few videos or groups for the folds or for val.
    """
    folds = split_items(items, fractions={str(i): 1 / num_folds for i in range(1, num_folds + 1)}, seed=seed)
    split = [replace(item, split="test" if item.split == str(fold) else "train") for item in folds]
    return take_val_from_train(split, val_fraction=val_fraction, seed=seed)


def split_items(items: Sequence[Item], *, fractions: Mapping[str, float], seed: int) -> tuple[Item, ...]:
    """Splits items at random, stratified by class; groups stay whole.

    Groups are assigned in order of size, each to the split whose class counts it brings closest (least squares) to the
    target. An item without a group is its own group.

    Args:
        items: the items; their `split` is ignored.
        fractions: target fraction of each split, positive, with sum 1, for example `{"train": 0.7, ...}`.
        seed: of the split, which does not depend on the order of `items`.

    Raises:
        InputError: invalid fractions, or a class with too few videos or groups for every split.
    """
    if any(not 0 < share < 1 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        shares = ", ".join(f"{name}={share:g}" for name, share in fractions.items())
        raise InputError(f"split fractions ({shares}) must each be between 0 and 1, val and test together below 1")
    groups: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in sorted(items, key=lambda item: (item.path, item.start or 0.0)):
        groups[("path", item.path) if item.group is None else ("group", item.group)].append(item)
    _check_enough_groups(groups, len(fractions))

    order = sorted(groups)
    for attempt in range(_SPLIT_ATTEMPTS):
        rng = random.Random(f"{seed}-{attempt}")
        rng.shuffle(order)
        split_of = _assign_groups({key: Counter(item.label for item in groups[key]) for key in order}, fractions)
        result = tuple(replace(item, split=split_of[key]) for key in sorted(groups) for item in groups[key])
        if len({(item.split, item.label) for item in result}) == len(fractions) * len({item.label for item in items}):
            return tuple(sorted(result, key=lambda item: (item.path, item.start or 0.0)))
    raise InputError(
        f"no split was found in {_SPLIT_ATTEMPTS} attempts with every class in each of {', '.join(fractions)} and "
        "whole groups; use smaller groups, or write the splits into a manifest (data=manifest)"
    )


def _check_enough_groups(groups: Mapping[tuple[str, str], list[Item]], num_splits: int) -> None:
    per_class = Counter(label for items in groups.values() for label in {item.label for item in items})
    small = {label: count for label, count in sorted(per_class.items()) if count < num_splits}
    if small:
        unit = "group" if any(kind == "group" for kind, _ in groups) else "video"
        label, count = next(iter(small.items()))
        others = f" (the same holds for {listing(list(small)[1:])})" if len(small) > 1 else ""
        twins = [name for name in per_class if name != label and name.casefold() == label.casefold()]
        spelling = f" (is it {twins[0]!r}?)" if twins else ""
        raise InputError(
            f"class {label!r}{spelling} has {count} {unit}{'s' if count != 1 else ''}, too few for {num_splits} "
            f"splits{others}: add videos, or choose the splits yourself: folders train/ val/ test/, or a column split "
            "in a table"
        )


def _assign_groups(
    groups: Mapping[tuple[str, str], Counter], fractions: Mapping[str, float]
) -> dict[tuple[str, str], str]:
    """Group -> split. `groups` maps each group to its class counts; its order breaks ties of size."""
    totals = sum(groups.values(), Counter())
    assigned: dict[str, Counter] = {name: Counter() for name in fractions}
    remaining = Counter(label for counts in groups.values() for label in counts)
    split_of = {}
    for key, counts in sorted(groups.items(), key=lambda pair: -pair[1].total()):

        def gain(name: str, counts: Counter = counts) -> float:
            """Decrease of the squared error of the split's class counts, relative to their targets."""
            target = {c: fractions[name] * totals[c] for c in counts}
            lacking = {c: target[c] - assigned[name][c] for c in counts}
            return sum((lacking[c] ** 2 - (lacking[c] - n) ** 2) / target[c] for c, n in counts.items())

        for label in counts:
            remaining[label] -= 1
        # if a class has just enough groups left for the splits without it, this group must go to one of them
        without = {label: [name for name in fractions if not assigned[name][label]] for label in counts}
        urgent = [name for label in counts if remaining[label] < len(without[label]) for name in without[label]]
        split_of[key] = max(urgent or fractions, key=gain)
        assigned[split_of[key]] += counts
    return split_of
