"""Optimizers, parameter groups and learning-rate schedules, against torch's own schedulers and against formulas."""

import math
from functools import partial

import pytest
import pytorch_lightning as pl
import timm.optim
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from stvid.errors import InputError
from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.conv3d import Conv3D
from stvid.training.optim import SCHEDULES, OptimizerFactory

SGD = partial(torch.optim.SGD, momentum=0.9)
SETTINGS = {"optimizer": SGD, "lr": 0.4}


@pytest.mark.parametrize(
    ("arguments", "message"),
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
        ({"groups": {"(": {"lr": 1}}}, "optimizer.groups: '(' is not a regular expression"),
        ({"groups": {"head": {}}}, "optimizer.groups: 'head'"),
        ({"groups": {"head": 1e-3}}, "optimizer.groups: 'head' (=0.001)"),
        ({"groups": {"head": {"lrate": 1}}}, "unknown key lrate; there is: lr, weight_decay"),
        ({"groups": {"head": {"lr": 0}}}, "'head' has lr (=0)"),
        ({"groups": {"head": {"weight_decay": "no"}}}, "'head' has weight_decay (='no')"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_values_out_of_range_or_without_effect_are_input_errors(arguments, message):
    with pytest.raises(InputError) as error:
        OptimizerFactory(**{**SETTINGS, **arguments})
    assert message in str(error.value)


@pytest.mark.parametrize(
    "optimizer_class", [torch.optim.AdamW, SGD, timm.optim.lamb.Lamb, partial(timm.optim.lars.Lars, momentum=0.9)]
)
def test_every_shipped_optimizer_accepts_the_groups_and_reduces_the_loss(optimizer_class):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    inputs = torch.randn(64, 4)
    labels = (inputs[:, 0] > 0).long()
    lr = 1.0 if "Lars" in str(optimizer_class) else 0.05
    optimizer, (scheduler,) = OptimizerFactory(optimizer=optimizer_class, lr=lr, weight_decay=1e-4).configure(model, 60)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        scheduler["scheduler"].step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert math.isfinite(losses[-1])


def peak_rates(model, **options):
    """Name of every trainable parameter -> its peak learning rate."""
    optimizer, _ = OptimizerFactory(**SETTINGS, **options).configure(model, 10)
    by_id = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(by_id)
    return {name: by_id.pop(id(p)) for name, p in model.named_parameters() if id(p) in by_id}


def test_norms_and_biases_are_not_decayed():
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.LSTM(4, 4))
    optimizer, _ = OptimizerFactory(**SETTINGS, weight_decay=0.01).configure(model, 100)
    decayed, not_decayed = optimizer.param_groups
    assert (decayed["weight_decay"], not_decayed["weight_decay"]) == (0.01, 0.0)
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim < 2 for p in not_decayed["params"])
    assert len(decayed["params"]) + len(not_decayed["params"]) == len(list(model.parameters()))


def test_frozen_parameters_are_not_optimized():
    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    assert list(peak_rates(model)) == ["1.weight", "1.bias"]


def test_backbone_lr_applies_to_the_backbone_only():
    model = CNNLSTM(num_classes=3, freeze=1)
    actual = peak_rates(model, backbone_lr=1e-4, warmup=0.0)
    assert actual == {
        name: 1e-4 if name.startswith("encoder.") else 0.4 for name, p in model.named_parameters() if p.requires_grad
    }
    assert len(actual) < len(list(model.parameters()))
    optimizer, (scheduler,) = OptimizerFactory(**SETTINGS, backbone_lr=1e-4, warmup=0.0).configure(model, 10)
    for _ in range(3):
        optimizer.step()
        scheduler["scheduler"].step()
    assert len({round(group["lr"] / group["initial_lr"], 9) for group in optimizer.param_groups}) == 1


def test_layer_decay_is_the_factor_from_one_stage_to_the_one_below():
    actual = peak_rates(Conv3D(num_classes=2, widths=[4, 4, 4], depths=[2, 1, 1], strides=[[1, 2, 2]] * 3, freeze=1))
    assert set(actual.values()) == {0.4}
    model = Conv3D(num_classes=2, widths=[4, 4, 4], depths=[2, 1, 1], strides=[[1, 2, 2]] * 3, freeze=1)
    actual = peak_rates(model, layer_decay=0.5)
    stage_of_layer = {"layers.2": 2, "layers.3": 3, "head": 4}  # layers.0 and .1 are stage 1 and frozen
    assert {name.rpartition(".")[0][:8].rstrip(".") for name in actual} == set(stage_of_layer)
    for name, rate in actual.items():
        stage = next(number for start, number in stage_of_layer.items() if name.startswith(start))
        assert rate == pytest.approx(0.4 * 0.5 ** (4 - stage))


def test_layer_decay_starts_at_backbone_lr_and_the_recurrent_part_belongs_to_the_head():
    actual = peak_rates(CNNLSTM(num_classes=3, encoder="resnet18"), layer_decay=0.8, backbone_lr=0.01)
    stages = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    for name, rate in actual.items():
        if not name.startswith("encoder."):
            assert rate == 0.4
            continue
        number = stages.index(name.split(".")[2])
        assert rate == pytest.approx(0.01 * 0.8 ** (6 - number))


def test_class_token_and_positions_of_an_image_transformer_belong_to_the_first_stage():
    actual = peak_rates(CNNLSTM(num_classes=3, encoder="timm/vit_tiny_patch16_224", image_size=32), layer_decay=0.5)
    first = actual["encoder.network.patch_embed.proj.weight"]
    assert actual["encoder.network.cls_token"] == actual["encoder.network.pos_embed"] == first
    assert actual["encoder.network.blocks.11.mlp.fc1.weight"] == pytest.approx(first * 2**12)
    assert actual["encoder.network.norm.weight"] == pytest.approx(0.2)


@pytest.mark.parametrize("key", ["backbone_lr", "layer_decay"])
def test_a_rate_that_applies_to_no_parameter_is_an_input_error(key):
    options = {**SETTINGS, key: 0.5}
    with pytest.raises(InputError, match=rf"optimizer.{key} \(=0.5\): all of the backbone is frozen"):
        OptimizerFactory(**options).configure(CNNLSTM(num_classes=3, freeze="all"), 10)


def test_groups_set_rates_and_decay_and_the_first_matching_pattern_wins():
    groups = {r"head\.weight": {"lr": 3.0}, "head|recurrent": {"weight_decay": 0.5}, r"layers\.0": {"lr": 2.0}}
    model = CNNLSTM(num_classes=3)
    optimization = OptimizerFactory(**SETTINGS, backbone_lr=0.1, layer_decay=0.5, weight_decay=0.01, groups=groups)
    optimizer, _ = optimization.configure(model, 10)
    by_id = {id(p): (g["initial_lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    actual = {name: by_id[id(p)] for name, p in model.named_parameters()}
    assert actual["head.weight"] == (3.0, 0.01)
    assert actual["head.bias"] == (0.4, 0.0)
    recurrent = {name: value for name, value in actual.items() if name.startswith("recurrent")}
    assert all(value == (0.4, 0.0 if "bias" in name else 0.5) for name, value in recurrent.items())
    assert actual["encoder.layers.0.weight"] == (2.0, 0.01)
    assert actual["encoder.layers.3.weight"] == (pytest.approx(0.1 * 0.5**4), 0.01)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4), "the first group, whose rate is logged, has lr"


def test_a_group_that_matches_no_trainable_parameter_is_an_input_error():
    def error_of(model, **groups):
        with pytest.raises(InputError) as error:
            OptimizerFactory(**SETTINGS, groups={key: {"lr": 1.0} for key in groups.values()}).configure(model, 10)
        return str(error.value)

    model = CNNLSTM(num_classes=3, freeze="all")
    assert "'heed.weight' matches no parameter; similar names: head.weight" in error_of(model, a="heed.weight")
    frozen = error_of(model, a="encoder")
    assert "'encoder' matches only frozen parameters: encoder.layers.0.weight" in frozen
    assert "more" in frozen
    assert "'head.bias' matches only parameters of earlier patterns" in error_of(model, a="head", b="head.bias")


def rates(schedulers, optimizer, steps):
    """Learning rate of the first group at each step; the schedulers are stepped as Lightning does."""
    actual = []
    for _ in range(steps):
        actual.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for config in schedulers:
            if config["interval"] == "step":
                config["scheduler"].step()
    return actual


def rates_of(steps=100, **options):
    optimizer, schedulers = OptimizerFactory(**SETTINGS, **options).configure(nn.Linear(1, 1), steps)
    return rates(schedulers, optimizer, steps)


def rates_of_torch(make, steps=100):
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=0.4)
    return rates([{"scheduler": make(optimizer), "interval": "step"}], optimizer, steps)


def test_cosine_warms_up_and_then_falls_to_zero_like_torchs():
    actual = rates_of(warmup=0.1)
    assert actual[:10] == pytest.approx([0.04 * (i + 1) for i in range(10)])
    assert actual[10] == pytest.approx(0.4)
    assert actual[55] == pytest.approx(0.2)
    assert actual[-1] < 0.001
    falls = partial(lr_scheduler.CosineAnnealingLR, T_max=90)
    assert actual[10:] == pytest.approx(rates_of_torch(falls, 90))


def test_linear_falls_to_zero_like_torchs():
    actual = rates_of(schedule="linear", warmup=0.2)
    assert actual == pytest.approx([0.4 * (i + 1) / 20 for i in range(20)] + [0.4 * (80 - i) / 80 for i in range(80)])
    falls = partial(lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.0, total_iters=80)
    assert actual[20:] == pytest.approx(rates_of_torch(falls, 80))


@pytest.mark.parametrize("schedule", ["constant", "plateau"])
def test_constant_and_plateau_warm_up_like_torchs_linear_lr(schedule):
    warms = partial(lr_scheduler.LinearLR, start_factor=1 / 10, total_iters=9)
    assert rates_of(schedule=schedule, warmup=0.1) == pytest.approx(rates_of_torch(warms))
    assert rates_of(schedule=schedule, warmup=0) == pytest.approx([0.4] * 100)


@pytest.mark.parametrize(
    ("options", "milestones", "gamma"),
    [
        ({"milestones": [0.3, 0.6, 0.95], "gamma": 0.5}, [30, 60, 95], 0.5),
        ({}, [50, 75], 0.1),
    ],
)
def test_multi_step_falls_at_its_milestones_like_torchs(options, milestones, gamma):
    expected = rates_of_torch(partial(lr_scheduler.MultiStepLR, milestones=milestones, gamma=gamma))
    assert rates_of(schedule="multi_step", warmup=0, **options) == pytest.approx(expected)
    assert rates_of(schedule="multi_step", warmup=0.1, **options)[10:] == pytest.approx(expected[10:])


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.3), (100, 0.1), (73, 0.25), (7, 0.5), (40, 0.0)])
def test_one_cycle_is_torchs_without_momentum_cycling(steps, warmup):
    cycle = partial(lr_scheduler.OneCycleLR, max_lr=0.4, total_steps=steps, pct_start=warmup, cycle_momentum=False)
    assert rates_of(steps, schedule="one_cycle", warmup=warmup) == pytest.approx(rates_of_torch(cycle, steps))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_runs_of_a_few_steps_have_valid_rates(schedule):
    for steps in (1, 2, 3):
        actual = rates_of(steps, schedule=schedule, warmup=0.5)
        assert all(0 < rate <= 0.4 for rate in actual)


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "plateau"])
def test_the_rate_depends_only_on_the_step_and_the_length_of_the_run(schedule):
    """A run of 10 steps, resumed with 40 steps, continues like a run of 40 steps."""
    optimization = OptimizerFactory(**SETTINGS, schedule=schedule)
    short, schedulers = optimization.configure(nn.Linear(1, 1), 10)
    rates(schedulers, short, 10)
    longer, resumed = optimization.configure(nn.Linear(1, 1), 40)
    resumed[0]["scheduler"].load_state_dict(schedulers[0]["scheduler"].state_dict())
    longer.step()
    resumed[0]["scheduler"].step()
    assert longer.param_groups[0]["lr"] == pytest.approx(rates_of(40, schedule=schedule)[11])


def test_plateau_multiplies_by_gamma_after_more_than_patience_validations_without_a_lower_loss():
    options = {"schedule": "plateau", "patience": 1, "gamma": 0.5, "warmup": 0.5}
    optimizer, (warmup, plateau) = OptimizerFactory(**SETTINGS, **options).configure(nn.Linear(1, 1), 20)
    validations = [(1.0, 1), (0.9, 1), (0.95, 1), (0.91, 0.5), (0.8, 0.5), (0.8, 0.5), (0.8, 0.25), (0.7, 0.25)]
    for number, (loss, factor) in enumerate(validations):
        rates([warmup, plateau], optimizer, 2)
        plateau["scheduler"].step(loss)
        warmed = min((2 * number + 3) / 10, 1.0)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4 * warmed * factor)
    assert plateau["monitor"] == "val_loss"


class ConstantLoss(pl.LightningModule):
    """A task whose loss never improves; steps the plateau scheduler as `ClassificationTask` does."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(1, 1), []

    def configure_optimizers(self):
        options = {"schedule": "plateau", "patience": 2, "gamma": 0.5, "warmup": 0.3}
        optimizer, schedulers = OptimizerFactory(**SETTINGS, **options).configure(self.layer, 30)
        return [optimizer], schedulers

    def training_step(self, batch, batch_idx):
        self.seen.append(self.optimizers().param_groups[0]["lr"])
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        for config in self.trainer.lr_scheduler_configs:
            if config.reduce_on_plateau:
                config.scheduler.step(1.0)


def test_a_resumed_run_with_plateau_has_the_rates_of_an_uninterrupted_run(tmp_path):
    def fit(epochs, resume=None):
        options = {"save_on_train_epoch_end": True, "enable_version_counter": False}
        saving = pl.callbacks.ModelCheckpoint(tmp_path, "last", **options)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = pl.Trainer(max_epochs=epochs, callbacks=[saving], num_sanity_val_steps=0, **quiet)
        loader = DataLoader(torch.ones(6, 1), batch_size=2)
        task = ConstantLoss()
        trainer.fit(task, loader, loader, ckpt_path=resume, weights_only=True)
        return task.seen, saving.best_model_path

    whole, _ = fit(10)
    for end in (3, 4, 6):  # the rate falls after validation 4 and 7
        first, checkpoint = fit(end)
        second, _ = fit(10, resume=checkpoint)
        assert first + second == pytest.approx(whole)
    assert whole[-1] == pytest.approx(0.4 * 0.5**2)
