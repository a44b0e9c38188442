from functools import partial

import pytest
import torch
from torch import nn

from stvid.errors import InputError
from stvid.models.cnn_lstm import CNNLSTM
from stvid.training.optim import Optimization

SGD = partial(torch.optim.SGD, momentum=0.9)


def test_norms_and_biases_are_not_decayed():
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.LSTM(4, 4))
    optimizer, _ = Optimization(optimizer=SGD, lr=0.1, weight_decay=0.01).configure(model, 100)
    decayed, free = optimizer.param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.01, 0.0)
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim < 2 for p in free["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    optimizer, _ = Optimization(optimizer=SGD, lr=0.1).configure(model, 10)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_the_rate_warms_up_then_falls_as_a_cosine_to_nothing():
    optimizer, schedule = Optimization(optimizer=SGD, lr=0.4, warmup=0.1).configure(nn.Linear(1, 1), 100)
    rates = []
    for _ in range(100):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:10] == pytest.approx([0.04 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(0.4)
    assert rates[55] == pytest.approx(0.2)
    assert rates[-1] < 0.001


@pytest.mark.parametrize(
    "arguments", [{"lr": 0}, {"lr": 1, "weight_decay": -1}, {"lr": 1, "warmup": 1.0}, {"lr": 1, "backbone_lr": 0}]
)
def test_impossible_settings_are_told(arguments):
    with pytest.raises(InputError, match=f"optimizer.{list(arguments)[-1]}"):
        Optimization(optimizer=SGD, **arguments)


def test_the_backbone_has_a_rate_of_its_own():
    model = CNNLSTM(num_classes=3, freeze=1)
    optimizer, schedule = Optimization(optimizer=SGD, lr=0.1, backbone_lr=1e-4, warmup=0.0).configure(model, 10)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    wanted = {
        name: 1e-4 if name.startswith("encoder.") else 0.1 for name, p in model.named_parameters() if p.requires_grad
    }
    assert {name: rates[id(p)] for name, p in model.named_parameters() if p.requires_grad} == wanted
    assert len(rates) == len(wanted) < len(list(model.parameters()))
    optimizer.step()
    schedule.step()
    shares = {group["lr"] / group["initial_lr"] for group in optimizer.param_groups}
    assert len({round(share, 9) for share in shares}) == 1


def test_a_rate_for_a_frozen_backbone_is_told():
    with pytest.raises(InputError, match="all of the backbone is frozen"):
        Optimization(optimizer=SGD, lr=0.1, backbone_lr=1e-3).configure(CNNLSTM(num_classes=3, freeze="all"), 10)


def test_a_model_without_a_backbone_is_told():
    with pytest.raises(InputError, match="backbone_lr .=0.001.: Linear has no backbone_parameters"):
        Optimization(optimizer=SGD, lr=0.1, backbone_lr=1e-3).configure(torch.nn.Linear(2, 2), 10)
