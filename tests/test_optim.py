"""What of an optimization's settings is told, and that every shipped optimizer takes them."""

import math
from functools import partial

import pytest
import timm.optim
import torch
from torch import nn

from stvid.errors import InputError
from stvid.training.optim import OptimizerFactory

SGD = partial(torch.optim.SGD, momentum=0.9)
SETTINGS = {"optimizer": SGD, "lr": 0.4}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lr": 0}, "optimizer.lr (=0)"),
        ({"weight_decay": -1}, "optimizer.weight_decay (=-1)"),
        ({"warmup": 1.0}, "optimizer.warmup (=1.0)"),
        ({"backbone_lr": 0}, "optimizer.backbone_lr (=0)"),
        ({"layer_decay": 0}, "optimizer.layer_decay (=0)"),
        ({"layer_decay": 1.5}, "optimizer.layer_decay (=1.5)"),
        ({"schedule": "cosin"}, "optimizer.schedule (=cosin) must be one of cosine, linear"),
        ({"gamma": 0.5}, "optimizer.gamma (=0.5) has no effect with optimizer.schedule=cosine"),
        ({"patience": 3, "schedule": "multi_step"}, "optimizer.patience (=3) has no effect with optimizer.schedule=mu"),
        ({"milestones": [0.5], "schedule": "linear"}, "optimizer.milestones (=[0.5]) has no effect"),
        ({"milestones": [0.5, 0.5], "schedule": "multi_step"}, "optimizer.milestones (=[0.5, 0.5])"),
        ({"milestones": [0.5, 1], "schedule": "multi_step"}, "optimizer.milestones (=[0.5, 1])"),
        ({"milestones": [], "schedule": "multi_step"}, "optimizer.milestones (=[])"),
        ({"milestones": ["x"], "schedule": "multi_step"}, "optimizer.milestones (=['x'])"),
        ({"gamma": 1.0, "schedule": "plateau"}, "optimizer.gamma (=1.0)"),
        ({"patience": -1, "schedule": "plateau"}, "optimizer.patience (=-1)"),
        ({"groups": {"(": {"lr": 1}}}, "optimizer.groups: '(' is no regular expression"),
        ({"groups": {"head": {}}}, "optimizer.groups: 'head'"),
        ({"groups": {"head": 1e-3}}, "optimizer.groups: 'head' (=0.001)"),
        ({"groups": {"head": {"lrate": 1}}}, "unknown key lrate; there is: lr, weight_decay"),
        ({"groups": {"head": {"lr": 0}}}, "'head' has lr (=0)"),
        ({"groups": {"head": {"weight_decay": "no"}}}, "'head' has weight_decay (='no')"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_impossible_settings_and_those_without_effect_are_told(arguments, words):
    with pytest.raises(InputError) as error:
        OptimizerFactory(**{**SETTINGS, **arguments})
    assert words in str(error.value)


@pytest.mark.parametrize(
    "make", [torch.optim.AdamW, SGD, timm.optim.lamb.Lamb, partial(timm.optim.lars.Lars, momentum=0.9)]
)
def test_every_shipped_optimizer_takes_the_groups_and_learns(make):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    inputs = torch.randn(64, 4)
    labels = (inputs[:, 0] > 0).long()
    lr = 1.0 if "Lars" in str(make) else 0.05
    optimizer, (each,) = OptimizerFactory(optimizer=make, lr=lr, weight_decay=1e-4).configure(model, 60)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        each["scheduler"].step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert math.isfinite(losses[-1])
