"""Speed of a training step, compared with a bare loop that computes the same and with a plain float32 loop.

    python benchmarks/step.py                                  CPU, all cores: about ten minutes on two
    python benchmarks/step.py --device cuda --batch-size 32 --steps 50

For each model, three loops train on the same uint8 clips, which are in memory. They alternate in rounds (A B C A B C);
the table shows the median over rounds, without the first steps of each round:

- train.py: the task, the trainer and the callbacks of `python train.py` (loss, accuracy, clipping, schedule, curves);
- bare: forward pass, backward pass and AdamW, with the same model, precision and memory order;
- plain: the same in float32 and in torch's default memory order.

Share of the peak: FLOPs of a step (from `stvid cost`) divided by its time and by the peak, which is the best measured
matrix multiplication (printed above the table) or `--peak-tflops`.
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
from stvid.run.config import compose_config
from stvid.run.model import build_model
from stvid.training.callbacks.bad_videos import BadVideos
from stvid.training.callbacks.progress import EpochTable, ProgressBar
from stvid.training.task import ClassificationTask

MODELS = {"r3d_18": ["model=r3d_18"], "cnn_lstm": ["model=cnn_lstm", "model.encoder=resnet18"]}
CLASSES = 400
MIN_BARE_RATIO = 0.97  # required speed, relative to the bare loop
MIN_PLAIN_RATIO = {"r3d_18": 2.5, "cnn_lstm": 5.0}  # required speed, relative to the plain loop, if bf16 is fast
WARMUP = 2  # steps at the start of every round that are not timed


class Case:
    """A model, its clips, and three training loops; each runs a number of steps and returns clips/s."""

    def __init__(self, overrides: list[str], clip: ClipSpec, batch_size: int, device: str):
        self.config = compose_config(overrides)
        self.clip, self.device = clip, torch.device(device)
        self.precision = resolve_precision("auto", device)
        self.model_config = OmegaConf.to_container(self.config.model, resolve=True)
        # the memory order of decoded frames
        clips_BTHWC = torch.randint(0, 256, (batch_size, clip.num_frames, *clip.size, 3), dtype=torch.uint8)
        self.batch = {
            "clips": clips_BTHWC.permute(0, 1, 4, 2, 3).to(device),
            "lengths": None,
            "labels": torch.arange(batch_size, device=device) % CLASSES,
            "videos": torch.arange(batch_size, device=device),
            "paths": [f"{i}.mp4" for i in range(batch_size)],
            "failed": [],
        }
        self.loops = {"train.py": self.train_py_loop(), "bare": self.bare_loop(), "plain": self.plain_loop()}

    def model(self) -> nn.Module:
        return build_model(self.model_config, num_classes=CLASSES, in_channels=3).to(self.device).train()

    def speed(self, seconds: float, steps: int) -> float:
        return steps * len(self.batch["labels"]) / seconds

    def train_py_loop(self) -> Callable[[int], float]:
        task = ClassificationTask(
            model=self.model(),
            preprocess=Preprocess(clip=self.clip),
            optimization=instantiate(self.config.optimizer, _convert_="all"),
            loss=instantiate(self.config.loss),
            mixing=instantiate(self.config.mixing),
            record={"class_names": [str(i) for i in range(CLASSES)]},
        )

        def run(steps: int) -> float:
            loader = DataLoader([self.batch] * (WARMUP + steps), batch_size=None)
            with tempfile.TemporaryDirectory() as folder:
                trainer = self.trainer(Path(folder), watch := Stopwatch(first=WARMUP, last=WARMUP + steps))
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
                BadVideos(path=folder / "bad_videos.csv", max_bad=0, known={}),
                ProgressBar(),
                EpochTable(path=folder / "metrics.csv"),
                watch,
            ],
        )

    def bare_loop(self) -> Callable[[int], float]:
        model, preprocess = channels_last(self.model()), Preprocess(clip=self.clip).to(self.device)
        return self.make_loop(model, lambda: run_model(model, preprocess, self.batch["clips"]), self.precision)

    def plain_loop(self) -> Callable[[int], float]:
        model = self.model()
        mean, std = (torch.tensor(v, device=self.device)[:, None, None] for v in (self.clip.mean, self.clip.std))

        def forward() -> torch.Tensor:
            clips_BTCHW = (self.batch["clips"].float() / 255 - mean) / std
            return model(clips_BTCHW.transpose(1, 2).contiguous())

        return self.make_loop(model, forward, "32-true")

    def make_loop(
        self, model: nn.Module, forward: Callable[[], torch.Tensor], precision: str
    ) -> Callable[[int], float]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

        def run(steps: int) -> float:
            watch = Stopwatch(first=WARMUP, last=WARMUP + steps)
            for step in range(WARMUP + steps):
                with autocast(self.device, precision):
                    loss = nn.functional.cross_entropy(forward().float(), self.batch["labels"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                watch.end_step(step, self.device)
            return self.speed(watch.seconds, steps)

        return run

    def flops(self) -> int:
        """FLOPs of a training step on the whole batch."""
        with torch.device("meta"):
            model = build_model(self.model_config, num_classes=CLASSES, in_channels=3, pretrained=False)
        shape, size = (3, self.clip.num_frames, *self.clip.size), len(self.batch["labels"])
        report = estimate(model, shape, batch_size=size, precision=self.precision, device=self.device.type)
        return report.flops_train_step * size


class Stopwatch(Callback):
    """Seconds from the end of step `first` to that of step `last`, counted from 1; waits for the GPU at both."""

    def __init__(self, *, first: int, last: int):
        self.first, self.last = first, last

    def end_step(self, step: int, device: torch.device) -> None:
        if step + 1 in (self.first, self.last) and device.type == "cuda":
            torch.cuda.synchronize(device)
        if step + 1 == self.first:
            self.start = time.perf_counter()
        if step + 1 == self.last:
            self.seconds = time.perf_counter() - self.start

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, outputs, batch, batch_idx: int) -> None:
        self.end_step(batch_idx, task.device)


def measure(case: Case, *, steps: int, rounds: int) -> dict[str, float]:
    """Median clips/s of each loop."""
    speeds = {name: [] for name in case.loops}
    for _, (name, run) in itertools.product(range(rounds), case.loops.items()):
        speeds[name].append(run(steps))
    return {name: median(values) for name, values in speeds.items()}


def matmul_tflops(device: str, dtype: torch.dtype, *, size: int = 2048, repeats: int = 15) -> float:
    """Best speed of several multiplications of square matrices, in 10^12 floating-point operations per second."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e12


def missed_targets(name: str, speeds: dict[str, float], *, fast_bf16: bool) -> list[str]:
    """A message for each required speed that a model misses."""
    bare_ratio, plain_ratio = speeds["train.py"] / speeds["bare"], speeds["train.py"] / speeds["plain"]
    messages = []
    if bare_ratio < MIN_BARE_RATIO:
        messages.append(f"{name}: {bare_ratio:.3f} of the bare loop's speed, below {MIN_BARE_RATIO}")
    if fast_bf16 and plain_ratio < MIN_PLAIN_RATIO[name]:
        messages.append(f"{name}: {plain_ratio:.1f} times the plain loop's speed, below {MIN_PLAIN_RATIO[name]}")
    return messages


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=112, help="height and width of a clip, pixels")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="timed steps in a round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--peak-tflops", type=float, help="peak of the device in the precision used; default: measured")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    torch.set_num_threads(num_cores())
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*no `val_dataloader`")
    is_cuda = options.device == "cuda"
    machine = torch.cuda.get_device_name() if is_cuda else f"{platform.machine()}, {num_cores()} cores"
    clip = ClipSpec(num_frames=options.frames, size=options.size)
    print(
        f"{machine}, torch {torch.__version__}; clips of {options.frames} x {options.size} x {options.size},", end=" "
    )
    print(f"batches of {options.batch_size}, median of {options.rounds} rounds of {options.steps} steps")
    peaks = {"32-true": matmul_tflops(options.device, torch.float32)}
    peaks["bf16-mixed"] = matmul_tflops(options.device, torch.bfloat16)
    print(f"matrix multiplication: {peaks['32-true']:.2f} TFLOP/s in float32, {peaks['bf16-mixed']:.2f} in bf16\n")
    print("| model | precision | train.py clips/s | bare | ratio | plain | relative to plain | share of the peak |")
    print("|---|---|---|---|---|---|---|---|")
    missed = []
    for name in options.models:
        case = Case(MODELS[name], clip, options.batch_size, options.device)
        speeds = measure(case, steps=options.steps, rounds=options.rounds)
        ours, bare, plain = (speeds[loop] for loop in ("train.py", "bare", "plain"))
        peak = options.peak_tflops or peaks.get(case.precision, peaks["bf16-mixed"])
        share = f"{case.flops() * ours / options.batch_size / peak / 1e12:.0%}"
        cells = (name, case.precision, f"{ours:.2f}", f"{bare:.2f}", f"{ours / bare:.3f}", f"{plain:.2f}")
        print("| " + " | ".join((*cells, f"{ours / plain:.1f}x", share)) + " |", flush=True)
        missed += missed_targets(name, speeds, fast_bf16=is_cuda or cpu_has_fast_bf16())
    if missed:
        raise SystemExit("\n".join(missed))


if __name__ == "__main__":
    main()
