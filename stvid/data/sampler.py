"""Which items an epoch takes, in which order, and how they are divided among processes."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

BUCKET_BATCHES = 50  # items are sorted by length within this many batches


class SampleKey(NamedTuple):
    """Key of one sample. Together with the seed it determines all random choices."""

    epoch: int
    index: int  # type: ignore[assignment] # instead of the method of tuples
    repeat: int = 0  # how often the epoch has sampled this item before


def resolve_key(key: SampleKey | tuple[int, ...] | int, num_items: int) -> SampleKey:
    """Converts a dataset's key to a `SampleKey` with a nonnegative index.

    Args:
        key: a `SampleKey` or its tuple; a plain index means epoch 0, and -1 is the last item.
        num_items: number of items in the dataset.

    Raises:
        IndexError: there is no such item.
    """
    key = SampleKey(*key) if isinstance(key, tuple) else SampleKey(0, operator.index(key))
    if not -num_items <= key.index < num_items:
        raise IndexError(f"index {key.index} is out of range for {num_items} items")
    return key._replace(index=key.index % num_items)


class EpochSampler(Sampler):
    """Yields the `SampleKey`s of one epoch, so that a dataset knows the epoch in any worker process.

    In training (`shuffle`) each rank takes every `world_size`-th key. All ranks get the same number; up to
    `world_size - 1` keys at the end of the epoch's order are dropped. In evaluation whole batches are distributed, each
    item to exactly one rank: batches, and so the results, do not depend on the number of processes.

    Args:
        num_items: samples per epoch, over all ranks.
        shuffle: a new order in each epoch.
        seed: seed of the orders.
        labels: label of each item, to sample every class equally often: videos of a small class are repeated within an
            epoch, as different clips; videos of a large class are not in every epoch. Requires `shuffle`.
        lengths: length of each item, to batch items of similar length (`batch_size` per rank), with little padding.
            With `shuffle`, the order of the batches is still random.
        batch_size: per rank; used with `lengths` and in evaluation.
        places: name of the tar of each item, and its offset in it. With `shuffle`, an epoch takes the tars one after
            the other, in random order, and shuffles within windows of `window` keys: reading is nearly sequential.
        window: keys that are shuffled together; used with `places`.
        passes: epoch e yields the keys of epoch e modulo `passes`; None: every epoch has its own.
        rank: rank of this process.
        world_size: number of processes.
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
        places: Sequence[tuple[str, int]] | None = None,
        window: int = 1,
        passes: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.num_items, self.shuffle, self.seed, self.labels = num_items, shuffle, seed, labels
        self.lengths, self.batch_size, self.passes = lengths, batch_size, passes
        self.places, self.window = places, window
        self.rank, self.world_size = rank, world_size
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int, *, start: int | None = None) -> None:
        """Sets the next epoch; a resumed run skips its first `start` keys (of this rank)."""
        if start is not None or epoch != self.epoch:
            self.start = start or 0
        self.epoch = epoch

    def __len__(self) -> int:
        """Keys of this rank in a whole epoch; `start` does not change it."""
        return len(self._shard(range(self.num_items)))

    def __iter__(self) -> Iterator[SampleKey]:
        epoch = self.epoch if self.passes is None else self.epoch % self.passes
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.labels is None and self.places is None and self.lengths is None:  # keys are made when they are needed
            order = rng.permutation(self.num_items).tolist() if self.shuffle else range(self.num_items)
            yield from (SampleKey(epoch, index) for index in self._shard(order)[self.start :])
            return
        keys = [SampleKey(epoch, index) for index in range(self.num_items)]
        if self.shuffle:
            keys = keys if self.labels is None else self._balance_classes(epoch, self.labels, rng)
            if self.places is None:
                keys = [keys[i] for i in rng.permutation(len(keys))]
            else:
                keys = self._shuffle_windows(keys, self.places, rng)
        if self.lengths is not None:
            keys = self._group_by_length(keys, self.lengths, rng)
        yield from self._shard(keys[: self.num_items])[self.start :]

    def all_keys(self) -> list[SampleKey]:
        """All keys that any epoch can yield on any rank; `passes` must be a number."""
        assert self.passes is not None
        repeats = [1] * self.num_items
        if self.labels is not None:
            counts = Counter(self.labels)
            repeats = [-(-self._samples_per_class(counts) // counts[label]) for label in self.labels]
        indices = range(self.num_items)
        return [SampleKey(p, i, repeat) for p in range(self.passes) for i in indices for repeat in range(repeats[i])]

    def _shard(self, keys: Sequence) -> Sequence:
        """The part of an epoch's keys that this rank takes."""
        if self.shuffle:
            return keys[self.rank :: self.world_size][: len(keys) // self.world_size]
        step = self.batch_size * self.world_size
        starts = range(self.rank * self.batch_size, len(keys), step)
        return [key for i in starts for key in keys[i : i + self.batch_size]]

    def _samples_per_class(self, classes: Collection) -> int:
        """Samples of each class when all classes are sampled equally often."""
        return -(-self.num_items // len(classes))

    def _group_by_length(
        self, keys: list[SampleKey], lengths: Sequence[int], rng: np.random.Generator
    ) -> list[SampleKey]:
        """Batches of similar lengths, in random order if shuffled; a last, smaller batch stays last.

        With `places`, the order is random only among the batches that were sorted together.
        """
        size = self.batch_size * self.world_size
        whole = len(keys) // size * size
        bucket = BUCKET_BATCHES * size if self.shuffle else len(keys)
        batches = []
        for i in range(0, whole, bucket):
            part = sorted(keys[i : min(i + bucket, whole)], key=lambda key: lengths[key.index])
            batches += [part[k : k + size] for k in range(0, len(part), size)]
        if not self.shuffle:
            order: Sequence[int] = range(len(batches))
        elif self.places is None:
            order = rng.permutation(len(batches)).tolist()
        else:
            order = _permute_within(len(batches), BUCKET_BATCHES, rng)
        return [key for i in order for key in batches[i]] + keys[whole:]

    def _shuffle_windows(
        self, keys: list[SampleKey], places: Sequence[tuple[str, int]], rng: np.random.Generator
    ) -> list[SampleKey]:
        """The tars in random order, and the keys of a tar in the order of the file, but shuffled within windows."""
        tars = sorted({tar for tar, _ in places})
        turn = dict(zip(tars, rng.permutation(len(tars)).tolist(), strict=True))

        def position(key: SampleKey) -> tuple[int, int, int]:
            tar, offset = places[key.index]
            return turn[tar], offset, key.repeat

        keys = sorted(keys, key=position)
        return [keys[i] for i in _permute_within(len(keys), self.window, rng)]

    def _balance_classes(self, epoch: int, labels: Sequence[str], rng: np.random.Generator) -> list[SampleKey]:
        """Equally many keys of each class, at least `num_items` in all; a video repeats only after all of its class."""
        members: dict[str, list[int]] = {}
        for index, label in enumerate(labels):
            members.setdefault(label, []).append(index)
        count = self._samples_per_class(members)
        keys = []
        for label in sorted(members):
            repeats = range(-(-count // len(members[label])))
            pool = [SampleKey(epoch, int(i), repeat) for repeat in repeats for i in rng.permutation(members[label])]
            keys += pool[:count]
        return keys


def _permute_within(number: int, window: int, rng: np.random.Generator) -> list[int]:
    """The numbers below `number`; each window of so many of them is permuted, the windows stay in order."""
    starts = range(0, number, window)
    return [start + int(i) for start in starts for i in rng.permutation(min(window, number - start))]
