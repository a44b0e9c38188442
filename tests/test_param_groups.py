"""Which parameter learns at which rate, and which decays."""

import pytest
import torch
from torch import nn

from stvid.errors import InputError
from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.conv3d import Conv3D
from stvid.training.optim import OptimizerFactory

SETTINGS = {"optimizer": torch.optim.SGD, "lr": 0.4}


def rate_of_each(model, **options):
    """Greatest learning rate of every trainable parameter, by name."""
    optimizer, _ = OptimizerFactory(**SETTINGS, **options).configure(model, 10)
    by_id = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(by_id)
    return {name: by_id.pop(id(p)) for name, p in model.named_parameters() if id(p) in by_id}


def test_norms_and_biases_are_not_decayed():
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.LSTM(4, 4))
    optimizer, _ = OptimizerFactory(**SETTINGS, weight_decay=0.01).configure(model, 100)
    decayed, free = optimizer.param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.01, 0.0)
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim < 2 for p in free["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    assert list(rate_of_each(model)) == ["1.weight", "1.bias"]


def test_the_backbone_has_a_rate_of_its_own():
    model = CNNLSTM(num_classes=3, freeze=1)
    found = rate_of_each(model, backbone_lr=1e-4, warmup=0.0)
    assert found == {
        name: 1e-4 if name.startswith("encoder.") else 0.4 for name, p in model.named_parameters() if p.requires_grad
    }
    assert len(found) < len(list(model.parameters()))
    optimizer, (each,) = OptimizerFactory(**SETTINGS, backbone_lr=1e-4, warmup=0.0).configure(model, 10)
    for _ in range(3):
        optimizer.step()
        each["scheduler"].step()
    assert len({round(group["lr"] / group["initial_lr"], 9) for group in optimizer.param_groups}) == 1


def test_a_stage_learns_slower_by_layer_decay_than_the_one_above_it():
    found = rate_of_each(Conv3D(num_classes=2, widths=[4, 4, 4], depths=[2, 1, 1], strides=[[1, 2, 2]] * 3, freeze=1))
    assert set(found.values()) == {0.4}
    model = Conv3D(num_classes=2, widths=[4, 4, 4], depths=[2, 1, 1], strides=[[1, 2, 2]] * 3, freeze=1)
    found = rate_of_each(model, layer_decay=0.5)
    stage_of_layer = {"layers.2": 2, "layers.3": 3, "head": 4}  # layers.0 and .1 are stage 1 and frozen
    assert {name.rpartition(".")[0][:8].rstrip(".") for name in found} == set(stage_of_layer)
    for name, rate in found.items():
        stage = next(number for start, number in stage_of_layer.items() if name.startswith(start))
        assert rate == pytest.approx(0.4 * 0.5 ** (4 - stage))


def test_layer_decay_goes_down_from_the_backbones_own_rate_and_the_recurrent_part_is_head():
    found = rate_of_each(CNNLSTM(num_classes=3, encoder="resnet18"), layer_decay=0.8, backbone_lr=0.01)
    stages = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    for name, rate in found.items():
        if not name.startswith("encoder."):
            assert rate == 0.4
            continue
        number = stages.index(name.split(".")[2])
        assert rate == pytest.approx(0.01 * 0.8 ** (6 - number))


def test_what_an_image_transformer_adds_to_its_patches_belongs_to_a_stage():
    found = rate_of_each(CNNLSTM(num_classes=3, encoder="timm/vit_tiny_patch16_224", image_size=32), layer_decay=0.5)
    first = found["encoder.network.patch_embed.proj.weight"]
    assert found["encoder.network.cls_token"] == found["encoder.network.pos_embed"] == first
    assert found["encoder.network.blocks.11.mlp.fc1.weight"] == pytest.approx(first * 2**12)
    assert found["encoder.network.norm.weight"] == pytest.approx(0.2)


@pytest.mark.parametrize("key", ["backbone_lr", "layer_decay"])
def test_a_rate_that_reaches_nothing_is_told(key):
    options = {**SETTINGS, key: 0.5}
    with pytest.raises(InputError, match=rf"optimizer.{key} \(=0.5\): all of the backbone is frozen"):
        OptimizerFactory(**options).configure(CNNLSTM(num_classes=3, freeze="all"), 10)


def test_groups_have_their_own_rates_and_decay_and_the_first_pattern_that_is_found_wins():
    groups = {r"head\.weight": {"lr": 3.0}, "head|recurrent": {"weight_decay": 0.5}, r"layers\.0": {"lr": 2.0}}
    model = CNNLSTM(num_classes=3)
    optimization = OptimizerFactory(**SETTINGS, backbone_lr=0.1, layer_decay=0.5, weight_decay=0.01, groups=groups)
    optimizer, _ = optimization.configure(model, 10)
    by_id = {id(p): (g["initial_lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    found = {name: by_id[id(p)] for name, p in model.named_parameters()}
    assert found["head.weight"] == (3.0, 0.01)
    assert found["head.bias"] == (0.4, 0.0)
    recurrent = {name: value for name, value in found.items() if name.startswith("recurrent")}
    assert all(value == (0.4, 0.0 if "bias" in name else 0.5) for name, value in recurrent.items())
    assert found["encoder.layers.0.weight"] == (2.0, 0.01)
    assert found["encoder.layers.3.weight"] == (pytest.approx(0.1 * 0.5**4), 0.01)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4), "the rate that is shown is the run's own"


def test_a_group_that_reaches_nothing_is_told_with_names():
    def error_of(model, **groups):
        with pytest.raises(InputError) as error:
            OptimizerFactory(**SETTINGS, groups={key: {"lr": 1.0} for key in groups.values()}).configure(model, 10)
        return str(error.value)

    model = CNNLSTM(num_classes=3, freeze="all")
    assert "'heed.weight' is found in no parameter's name; there is, among others: head.weight" in error_of(
        model, a="heed.weight"
    )
    frozen = error_of(model, a="encoder")
    assert "'encoder' names frozen parameters only: encoder.layers.0.weight" in frozen
    assert "more" in frozen
    assert "'head.bias' names only what patterns before it have taken" in error_of(model, a="head", b="head.bias")
