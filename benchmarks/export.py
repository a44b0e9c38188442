"""Exported models beside torch: largest difference of a probability, size, and time for a clip.

    python benchmarks/export.py VIDEOS                         about fifteen minutes
    python benchmarks/export.py VIDEOS --models conv3d r3d_18

VIDEOS is a folder with a folder of videos for each class, such as UT-Interaction. Every model is written as an ONNX
clip form, compared with torch as `stvid export` does it (batch 1 and 4; a cnn_lstm with 8 and 40 frames), and then
quantised on clips of the same videos. It has random weights, but for `weights=DEFAULT` of efficientnet_lite0, whose
package holds them. Its batch norms have the statistics of the clips, and the temperature gives its logits the
deviation 1: otherwise all probabilities would be equal, and no difference could be seen.

Times: CPU time of one thread in milliseconds per clip, so that other work on the machine counts little; the median over
rounds in which torch, onnxruntime and the int8 file alternate. What int8 costs in accuracy depends on the
trained weights: `stvid export RUN --int8` measures it.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from statistics import median

import onnxruntime
import torch
from omegaconf import OmegaConf
from torch import nn

from stvid.clip import ClipSpec
from stvid.data.manifest import Item, Manifest
from stvid.export.clip_form import clip_form
from stvid.export.clips import clip_inputs, read_clips
from stvid.export.int8 import quantize
from stvid.export.metadata import metadata
from stvid.export.onnx_file import open_onnx, write_onnx
from stvid.export.parity import check_parity, original
from stvid.preprocess import Preprocess, as_input
from stvid.run.checkpoint import TrainedModel
from stvid.run.config import compose_config
from stvid.run.folder import RunFolder
from stvid.run.model import build_model

BATCH_SIZES, CALIBRATION_CLIPS = (1, 4), 8
SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".webm")
VIT = "timm/vit_tiny_patch16_224"
SMALL, LARGE, LSTM = ["clip.size=64"], ["clip.size=112"], ["model=cnn_lstm"]
MODELS = {
    "conv3d": ["model=conv3d", *SMALL],
    "conv3d, diff": ["model=conv3d", *SMALL, "clip.input=diff"],
    "conv3d, rgb_diff": ["model=conv3d", *SMALL, "clip.input=rgb_diff"],
    "c3d": ["model=c3d", *SMALL],
    "r3d_18": ["model=r3d_18", *SMALL],
    "mc3_18": ["model=mc3_18", *SMALL],
    "r2plus1d_18": ["model=r2plus1d_18", *SMALL],
    "s3d": ["model=s3d", *SMALL],
    "i3d, resnet18": ["model=i3d", *SMALL],
    "small, LSTM": [*LSTM, *SMALL],
    "small, LSTM, diff": [*LSTM, *SMALL, "clip.input=diff"],
    "small, LSTM, rgb_diff": [*LSTM, *SMALL, "clip.input=rgb_diff"],
    "small, GRU": [*LSTM, *SMALL, "model.recurrent=gru"],
    "small, none": [*LSTM, *SMALL, "model.recurrent=none", "model.pooling=mean"],
    "resnet18, LSTM": [*LSTM, *LARGE, "model.encoder=resnet18"],
    "efficientnet_lite0, LSTM": [*LSTM, *LARGE, "model.encoder=efficientnet_lite0", "model.weights=DEFAULT"],
    f"{VIT}, LSTM": [*LSTM, *LARGE, f"model.encoder={VIT}", "model.image_size=112"],
}  # fmt: skip


def list_videos(root: Path, folder: Path, num_videos: int) -> Manifest:
    """A run's `manifest.csv` with some of the videos: the first of each split to measure, the others to calibrate."""
    paths = sorted(path.absolute() for path in root.glob("*/*") if path.suffix.lower() in SUFFIXES)
    chosen = random.Random(0).sample(paths, min(num_videos, len(paths)))
    items = [
        Item(path=str(path), label=path.parent.name, split="val" if i < max(BATCH_SIZES) else "train")
        for i, path in enumerate(chosen)
    ]
    manifest = Manifest(items=tuple(items), class_names=tuple(sorted({path.parent.name for path in paths})))
    manifest.write_csv(RunFolder(folder).manifest_csv)
    return manifest


def make_model(overrides: list[str], manifest: Manifest, folder: Path) -> TrainedModel:
    """A model as `load_checkpoint` would return it, see above."""
    config = OmegaConf.to_container(compose_config(overrides), resolve=True)
    clip = ClipSpec(**{key: value for key, value in config["clip"].items() if key != "_target_"})
    torch.manual_seed(0)
    model = build_model(config["model"], num_classes=len(manifest.class_names), in_channels=clip.channels)
    (folder / "random.ckpt").write_bytes(b"")
    trained = TrainedModel(
        path=folder / "random.ckpt",
        folder=folder,
        model=model,
        clip=clip,
        class_names=manifest.class_names,
        protocol={"num_clips": 1, "num_crops": 1},
        config=config,
        epoch=0,
    )
    pictures = read_clips(trained, "train", number=4, num_frames=clip.num_frames)
    clips_BCTHW = Preprocess(clip=clip)(torch.stack([as_input(picture, clip) for picture in pictures]))
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
            layer.momentum = 1.0
    with torch.no_grad():
        model.train()(clips_BCTHW)
        spread = model.eval()(clips_BCTHW).std().item()
    return dataclasses.replace(trained, temperature=spread)


def alternate(runs: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Median CPU time of each function in milliseconds, after a first round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if number:
                times[name].append(1000 * (time.process_time() - start))
    return {name: median(values) for name, values in times.items()}


def row(name: str, trained: TrainedModel, folder: Path, *, rounds: int) -> list[str]:
    """The cells of one model."""
    form, num_frames = clip_form(trained), trained.clip.num_frames
    float_file, int8_file = folder / "float.onnx", folder / "int8.onnx"
    write_onnx(form, float_file, metadata(trained))
    parity = check_parity(trained, form, open_onnx(float_file))
    calibration = read_clips(trained, "train", number=CALIBRATION_CLIPS, num_frames=num_frames)
    quantize(float_file, int8_file, (clip_inputs(form, clip[None]) for clip in calibration))
    files = {"onnxruntime": open_onnx(float_file), "int8": open_onnx(int8_file)}
    pictures = read_clips(trained, "val", number=max(BATCH_SIZES), num_frames=num_frames)
    cells = [f"{num_frames} x {trained.clip.size[0]} x {trained.clip.size[1]}", f"{parity.max_difference:.0e}"]
    cells += [f"{float_file.stat().st_size / 1e6:.1f}", f"{int8_file.stat().st_size / 1e6:.1f}"]
    for size in BATCH_SIZES:
        batch = pictures[:size]
        inputs = clip_inputs(form, batch)
        runs = {"torch": lambda batch=batch: original(trained, batch)}
        runs |= {key: lambda file=file, inputs=inputs: file(inputs) for key, file in files.items()}
        cells.append(" / ".join(f"{ms / size:.1f}" for ms in alternate(runs, rounds=rounds).values()))
    return [name, *cells]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, help="a folder with one folder of videos per class")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    warnings.filterwarnings("ignore", module="torch.onnx")
    torch.set_num_threads(1)
    print(f"{platform.machine()}, one thread, Python {platform.python_version()},", end=" ")
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {date.today()};", end=" ")
    print(f"median of {options.rounds} rounds\n")
    times = " | ".join(f"batch {size}: torch / onnxruntime / int8, ms a clip" for size in BATCH_SIZES)
    print(f"| model | clip | largest difference | MB | int8 MB | {times} |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = list_videos(options.videos, folder, max(BATCH_SIZES) + CALIBRATION_CLIPS)
        for model in options.models:
            trained = make_model(MODELS[model], manifest, folder)
            print(f"| {' | '.join(row(model, trained, folder, rounds=options.rounds))} |", flush=True)


if __name__ == "__main__":
    main()
