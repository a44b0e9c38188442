"""Seeded splits that keep every class in every split, and every group in one."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from stvid.data.manifest import Item
from stvid.errors import InputError

ATTEMPTS = 200  # orders in which groups are dealt out before giving up


def split_items(items: Sequence[Item], *, fractions: Mapping[str, float], seed: int) -> tuple[Item, ...]:
    """Deals items out to splits, class by class in the given proportions; whole groups where there are groups.

    Groups are dealt largest first, each to the split whose class counts it brings closest (least squares) to the
    wanted ones. An item without a group is its own group.

    Args:
        items: what to split; their own `split` is ignored.
        fractions: wanted share of each split, positive, summing to 1, for example `{"train": 0.7, ...}`.
        seed: another seed, another split; the same seed, the same split, whatever the order of `items`.

    Raises:
        InputError: fractions that are no proportions, or classes with too few videos or groups to be in every split.
    """
    if any(not 0 < share < 1 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        shares = ", ".join(f"{name}={share:g}" for name, share in fractions.items())
        raise InputError(f"split fractions ({shares}) must each lie between 0 and 1, val and test together below 1")
    groups: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in sorted(items, key=lambda item: (item.path, item.start or 0.0)):
        groups[("path", item.path) if item.group is None else ("group", item.group)].append(item)
    _check_enough(groups, len(fractions))

    order = sorted(groups)
    for attempt in range(ATTEMPTS):
        rng = random.Random(f"{seed}-{attempt}")
        rng.shuffle(order)
        split_of = _deal({key: Counter(item.label for item in groups[key]) for key in order}, fractions)
        dealt = tuple(replace(item, split=split_of[key]) for key in sorted(groups) for item in groups[key])
        if len({(item.split, item.label) for item in dealt}) == len(fractions) * len({item.label for item in items}):
            return tuple(sorted(dealt, key=lambda item: (item.path, item.start or 0.0)))
    raise InputError(
        f"no way was found in {ATTEMPTS} tries to give each of {', '.join(fractions)} every class with groups kept "
        "whole; use fewer or smaller groups, or write the splits into a manifest (data=manifest)"
    )


def _check_enough(groups: Mapping[tuple[str, str], list[Item]], num_splits: int) -> None:
    per_class = Counter(label for items in groups.values() for label in {item.label for item in items})
    for label, count in sorted(per_class.items()):
        if count < num_splits:
            what = "groups" if any(kind == "group" for kind, _ in groups) else "videos"
            raise InputError(
                f"class {label!r} has {count} {what}, too few to be in each of {num_splits} splits: add videos, or "
                "make train/ val/ test/ folders yourself"
            )


def _deal(groups: Mapping[tuple[str, str], Counter], fractions: Mapping[str, float]) -> dict[tuple[str, str], str]:
    """Which split each group goes to; `groups` maps a group to its class counts, in the order to deal in."""
    totals = sum(groups.values(), Counter())
    have = {name: Counter() for name in fractions}
    left = Counter(label for counts in groups.values() for label in counts)
    split_of = {}
    for key, counts in sorted(groups.items(), key=lambda pair: -pair[1].total()):

        def gain(name: str, counts: Counter = counts) -> float:
            """How much nearer the wanted class counts this split comes, relative to what it wants."""
            short = {c: fractions[name] * totals[c] - have[name][c] for c in counts}
            return sum((short[c] ** 2 - (short[c] - n) ** 2) / (fractions[name] * totals[c]) for c, n in counts.items())

        for label in counts:
            left[label] -= 1
        # where a class has just enough groups left for the splits that lack it, this one must go to one of them
        lacking = {label: [name for name in fractions if not have[name][label]] for label in counts}
        pressed = [name for label in counts if left[label] < len(lacking[label]) for name in lacking[label]]
        split_of[key] = max(pressed or fractions, key=gain)
        have[split_of[key]] += counts
    return split_of
