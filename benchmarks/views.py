"""What thirty views of a video cost: against decoding it once and thirty forward passes.

    python benchmarks/views.py                     conv3d and cnn_lstm on rendered videos
    python benchmarks/views.py --size 112 --models r3d_18

Everything happens in one process, part after part, so that times add up: `classify` with 10 clips x 3 crops, which is
what `stvid evaluate --clips 10 --crops 3` does, and by hand a decode of each video's frames and the forward pass of its
30 clips from tensors that are ready. Medians of rounds, one after the other (A B A B).
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from omegaconf import OmegaConf

from stvid.clip import ClipSpec
from stvid.data.loading import probe_cache
from stvid.data.manifest import Item
from stvid.data.synthetic.actions import actions
from stvid.inference import ModelRunner, classify
from stvid.run.checkpoint import TrainedModel
from stvid.run.config import compose_config
from stvid.run.model import build_model
from stvid.video.probe import probe
from stvid.video.reader import read_frames

CLIPS, CROPS = 10, 3
MOST = 1.3  # times as long as one decode and thirty forwards


def untrained(name: str, clip: ClipSpec, class_names: tuple[str, ...]) -> TrainedModel:
    config = OmegaConf.to_container(compose_config([f"model={name}"]), resolve=True)
    return TrainedModel(
        path=Path("none.ckpt"),
        folder=Path(),
        model=build_model(config["model"], num_classes=len(class_names)).eval(),
        clip=clip,
        class_names=class_names,
        protocol={"num_clips": CLIPS, "num_crops": CROPS},
        config=config,
        epoch=1,
    )


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def decode(items: Sequence[Item], infos: Sequence, size: int) -> None:
    for item, info in zip(items, infos, strict=True):
        read_frames(item.path, range(info.num_frames), info=info, short_side=size)


def measure(trained: TrainedModel, items: Sequence[Item], cache: Path, rounds: int) -> list[float]:
    """Seconds a video: of `classify`, of decoding, of the forward passes."""
    infos = [probe(item.path) for item in items]
    forward, size = ModelRunner(trained), trained.clip.size[0]
    views = torch.randint(0, 256, (CLIPS * CROPS, trained.clip.num_frames, size, size, 3), dtype=torch.uint8)
    views = views.permute(0, 1, 4, 2, 3)
    settings_ = {"num_workers": 0, "cache": cache, "decode_all": True, "progress": False}
    # a batch of 30 in both ways
    trained = dataclasses.replace(trained, config={**trained.config, "data": {"datamodule": {"batch_size": 30}}})
    classify(trained, items, **settings_)  # fills the cache
    actual = [[], [], []]
    for _ in range(rounds):
        actual[0].append(seconds(lambda: classify(trained, items, **settings_)))
        actual[1].append(seconds(lambda: decode(items, infos, size)))
        actual[2].append(seconds(lambda: [forward(views) for _ in items]))
    return [median(each) / len(items) for each in actual]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["conv3d", "cnn_lstm"], metavar="NAME")
    parser.add_argument("--videos", type=int, default=16)
    parser.add_argument("--size", type=int, default=64, help="of a clip, pixels")
    parser.add_argument("--source", type=int, default=240, help="of the videos, pixels")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    clip = ClipSpec(num_frames=16, size=options.size)
    print("| model | 10 x 3 views, ms a video | one decode | 30 forwards | ratio |\n|---|---|---|---|---|")
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        counts = {"num_train": 1, "num_val": 1, "num_test": -(-options.videos // 8)}
        data = actions(root=folder, num_frames=100, size=options.source, **counts)
        items = data.select("test")[: options.videos]
        for name in options.models:
            whole, decoding, forwards = measure(
                untrained(name, clip, data.class_names), items, probe_cache(data), options.rounds
            )
            ratio = whole / (decoding + forwards)
            cells = (*(f"{1000 * value:.1f}" for value in (whole, decoding, forwards)), f"{ratio:.2f}")
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
            missed += [name] if ratio > MOST else []
    if missed:
        raise SystemExit(f"more than {MOST} times one decode and thirty forwards: {', '.join(missed)}")


if __name__ == "__main__":
    main()
