"""A 3D network that takes one frame at a time has the values of the same network on the whole video.

Two oracles: the network with all paddings in time set to 0; and the network as it is, at the steps that no padding
reaches. The second one also holds where branches meet.
"""

import copy
import os

import pytest
import torch
from test_models import CONFIGS, NUM_CLASSES, small_c3d  # noqa: F401 # a fixture
from torch import nn
from torch.utils._pytree import tree_leaves

from stvid.errors import InputError
from stvid.models.c3d import C3D
from stvid.models.conv3d import Conv3D
from stvid.models.eco import ECO
from stvid.models.i3d import I3D
from stvid.run.model import build_model

# model -> (centre, period), in frames. The centre: half of all paddings in time, each times the strides before it, so
# the first answer comes with 2 * centre + 1 frames where all kernels are odd. The period: the product of the strides.
TIMES = {
    "conv3d": (1 + 1 + 2 + 4, 8),
    "c3d": (1 + 1 + 2 * 2 + 2 * 4 + 2 * 8, 16),
    "r3d_18": (5 + 1 + 3 * 2 + 2 + 3 * 4 + 4 + 3 * 8, 8),
    "r2plus1d_18": (5 + 1 + 3 * 2 + 2 + 3 * 4 + 4 + 3 * 8, 8),
    "mc3_18": (5, 1),
    "s3d": (3 + 2 + 2 * 2 + 2 + 5 * 4 + 2 * 8, 8),
    "i3d": (17, 1),
    "eco": (1 + 1, 2),
}
CLIP_FRAMES = 17  # T in training; the last volume then has 3 steps (conv3d, r3d_18), 2 (c3d), 1 (s3d) or 17
SIZE = 16  # pixels


def ready(model, clips=None):
    """In evaluation mode, with statistics of batch norm as after training: otherwise, the features hardly change."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm3d):
            layer.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(2, 3, CLIP_FRAMES, SIZE, SIZE) if clips is None else clips)
    return model.eval()


@torch.no_grad()
def push_all(model, clips, state):
    """For each frame that brings an answer, its number and the logits; and the size of the state after each frame."""
    answers, sizes = [], []
    for t in range(clips.shape[2]):
        logits, state = model.stream_step(clips[:, :, t], state)
        sizes.append(sum(leaf.numel() for leaf in tree_leaves(list(state.memory.values())) if torch.is_tensor(leaf)))
        if logits is not None:
            answers.append((t, logits))
    return answers, sizes


def assert_same_logits(actual, expected):
    """To 1e-4 of the largest one: random networks have large logits and amplify rounding."""
    torch.testing.assert_close(actual, expected, atol=1e-4 * max(1.0, expected.abs().max().item()), rtol=0)


@torch.no_grad()
def last_volume(model, clips):
    """`B x C x T x H x W` before the mean over time, by the ordinary forward pass."""
    if isinstance(model, Conv3D | C3D):
        return model.layers(clips)
    if isinstance(model, ECO):
        return model.volume(model.encode(clips).unflatten(2, (-1, *model.encoder.grid)).transpose(1, 2))
    volumes, pool = [], model.network.avgpool
    hook = pool.register_forward_hook(lambda _, inputs, output: volumes.append((*inputs, output)))
    model(clips)
    hook.remove()
    return volumes[0][1 if isinstance(pool, nn.AvgPool3d) else 0]  # s3d's own pooling is no mean over all of time


@torch.no_grad()
def logits_of(model, volume):
    features = model.wide(model.pool(volume)) if isinstance(model, C3D) else volume.mean(dim=(2, 3, 4))
    return model.forward_head(features)


def assert_answers_are_those_of_the_video(model, clips, answers, *, centre, period, num_steps):
    """Compares the answers with the ordinary forward pass, at steps that no padding reaches.

    The forward pass has its steps at multiples of the period, so it starts `centre % period` frames later. Its first
    step without padding is then that of the second answer.
    """
    first = centre // period + 1
    volume = last_volume(model, clips[:, :, centre % period :])
    for end, (_, logits) in enumerate(answers[num_steps:], start=first + num_steps):
        wanted = logits_of(model, volume[:, :, end - num_steps : end])
        assert_same_logits(logits, wanted)


@pytest.fixture(params=sorted(TIMES), scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def built(name, small_c3d):  # noqa: F811
    torch.manual_seed(0)
    return ready(build_model(CONFIGS[name], num_classes=NUM_CLASSES, pretrained=False))


def test_all_3d_networks_of_stvid_are_tested_here():
    assert set(TIMES) == set(CONFIGS) - {"cnn_lstm"}


def test_the_answers_of_a_stream_are_those_of_the_network_on_the_whole_video(built, name):
    centre, period = TIMES[name]
    num_steps = last_volume(built, torch.zeros(1, 3, CLIP_FRAMES, SIZE, SIZE)).shape[2]
    state = built.start_stream(CLIP_FRAMES)
    first = 2 * centre + 1 + {"c3d": 15, "s3d": 4 + 8}.get(name, 0)  # poolings with two frames look ahead only
    clips = torch.randn(2, 3, first + (num_steps + 1) * period, SIZE, SIZE)
    answers, sizes = push_all(built, clips, state)
    assert [t for t, _ in answers] == list(range(first - 1, clips.shape[2], period))
    assert (state.network.first, state.network.period, state.network.num_steps) == (first, period, num_steps)
    assert sizes[-1] == sizes[-1 - period]
    assert (answers[0][1] - answers[1][1]).abs().max() > 1e-3
    times = {"centre": centre, "period": period, "num_steps": num_steps}
    assert_answers_are_those_of_the_video(built, clips, answers, **times)


def without_time_padding(model):
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.Conv3d | nn.MaxPool3d):
            height, width = layer.padding[1:] if isinstance(layer.padding, tuple) else [layer.padding] * 2
            layer.padding = (0, height, width)
    return model


CHAINS = {
    "default": lambda: Conv3D(num_classes=NUM_CLASSES),
    "strides 2, 3, 1": lambda: Conv3D(
        num_classes=NUM_CLASSES, widths=[6, 8, 8], depths=[2, 1, 3], strides=[[2, 2, 2], [3, 1, 1], [1, 2, 2]]
    ),
    "no stride in time": lambda: Conv3D(num_classes=NUM_CLASSES, widths=[6, 8], strides=[[1, 2, 2], [1, 2, 2]]),
    "a stride longer than the kernel": lambda: Conv3D(
        num_classes=NUM_CLASSES, widths=[6, 8], strides=[[5, 2, 2], [1, 2, 2]]
    ),
    "c3d": lambda: C3D(num_classes=NUM_CLASSES),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_chain_of_layers_has_the_values_of_the_same_network_without_padding_in_time(chain, small_c3d):  # noqa: F811
    torch.manual_seed(0)
    model = ready(CHAINS[chain]())
    clips = torch.randn(2, 3, 110, SIZE, SIZE)
    state = model.start_stream(CLIP_FRAMES)
    answers, _ = push_all(model, clips, state)
    unpadded, n = without_time_padding(model), state.network.num_steps
    num_steps = (110 - state.network.first) // state.network.period + 1
    with torch.no_grad():
        volume = unpadded.layers(clips)[:, :, :num_steps]  # poolings of c3d keep incomplete windows at the end
    assert len(answers) == num_steps > n
    for j, (_, logits) in enumerate(answers):
        wanted = logits_of(model, volume[:, :, max(j + 1 - n, 0) : j + 1])  # at the start, the steps that there are
        assert_same_logits(logits, wanted)


SHARING = ("default", "strides 2, 3, 1", "a stride longer than the kernel", "mc3_18")
LARGE = ("c3d", "r3d_18", "s3d") if os.environ.get("STVID_TEST_ALL") else ()


@torch.no_grad()
@pytest.mark.parametrize("name", [*SHARING, *LARGE])
def test_streams_of_different_age_share_a_step_where_they_keep_the_same(name, small_c3d):  # noqa: F811
    """Streams that are `period` frames apart, with the frames and answers of each alone; others never share."""
    torch.manual_seed(0)
    model = ready(CHAINS[name]() if name in CHAINS else build_model(CONFIGS[name], num_classes=5, pretrained=False))
    start = model.start_stream(4)
    network = start.network
    age, num_frames = network.period, network.settled + 2 * network.period + 1
    videos, states = torch.randn(2, 1, 3, num_frames, SIZE, SIZE), [start, start]
    alone = [dict(push_all(model, video, start)[0]) for video in videos]
    together = {}
    for t in range(num_frames + age):
        there = [i for i in range(2) if 0 <= t - i * age < num_frames]
        keys = {model.stream_key(states[i]) for i in there}
        frames = [videos[i][:, :, t - i * age] for i in there]
        if len(there) == 2 and len(keys) == 1:
            logits, state = model.stream_step(torch.cat(frames), model.stack_states([states[i] for i in there]))
            states, logits = model.split_states(state, 2), [None] * 2 if logits is None else logits.split(1)
            together |= {t: logits}
        else:
            steps = [model.stream_step(frame, states[i]) for i, frame in zip(there, frames, strict=True)]
            logits = [step[0] for step in steps]
            for i, (_, state) in zip(there, steps, strict=True):
                states[i] = state
        for i, answer in zip(there, logits, strict=True):
            wanted = alone[i].get(t - i * age)
            assert (answer is None) == (wanted is None)
            if answer is not None:
                assert_same_logits(answer, wanted)
    assert list(together) == list(range(network.settled + age, num_frames))
    assert model.stream_key(start) != model.stream_key(model.start_stream(4))  # another network


INFLATED = ("alexnet", "mobilenet_v3_small", "regnet_y_400mf", "squeezenet1_1")
MORE = (
    ("densenet121", "efficientnet_b0", "googlenet", "mobilenet_v2", "vgg11") if os.environ.get("STVID_TEST_ALL") else ()
)


@pytest.mark.parametrize("network", [*INFLATED, *MORE])
def test_every_family_that_i3d_inflates_reads_streams(network):
    torch.manual_seed(0)
    model = I3D(num_classes=NUM_CLASSES, network=network).eval()
    centre = sum(layer.kernel_size[0] // 2 for layer in model.modules() if isinstance(layer, nn.Conv3d))
    first = model.start_stream(1).network.first
    clips = torch.randn(1, 3, first + 2, 64, 64)
    model = ready(model, clips)
    answers, _ = push_all(model, clips, model.start_stream(1))
    assert [t for t, _ in answers] == [first - 1, first, first + 1]
    assert first <= 2 * centre + 1  # shorter where kernels are side by side
    volume = last_volume(model, clips)
    for j, (_, logits) in enumerate(answers, start=first // 2):
        assert_same_logits(logits, logits_of(model, volume[:, :, j : j + 1]))


@pytest.mark.parametrize("name", ["conv3d", "mc3_18"], indirect=True)
def test_streams_of_one_model_do_not_disturb_each_other_and_a_state_can_be_used_again(built):
    clips = torch.randn(2, 3, 30, SIZE, SIZE)
    start = built.start_stream(CLIP_FRAMES)
    together, _ = push_all(built, clips, start)
    states, alone = [start, start], []
    with torch.no_grad():
        for t in range(30):
            frame = clips[:, :, t].clone()
            results = [built.stream_step(frame[[i]], state) for i, state in enumerate(states)]
            states = [state for _, state in results]
            frame.zero_()  # the caller may use its memory for the next frame
            if results[0][0] is not None:
                alone.append(torch.cat([logits for logits, _ in results]))
    for (_, expected), actual in zip(together, alone, strict=True):
        assert_same_logits(actual, expected)


@pytest.mark.parametrize("name", ["conv3d", "mc3_18"], indirect=True)
def test_the_state_of_a_long_stream_does_not_grow(built):
    _, sizes = push_all(built, torch.randn(1, 3, 202, 8, 8), built.start_stream(CLIP_FRAMES))
    assert sizes[49] == sizes[201] > 0


@pytest.mark.parametrize("name", ["conv3d"], indirect=True)
def test_a_model_of_whole_videos_has_the_mean_of_all_steps_so_far(built):
    clips = torch.randn(2, 3, 60, SIZE, SIZE)
    (answers, sizes), unpadded = push_all(built, clips, built.start_stream(None)), without_time_padding(built)
    with torch.no_grad():
        volume = unpadded.layers(clips)
    assert len(answers) == volume.shape[2] == 6
    for j, (_, logits) in enumerate(answers, start=1):
        assert_same_logits(logits, logits_of(built, volume[:, :, :j]))
    assert sizes[20] == sizes[59]


@pytest.mark.parametrize("name", ["conv3d", "mc3_18"], indirect=True)
def test_bf16_autocast_gives_nearly_the_same_answers(built):
    clips, start = torch.randn(1, 3, 26, SIZE, SIZE), built.start_stream(CLIP_FRAMES)
    expected, _ = push_all(built, clips, start)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, _ = push_all(built, clips, start)
    for (_, low), (_, full) in zip(actual, expected, strict=True):
        torch.testing.assert_close(low.float(), full, atol=0.1, rtol=0.05)


def test_a_stream_refuses_frames_of_another_shape_and_a_model_in_training_mode():
    model = Conv3D(num_classes=2)
    with pytest.raises(ValueError, match="needs a model in evaluation mode"):
        model.start_stream(16)
    with pytest.raises(InputError, match=r"clips must be B x 3 x T x H x W, got \(1, 4, 1, 8, 8\)"):
        model.eval().stream_step(torch.zeros(1, 4, 8, 8), model.eval().start_stream(16))
