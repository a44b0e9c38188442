"""The convolution that stands in for torch's; the oracle is torch's own, in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stvid.models.layers import Conv3d, ConvLayer, GridPool3d, Residual, with_safe_convolutions


def gradient(conv, clips, *, bf16=False):
    conv.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        out = conv(clips)
    out.to(clips.dtype).square().mean().backward()
    return out.detach().double(), conv.weight.grad.double()


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(
    ("kernel", "padding", "stride", "size"),
    [
        ((3, 3, 3), (1, 1, 1), 1, 8),
        ((3, 1, 1), (1, 0, 0), 1, 8),
        ((1, 3, 3), (0, 1, 1), 1, 8),
        ((7, 1, 1), (3, 0, 0), (2, 1, 1), 8),
        ((3, 3, 3), (1, 1, 1), 2, 1),
        ((3, 7, 7), (1, 3, 3), (1, 2, 2), 2),
    ],
)
def test_outputs_and_gradients_are_torchs_in_both_precisions(num_frames, kernel, padding, stride, size):
    torch.manual_seed(0)
    plain = nn.Conv3d(16, 24, kernel, padding=padding, stride=stride)
    safe = Conv3d(16, 24, kernel, padding=padding, stride=stride)
    safe.load_state_dict(plain.state_dict())
    clips = torch.randn(4, 16, num_frames, size, size)
    out, weight = gradient(plain.double(), clips.double())
    for bf16, tolerance in ((False, 1e-5), (True, 0.02)):
        found_out, found_weight = gradient(safe, clips, bf16=bf16)
        assert (found_out - out).abs().max() <= tolerance * out.abs().max()
        assert (found_weight - weight).abs().max() <= tolerance * weight.abs().max()


def test_a_network_keeps_its_parameters_and_its_answers():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Sequential(nn.Conv3d(3, 4, 3, stride=2, padding=1)), nn.ReLU(), nn.Conv3d(4, 5, 1))
    clips, before = torch.randn(1, 3, 2, 6, 6), network.state_dict()
    prediction = network(clips)
    safe = with_safe_convolutions(network)
    assert [type(layer) for layer in (safe[0][0], safe[2])] == [Conv3d, Conv3d]
    assert all(torch.equal(value, safe.state_dict()[name]) for name, value in before.items())
    torch.testing.assert_close(safe(clips), prediction)


@pytest.mark.parametrize("time", [1, None])
@pytest.mark.parametrize("size", [(3, 9, 8), (2, 2, 2), (1, 7, 5)])
def test_a_grid_pooling_is_the_same_while_it_is_exported(time, size, monkeypatch):
    volume, pool = torch.randn(2, 3, *size), GridPool3d((time, 4, 4))
    expected = pool(volume)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(pool(volume), expected)


@pytest.mark.parametrize(("kind", "stride"), [("layer", 1), ("layer", 2), ("residual", 1)])
def test_frames_after_a_length_do_not_enter_batch_norm(kind, stride):
    torch.manual_seed(0)
    layer = Residual(4) if kind == "residual" else ConvLayer(4, 6, stride=(stride, 2, 1))
    nn.init.uniform_(layer[1].weight, 0.5, 1.5)
    lengths_B = torch.tensor([7, 3, 5])
    clips = [torch.rand(1, 4, int(length), 6, 5) for length in lengths_B]
    batch = torch.cat([F.pad(clip, (0, 0, 0, 0, 0, 7 - clip.shape[2]), value=100.0) for clip in clips])
    out = layer(batch, lengths_B)
    alone = [F.conv3d(clip, layer[0].weight, stride=layer[0].stride, padding=1) for clip in clips]
    values = torch.cat([x.transpose(0, 1).flatten(1) for x in alone], dim=1)  # C x all valid places
    mean, var = values.mean(1), values.var(1, unbiased=False)
    torch.testing.assert_close(layer[1].running_mean, 0.1 * mean)
    torch.testing.assert_close(layer[1].running_var, 0.9 + 0.1 * values.var(1))
    for i, (x, clip) in enumerate(zip(alone, clips, strict=True)):
        scale = layer[1].weight / (var + layer[1].eps) ** 0.5
        expected = (x - mean[:, None, None, None]) * scale[:, None, None, None]
        expected = F.relu(expected + clip if kind == "residual" else expected)
        assert layer.out_lengths(lengths_B)[i] == x.shape[2]
        torch.testing.assert_close(out[i : i + 1, :, : x.shape[2]], expected, atol=1e-5, rtol=1e-4)
    evaluated = layer.eval()(batch, lengths_B)
    for i, clip in enumerate(clips):
        torch.testing.assert_close(evaluated[i : i + 1, :, : alone[i].shape[2]], layer(clip))
