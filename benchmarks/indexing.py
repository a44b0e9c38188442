"""How long a large data set takes before training can start: its table, its videos, what is known about them.

    python benchmarks/indexing.py                                    100,000 files and 1,000,000 rows
    python benchmarks/indexing.py --files 10000 --rows 100000

All files are links to a few small videos, so the figures are those of this code and of the file system's table, not of
a disk or a network. Prints

- the time to read a manifest of so many rows, and the memory it takes (wanted: 10 s and 1 GB for a million);
- the time from `python train.py data=manifest` to its first training step if everything has been probed before
  (wanted: 60 s for a million rows);
- the time to list so many files in class folders and probe them without decoding (`data.probe=count`), by all cores.

Exits with 1 if a wanted figure is missed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from stvid.data.layouts.class_folders import folder
from stvid.data.loading import CACHE_NAME, probe_items
from stvid.data.manifest import Manifest
from stvid.data.synthetic.actions import actions
from stvid.device import num_cores
from stvid.files import file_lock
from stvid.video.probe import probe
from stvid.video.probe_cache import ProbeCache
from stvid.video.types import file_identity

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
CLASSES, LINKS = 100, 20_000  # a file system allows no more than 65,000 links to a file
WANTED = {"seconds to read the manifest": 10, "GB of memory": 1, "seconds to the first step": 60}  # for a million rows


def link(videos: list[str], root: Path, number: int) -> list[Path]:
    """So many files in class folders, links to the videos, and copies of these where there are too many links."""
    links, source = [], Path()
    for index in range(number):
        if index % LINKS == 0:
            source = root.parent / f"source_{root.name}_{index}.mp4"
            source.write_bytes(Path(videos[index // LINKS % len(videos)]).read_bytes())
        target = root / f"class_{index % CLASSES:03d}" / f"{index // CLASSES:07d}.mp4"
        if index < CLASSES:
            target.parent.mkdir(parents=True)
        os.link(source, target)
        links.append(target)
    return links


def write_manifest(links: list[Path], path: Path) -> None:
    """Every twentieth row of a class is for val."""
    with path.open("w", encoding="utf-8") as file:
        file.write("path,label,split\n")
        for index, target in enumerate(links):
            split = "val" if index // CLASSES % 20 == 0 else "train"
            file.write(f"{target.relative_to(path.parent)},{target.parent.name},{split}\n")


def fill_probe_cache(links: list[Path], path: Path) -> None:
    """What training would have found out about each link."""
    cache, known = ProbeCache(path), {}
    for target in links:
        inode = target.stat().st_ino
        if inode not in known:
            known[inode] = probe(target)
        cache.add(str(target), file_identity(target), known[inode])
    with file_lock(path):
        cache.save()


def seconds_to_first_step(manifest: Path, run: Path) -> float:
    """From the start of the process to the table of training, which begins with the first step."""
    options = ("trainer.max_epochs=1", "clip.size=32", "data.probe=count", "report=false", "logger=none")
    command = [sys.executable, str(TRAIN), "data=manifest", f"data.path={manifest}", *options, f"hydra.run.dir={run}"]
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.split()[:2] == ["epoch", "loss"]:
            break
    seconds = time.perf_counter() - began
    os.killpg(process.pid, signal.SIGKILL)
    if process.wait() not in (0, -signal.SIGKILL):
        raise SystemExit("".join(lines[-20:]))
    return seconds


def read_manifest(path: Path) -> tuple[float, float, int]:
    """Seconds, GB and rows of reading a manifest; run in a process of its own, whose peak nothing else has raised."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    manifest = Manifest.read_csv(path)
    seconds = time.perf_counter() - began
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6, len(manifest.items)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        rendered = actions(root=work / "rendered", num_train=1, num_val=1, num_test=1, num_frames=48, size=64)
        videos = [item.path for item in rendered.items]
        links = link(videos, work / "rows", options.rows)
        write_manifest(links, work / "manifest.csv")
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            read, memory, num_rows = pool.submit(read_manifest, work / "manifest.csv").result()
        assert num_rows == options.rows
        fill_probe_cache(links, work / "rows" / CACHE_NAME)
        first_step = seconds_to_first_step(work / "manifest.csv", work / "run")
        found = dict(zip(WANTED, (read, memory, first_step), strict=True))
        print(f"| {options.rows:,} rows | found | wanted for 1,000,000 |\n|---|---|---|")
        for name, value in found.items():
            print(f"| {name} | {value:.2g} | {WANTED[name]} |", flush=True)
        link(videos, work / "files", options.files)
        began = time.perf_counter()
        items = folder(root=work / "files").items
        listed = time.perf_counter() - began
        probe_items(items, num_workers=num_cores(), cache=None, decode_all=False, max_pixels=2**26)
        total = time.perf_counter() - began
        probed = f"probed in {total - listed:.1f} s by {num_cores()} cores"
        print(f"\n{options.files:,} files: listed in {listed:.1f} s, {probed}")
    if missed := [name for name, value in found.items() if value > WANTED[name]]:
        raise SystemExit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
