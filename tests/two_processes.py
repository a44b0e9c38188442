"""Compares one optimizer step of every model between two processes and one.

    python two_processes.py FILE        writes the differences as JSON

Only one step: in a deep network with random weights, further steps amplify rounding errors.
"""

import copy
import functools
import json
import sys
from pathlib import Path

import torch
from conftest import ROOT
from omegaconf import OmegaConf
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from stvid.distributed import init_distributed, launch_processes
from stvid.models import c3d
from stvid.models.layers import checkpoint_stages
from stvid.run.model import build_model
from stvid.training.parallel import SyncedBatchNorm

CONFIGS = {path.stem: path for path in sorted((ROOT / "configs" / "model").glob("*.yaml"))}
# name: (file in configs/model, changes to it, whether activations are recomputed)
CASES = {
    **{name: (name, {}, False) for name in CONFIGS},
    "cnn_lstm, recomputed": ("cnn_lstm", {}, True),
    "conv3d, recomputed": ("conv3d", {"depths": 2}, True),
    "cnn_lstm, a frozen batch norm": ("cnn_lstm", {"encoder": "resnet18", "freeze": "bn1"}, False),
    "cnn_lstm, norms of timm": ("cnn_lstm", {"encoder": "timm/mobilenetv3_small_050"}, False),
}
IN_FLOAT64 = ("r2plus1d_18", "s3d")  # in float32, rounding changes their gradients by several per cent
CLIPS, CLASSES = 4, 3
SHARES = (slice(0, 3), slice(3, 4))  # clips of each of the two processes


def step(model: nn.Module, share: slice, *, processes: int) -> None:
    """One step on a share of the clips; gradients are means over the clips of all processes."""
    torch.manual_seed(1)
    clips, labels = torch.randn(CLIPS, 3, 4, 24, 24), torch.arange(CLIPS) % CLASSES
    clips = clips.to(next(model.parameters()).dtype)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-3)
    loss = cross_entropy(model(clips[share]), labels[share], reduction="sum") / CLIPS
    (loss * processes).backward()
    optimizer.step()
    optimizer.zero_grad()


def largest_difference(model: nn.Module, other: nn.Module) -> tuple[str, float]:
    """Name of the weight or buffer that differs most between two models, and its largest difference."""
    state = other.state_dict()
    differences = {name: (value - state[name]).abs().max().item() for name, value in model.state_dict().items()}
    return max(differences.items(), key=lambda item: item[1])


def compare(name: str, is_first: bool) -> dict:
    """Trains as one process and as two; rank 0 returns the differences."""
    file, changes, recomputes = CASES[name]
    config = {**OmegaConf.to_container(OmegaConf.load(CONFIGS[file])), "dropout": 0.0, **changes}
    torch.manual_seed(0)
    model, result = build_model(config, num_classes=CLASSES, pretrained=False), {}
    model.to(torch.float64 if name in IN_FLOAT64 else torch.float32)
    names = list(model.state_dict())
    if is_first:
        step(single := copy.deepcopy(model), slice(None), processes=1)
        updates = [(p - q).abs().max().item() for p, q in zip(model.parameters(), single.parameters(), strict=True)]
        result["update"] = max(updates)
    if recomputes:
        checkpoint_stages(model)
    parallel = DistributedDataParallel(SyncedBatchNorm().apply(model), gradient_as_bucket_view=True)
    step(parallel, SHARES[0 if is_first else 1], processes=2)
    if is_first:
        result["difference"] = largest_difference(single, model)
        result["same_names"] = names == list(model.state_dict())
    return result


def main(file: Path) -> None:
    c3d.GRID = (1, 1, 1)  # 46 million parameters instead of 78
    torch.set_num_threads(1)
    with init_distributed() as is_first:
        results = {name: compare(name, is_first) for name in CASES}
        if is_first:
            file.write_text(json.dumps(results))


if __name__ == "__main__":
    raise SystemExit(launch_processes(functools.partial(main, Path(sys.argv[1])), 2))
