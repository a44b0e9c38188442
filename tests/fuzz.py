"""Damages small videos in many ways and reads them: each must give frames or a VideoError.

python tests/fuzz.py --count 10000 --seed 0 [--sources FOLDER]

Without `--sources` it damages videos that it makes itself: mp4, mov, avi, webm, mkv, gif, ts, flv and a folder of
images. A crash, a hang of more than 30 seconds, another exception, or more than 1 GiB of memory is a failure. Where
frames come, they must be those of a decoder run from the first frame, as for any other file. A variant depends only on
(seed, its number) and the sources. The exit code is 1 after a failure.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import av
import numpy as np
from numbered import NUM_FRAMES, numbered_picture, write_video
from PIL import Image

from stvid.errors import TIMEOUT, UNREADABLE, VideoError
from stvid.progress import Bar
from stvid.video.probe import probe
from stvid.video.reader import read_frames
from stvid.video.workers import map_files

LIMIT = 30.0  # seconds for one variant
MEMORY = 1 << 30  # bytes that one variant may take
LARGEST = 200_000  # bytes of a source
TOLERANT = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}  # 19 always is


def damaged(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One kind of damage, and what it makes of a file's bytes."""
    data = bytearray(content)
    kind = rng.choice(("flipped", "truncated", "shuffled", "zeroed", "cut out"))
    length = rng.randint(1, max(1, min(4096, len(data) // 4)))
    start = rng.randrange(len(data))
    if kind == "flipped":
        for _ in range(rng.choice((1, 5, 50, 500))):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == "truncated":
        del data[rng.randrange(len(data)) :]
    elif kind == "zeroed":
        data[start : start + length] = bytes(len(data[start : start + length]))
    elif kind == "cut out":
        del data[start : start + length]
    else:
        blocks = [data[i : i + length] for i in range(0, len(data), length)]
        chosen = rng.sample(range(len(blocks)), min(len(blocks), rng.choice((2, 2, 8))))
        for a, b in zip(chosen, chosen[1:] + chosen[:1], strict=True):
            blocks[a], blocks[b] = blocks[b], blocks[a]
        data = bytearray(b"".join(blocks))
    return kind, bytes(data)


def attempt(number: str, *, sources: Sequence[Path], seed: int) -> tuple[str, str]:
    """Reads one variant: (container and kind of damage, outcome).

    The outcome is "frames", the reason of a VideoError, or a failure: "wrong frames", "memory".
    """
    rng = random.Random(f"{seed} {number}")
    source = rng.choice(list(sources))
    before = peak_memory(reset=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"variant{source.suffix}")
        kind = make_variant(source, path, rng)
        try:
            outcome = read_variant(path, rng)
        except VideoError as error:
            outcome = error.reason
    if outcome.startswith("wrong"):
        outcome += f" ({source.name}, number {number})"
    elif peak_memory() - before > MEMORY:
        outcome = f"memory (number {number})"
    return f"{source.suffix[1:] or 'images'} {kind}", outcome


def make_variant(source: Path, path: Path, rng: random.Random) -> str:
    """Writes a damaged copy of a file, or of a folder in which one image is damaged; returns the kind of damage."""
    damaged_file = path
    if source.is_dir():
        shutil.copytree(source, path)
        source = rng.choice(sorted(source.iterdir()))
        damaged_file = path / source.name
    kind, content = damaged(source.read_bytes(), rng)
    damaged_file.write_bytes(content)
    return kind


def read_variant(path: Path, rng: random.Random) -> str:
    """Probes a variant, reads up to 8 frames and compares them with those of PyAV or Pillow."""
    info = probe(path, decode_all=rng.random() < 0.5)
    indices = sorted(rng.sample(range(info.num_frames), min(info.num_frames, 8)))
    frames = read_frames(path, indices, info=info).permute(0, 2, 3, 1).numpy()
    if path.is_dir():
        return "frames" if all(map(same_image, frames, indices, [path] * len(indices))) else "wrong frames"
    truth = from_the_first(path, indices, info)
    if truth is None:  # if probe only counted, the reader may have jumped over the break
        return "wrong frames" if info.decoded else "frames (beyond a break)"
    if are_equal(frames, truth):
        return "frames"
    # where a JPEG breaks off, FFmpeg leaves what the memory held before, and so two runs may differ
    again = from_the_first(path, indices, info, fresh=True)
    if info.codec == "mjpeg" or again is None or not are_equal(again, truth):
        return "frames (undefined pixels)"
    return "wrong frames"


def are_equal(frames: Sequence[np.ndarray | None], truth: Sequence[np.ndarray | None]) -> bool:
    """Whether the pixels are equal, except where there is no truth."""
    return all(true is None or np.array_equal(frame, true) for frame, true in zip(frames, truth, strict=True))


def same_image(frame: np.ndarray, index: int, folder: Path) -> bool:
    """Whether a frame is what Pillow makes of the image; an image of another size (damaged) is not compared."""
    with Image.open(folder / f"{index}.jpg") as image:
        truth = np.asarray(image.convert("RGB"))
    return truth.shape != frame.shape or np.array_equal(frame, truth)


def peak_memory(*, reset: bool = False) -> int:
    """Highest resident memory of this process in bytes, since the last reset; 0 where the system does not tell."""
    with suppress(OSError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return 0


def from_the_first(path: Path, indices: Sequence[int], info, *, fresh: bool = False) -> list[np.ndarray | None] | None:
    """What PyAV shows at `indices`, passing over what it refuses before its first frame; None beyond a break.

    A frame whose size damage has changed is None: how it is resized to the others' size is the reader's choice.
    `fresh` lets no memory of a frame be used again for a later one.
    """
    frames, stored, size = [], [], None
    with av.open(str(path), **TOLERANT) as container:
        stream = next(s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic)
        stream.codec_context.thread_count = 1  # what a decoder makes up for what is lost depends on it
        stream.codec_context.thread_type = "NONE"
        with suppress(IndexError):  # of PyAV, behind the packets, where another track appears on the way
            for packet in container.demux(stream):
                try:
                    for frame in packet.decode():
                        size = size or (frame.width, frame.height)
                        frames.append(upright(frame, info) if (frame.width, frame.height) == size else None)
                        stored += [frame] if fresh else []
                except av.FFmpegError:
                    if frames:
                        break
    return [frames[index] for index in indices] if indices[-1] < len(frames) else None


def upright(frame: av.VideoFrame, info) -> np.ndarray:
    turned = info.rotation in (90, 270)
    width, height = (info.height, info.width) if turned else (info.width, info.height)
    turned = np.rot90(frame.reformat(width, height, "rgb24").to_ndarray(), info.rotation // 90)
    return turned[:, ::-1] if info.mirrored else turned


def fuzz(sources: Sequence[Path], *, count: int, seed: int, num_workers: int = 2) -> Counter:
    """How often each (kind of damage, outcome) came; crashes and hangs are outcomes too."""
    work = partial(attempt, sources=tuple(sources), seed=seed)
    outcomes = Counter()
    actual = map_files(work, [str(i) for i in range(count)], num_workers=num_workers, timeout=LIMIT)
    with Bar("damaging files", total=count, unit="files") as bar:
        for number, result in actual:
            bar.advance()
            if isinstance(result, VideoError):
                result = ("?", {UNREADABLE: "crash", TIMEOUT: "hang"}[result.reason] + f" (number {number})")
            outcomes[result] += 1
    return outcomes


def is_fine(outcome: str) -> bool:
    return not outcome.startswith(("crash", "hang", "wrong", "memory"))


def make_sources(folder: Path) -> list[Path]:
    """One small video of each container, with and without sound, and a folder of images."""
    codecs = {"mp4": "h264", "mov": "mpeg4", "avi": "mpeg4", "webm": "vp9", "mkv": "hevc", "ts": "h264", "flv": "h264"}
    sources = [write_video(folder / f"plain.{end}", codec=codec, bframes=2, gop=8) for end, codec in codecs.items()]
    sources.append(write_video(folder / "mjpeg.avi", codec="mjpeg"))
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    sources += [
        remuxed(sources[0], folder / "fragments.mp4", options=fragments),
        remuxed(sources[0], folder / "sound.mp4", sound=True),
        remuxed(sources[0], folder / "sound.mkv", sound=True),
        remuxed(sources[0], folder / "start.mp4", options={"movflags": "faststart"}, sound=True),
    ]
    pictures = [numbered_picture(i, height=48, width=64) for i in range(NUM_FRAMES)]
    images = [Image.fromarray(picture) for picture in pictures]
    images[0].save(folder / "plain.gif", save_all=True, append_images=images[1:], duration=40)
    (folder / "images").mkdir()
    for i, image in enumerate(images):
        image.save(folder / "images" / f"{i}.jpg")
    return [*sources, folder / "plain.gif", folder / "images"]


def remuxed(source: Path, path: Path, *, options: dict[str, str] | None = None, sound: bool = False) -> Path:
    """The packets of a video in another container, with a sound track if asked for."""
    with av.open(str(source)) as video, av.open(str(path), "w", options=options or {}) as container:
        copy = container.add_stream_from_template(video.streams.video[0])
        audio = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for packet in video.demux(video.streams.video[0]):
            if packet.dts is not None:
                packet.stream = copy
                container.mux(packet)
        if audio is not None:
            noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 38_400)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sources", type=Path, help="damage every file below it of at most 200 kB instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.sources is None:
            sources = make_sources(Path(folder))
        else:
            sources = [
                path for path in sorted(options.sources.rglob("*")) if path.suffix not in (".txt", ".csv", ".json")
            ]
            sources = [path for path in sources if path.is_file() and path.stat().st_size <= LARGEST]
        outcomes = fuzz(sources, count=options.count, seed=options.seed)
    print(f"{sum(outcomes.values())} variants of {len(sources)} sources, seed {options.seed}, PyAV {av.__version__}")
    for (kind, outcome), number in sorted(outcomes.items()):
        print(f"{kind:<18} {outcome:<28} {number:>5}")
    sys.exit(0 if all(is_fine(outcome) for _, outcome in outcomes) else 1)


if __name__ == "__main__":
    main()
