"""Which items an epoch takes, in which order, and who of several processes takes which."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

STRETCH = 50  # batches among which items are sorted by length


class SampleKey(NamedTuple):
    """What an item is asked for by: with the seed, all that its random choices depend on."""

    epoch: int
    index: int
    repeat: int = 0  # how often the item was drawn in this epoch before


def as_draw(key: SampleKey | tuple[int, ...] | int, num_items: int) -> SampleKey:
    """What a data set is asked for, as a `SampleKey`.

    Args:
        key: a `SampleKey` or what makes one; a plain index is that item's draw of epoch 0, and -1 is the last item's.
        num_items: of the data set.

    Raises:
        IndexError: there is no such item.
    """
    draw = SampleKey(*key) if isinstance(key, tuple) else SampleKey(0, operator.index(key))
    if not -num_items <= draw.index < num_items:
        raise IndexError(f"item {draw.index} was asked for; there are {num_items}")
    return draw._replace(index=draw.index % num_items)


class EpochSampler(Sampler):
    """One `SampleKey` after the other, so that an item knows its epoch in whatever process it is made.

    Under several processes each takes every `world_size`-th item in training (`shuffle`): all get equally many and
    the rest, fewer than `world_size`, waits for another epoch's order. In evaluation whole batches are dealt out, each
    item to one process: so a batch holds the same items, and gives the same numbers, whatever the number of processes.

    Args:
        num_items: draws in an epoch, over all processes.
        shuffle: another order in each epoch.
        seed: of the orders.
        labels: of the items, where every class shall be drawn equally often: the videos of a small class then come
            several times in an epoch, as different clips, and those of a large one not in every epoch. Needs `shuffle`.
        lengths: of the items, where those of similar length shall come together: then the batches (`batch_size` draws
            of every process) hold little padding. Their order is as random as before, as far as `shuffle` asks.
        batch_size: of each process; used with `lengths` and in evaluation.
        passes: the draws of epoch e are those of epoch e modulo this; None: every epoch has its own.
        rank: which process this is.
        world_size: how many there are.
    """

    def __init__(
        self,
        *,
        num_items: int,
        shuffle: bool,
        seed: int = 0,
        labels: Sequence[str] | None = None,
        lengths: Sequence[int] | None = None,
        batch_size: int = 1,
        passes: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.num_items, self.shuffle, self.seed, self.labels = num_items, shuffle, seed, labels
        self.lengths, self.batch_size, self.passes = lengths, batch_size, passes
        self.rank, self.world_size = rank, world_size
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int, *, start: int | None = None) -> None:
        """The epoch that comes next, and where in it (this process's draws that are done): for a resumed run."""
        if start is not None or epoch != self.epoch:
            self.start = start or 0
        self.epoch = epoch

    def __len__(self) -> int:
        """Of a whole epoch, wherever it starts."""
        return len(self._mine(range(self.num_items)))

    def __iter__(self) -> Iterator[SampleKey]:
        one_pass = self.epoch if self.passes is None else self.epoch % self.passes
        draws = [SampleKey(one_pass, index) for index in range(self.num_items)]
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.shuffle:
            draws = draws if self.labels is None else self._balanced(one_pass, rng)
            draws = [draws[i] for i in rng.permutation(len(draws))]
        if self.lengths is not None:
            draws = self._bucketed(draws, rng)
        yield from self._mine(draws[: self.num_items])[self.start :]

    def every_draw(self) -> list[SampleKey]:
        """All draws that any epoch can ask for, of all passes (`passes` must be a number)."""
        repeats = [1] * self.num_items
        if self.labels is not None:
            counts = Counter(self.labels)
            repeats = [-(-self._share(counts) // counts[label]) for label in self.labels]
        indices = range(self.num_items)
        return [SampleKey(p, i, repeat) for p in range(self.passes) for i in indices for repeat in range(repeats[i])]

    def _mine(self, draws: Sequence) -> Sequence:
        """What of an epoch's draws falls to this process."""
        if self.shuffle:
            return draws[self.rank :: self.world_size][: len(draws) // self.world_size]
        step = self.batch_size * self.world_size
        starts = range(self.rank * self.batch_size, len(draws), step)
        return [draw for i in starts for draw in draws[i : i + self.batch_size]]

    def _share(self, classes: Collection) -> int:
        """Draws of each class where all are drawn equally often."""
        return -(-self.num_items // len(classes))

    def _bucketed(self, draws: list[SampleKey], rng: np.random.Generator) -> list[SampleKey]:
        """Sorted by length within long stretches, batch by batch; the last, smaller batch stays the last."""
        size = self.batch_size * self.world_size
        whole = len(draws) // size * size
        stretch = STRETCH * size if self.shuffle else len(draws)
        batches = []
        for i in range(0, whole, stretch):
            part = sorted(draws[i : min(i + stretch, whole)], key=lambda draw: self.lengths[draw.index])
            batches += [part[k : k + size] for k in range(0, len(part), size)]
        order = rng.permutation(len(batches)) if self.shuffle else range(len(batches))
        return [draw for i in order for draw in batches[i]] + draws[whole:]

    def _balanced(self, one_pass: int, rng: np.random.Generator) -> list[SampleKey]:
        """Equally many draws of each class, `num_items` or a few more; all of its videos before any comes again."""
        members: dict[str, list[int]] = {}
        for index, label in enumerate(self.labels):
            members.setdefault(label, []).append(index)
        share = self._share(members)
        draws = []
        for label in sorted(members):
            passes = range(-(-share // len(members[label])))
            pool = [SampleKey(one_pass, int(i), repeat) for repeat in passes for i in rng.permutation(members[label])]
            draws += pool[:share]
        return draws
