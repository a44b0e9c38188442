"""What a frame of a stream costs: carried state, continual convolution, and one window per frame.

    python benchmarks/streaming.py                       10,000 frames each: some minutes on a CPU core

Both families with their default configs, untrained, at 24 frames per second, of which the clips take every second one.
The rows: cnn_lstm, which carries its LSTM state; conv3d as a continual network; conv3d with one window for each frame
that its clips take, as without continual convolution. Prints for each

- multiply-adds for each frame that the clips take, as `stvid.estimate` counts them;
- ms of one CPU core for each frame of the stream, cropping and resizing included, and frames/s at this rate;
- the growth of the memory (RSS) from the 500th frame to the last.

Exits with 1 if continual conv3d needs more than an eighth of the multiply-adds of the windows, or memory grows.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from startup import save_untrained

import stvid
from stvid.deploy.stream import Stream
from stvid.models.base import VideoModel
from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.conv3d import Conv3D

FPS, SIZE, WARM_UP, MAX_GROWTH_MIB = 24, 80, 500, 20


def resident_mib() -> float:
    """Memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(model: VideoModel, hop: int | None, num_frames: int, folder: Path) -> tuple[str, int, float, float]:
    """Mode, multiply-adds, CPU ms a frame, and growth of the memory in MiB."""
    path = folder / f"{type(model).__name__}.ckpt"
    save_untrained(model, path)
    trained = stvid.load(path, device="cpu").trained
    stream = Stream(trained, fps=FPS, hop=hop)
    cost = stvid.estimate(model, (3, trained.clip.num_frames, *trained.clip.size))
    frames = torch.randint(0, 256, (64, 3, SIZE, SIZE), dtype=torch.uint8)
    for i in range(num_frames):
        if i == WARM_UP:
            memory, start = resident_mib(), time.process_time()
        stream.push(frames[i % len(frames)])
    milliseconds = 1e3 * (time.process_time() - start) / (num_frames - WARM_UP)
    macs = cost.macs if cost.stream_macs is None or hop is not None else cost.stream_macs
    return stream.mode, macs, milliseconds, resident_mib() - memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [("cnn_lstm", CNNLSTM, None), ("conv3d", Conv3D, None), ("conv3d", Conv3D, 2)]
    print("| model | a frame costs | multiply-adds, M | CPU ms | frames/s | memory, MiB |")
    print("|---|---|---|---|---|---|")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name, kind, hop in rows:
            mode, macs, milliseconds, growth = measure(kind(num_classes=2), hop, options.frames, Path(folder))
            results.append((macs, milliseconds, growth))
            numbers = f"{macs / 1e6:.2f} | {milliseconds:.2f} | {1e3 / milliseconds:.0f} | {growth:+.1f}"
            print(f"| {name} | {mode} | {numbers} |", flush=True)
    _, continual, windows = results
    print(f"windows / continual: {windows[0] / continual[0]:.1f} multiply-adds, {windows[1] / continual[1]:.1f} time")
    if windows[0] < 8 * continual[0] or max(growth for _, _, growth in results) > MAX_GROWTH_MIB:
        raise SystemExit(f"missed: 8 times fewer multiply-adds, memory that grows by at most {MAX_GROWTH_MIB} MiB")


if __name__ == "__main__":
    main()
