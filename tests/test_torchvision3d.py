"""torchvision's 3D networks and C3D; the oracles are torchvision itself and the published numbers."""

from functools import partial

import pytest
import torch
import torchvision

from stvid.models.c3d import C3D
from stvid.models.conv3d import Conv3D
from stvid.models.torchvision3d import NAMES, TorchvisionVideoModel

PUBLISHED = {"r3d_18": 33_371_472, "mc3_18": 11_695_440, "r2plus1d_18": 31_505_325, "s3d": 8_320_048}  # 400 classes


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_as_many_as_published(name):
    with torch.device("meta"):
        model = TorchvisionVideoModel(num_classes=400, name=name)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]


def donor_of(name):
    """A torchvision network with other numbers than initialisation gives, batch norm included."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, num_classes=400 if name in NAMES else 1000)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
    return network.eval()


def offered(monkeypatch, donor):
    """Lets torchvision find the donor's weights instead of downloading any."""
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda self, *a, **k: donor.state_dict())


@torch.no_grad()
@pytest.mark.parametrize("name", ["r3d_18", "mc3_18", "r2plus1d_18"])
def test_with_its_weights_it_says_what_torchvision_says(name, monkeypatch):
    donor = donor_of(name)
    offered(monkeypatch, donor)
    clips = torch.randn(1, 3, 16, 48, 48)
    model = TorchvisionVideoModel(num_classes=400, name=name, weights="DEFAULT").eval()
    torch.testing.assert_close(model(clips), donor(clips), atol=1e-5, rtol=1e-4)
    other = TorchvisionVideoModel(num_classes=7, name=name, weights="KINETICS400_V1").eval()
    torch.testing.assert_close(other.forward_features(clips), model.forward_features(clips))
    assert other(clips).shape == (1, 7)


@torch.no_grad()
def test_s3d_says_what_torchvision_says_wherever_that_says_anything(monkeypatch):
    """At its own 16 x 224 x 224, at the least that torchvision takes, and where its poolings leave something over."""
    donor = donor_of("s3d")
    offered(monkeypatch, donor)
    model = TorchvisionVideoModel(num_classes=400, name="s3d", weights="DEFAULT").eval()
    for shape in ((16, 224, 224), (13, 209, 209), (26, 216, 240)):
        clips = torch.randn(1, 3, *shape)
        torch.testing.assert_close(model(clips), donor(clips), atol=1e-5, rtol=1e-4)
    with pytest.raises(RuntimeError):
        donor(torch.randn(1, 3, 12, 209, 209))
    assert model(torch.randn(1, 3, 1, 1, 1)).isfinite().all()


@torch.no_grad()
def test_a_short_run_of_s3d_is_judged_with_its_own_statistics():
    torch.manual_seed(0)
    start = TorchvisionVideoModel(num_classes=3, name="s3d").network.features[:4].train()
    clips = torch.randn(4, 3, 4, 32, 32) + 2
    for _ in range(150):
        trained = start(clips)
    assert (start.eval()(clips) - trained).norm() < 0.05 * trained.norm()


@torch.no_grad()
def test_torchvisions_own_files_are_loaded_and_other_networks_are_not(tmp_path):
    donor = donor_of("mc3_18")
    torch.save(donor.state_dict(), tmp_path / "mc3_18.pth")
    clips = torch.randn(1, 3, 4, 32, 32)
    model = TorchvisionVideoModel(num_classes=400, name="mc3_18", weights=str(tmp_path / "mc3_18.pth")).eval()
    torch.testing.assert_close(model(clips), donor(clips), atol=1e-5, rtol=1e-4)
    assert model.network.state_dict().keys() == donor.state_dict().keys() - {"fc.weight", "fc.bias"}
    torch.save({"state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "run.ckpt")
    again = TorchvisionVideoModel(num_classes=400, name="mc3_18", weights=str(tmp_path / "run.ckpt")).eval()
    torch.testing.assert_close(again(clips), model(clips))
    with pytest.raises(
        ValueError, match=r"mc3_18\.pth for r3d_18 belong to another architecture.* 12 of another shape"
    ):
        TorchvisionVideoModel(num_classes=400, name="r3d_18", weights=str(tmp_path / "mc3_18.pth"))


@pytest.mark.parametrize("name", ["r3d_18", "mc3_18"])
def test_resnet18s_kernels_are_spread_over_time(name, monkeypatch):
    """Layer by layer: the sum over time is the kernel of the picture, and every frame has the same share."""
    donor = donor_of("resnet18")
    offered(monkeypatch, donor)
    model = TorchvisionVideoModel(num_classes=1000, name=name, inflate="DEFAULT").network
    pairs = [(model.stem[0], donor.conv1), (model.stem[1], donor.bn1)]
    for i in range(1, 5):
        for ours, theirs in zip(getattr(model, f"layer{i}"), getattr(donor, f"layer{i}"), strict=True):
            pairs += [(ours.conv1[0], theirs.conv1), (ours.conv1[1], theirs.bn1)]
            pairs += [(ours.conv2[0], theirs.conv2), (ours.conv2[1], theirs.bn2)]
            if theirs.downsample is not None:
                pairs += list(zip(ours.downsample, theirs.downsample, strict=True))
    assert len(pairs) == 40
    for ours, theirs in pairs:
        for key, value in theirs.state_dict().items():
            actual = ours.state_dict()[key]
            if value.ndim == 4:
                assert torch.equal(actual, actual[:, :, :1].expand_as(actual))
                actual = actual.sum(dim=2)
            torch.testing.assert_close(actual, value)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mc3_18", "s3d"])
def test_two_equal_pictures_a_frame_get_the_answer_of_one(name, monkeypatch):
    donor = donor_of(name)
    offered(monkeypatch, donor)
    clips = torch.randn(1, 3, 4, 32, 32)
    item = TorchvisionVideoModel(num_classes=400, name=name, weights="DEFAULT").eval()
    two = TorchvisionVideoModel(num_classes=400, name=name, weights="DEFAULT", in_channels=6).eval()
    torch.testing.assert_close(two(torch.cat([clips, clips], dim=1)), item(clips), atol=1e-5, rtol=1e-4)


def learned(model, clips):
    """Names of what a step of training changes, statistics included."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(clips).square().sum().backward()
    optimizer.step()
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


MC3, S3D = partial(TorchvisionVideoModel, name="mc3_18"), partial(TorchvisionVideoModel, name="s3d")
SMALL = partial(Conv3D, widths=[4, 6, 8], depths=[1, 2, 1], strides=[[1, 2, 2]] * 3)


@pytest.mark.parametrize(
    ("build", "freeze", "stored", "changed"),
    [
        (MC3, 2, {"network.stem", "network.layer1"}, {"network.layer2", "network.layer3", "network.layer4", "head"}),
        (
            MC3,
            "layer3",
            {"network.stem", "network.layer1", "network.layer2", "network.layer3"},
            {"network.layer4", "head"},
        ),
        (MC3, "all", {"network.stem", "network.layer1", "network.layer4"}, {"head"}),
        (S3D, "features.12", {f"network.features.{i}." for i in (0, 2, 3, 5, 12)}, {"network.features.14.", "head"}),
        (SMALL, "stage2", {"layers.0", "layers.1", "layers.2"}, {"layers.3", "head"}),
        (SMALL, "all", {"layers"}, {"head"}),
        (C3D, 5, {"layers"}, {"wide.1", "wide.4", "head"}),
        (C3D, "wide", {"layers", "wide"}, {"head"}),
    ],
)
def test_frozen_stages_stay_as_they_are_and_the_others_learn(build, freeze, stored, changed):
    torch.manual_seed(0)
    model = build(num_classes=3, freeze=freeze)
    actual = learned(model, torch.randn(2, 3, 4, 32, 32))
    assert not [name for name in actual if name.startswith(tuple(stored))]
    assert all(any(name.startswith(part) for name in actual) for part in changed)


@pytest.mark.parametrize("build", [MC3, SMALL, C3D])
def test_the_backbone_is_all_but_the_head(build):
    with torch.device("meta"):
        model = build(num_classes=3)
    backbone = [id(p) for p in model.backbone.parameters()]
    assert backbone == [id(p) for name, p in model.named_parameters() if not name.startswith("head.")]
    assert len(backbone) == len(list(model.parameters())) - 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "r3d_19"}, "must be one of r3d_18, mc3_18, r2plus1d_18, s3d"),
        ({"weights": "IMAGENET"}, "DEFAULT, KINETICS400_V1"),
        ({"inflate": "KINETICS400_V1"}, r"model\.inflate .* weights of resnet18: DEFAULT, IMAGENET1K_V1"),
        ({"weights": "DEFAULT", "inflate": "DEFAULT"}, "give one of them"),
        (
            {"name": "r2plus1d_18", "inflate": "DEFAULT"},
            "r2plus1d_18 do not have the shapes .*r3d_18 or mc3_18, or model=i3d",
        ),
        ({"freeze": 6}, "model.freeze .=6. must be all, a number from 0 to 5.* stem, layer1, layer2"),
        ({"freeze": "layer9"}, "model.freeze .=layer9. must be all"),
        ({"in_channels": 4}, "model.in_channels .=4. must be 3, or 6"),
    ],
)
def test_mistakes_are_input_errors(options, text):
    with torch.device("meta"), pytest.raises(ValueError, match=text):
        TorchvisionVideoModel(num_classes=2, **options)


def test_c3d_is_the_published_network():
    with torch.device("meta"):
        model = C3D(num_classes=101).eval()
        assert model.layers(torch.empty(1, 3, 16, 112, 112)).shape == (1, 512, 1, 4, 4)
    widths = [(3, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 512), (512, 512)]
    by_hand = sum(27 * a * b + b for a, b in widths) + 8193 * 4096 + 4097 * 4096 + 4097 * 101
    assert sum(p.numel() for p in model.parameters()) == by_hand == 78_409_573
