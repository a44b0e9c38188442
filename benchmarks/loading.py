"""How fast do clips come out of the data module, against a bare loop that decodes the same frames?

    python benchmarks/loading.py --data DIR            a folder with one folder of videos per class

Three sources: the videos of DIR; the same as 1280 x 720 H.264 with the encoder's usual settings (made here); and each
of the two after `stvid prepare`. For each, in one run and with as many processes: clips/s of the whole data module
(sampling, decoding, cropping, batches brought to this process), and of the fastest bare loop that does nothing but
decode the same frames and knows all about the file beforehand: PyAV read forward, or decord's random access where
that returns the right frames. Then, in one more pass, how much the memory of a reading process grows over 2,000 clips.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from statistics import median

import av
import decord
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from stvid.clip import ClipSpec
from stvid.data import sampling
from stvid.data.datamodule import VideoDataModule
from stvid.data.layouts.class_folders import folder
from stvid.data.manifest import Manifest
from stvid.data.prepare import prepare
from stvid.data.transforms import Augment

Request = tuple[str, list[int]]  # a file, and the frames wanted of it
BATCH = 16


def pyav_forward(request: Request) -> np.ndarray:
    path, indices = request
    wanted, frames, converter = set(indices), [], VideoReformatter()
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count, stream.codec_context.thread_type = 1, "NONE"
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                frames.append(converter.reformat(frame, format="rgb24", threads=1).to_ndarray())
                if len(frames) == len(wanted):
                    break
    return np.stack(frames)


def decord_random(request: Request) -> np.ndarray:
    path, indices = request
    return decord.VideoReader(path, num_threads=1).get_batch(sorted(set(indices))).asnumpy()


BARE = {"PyAV forward": pyav_forward, "decord": decord_random}


def is_right(read: Callable[[Request], np.ndarray], requests: Sequence[Request]) -> bool:
    """Whether a bare loop returns the frames that a decoder run from the first one shows."""
    try:
        return all(np.array_equal(read(request), pyav_forward(request)) for request in requests)
    except (decord.DECORDError, IndexError, ValueError):
        return False


def requests_of(data: VideoDataModule, epoch: int) -> list[Request]:
    """What the training data set reads in an epoch, in its order."""
    data.train_loader.sampler.set_epoch(epoch)
    actual = []
    for draw in data.train_loader.sampler:
        rng = np.random.default_rng((data.seed, *draw))
        frames, fps = data.train.timeline(draw.index)
        start = sampling.random_start(len(frames), sampling.clip_span(data.clip, fps), rng)
        wanted = sampling.clip_indices(len(frames), start, data.clip, fps)
        actual.append((data.train.items[draw.index].path, [frames[i] for i in wanted]))
    return actual


def timed(batches, num_batches: int) -> float:
    """Seconds that so many batches take, from the second one on: processes have started, queues are full."""
    next(batches)
    started = time.perf_counter()
    for _ in itertools.islice(batches, num_batches):
        pass
    return time.perf_counter() - started


def through_data_module(data: VideoDataModule, num_batches: int) -> float:
    def batches():
        for epoch in itertools.count():
            data.train_loader.sampler.set_epoch(epoch)
            yield from data.train_loader

    return num_batches * BATCH / timed(batches(), num_batches)


def read_batch(read: Callable[[Request], np.ndarray], batch: Sequence[Request]) -> int:
    return sum(len(read(request)) for request in batch)


def bare(read: Callable[[Request], np.ndarray], data: VideoDataModule, num_batches: int, pool) -> float:
    requests = itertools.chain.from_iterable(requests_of(data, epoch) for epoch in range(1000))
    batches = [list(itertools.islice(requests, BATCH)) for _ in range(num_batches + 1)]
    return num_batches * BATCH / timed(pool.map(partial(read_batch, read), batches), num_batches)


def module(manifest: Manifest, clip: ClipSpec, num_workers: int, *, least: int) -> VideoDataModule:
    """A data module with at least so many training videos: each several times, or an epoch would end all too soon."""
    times = -(-least // len(manifest.select("train")))
    again = [item for item in manifest.items if item.split == "train"] * (times - 1)
    manifest = replace(manifest, items=(*manifest.items, *again))
    data = VideoDataModule(manifest=manifest, clip=clip, augment=Augment(), batch_size=BATCH, num_workers=num_workers)
    data.setup()
    data.train_loader = data.train_dataloader()
    return data


def measure(data: VideoDataModule, *, num_workers: int, num_batches: int, rounds: int) -> tuple[float, str, float]:
    """Clips/s of the data module, and the fastest right bare loop with its clips/s: medians of alternating rounds."""
    right = {
        name: read
        for name, read in BARE.items()
        if is_right(read, list({path: (path, frames) for path, frames in requests_of(data, 0)}.values()))
    }
    ours, theirs = [], {name: [] for name in right}
    with ProcessPoolExecutor(num_workers) as pool:
        for _ in range(rounds):
            ours.append(through_data_module(data, num_batches))
            for name, read in right.items():
                theirs[name].append(bare(read, data, num_batches, pool))
    fastest = max(theirs, key=lambda name: median(theirs[name]))
    return median(ours), fastest, median(theirs[fastest])


def to_720p(manifest: Manifest, out: Path, *, keyframes: int = 250) -> Manifest:
    """The videos as 1280 x 720 H.264 mp4 with B-frames, as encoders make them if nothing is said.

    keyframes: frames from one keyframe to the next, at most.
    """
    items = []
    for item in manifest.items:
        target = out / item.label / f"{Path(item.path).stem}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        with av.open(item.path) as source, av.open(str(target), "w") as copy:
            stream = copy.add_stream("libx264", rate=30, options={"preset": "fast", "g": str(keyframes)})
            stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
            for number, frame in enumerate(source.decode(video=0)):
                big = frame.reformat(1280, 720, "yuv420p")
                big.pts, big.time_base = number, Fraction(1, 30)
                copy.mux(stream.encode(big))
            copy.mux(stream.encode())
        items.append(replace(item, path=str(target)))
    return Manifest(items=tuple(items), class_names=manifest.class_names)


def some_of(manifest: Manifest, *, train: int, val: int) -> Manifest:
    """So many videos of each class for training, and for val."""
    items = [
        item
        for name in manifest.class_names
        for split, number in (("train", train), ("val", val))
        for item in [item for item in manifest.select(split) if item.label == name][:number]
    ]
    return Manifest(items=tuple(items), class_names=manifest.class_names)


def growth(data: VideoDataModule, num_clips: int) -> tuple[float, float]:
    """MB by which the memory of this process grows from the 200th clip to the last, and its peak."""
    page = os.sysconf("SC_PAGE_SIZE")

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page / 1e6

    sampler, draws, early = data.train_loader.sampler, 0, 0.0
    while draws < num_clips:
        sampler.set_epoch(draws)
        for draw in itertools.islice(sampler, num_clips - draws):
            data.train[draw]
            draws += 1
            early = resident() if draws == 200 else early
    return resident() - early, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder with one folder of videos per class")
    parser.add_argument("--workers", type=int, default=2, help="reading processes, of either side")
    parser.add_argument("--batches", type=int, default=20, help=f"of {BATCH} clips, timed in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--big", type=int, default=4, help="videos of each class that are made 1280 x 720")
    parser.add_argument("--size", type=int, default=64, help="of a clip, pixels")
    parser.add_argument("--short-sides", type=int, nargs="+", default=[128, 80], help="of the prepared files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clip = ClipSpec(num_frames=16, frame_stride=2, size=options.size)
    missed = []
    print(
        f"16 frames, stride 2, {clip.size[0]} pixels, batches of {BATCH}, {options.workers} processes, "
        f"median of {options.rounds} rounds of {options.batches * BATCH} clips\n"
    )
    print("| videos | MB | data module clips/s | bare loop clips/s | which | ratio | against the originals |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        original = folder(root=options.data)
        sources = {
            "originals": original,
            "1280 x 720": to_720p(some_of(original, train=options.big, val=1), work / "big"),
        }
        for name, manifest in sources.items():
            rows = {name: manifest}
            for short_side in options.short_sides:
                out = work / f"{name} {short_side}"
                prepare(
                    manifest, out=out, clip=clip, short_side=short_side, num_workers=options.workers, progress=False
                )
                rows[f"{name}, prepared, short side {short_side}"] = Manifest.read_csv(out / "manifest.csv")
            speeds = []
            for displayed, videos in rows.items():
                data = module(videos, clip, options.workers, least=(options.batches + 1) * BATCH)
                ours, which, theirs = measure(
                    data, num_workers=options.workers, num_batches=options.batches, rounds=options.rounds
                )
                speeds.append(ours)
                size = sum(os.path.getsize(item.path) for item in videos.items) / 1e6
                cells = (displayed, f"{size:.1f}", f"{ours:.0f}", f"{theirs:.0f}", which, f"{ours / theirs:.2f}")
                print("| " + " | ".join((*cells, f"{ours / speeds[0]:.1f}x")) + " |", flush=True)
                if ours < 0.9 * theirs:
                    missed.append(f"{displayed}: {ours / theirs:.2f} of the bare loop, not 0.90")
                if displayed == "originals":
                    memory = growth(data, 2000)
            least = 3 if name == "originals" else 5
            if max(speeds[1:]) < least * speeds[0]:
                missed.append(f"{name}: prepared at best {max(speeds) / speeds[0]:.1f}x as fast, not {least}x")
    print(f"\nmemory over 2,000 clips of the originals: {memory[0]:+.1f} MB (peak {memory[1]:.0f} MB)")
    if memory[0] > 50:
        missed.append(f"memory grows by {memory[0]:.0f} MB, not by less than 50")
    if missed:
        raise SystemExit("\n".join(missed))


if __name__ == "__main__":
    main()
