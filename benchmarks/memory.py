"""Compares the estimated memory of a training step with the measured one.

    python benchmarks/memory.py                        CPU: about eight minutes on two cores, 3 GB
    python benchmarks/memory.py --device cuda          the same on a GPU
    python benchmarks/memory.py --models r3d_18 --precisions 32-true

For each model, precision and clip: the estimated peak of a training step, and the measured peak of a real one. A step:
uint8 batch, `stvid.preprocess.run_model` under autocast with the model in channels-last memory, cross entropy,
gradients, AdamW. The second step is measured: the optimizer has its state, and the gradients of the first step are
freed after the forward pass, as in Lightning. The measurement includes all of torch's allocations: on a CPU the
profiler's memory events, on a GPU `max_memory_allocated`. The last model gets long videos: 128 and 1,024 frames,
encoded 64 at a time.
"""

from __future__ import annotations

import argparse
import platform

import torch
import torchvision
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from stvid.clip import ClipSpec
from stvid.cost.estimate import estimate
from stvid.preprocess import Preprocess, channels_last, run_model
from stvid.run.model import build_model
from stvid.training.optim import OptimizerFactory

CLASSES = 400
ENCODED = {"_target_": "stvid.models.cnn_lstm.CNNLSTM", "encoder": "resnet18"}
VIDEO_NETWORK = "stvid.models.torchvision3d.TorchvisionVideoModel"
MODELS = {
    "conv3d": {"_target_": "stvid.models.conv3d.Conv3D"},
    "r3d_18": {"_target_": VIDEO_NETWORK, "name": "r3d_18"},
    "r2plus1d_18": {"_target_": VIDEO_NETWORK, "name": "r2plus1d_18"},
    "cnn_lstm": ENCODED,
    "cnn_lstm, encoder_chunk=8": {**ENCODED, "encoder_chunk": 8},
    "cnn_lstm, encoder_chunk=64": {**ENCODED, "encoder_chunk": 64},
}
CLIPS = ((8, 64, 8), (16, 112, 4), (32, 112, 2))  # frames, pixels a side, clips in a batch
LONG = {"cnn_lstm, encoder_chunk=64": ((128, 112, 1), (1024, 112, 1))}
AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16}
OPTIMIZATION = OptimizerFactory(optimizer=torch.optim.AdamW, lr=1e-3, weight_decay=0.05)
TOLERANCE = 0.10  # largest relative error of the estimate


class Training:
    """A model and its optimizer; `step` runs one training step."""

    def __init__(self, model: nn.Module, clip: ClipSpec, batch_size: int, precision: str, device: str):
        self.model = channels_last(model).to(device).train()
        self.preprocess = Preprocess(clip=clip).to(device)
        self.optimizer, _ = OPTIMIZATION.configure(self.model, 10)
        self.shape = (batch_size, clip.num_frames, 3, *clip.size)
        self.dtype, self.device = AUTOCAST[precision], device

    def step(self) -> None:
        clips_BTCHW = torch.randint(0, 256, self.shape, dtype=torch.uint8, device=self.device)
        labels_B = torch.zeros(self.shape[0], dtype=torch.long, device=self.device)
        with torch.autocast(self.device, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            logits_BK = run_model(self.model, self.preprocess, clips_BTCHW)
            loss = nn.functional.cross_entropy(logits_BK.float(), labels_B)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def measured_peak(model: dict, clip: ClipSpec, batch_size: int, precision: str, device: str) -> int:
    """Measured peak bytes of the second step."""

    def start_training() -> Training:
        training = Training(build_model(model, num_classes=CLASSES), clip, batch_size, precision, device)
        training.step()
        return training

    if device == "cuda":
        training = start_training()
        torch.cuda.reset_peak_memory_stats()
        training.step()
        return torch.cuda.max_memory_allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        training = start_training()
        with record_function("second step"):
            training.step()
    events = profiled.profiler.kineto_results.events()
    begin = next(event.start_ns() for event in events if event.name() == "second step")
    in_use = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        in_use += event.nbytes()
        if event.start_ns() >= begin:
            peak = max(peak, in_use)
    return peak


def estimated_peak(model: dict, clip: ClipSpec, batch_size: int, precision: str, device: str) -> int:
    """Estimated peak bytes of a training step."""
    with torch.device("meta"):
        built = build_model(model, num_classes=CLASSES, pretrained=False)
    report = estimate(
        built,
        (3, clip.num_frames, *clip.size),
        batch_size=batch_size,
        precision=precision,
        device=device,
        optimizer=lambda model: OPTIMIZATION.configure(model, 10)[0],
        preprocess=Preprocess(clip=clip),
    )
    return report.peak_train_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--precisions", nargs="+", choices=AUTOCAST, default=list(AUTOCAST), metavar="NAME")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    machine = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    print(f"{machine}, Python {platform.python_version()}, torch {torch.__version__}, torchvision", end=" ")
    print(f"{torchvision.__version__}; {CLASSES} classes, AdamW\n")
    print("| model | precision | clip | batch | estimated MiB | measured MiB | error |")
    print("|---|---|---|---|---|---|---|")
    worst = 0.0
    for name in options.models:
        for precision in options.precisions:
            for frames, size, batch_size in LONG.get(name, CLIPS):
                case = (MODELS[name], ClipSpec(num_frames=frames, size=size), batch_size, precision, options.device)
                estimated, measured = estimated_peak(*case), measured_peak(*case)
                error = round(estimated / measured - 1, 4) + 0.0  # turns -0.0 into 0.0
                worst = max(worst, abs(error))
                cells = (name, precision, f"{frames}x{size}x{size}", batch_size, f"{estimated / 2**20:.0f}")
                print("|", *(f"{c} |" for c in cells), f"{measured / 2**20:.0f} | {error:+.1%} |", flush=True)
    if worst > TOLERANCE:
        raise SystemExit(f"largest error {worst:.1%}, more than {TOLERANCE:.0%}")


if __name__ == "__main__":
    main()
