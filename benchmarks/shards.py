"""Tars against single files: accuracy of a training, reading speed, and the start with a large index.

python benchmarks/shards.py                        about fifteen minutes on two CPU cores
python benchmarks/shards.py --epochs 2 --items 1000

The built-in data set is prepared with `--tar-size`. The same training then reads the table (data=manifest) and the tars
(data=shards). Clips of the same seed, epoch and item are compared bit for bit. A second table has the CPU seconds that
an index of many items (8 s at 30 frames per second, a keyframe every 8 frames) takes until the first batch is read.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from stvid.clip import ClipSpec
from stvid.data.datamodule import VideoDataModule
from stvid.data.layouts.shards import shards
from stvid.data.manifest import Manifest, read_manifest
from stvid.data.prepare import prepare
from stvid.data.sampler import SampleKey
from stvid.data.synthetic.actions import actions
from stvid.data.transforms import Augment
from stvid.evaluation.evaluation_run import EvaluationOptions, evaluate_run

ROOT = Path(__file__).resolve().parents[1]
CLIP = ClipSpec(num_frames=16, frame_stride=2, size=64)
COUNTED, ROUNDS = 400, 3  # clips that are read for the speed


def train(source: list[str], run: Path, epochs: int) -> tuple[dict, dict]:
    options = [f"hydra.run.dir={run}", f"trainer.max_epochs={epochs}", "report=false"]
    command = [sys.executable, ROOT / "train.py", *source, *options]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return json.loads((run / "result.json").read_text()), evaluate_run(run, EvaluationOptions()).result


def data_module(manifest: Manifest) -> VideoDataModule:
    data = VideoDataModule(manifest=manifest, clip=CLIP, augment=Augment(), num_workers=0)
    data.setup()
    return data


def compare_clips(table: VideoDataModule, tars: VideoDataModule) -> list[float]:
    """Raises unless all are equal. Clips per CPU second of both, in the order of an epoch of each; the best round."""
    for index in range(len(table.train)):
        key = SampleKey(index % 3, index)
        assert torch.equal(table.train[key]["clips"], tars.train[key]["clips"]), key
    speeds = [0.0, 0.0]
    for _ in range(ROUNDS):
        for i, data in enumerate((table, tars)):
            keys = list(data._train_sampler())[:COUNTED]
            began = time.process_time()
            for key in keys:
                data.train[key]
            speeds[i] = max(speeds[i], len(keys) / (time.process_time() - began))
    return speeds


def start(folder: Path, num_items: int) -> dict[str, float]:
    """CPU seconds of each step, for an index whose tars have no content."""
    info = {"num_frames": 240, "fps": 30.0, "duration": 8.0, "height": 128, "width": 170, "codec": "h264"}
    info |= {"pixel_format": "yuv420p", "keyframes": [*range(0, 240, 8)], "first_pts": 0}
    num_tars = max(num_items // 1000, 10)
    tars = [f"train-{n:06d}.tar" if n < 0.9 * num_tars else f"val-{n:06d}.tar" for n in range(num_tars)]
    sizes = [{"name": tar, "bytes": 10**9, "videos": num_items // num_tars} for tar in tars]
    head = {"stvid_shards": 1, "num_items": num_items, "class_names": [f"c{n:03d}" for n in range(400)]}
    with (folder / "index.jsonl").open("w") as file:
        file.write(json.dumps({**head, "shards": sizes}) + "\n")
        for i in range(num_items):
            tar, number = tars[i * num_tars // num_items], i % (num_items // num_tars)
            item = {"path": f"videos/{i}.mp4", "label": f"c{i % 400:03d}", "split": tar.split("-")[0], "group": f"g{i}"}
            place = {"shard": tar, "offset": 900_000 * number, "bytes": 880_000, "crc32": 1, "info": info}
            file.write(json.dumps({**item, **place}) + "\n")
    for tar in tars:
        with (folder / tar).open("wb") as file:
            file.truncate(10**9)  # a hole
    seconds, began = {}, time.process_time()

    def lap(name: str) -> None:
        nonlocal began
        seconds[name], began = time.process_time() - began, time.process_time()

    manifest = shards(root=str(folder))
    lap("index")
    data = VideoDataModule(manifest=manifest, clip=CLIP, augment=Augment())
    lap("validation")
    data.setup()
    lap("setup")
    list(data._train_sampler())
    lap("order of an epoch")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--items", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = start(folder, options.items)
        print(f"{options.items} items, CPU seconds: " + ", ".join(f"{key} {s:.1f}" for key, s in seconds.items()))
        out = folder / "small"
        summary = prepare(
            actions(root=str(folder / "actions")), out=out, clip=CLIP, short_side=80, num_workers=2, tar_size=10**6
        )
        print(f"{summary['tars']['num_tars']} tars, {summary['tars']['bytes'] / 1e6:.1f} MB")
        table, tars = read_manifest(path=str(out / "manifest.csv")), shards(root=str(out / "shards"))
        speeds = compare_clips(data_module(table), data_module(tars))
        sources = {
            "manifest": ["data=manifest", f"data.path={out / 'manifest.csv'}"],
            "shards": ["data=shards", f"data.root={out / 'shards'}", "data.shuffle_buffer=200"],
        }
        print("| data | clips per CPU second | training s | val | test |\n|---|---|---|---|---|")
        for (source, overrides), speed in zip(sources.items(), speeds, strict=True):
            trained, tested = train(overrides, folder / source, options.epochs)
            accuracies = f"{trained['video_accuracy']:.3f} | {tested['video_accuracy']:.3f}"
            print(f"| {source} | {speed:.0f} | {trained['training_seconds']:.0f} | {accuracies} |", flush=True)


if __name__ == "__main__":
    main()
