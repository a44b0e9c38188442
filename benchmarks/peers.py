"""How fast do training clips come out of stvid, and out of the other loaders that can still be installed?

    python benchmarks/peers.py --data DIR                 a folder with one folder of videos per class
    python benchmarks/peers.py --data DIR --big 0         without the same videos as 1280 x 720 H.264

All read random clips of 16 frames at stride 2, cut them at random to 112 x 112 pixels, flip half of them, and return
batches of 8 as uint8, in one process on one core. Sources: the videos of DIR; some of them as 1280 x 720 H.264 with a
keyframe every 250 frames (made here); each of the two after `stvid prepare` (short side 128) and after
`stvid prepare --uncompressed` (short side 112), for stvid alone. Peers: torchcodec with torchvision's transforms v2,
and torchvision's VideoClips with the same transforms. Decoders: two bare loops, which only decode the same frames.
Medians of alternating rounds. mmaction2, SlowFast and pytorchvideo do not install any more. Requires the extra
torchcodec and FFmpeg's libraries.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import loading
import numpy as np
import torch
from torch import Tensor
from torchcodec.decoders import VideoDecoder
from torchvision.datasets.video_utils import VideoClips
from torchvision.transforms import v2

from stvid.clip import ClipSpec
from stvid.data.datamodule import VideoDataModule
from stvid.data.layouts.class_folders import folder
from stvid.data.manifest import Manifest
from stvid.data.prepare import prepare
from stvid.data.transforms import Augment
from stvid.device import keep_freed_memory
from stvid.video.probe import probe
from stvid.video.reader import read_frames
from stvid.video.types import VideoInfo

BATCH, FRAMES, STRIDE, SIZE = 8, 16, 2, 112
SPAN = (FRAMES - 1) * STRIDE + 1
PREPARED = {"prepared": {"short_side": 128}, "uncompressed": {"short_side": SIZE, "uncompressed": True}}
PREPARED_TARGET = 5  # times the fastest peer on the originals, by one of them at least
TARGETS = {  # stvid's clips/s, in those of the others, at least
    "torchcodec + transforms v2": 1.5,
    "VideoClips + transforms v2": 2.0,
    "bare PyAV": 1.2,
    "bare decord": 1.2,
}
PEERS = ("torchcodec + transforms v2", "VideoClips + transforms v2")
Batches = Iterator[Sequence | Tensor | dict]


class Videos:
    """The training videos of a manifest that have a whole clip.

    Args:
        manifest: the data set.
    """

    def __init__(self, manifest: Manifest):
        infos = {item.path: probe(item.path) for item in manifest.select("train")}
        self.infos: dict[str, VideoInfo] = {path: info for path, info in infos.items() if info.num_frames >= SPAN}
        items = tuple(item for item in manifest.items if item.split != "train" or item.path in self.infos)
        self.manifest = Manifest(items=items, class_names=manifest.class_names)

    def requests(self) -> Iterator[loading.Request]:
        """Random clips: a file and its frames."""
        rng, paths = np.random.default_rng(0), list(self.infos)
        while True:
            for number in rng.permutation(len(paths)):
                start = int(rng.integers(self.infos[paths[number]].num_frames - SPAN + 1))
                yield paths[number], list(range(start, start + SPAN, STRIDE))


def transforms() -> Callable[[Tensor], Tensor]:
    """Those of stvid's default for training, of the two kinds that cost something."""
    return v2.Compose([v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()])


def stvid_batches(videos: Videos) -> Batches:
    clip = ClipSpec(num_frames=FRAMES, frame_stride=STRIDE, size=SIZE)
    data = VideoDataModule(manifest=videos.manifest, clip=clip, augment=Augment(), batch_size=BATCH, num_workers=0)
    data.setup()
    loader = data.train_dataloader()
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)
        yield from loader


def torchcodec_batches(videos: Videos) -> Batches:
    transform, requests = transforms(), videos.requests()
    while True:
        batch = list(itertools.islice(requests, BATCH))
        yield torch.stack([transform(VideoDecoder(path).get_frames_at(indices).data) for path, indices in batch])


def video_clips_batches(videos: Videos) -> Batches:
    transform, rng = transforms(), np.random.default_rng(0)
    rate = next(iter(videos.infos.values())).fps / STRIDE
    with warnings.catch_warnings(action="ignore"):
        clips = VideoClips(
            list(videos.infos),
            clip_length_in_frames=FRAMES,
            frames_between_clips=1,
            frame_rate=rate,
            output_format="TCHW",
        )
        while True:
            numbers = rng.integers(clips.num_clips(), size=BATCH)
            yield torch.stack([transform(clips.get_clip(int(number))[0]) for number in numbers])


def bare_batches(read: Callable[[loading.Request], np.ndarray], videos: Videos) -> Batches:
    requests = videos.requests()
    while True:
        yield [read(request) for request in itertools.islice(requests, BATCH)]


LOADERS: dict[str, Callable[[Videos], Batches]] = {
    "stvid": stvid_batches,
    "torchcodec + transforms v2": torchcodec_batches,
    "VideoClips + transforms v2": video_clips_batches,
    "bare PyAV": lambda videos: bare_batches(loading.pyav_forward, videos),
    "bare decord": lambda videos: bare_batches(loading.decord_random, videos),
}


def torchcodec_frames(request: loading.Request) -> np.ndarray:
    return VideoDecoder(request[0], dimension_order="NHWC").get_frames_at(request[1]).data.numpy()


def stvid_frames(request: loading.Request) -> np.ndarray:
    return read_frames(*request).permute(0, 2, 3, 1).numpy()


READERS: dict[str, Callable[[loading.Request], np.ndarray]] = {
    "stvid": stvid_frames,
    "torchcodec + transforms v2": torchcodec_frames,
    "bare decord": loading.decord_random,
}


def measure(loaders: dict[str, Batches], *, num_batches: int, rounds: int) -> dict[str, float]:
    """Clips/s of each, the median of rounds in turn; after a first batch that is not timed."""
    speeds: dict[str, list[float]] = {name: [] for name in loaders}
    for batches in loaders.values():
        next(batches)
    for _ in range(rounds):
        for name, batches in loaders.items():
            started, num_clips = time.perf_counter(), 0
            for batch in itertools.islice(batches, num_batches):
                num_clips += len(batch["clips"] if isinstance(batch, dict) else batch)  # of a few videos, fewer
            speeds[name].append(num_clips / (time.perf_counter() - started))
    return {name: median(found) for name, found in speeds.items()}


def wrong_frames(read: Callable[[loading.Request], np.ndarray], videos: Videos, *, number: int = 20) -> float:
    """Share of the frames whose pixels are not nearest to those of the frame that was asked for."""
    wrong, total = 0, 0
    for path, indices in itertools.islice(videos.requests(), number):
        around = list(range(max(indices[0] - 3, 0), min(indices[-1] + 4, videos.infos[path].num_frames)))
        truth = loading.pyav_forward((path, around))[:, ::4, ::4].astype(np.int16)
        actual = read((path, indices))[:, ::4, ::4].astype(np.int16)
        for index, frame in zip(indices, actual, strict=True):
            distances = np.abs(truth - frame).mean(axis=(1, 2, 3))
            wrong += distances[around.index(index)] > distances.min() + 1e-6
            total += 1
    return wrong / total


def prepare_text(name: str, manifest: Manifest, out: Path, *, seconds: float) -> str:
    """How fast a data set was prepared, and how much room it takes."""
    duration = sum(probe(item.path).duration for item in manifest.items)
    size = sum(file.stat().st_size for file in (out / "videos").rglob("*.*"))
    return (
        f"- {name}: {duration / 60:.1f} minutes of video prepared {duration / seconds:.1f} times faster than it plays, "
        f"{size / 1e6 / duration * 3600:.0f} MB for an hour"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder with one folder of videos per class")
    parser.add_argument("--batches", type=int, default=10, help=f"of {BATCH} clips, timed in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--big", type=int, default=3, help="videos of each class that are made 1280 x 720; 0: none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as `train.py` does; here for all of them
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(
        f"{FRAMES} frames, stride {STRIDE}, {SIZE} x {SIZE} pixels, batches of {BATCH}, one core, median of "
        f"{options.rounds} rounds of {options.batches * BATCH} clips\n"
    )
    print("| videos | loader | clips/s | stvid is faster by | wanted | wrong frames |\n|---|---|---|---|---|---|")
    missed, notes = [], []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        sources = {"originals": folder(root=options.data)}
        if options.big:
            few = loading.some_of(sources["originals"], train=options.big, val=1)
            sources["1280 x 720"] = loading.to_720p(few, work / "big", keyframes=250)
        for name, manifest in sources.items():
            clip, copies = ClipSpec(num_frames=FRAMES, frame_stride=STRIDE, size=SIZE), {}
            for kind, settings in PREPARED.items():
                out = work / name / kind
                started = time.perf_counter()
                prepare(manifest, out=out, clip=clip, num_workers=1, progress=False, **settings)  # type: ignore[arg-type]
                notes.append(prepare_text(f"{name}, {kind}", manifest, out, seconds=time.perf_counter() - started))
                copies[kind] = stvid_batches(Videos(Manifest.read_csv(out / "manifest.csv")))
            videos = Videos(manifest)
            makers = dict(LOADERS)
            once = list(itertools.islice(videos.requests(), len(videos.infos)))
            if not loading.is_right(loading.decord_random, once):
                del makers["bare decord"]  # it fails, or returns other frames, for some of the files
            loaders = {loader: make(videos) for loader, make in makers.items()}
            speeds = measure({**loaders, **copies}, num_batches=options.batches, rounds=options.rounds)
            for loader in makers:
                ratio, target = speeds["stvid"] / speeds[loader], TARGETS.get(loader)
                wrong = f"{wrong_frames(READERS[loader], videos):.1%}" if loader in READERS else ""
                wanted = f"{target}" if target else ""
                print(f"| {name} | {loader} | {speeds[loader]:.1f} | {ratio:.2f} | {wanted} | {wrong} |", flush=True)
                if target and ratio < target:
                    missed.append(f"{name}: {ratio:.2f} times {loader}, not {target}")
            ratios = {kind: speeds[kind] / max(map(speeds.get, PEERS)) for kind in copies}  # type: ignore[arg-type,type-var]
            for kind, ratio in ratios.items():
                print(f"| {name}, {kind} | stvid | {speeds[kind]:.1f} | {ratio:.2f} x a peer | {PREPARED_TARGET} | |")
            if max(ratios.values()) < PREPARED_TARGET:
                missed.append(f"{name}: {max(ratios.values()):.2f} times the fastest peer, not {PREPARED_TARGET}")
    print("\n" + "\n".join(notes))
    if missed:
        raise SystemExit("\n".join(missed))


if __name__ == "__main__":
    main()
