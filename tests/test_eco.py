"""ECO: maps of a stage of an image network, 3D convolutions over them, and the stream of both."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from stvid.data.feature_filling import encoder_settings
from stvid.errors import InputError
from stvid.models.eco import ECO
from stvid.models.layers import checkpoint_stages
from stvid.run.checkpoint import _outline
from stvid.run.model import build_on_meta

H, W = 64, 96


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = ECO(num_classes=5, in_channels=6, stage="layer2", grid=(3, 4), widths=[8, 12]).eval()
    for module in model.volume.modules():
        if isinstance(module, nn.BatchNorm3d):
            for values in (module.weight, module.bias, module.running_mean):
                if values is not None:
                    nn.init.normal_(values)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


@torch.no_grad()
def test_the_features_of_a_frame_are_the_pooled_maps_of_the_stage_for_both_images(model):
    network = torchvision.models.resnet18().eval()
    named = dict(model.encoder.network.state_dict())
    network.load_state_dict({**network.state_dict(), **named})
    maps = []
    network.layer2.register_forward_hook(lambda module, inputs, output: maps.append(output))
    clips_BCTHW = torch.randn(2, 6, 3, H, W)
    features_BTF = model.encode(clips_BCTHW)
    for image in range(2):
        network(clips_BCTHW[1, 3 * image : 3 * image + 3].transpose(0, 1))
    expected = torch.cat([F.adaptive_avg_pool2d(m, (3, 4)) for m in maps], dim=1).flatten(1)
    torch.testing.assert_close(features_BTF[1], expected, atol=1e-5, rtol=1e-5)
    assert not any(name.startswith(("layer3", "layer4", "fc")) for name in named), "later stages are not computed"


def normed(x, norm):
    weight, bias = (norm.weight, norm.bias) if norm.affine else (torch.tensor([1.0]), torch.tensor([0.0]))
    mean, var, weight, bias = (t[:, None, None, None] for t in (norm.running_mean, norm.running_var, weight, bias))
    return (x - mean) / (var + norm.eps) ** 0.5 * weight + bias


def volume_of(model, features_BTF, *, padded):
    """The last volume; the convolutions of the model are: 512 -> 8, 8 -> 8 as a residual, 8 -> 12 with stride 2."""
    x = features_BTF.unflatten(2, (-1, 3, 4)).transpose(1, 2)
    norm, (first, first_norm, _), (middle, middle_norm), (last, last_norm, _) = model.volume
    x = F.relu(normed(F.conv3d(normed(x, norm), first.weight), first_norm))
    padding = (1, 1, 1) if padded else (0, 1, 1)
    change = normed(F.conv3d(x, middle.weight, padding=padding), middle_norm)
    x = F.relu((x if padded else x[:, :, 1:-1]) + change)
    return F.relu(normed(F.conv3d(x, last.weight, stride=2, padding=padding), last_norm))


@torch.no_grad()
def test_the_volume_of_the_maps_is_convolved_over_time(model):
    features_BTF = torch.randn(2, 8, model.encoder.num_features * 2)
    expected = volume_of(model, features_BTF, padded=True).mean(dim=(2, 3, 4))
    torch.testing.assert_close(model.aggregate(features_BTF), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_new_network_of_residual_convolutions_treats_each_frame_by_itself():
    new = ECO(num_classes=2, stage="layer1", grid=(2, 2), widths=[8, 8], strides=[[1, 1, 1]] * 2).eval()
    features_BTF = torch.randn(1, 6, new.encoder.num_features)
    order = torch.randperm(6)
    torch.testing.assert_close(new.aggregate(features_BTF[:, order]), new.aggregate(features_BTF))
    new.volume[2][1].weight.fill_(1.0)
    assert not torch.allclose(new.aggregate(features_BTF[:, order]), new.aggregate(features_BTF), atol=1e-3)


@torch.no_grad()
def test_a_stream_has_the_logits_of_its_last_frames_without_padding_in_time(model):
    clips, state = torch.randn(1, 6, 9, H, W), model.start_stream(5)
    answers = {}  # a clip of 5 frames has 3 steps of the last volume
    for t in range(9):
        logits, state = model.stream_step(clips[:, :, t], state)
        if logits is not None:
            answers[t] = logits
    assert sorted(answers) == [4, 6, 8]
    x = volume_of(model, model.encode(clips), padded=False)
    assert x.shape[2] == 3
    torch.testing.assert_close(answers[8], model.head(x.mean(dim=(2, 3, 4))), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("encoder", "before_pooling"),
    [
        ("resnet18", lambda network, x: _until(network, x, "avgpool")),
        ("densenet121", lambda network, x: F.relu(network.features(x))),
        ("efficientnet_b0", lambda network, x: network.features(x)),
        ("mobilenet_v3_small", lambda network, x: network.features(x)),
        ("vgg11", lambda network, x: network.avgpool(network.features(x))),
    ],
)
def test_without_a_stage_the_map_is_what_the_network_pools(encoder, before_pooling):
    whole = ECO(num_classes=2, encoder=encoder, stage=None, grid=(2, 2), widths=[4], strides=[[1, 1, 1]]).eval()
    network = torchvision.models.get_model(encoder).eval()
    network.load_state_dict({**network.state_dict(), **whole.encoder.network.state_dict()})
    image = torch.randn(1, 3, 64, 64)
    expected = F.adaptive_avg_pool2d(before_pooling(network, image), (2, 2)).flatten(1)
    torch.testing.assert_close(whole.encoder(image), expected, atol=1e-5, rtol=1e-5)


def _until(network, x, end):
    for name, child in network.named_children():
        if name == end:
            return x
        x = child(x)
    raise AssertionError(end)


def test_a_copy_switches_between_training_and_evaluation_too(model):
    copied = copy.deepcopy(model).train()
    copied.freeze_stages("layer1")
    assert copied.training
    assert not copied.stages["layer1"].training
    clips_BCTHW = torch.randn(2, 6, 1, 65, 97)
    copied(clips_BCTHW).sum().backward()
    assert copied.eval()(clips_BCTHW).shape == (2, 5)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"grid": [3, 4]}, {"grid": [4, 3]}),  # as many numbers for each frame
        ({"stage": "norm5"}, {"stage": None}),  # the same weights, with an activation behind them
    ],
)
def test_features_of_another_grid_or_stage_are_others(model, first, second):
    common = {"_target_": "stvid.models.eco.ECO", "encoder": "resnet18", "grid": [3, 4], "widths": [8]}
    options = {"precision": "32-true", "device": torch.device("cpu"), "runtime": None}
    settings = [encoder_settings(model.backbone, {**common, **more}, **options) for more in (first, second)]
    assert settings[0] != settings[1]


@pytest.mark.parametrize("encoder", ["resnet152", "regnet_y_400mf"])
def test_a_checkpoint_with_a_small_part_of_a_network_is_loaded(encoder, tmp_path):
    """Not taken for one whose config asks for more layers than it has weights for."""
    config = {"_target_": "stvid.models.eco.ECO", "encoder": encoder, "stage": "stem" if "reg" in encoder else "conv1"}
    model = build_on_meta(config, num_classes=2)
    assert len(model.state_dict()) < 40
    outline = _outline(config, {"num_classes": 2}, model.state_dict(), tmp_path)
    assert outline.state_dict().keys() == model.state_dict().keys()


def test_activation_checkpointing_is_refused(model):
    """The stages of a traced network are never called, so it would save next to nothing."""
    assert model.blocks() == [model.stages["conv1"], model.stages["bn1"]]
    with torch.device("meta"):
        trained, frozen = (ECO(num_classes=2, stage="layer1", freeze=freeze) for freeze in (0, "all"))
    with pytest.raises(InputError, match=r"the activations of layer1 in ECO cannot be computed again.*encoder_chunk"):
        checkpoint_stages(trained)
    checkpoint_stages(frozen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "small"}, r"model.encoder \(=small\) has no feature maps"),
        ({"stage": "layer9"}, r"model.stage \(=layer9\) is no stage of resnet18: conv1, bn1, layer1"),
        ({"grid": [0, 4]}, r"model.grid \(=\[0, 4\]\) must be \[height, width\]"),
        ({"grid": [4]}, r"model.grid \(=\[4\]\) must be \[height, width\]"),
        ({"grid": [2.5, 4]}, r"model.grid \(=\[2.5, 4\]\) must be \[height, width\], whole numbers"),
        ({"widths": [8]}, "must have one entry for each convolution"),
        ({"widths": [], "strides": []}, "must have one entry for each convolution"),
        ({"widths": [8.5], "strides": [[1, 1, 1]]}, "widths whole numbers of at least 1"),
        ({"widths": [8], "strides": [[1, 1]]}, "must be three whole numbers"),
        ({"widths": [8, 8], "strides": [2, 2]}, "must be three whole numbers"),
        ({"freeze": "layer4", "stage": "layer2"}, r"model.freeze \(=layer4\) must be all, a number from 0 to 4"),
        ({"encoder": "vit_b_16", "stage": None}, "model.(stage|encoder)"),
        (
            {"encoder": "swin_t", "stage": "features.1"},
            "of swin_t gives 32 x 32 x 96 .* choose an earlier",
        ),
        ({"in_channels": 4}, r"model.in_channels \(=4\)"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(InputError, match=message), torch.device("meta"):
        ECO(num_classes=2, **options)
