"""Inflated image networks; the oracles are the image networks themselves, as torchvision has them."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from stvid.models.i3d import FAMILIES, I3D, RepeatingConv3d
from stvid.run.model import build_model

CONFIG = {"_target_": "stvid.models.i3d.I3D"}
NAMES = [
    "alexnet",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "squeezenet1_1",
    "vgg11_bn",
]


def donor_of(name):
    """An image network with statistics of its own; GoogLeNet as its weights want it."""
    torch.manual_seed(0)
    options = {"init_weights": False, "transform_input": True} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return network.eval()


def image_features(network, images):
    """What reaches the network's global pooling, averaged over the picture."""
    actual = []
    last = network.features if hasattr(network, "features") else network.avgpool
    handle = last.register_forward_hook(lambda module, inputs, output: actual.append(output))
    network(images)
    handle.remove()
    volume = actual[0].relu() if isinstance(network, torchvision.models.DenseNet) else actual[0]
    return volume.mean(dim=(2, 3))


@pytest.fixture
def offered(monkeypatch):
    """Lets torchvision find a donor's weights instead of downloading any."""

    def offer(donor):
        monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda self, *a, **k: donor.state_dict())
        return donor

    return offer


def still(images, num_frames):
    return images[:, :, None].expand(-1, -1, num_frames, -1, -1)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_still_clip_has_the_features_of_its_picture(name, offered):
    donor = offered(donor_of(name))
    model = I3D(num_classes=4, network=name, weights="DEFAULT").eval()
    images = torch.randn(2, 3, 64, 64)
    features = image_features(donor, images)
    assert model.num_features == features.shape[1]
    assert features.abs().max() > 0.01
    torch.testing.assert_close(model.forward_features(still(images, 3)), features, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("depth", "num_frames"), [(1, 4), (3, 1), (3, 2), (5, 2), (7, 9)])
def test_the_same_for_every_kernel_depth_and_length(depth, num_frames, offered):
    donor = offered(donor_of("resnet18"))
    model = I3D(num_classes=4, weights="IMAGENET1K_V1", kernel_depth=depth).eval()
    images = torch.randn(1, 3, 48, 40)
    features = model.forward_features(still(images, num_frames))
    torch.testing.assert_close(features, image_features(donor, images), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_two_equal_pictures_a_frame_get_the_features_of_one(offered):
    donor = offered(donor_of("resnet18"))
    model = I3D(num_classes=4, weights="DEFAULT", in_channels=6).eval()
    images = torch.randn(1, 3, 32, 32)
    features = model.forward_features(still(torch.cat([images, images], dim=1), 2))
    torch.testing.assert_close(features, image_features(donor, images), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_moving_clip_is_convolved_with_its_ends_repeated():
    conv = RepeatingConv3d(3, 4, (5, 3, 3), padding=(0, 1, 1))
    clips = torch.randn(2, 3, 4, 8, 8)
    longer = torch.cat([clips[:, :, :1]] * 2 + [clips] + [clips[:, :, -1:]] * 2, dim=2)
    torch.testing.assert_close(conv(clips), F.conv3d(longer, conv.weight, conv.bias, padding=(0, 1, 1)))


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "googlenet"])
def test_time_is_never_strided(name):
    model = I3D(num_classes=2, network=name).eval()
    seen = []
    for module in model.modules():
        if isinstance(module, nn.Conv3d | nn.MaxPool3d | nn.BatchNorm3d):
            module.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[2]))
    model(torch.randn(1, 3, 5, 32, 32))
    assert len(seen) > 20
    assert set(seen) == {5}


@torch.no_grad()
def test_random_kernels_differ_from_frame_to_frame_and_keep_the_deviation():
    """Equal ones could not tell a clip from its reverse."""
    torch.manual_seed(0)
    flat = torchvision.models.resnet18().layer3[0].conv2.weight
    kernel = I3D(num_classes=2).network.layer3[0].conv2.weight
    assert kernel.shape == (256, 256, 3, 3, 3)
    assert not torch.equal(kernel[:, :, 0], kernel[:, :, 1])
    torch.testing.assert_close(kernel.std() * 3**0.5, flat.std(), rtol=0.02, atol=0)


def test_files_of_the_image_network_and_of_the_model_itself_are_loaded(tmp_path):
    donor = donor_of("resnet18")
    torch.save(donor.state_dict(), tmp_path / "resnet18.pth")
    model = I3D(num_classes=3, weights=str(tmp_path / "resnet18.pth"))
    torch.testing.assert_close(model.network.conv1.weight.sum(dim=2), donor.conv1.weight)
    torch.save({"state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "run.ckpt")
    again = I3D(num_classes=3, weights=str(tmp_path / "run.ckpt"))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match=r"resnet18\.pth for resnet34 belong to another architecture: .* missing"):
        I3D(num_classes=3, network="resnet34", weights=str(tmp_path / "resnet18.pth"))


def test_the_network_is_the_architecture_and_its_weights_are_not_needed_to_rebuild_it():
    config = {**CONFIG, "network": "mobilenet_v3_small", "weights": "gone.pth"}
    assert build_model(config, num_classes=2, pretrained=False).num_features == 576


@pytest.mark.parametrize(
    ("name", "freeze", "frozen"),
    [
        ("resnet18", "layer1", ("conv1", "bn1", "layer1")),
        ("resnet18", 1, ("conv1",)),
        ("mobilenet_v3_small", 2, ("features.0", "features.1.")),
        ("regnet_x_400mf", "trunk_output.block2", ("stem", "trunk_output.block1", "trunk_output.block2")),
        ("mobilenet_v3_small", "all", ("",)),
    ],
)
def test_frozen_stages_are_those_up_to_the_one_that_is_named(name, freeze, frozen):
    model = I3D(num_classes=2, network=name, freeze=freeze).train()
    for part, module in model.network.named_modules():
        if isinstance(module, nn.BatchNorm3d):
            assert module.training != part.startswith(frozen), part
    for part, parameter in model.network.named_parameters():
        assert parameter.requires_grad != part.startswith(frozen), part
    assert all(p.requires_grad for p in model.head.parameters())
    assert len(list(model.backbone.parameters())) == len(list(model.parameters())) - 2


REFUSED = ["vit_b_16", "swin_t", "swin_v2_t", "convnext_tiny", "maxvit_t", "shufflenet_v2_x0_5", "inception_v3"]


@pytest.mark.parametrize("name", REFUSED)
def test_networks_that_cannot_be_inflated_say_so_and_which_can(name):
    with pytest.raises(ValueError, match=rf"model\.network \(={name}\) cannot be inflated: .*resnet, squeezenet, vgg"):
        I3D(num_classes=2, network=name)


def test_every_family_that_is_promised_is_tried_above():
    families = {torchvision.models.get_model_builder(name).__module__.split(".")[-1] for name in NAMES}
    assert families == set(FAMILIES)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"network": "resnet81"}, "resnet81.*did you mean .*resnet18"),
        ({"kernel_depth": 2}, r"model\.kernel_depth .=2. must be odd and at least 1"),
        ({"kernel_depth": -1}, "must be odd and at least 1"),
        ({"weights": "V9"}, "weights of resnet18: DEFAULT, IMAGENET1K_V1"),
        ({"freeze": "layer5"}, "conv1, bn1, layer1, layer2, layer3, layer4"),
        ({"network": "googlenet", "in_channels": 6}, "scales its 3 input channels and cannot take 6"),
        ({"in_channels": 2}, r"model\.in_channels .=2. must be 3, or 6"),
    ],
)
def test_mistakes_are_input_errors(options, text):
    with pytest.raises(ValueError, match=text):
        I3D(num_classes=2, **options)
