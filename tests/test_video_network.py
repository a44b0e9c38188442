"""torchvision's 3D networks and C3D; the oracles are torchvision itself and the published numbers."""

import pytest
import torch
import torchvision

from stvid.models.c3d import C3D
from stvid.models.lengths import each_length
from stvid.models.video_network import NAMES, VideoNetwork

PUBLISHED = {"r3d_18": 33_371_472, "mc3_18": 11_695_440, "r2plus1d_18": 31_505_325}  # 400 classes


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_as_many_as_published(name):
    with torch.device("meta"):
        model = VideoNetwork(num_classes=400, name=name)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]


def donor_of(name):
    """A torchvision network with other numbers than initialisation gives, batch norm included."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, num_classes=400)
    network.train()(torch.randn(2, 3, 16, 32, 32))
    return network.eval()


@pytest.mark.parametrize(("name", "size"), [("r3d_18", 48), ("mc3_18", 48), ("r2plus1d_18", 48)])
def test_with_its_weights_it_says_what_torchvision_says(name, size, monkeypatch):
    donor = donor_of(name)
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda self, *a, **k: donor.state_dict())
    clips = torch.randn(1, 3, 16, size, size)
    with torch.no_grad():
        model = VideoNetwork(num_classes=400, name=name, weights="DEFAULT").eval()
        torch.testing.assert_close(model(clips), donor(clips), atol=1e-5, rtol=1e-4)
        other = VideoNetwork(num_classes=7, name=name, weights="KINETICS400_V1").eval()
        torch.testing.assert_close(other.forward_features(clips), model.forward_features(clips))
        assert other(clips).shape == (1, 7)


def test_frozen_stages_stay_as_they_are_and_the_others_learn():
    torch.manual_seed(0)
    model = VideoNetwork(num_classes=3, name="mc3_18", freeze=2).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(2, 3, 4, 32, 32)).square().sum().backward()
    optimizer.step()
    changed = {name.split(".")[1] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not changed & {"0", "1"}
    assert {"2", "3", "4"} <= changed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "r3d_19"}, "must be one of r3d_18, mc3_18, r2plus1d_18"),
        ({"weights": "IMAGENET"}, "DEFAULT, KINETICS400_V1"),
        ({"freeze": 6}, "model.freeze .=6. must lie between 0 and 5"),
    ],
)
def test_mistakes_are_told(options, words):
    with pytest.raises(ValueError, match=words):
        VideoNetwork(num_classes=2, **options)


def test_c3d_is_the_published_network():
    with torch.device("meta"):
        model = C3D(num_classes=101).eval()
        assert model.layers(torch.empty(1, 3, 16, 112, 112)).shape == (1, 512, 1, 4, 4)
    widths = [(3, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 512), (512, 512)]
    by_hand = sum(27 * a * b + b for a, b in widths) + 8193 * 4096 + 4097 * 4096 + 4097 * 101
    assert sum(p.numel() for p in model.parameters()) == by_hand == 78_409_573


def test_clips_of_each_length_go_through_together_and_without_their_padding():
    seen = []

    def network(clips):
        seen.append(tuple(clips.shape))
        return clips.mean(dim=(2, 3, 4))

    clips = torch.randn(4, 3, 9, 2, 2)
    lengths = torch.tensor([9, 4, 9, 2])
    for i, n in enumerate(lengths):
        clips[i, :, n:] = float("nan")
    out = each_length(network, clips, lengths)
    assert sorted(seen) == [(1, 3, 2, 2, 2), (1, 3, 4, 2, 2), (2, 3, 9, 2, 2)]
    torch.testing.assert_close(out, torch.stack([clips[i, :, :n].mean(dim=(1, 2, 3)) for i, n in enumerate(lengths)]))
