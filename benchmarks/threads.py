"""Would threads in one process read training clips faster than the processes of the loader?

    python benchmarks/threads.py --data DIR                 a folder with one folder of videos per class
    python benchmarks/threads.py --data DIR --workers 1 2 8

Both read the same clips of 16 frames at stride 2, cut to 112 x 112 pixels, in batches of 8. Processes: the loader of
training (`data.num_workers`), which hands batches over in shared memory. Threads: a pool in this process, which fills
the same batches from the same dataset without copying them; PyAV and torch release Python's lock while they decode,
convert and resize. Medians of alternating rounds. Nothing else happens in this process, so threads have it better than
beside a training. Prints a table; `ratio` above 1: threads are faster.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import torch

from stvid.clip import ClipSpec
from stvid.data.datamodule import VideoDataModule
from stvid.data.dataset import collate
from stvid.data.layouts.class_folders import folder
from stvid.data.manifest import Manifest
from stvid.data.prepare import prepare
from stvid.data.transforms import Augment

BATCH, CLIP = 8, ClipSpec(num_frames=16, frame_stride=2, size=112, short="repeat_last")
AHEAD = 2  # batches for each worker, as the loader has


def modules(manifest: Manifest, num_workers: int) -> VideoDataModule:
    data = VideoDataModule(manifest=manifest, clip=CLIP, augment=Augment(), batch_size=BATCH, num_workers=num_workers)
    data.setup()
    return data


def by_processes(manifest: Manifest, workers: int) -> Iterator:
    loader = modules(manifest, workers).train_dataloader()
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)
        yield from loader


def by_threads(manifest: Manifest, workers: int) -> Iterator:
    loader = modules(manifest, 0).train_dataloader()
    pending: deque = deque()
    with ThreadPoolExecutor(workers) as pool:
        for epoch in itertools.count():
            loader.sampler.set_epoch(epoch)
            for keys in loader.batch_sampler:
                pending.append([pool.submit(loader.dataset.__getitem__, key) for key in keys])
                if len(pending) > AHEAD * workers:
                    yield collate([sample.result() for sample in pending.popleft()])


def measure(manifest: Manifest, workers: int, *, num_batches: int, rounds: int) -> list[float]:
    """Clips/s of processes and of threads."""
    sources = [by_processes(manifest, workers), by_threads(manifest, workers)]
    seconds: list[list[float]] = [[], []]
    for batches in sources:
        next(batches)
    for _ in range(rounds):
        for batches, times in zip(sources, seconds, strict=True):
            for _ in itertools.islice(batches, AHEAD * workers):  # those that were read while the other was timed
                pass
            began = time.perf_counter()
            for _ in itertools.islice(batches, num_batches):
                pass
            times.append(time.perf_counter() - began)
    return [num_batches * BATCH / median(times) for times in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder with one folder of videos per class")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of processes and of threads")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        originals, out = folder(root=options.data), Path(temporary) / "prepared"
        prepare(originals, out=out, clip=CLIP, num_workers=2, progress=False)
        print("| videos | workers | processes, clips/s | threads, clips/s | ratio |\n|---|---|---|---|---|")
        for name, manifest in (("originals", originals), ("prepared", Manifest.read_csv(out / "manifest.csv"))):
            for workers in options.workers:
                speeds = measure(manifest, workers, num_batches=options.batches, rounds=options.rounds)
                print(f"| {name} | {workers} | {speeds[0]:.1f} | {speeds[1]:.1f} | {speeds[1] / speeds[0]:.2f} |")


if __name__ == "__main__":
    main()
