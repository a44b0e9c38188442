"""How fast is a training step: against a bare loop that computes the same, and against the plain way to write one?

    python benchmarks/step.py                                  CPU, all cores: about ten minutes on two
    python benchmarks/step.py --device cuda --batch-size 32 --steps 50

For each model, in one run, three ways to train on the same uint8 clips, which are ready in memory, round by round one
after the other (A B C A B C); what is told are medians of the rounds, without the first steps of each:

- train.py: the task, the trainer and the callbacks of `python train.py` (loss, accuracy, clipping, schedule, curves);
- bare: forward, backward, AdamW, with the same model, precision and memory order;
- plain: the same in float32 and in torch's usual memory order.

Share of the peak: FLOPs of `stvid cost` for a step, over the time it takes, over the best that a product of matrices
reaches here (both are told above the table), or over `--peak-tflops` of the device.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Callback, LearningRateMonitor
from torch import nn
from torch.utils.data import DataLoader

from stvid.clip import ClipSpec
from stvid.cost.estimate import estimate
from stvid.device import autocast, cpu_has_fast_bf16, num_cores, resolve_precision
from stvid.preprocess import Preprocess, channels_last, run_model
from stvid.run.checkpoint import build_model
from stvid.run.config import compose_config
from stvid.training.callbacks.bad_videos import BadVideos
from stvid.training.callbacks.progress import EpochTable, ProgressBar
from stvid.training.task import ClassificationTask

MODELS = {"r3d_18": ["model=r3d_18"], "cnn_lstm": ["model=cnn_lstm", "model.encoder=resnet18"]}
CLASSES = 400
OVERHEAD = 0.97  # least share of the bare loop's speed
PLAIN = {"r3d_18": 2.5, "cnn_lstm": 5.0}  # least multiple of the plain way's speed, where bf16 is fast
WARM = 2  # steps that are left out of every round


class Case:
    """One model on one kind of clips, and the three ways to train it; each returns clips/s of so many steps."""

    def __init__(self, overrides: list[str], clip: ClipSpec, batch_size: int, device: str):
        self.config = compose_config(overrides)
        self.clip, self.device = clip, torch.device(device)
        self.precision = resolve_precision("auto", device)
        self.build = OmegaConf.to_container(self.config.model, resolve=True)
        # in the memory order in which frames come out of a decoder
        clips_BTHWC = torch.randint(0, 256, (batch_size, clip.num_frames, *clip.size, 3), dtype=torch.uint8)
        self.batch = {
            "clips": clips_BTHWC.permute(0, 1, 4, 2, 3).to(device),
            "lengths": None,
            "labels": torch.arange(batch_size, device=device) % CLASSES,
            "videos": torch.arange(batch_size, device=device),
            "paths": [f"{i}.mp4" for i in range(batch_size)],
            "failed": [],
        }
        self.ways = {"train.py": self.through_train_py(), "bare": self.bare(), "plain": self.plain()}

    def model(self) -> nn.Module:
        return build_model(self.build, num_classes=CLASSES, in_channels=3).to(self.device).train()

    def speed(self, seconds: float, steps: int) -> float:
        return steps * len(self.batch["labels"]) / seconds

    def through_train_py(self) -> Callable[[int], float]:
        task = ClassificationTask(
            model=self.model(),
            preprocess=Preprocess(clip=self.clip),
            optimization=instantiate(self.config.optimizer, _convert_="all"),
            loss=instantiate(self.config.loss),
            mixing=instantiate(self.config.mixing),
            record={"class_names": [str(i) for i in range(CLASSES)]},
        )

        def run(steps: int) -> float:
            loader = DataLoader([self.batch] * (WARM + steps), batch_size=None)
            with tempfile.TemporaryDirectory() as folder:
                trainer = self.trainer(Path(folder), watch := Stopwatch(first=WARM, last=WARM + steps))
                trainer.fit(task, loader)
            return self.speed(watch.seconds, steps)

        return run

    def trainer(self, folder: Path, watch: Callback) -> pl.Trainer:
        return instantiate(
            self.config.trainer,
            _convert_="all",
            accelerator="gpu" if self.device.type == "cuda" else "cpu",
            devices=1,
            precision=self.precision,
            max_epochs=1,
            limit_val_batches=0,
            enable_checkpointing=False,
            logger=instantiate(self.config.logger, save_dir=folder),
            callbacks=[
                LearningRateMonitor(logging_interval="step"),
                BadVideos(path=folder / "bad_videos.csv", most=0, known={}),
                ProgressBar(),
                EpochTable(path=folder / "metrics.csv"),
                watch,
            ],
        )

    def bare(self) -> Callable[[int], float]:
        model, preprocess = channels_last(self.model()), Preprocess(clip=self.clip).to(self.device)
        return self.loop(model, lambda: run_model(model, preprocess, self.batch["clips"]), self.precision)

    def plain(self) -> Callable[[int], float]:
        model = self.model()
        mean, std = (torch.tensor(v, device=self.device)[:, None, None] for v in (self.clip.mean, self.clip.std))

        def forward() -> torch.Tensor:
            clips_BTCHW = (self.batch["clips"].float() / 255 - mean) / std
            return model(clips_BTCHW.transpose(1, 2).contiguous())

        return self.loop(model, forward, "32-true")

    def loop(self, model: nn.Module, forward: Callable[[], torch.Tensor], precision: str) -> Callable[[int], float]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

        def run(steps: int) -> float:
            watch = Stopwatch(first=WARM, last=WARM + steps)
            for step in range(WARM + steps):
                with autocast(self.device, precision):
                    loss = nn.functional.cross_entropy(forward().float(), self.batch["labels"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                watch.step_ends(step, self.device)
            return self.speed(watch.seconds, steps)

        return run

    def flops(self) -> int:
        """Of a training step."""
        with torch.device("meta"):
            model = build_model(self.build, num_classes=CLASSES, in_channels=3, pretrained=False)
        shape, size = (3, self.clip.num_frames, *self.clip.size), len(self.batch["labels"])
        report = estimate(model, shape, batch_size=size, precision=self.precision, device=self.device.type)
        return report.flops_train_step * size


class Stopwatch(Callback):
    """Seconds from the end of step `first` to that of step `last`, counted from 1, computed and not just asked for."""

    def __init__(self, *, first: int, last: int):
        self.first, self.last = first, last

    def step_ends(self, step: int, device: torch.device) -> None:
        if step + 1 in (self.first, self.last) and device.type == "cuda":
            torch.cuda.synchronize(device)
        if step + 1 == self.first:
            self.began = time.perf_counter()
        if step + 1 == self.last:
            self.seconds = time.perf_counter() - self.began

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, outputs, batch, batch_idx: int) -> None:
        self.step_ends(batch_idx, task.device)


def measure(case: Case, *, steps: int, rounds: int) -> dict[str, float]:
    """Median clips/s of each way."""
    found = {name: [] for name in case.ways}
    for _, (name, run) in itertools.product(range(rounds), case.ways.items()):
        found[name].append(run(steps))
    return {name: median(speeds) for name, speeds in found.items()}


def matmul_tflops(device: str, dtype: torch.dtype, *, size: int = 2048, repeats: int = 15) -> float:
    """The best of some products of two square matrices, in 10^12 floating-point operations a second."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds) / 1e12


def missed(name: str, speeds: dict[str, float], *, fast_bf16: bool) -> list[str]:
    """What a model's numbers fall short of."""
    overhead, gain = speeds["train.py"] / speeds["bare"], speeds["train.py"] / speeds["plain"]
    found = [] if overhead >= OVERHEAD else [f"{name}: {overhead:.3f} of the bare loop, not {OVERHEAD}"]
    if fast_bf16 and gain < PLAIN[name]:
        found.append(f"{name}: {gain:.1f} times the plain way, not {PLAIN[name]}")
    return found


def options() -> SimpleNamespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=112, help="of a clip, pixels")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="timed in a round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--peak-tflops", type=float, help="of the device, in the precision that is used (measured)")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    torch.set_num_threads(num_cores())
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*no `val_dataloader`")
    cuda = chosen.device == "cuda"
    where = torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {num_cores()} cores"
    clip = ClipSpec(num_frames=chosen.frames, size=chosen.size)
    print(f"{where}, torch {torch.__version__}; clips of {chosen.frames} x {chosen.size} x {chosen.size},", end=" ")
    print(f"batches of {chosen.batch_size}, median of {chosen.rounds} rounds of {chosen.steps} steps")
    peaks = {"32-true": matmul_tflops(chosen.device, torch.float32)}
    peaks["bf16-mixed"] = matmul_tflops(chosen.device, torch.bfloat16)
    print(f"products of matrices: {peaks['32-true']:.2f} TFLOP/s in float32, {peaks['bf16-mixed']:.2f} in bf16\n")
    print("| model | precision | train.py clips/s | bare | ratio | plain | against plain | share of the peak |")
    print("|---|---|---|---|---|---|---|---|")
    short = []
    for name in chosen.models:
        case = Case(MODELS[name], clip, chosen.batch_size, chosen.device)
        speeds = measure(case, steps=chosen.steps, rounds=chosen.rounds)
        ours, bare, plain = (speeds[way] for way in ("train.py", "bare", "plain"))
        peak = chosen.peak_tflops or peaks.get(case.precision, peaks["bf16-mixed"])
        share = f"{case.flops() * ours / chosen.batch_size / peak / 1e12:.0%}"
        cells = (name, case.precision, f"{ours:.2f}", f"{bare:.2f}", f"{ours / bare:.3f}", f"{plain:.2f}")
        print("| " + " | ".join((*cells, f"{ours / plain:.1f}x", share)) + " |", flush=True)
        short += missed(name, speeds, fast_bf16=cuda or cpu_has_fast_bf16())
    if short:
        raise SystemExit("\n".join(short))


if __name__ == "__main__":
    main()
