"""What models take; the oracle is the network itself, run without memory on pictures of that size and of one less."""

import pytest
import torch

from stvid.errors import InputError
from stvid.models.encoders import build_encoder
from stvid.models.i3d import I3D

LEAST = {
    "alexnet": 63,
    "convnext_tiny": 32,
    "densenet121": 29,
    "efficientnet_b0": 1,
    "efficientnet_v2_s": 1,
    "googlenet": 15,
    "inception_v3": 75,
    "mobilenet_v3_small": 1,
    "resnet18": 1,
    "shufflenet_v2_x0_5": 1,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
    "swin_t": 4,
    "swin_v2_t": 4,
    "vgg11": 32,
    "timm/resnet10t": 1,
}


@pytest.mark.parametrize("name", LEAST)
def test_the_least_that_is_told_is_the_least_that_the_network_takes(name):
    least = LEAST[name]
    with torch.device("meta"), torch.no_grad():
        encoder = build_encoder(name).eval()
        assert encoder(torch.empty(1, 3, least, least + 2)).shape == (1, encoder.num_features)
        if least == 1:
            return
        with pytest.raises(RuntimeError):
            encoder.network(torch.empty(1, 3, least - 1, least - 1))
        with pytest.raises(InputError) as error:
            encoder(torch.empty(1, 3, least + 2, least - 1))
    message = (
        f"model.encoder (={name}) takes images of at least {least} x {least} pixels, not {least + 2} x {least - 1}"
    )
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["densenet121", "squeezenet1_1", "vgg11"])
def test_an_inflated_network_takes_what_its_image_network_takes(name):
    least = LEAST[name]
    with torch.device("meta"), torch.no_grad():
        model = I3D(num_classes=2, network=name).eval()
        assert model(torch.empty(1, 3, 2, least, least)).shape == (1, 2)
        with pytest.raises(RuntimeError):
            model.network(torch.empty(1, 3, 2, least - 1, least - 1))
        with pytest.raises(InputError, match=rf"model\.network \(={name}\) takes .* {least} x {least} pixels"):
            model(torch.empty(1, 3, 2, least - 1, least))


@pytest.mark.parametrize(
    ("name", "image_size", "size"),
    [
        ("maxvit_t", None, 224),
        ("vit_b_32", None, 224),
        ("vit_b_32", 64, 64),
        ("timm/vit_tiny_patch16_224", None, 224),
        ("timm/vit_tiny_patch16_224", 48, 48),
    ],
)
def test_a_network_for_one_size_takes_no_other(name, image_size, size):
    with torch.device("meta"), torch.no_grad():
        encoder = build_encoder(name, image_size=image_size).eval()
        assert encoder(torch.empty(1, 3, size, size)).shape == (1, encoder.num_features)
        with pytest.raises((AssertionError, RuntimeError)):
            encoder.network(torch.empty(1, 3, size, 160))
        with pytest.raises(
            InputError, match=rf"images of {size} x {size} pixels only, not {size} x 160: set clip.size"
        ):
            encoder(torch.empty(1, 3, size, 160))
