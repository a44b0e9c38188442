"""Gradient checkpointing: the same gradients and statistics, with less kept."""

import copy

import pytest
import torch

from stvid.cost.estimate import estimate
from stvid.models.c3d import C3D
from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.conv3d import Conv3D
from stvid.models.i3d import I3D
from stvid.models.layers import checkpoint_stages
from stvid.models.torchvision3d import TorchvisionVideoModel

MODELS = {
    "conv3d": lambda: Conv3D(num_classes=3, depths=2, dropout=0.0),
    "c3d": lambda: C3D(num_classes=3, dropout=0.0),
    "cnn_lstm": lambda: CNNLSTM(num_classes=3, encoder="resnet18", dropout=0.0),
    "small": lambda: CNNLSTM(num_classes=3, dropout=0.0),
    "r3d_18": lambda: TorchvisionVideoModel(name="r3d_18", num_classes=3, freeze=1),
    "i3d": lambda: I3D(network="resnet18", num_classes=3, dropout=0.0),
}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_and_statistics_stay_what_they_were(name):
    torch.manual_seed(0)
    model = MODELS[name]().train()
    other = copy.deepcopy(model)
    checkpoint_stages(other)
    other = copy.deepcopy(other)  # as an average of the weights has it
    clips = torch.randn(2, 3, 4, 32, 32)
    for item in (model, other):
        item(clips).square().sum().backward()
    for (key, mine), its in zip(model.named_parameters(), other.parameters(), strict=True):
        assert (mine.grad is None) == (its.grad is None), key
        if mine.grad is not None:
            torch.testing.assert_close(its.grad, mine.grad, rtol=1e-4, atol=1e-5)
    for (key, mine), its in zip(model.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(its, mine, msg=key)


@pytest.mark.parametrize(("name", "most"), {"conv3d": 0.9, "cnn_lstm": 0.8, "r3d_18": 0.8, "i3d": 0.75}.items())
def test_less_memory_is_needed(name, most):
    with torch.device("meta"):
        plain, saving = MODELS[name](), MODELS[name]()
    checkpoint_stages(saving)
    before, after = (estimate(model, (3, 16, 112, 112), batch_size=8).peak_train_bytes for model in (plain, saving))
    assert after < most * before


def test_the_small_encoders_steps_are_not_kept():
    with torch.device("meta"):
        plain, saving = MODELS["small"](), MODELS["small"]()
    checkpoint_stages(saving)
    before, after = (estimate(model, (3, 16, 112, 112), batch_size=8).activation_bytes for model in (plain, saving))
    assert after < 0.6 * before
