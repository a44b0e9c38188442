"""Damages small videos in many ways and reads them: each must give frames or a VideoError, without crash or hang.

python tests/fuzz.py --count 2000 --seed 0 [--sources FOLDER]

Where frames come, they must be those of a decoder run from the first frame, as for any other file. What a variant is
depends on (seed, its number) and the sources alone. Exit code 1 if anything else than frames or a VideoError came.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import av
import numpy as np
from conftest import REAL_DATA

from stvid.errors import TIMEOUT, UNREADABLE, VideoError
from stvid.progress import Bar
from stvid.video.probe import probe
from stvid.video.reader import read_frames
from stvid.video.workers import map_files

LIMIT = 10.0  # seconds for one variant
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
    """Reads one variant: (kind of damage, "frames", "wrong frames" or the reason of its VideoError)."""
    rng = random.Random(f"{seed} {number}")
    source = rng.choice(list(sources))
    kind, content = damaged(source.read_bytes(), rng)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"variant{source.suffix}")
        path.write_bytes(content)
        try:
            info = probe(path, decode_all=rng.random() < 0.5)
            indices = sorted(rng.sample(range(info.num_frames), min(info.num_frames, 8)))
            frames_TCHW = read_frames(path, indices, info=info)
        except VideoError as error:
            return kind, error.reason
        truth = from_the_first(path, indices, info)
        if np.array_equal(frames_TCHW.permute(0, 2, 3, 1).numpy(), truth):
            return kind, "frames"
        if truth is None and not info.decoded:
            return kind, "frames (beyond a break)"  # probe only counted, and the reader jumped over it
        # where a JPEG breaks off, FFmpeg leaves what the memory held before, and so two runs may differ
        if info.codec == "mjpeg" or not np.array_equal(truth, from_the_first(path, indices, info, fresh=True)):
            return kind, "frames (undefined pixels)"
        return kind, f"wrong frames ({source.name}, number {number})"


def from_the_first(path: Path, indices: Sequence[int], info, *, fresh: bool = False) -> np.ndarray | None:
    """What PyAV shows at `indices`, passing over what it refuses before its first frame; None beyond a break.

    `fresh` lets no memory of a frame be used again for a later one.
    """
    frames, stored = [], []
    with av.open(str(path), **TOLERANT) as container:
        stream = next(s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic)
        stream.codec_context.thread_count = 1  # what a decoder makes up for what is lost depends on it
        stream.codec_context.thread_type = "NONE"
        for packet in container.demux(stream):
            try:
                for frame in packet.decode():
                    frames.append(upright(frame, info))
                    stored += [frame] if fresh else []
            except av.FFmpegError:
                if frames:
                    break
    return np.stack([frames[index] for index in indices]) if indices[-1] < len(frames) else None


def upright(frame: av.VideoFrame, info) -> np.ndarray:
    turned = info.rotation in (90, 270)
    width, height = (info.height, info.width) if turned else (info.width, info.height)
    return np.rot90(frame.reformat(width, height, "rgb24").to_ndarray(), info.rotation // 90)


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
    return not outcome.startswith(("crash", "hang", "wrong"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sources", type=Path, default=REAL_DATA, help="every file below it of at most 200 kB")
    options = parser.parse_args()
    sources = [path for path in sorted(options.sources.rglob("*")) if path.suffix not in (".txt", ".csv", ".json")]
    sources = [path for path in sources if path.is_file() and path.stat().st_size <= LARGEST]
    outcomes = fuzz(sources, count=options.count, seed=options.seed)
    print(f"{sum(outcomes.values())} variants of {len(sources)} files, seed {options.seed}, PyAV {av.__version__}")
    for (kind, outcome), number in sorted(outcomes.items()):
        print(f"{kind:<10} {outcome:<20} {number:>5}")
    sys.exit(0 if all(is_fine(outcome) for _, outcome in outcomes) else 1)


if __name__ == "__main__":
    main()
