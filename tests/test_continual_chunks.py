"""Chunks of frames give the answers of the same network frame by frame, from the first one on."""

import os

import pytest
import torch
from test_continual import CHAINS, CLIP_FRAMES, SIZE, assert_same_logits, push_all, ready
from test_models import CONFIGS, NUM_CLASSES, small_c3d  # noqa: F401 # a fixture

from stvid.models.continual_chunks import ContinualChunks
from stvid.models.i3d import I3D
from stvid.run.model import build_model

NETWORKS = ("conv3d", "mc3_18", *(("i3d", "r2plus1d_18", "r3d_18", "s3d") if os.environ.get("STVID_TEST_ALL") else ()))


@torch.no_grad()
def answers_of_chunks(chunks, model, clips):
    """For each chunk that brings an answer, its number and the logits. The states begin with zeros."""
    answers, batch, period = [], len(clips), chunks.period
    states = {name: torch.zeros(batch, *shape) for name, shape in chunks.states.items()}
    for number in range(clips.shape[2] // period):
        chunk, count = clips[:, :, number * period : (number + 1) * period], torch.full((batch, 1), number)
        features, valid, states = chunks(chunk, count, states)
        assert valid.all() or not valid.any()
        if valid.all():
            answers.append((number, model.forward_head(features)))
    return answers


def assert_the_same_answers(model, num_frames=CLIP_FRAMES, size=SIZE):
    start = model.start_stream(num_frames)
    chunks = ContinualChunks(model, num_frames=num_frames, size=(size, size))
    num_chunks = chunks.first // chunks.period + (chunks.num_steps or 3) + 2
    clips = torch.randn(2, 3, num_chunks * chunks.period, size, size)
    wanted, _ = push_all(model, clips, start)
    actual = answers_of_chunks(chunks, model, clips)
    assert [number for number, _ in actual] == [frame // chunks.period for frame, _ in wanted]
    assert len(actual) > (chunks.num_steps or 3)
    for (_, logits), (_, expected) in zip(actual, wanted, strict=True):
        assert_same_logits(logits, expected)


@pytest.mark.parametrize("chain", CHAINS)
def test_a_chain_of_layers(chain, small_c3d):  # noqa: F811
    torch.manual_seed(0)
    assert_the_same_answers(ready(CHAINS[chain]()))


def test_the_mean_of_all_steps_so_far():
    torch.manual_seed(0)
    assert_the_same_answers(ready(CHAINS["strides 2, 3, 1"]()), num_frames=None)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_whose_branches_meet(name):
    torch.manual_seed(0)
    assert_the_same_answers(ready(build_model(CONFIGS[name], num_classes=NUM_CLASSES, pretrained=False)))


@pytest.mark.skipif("STVID_TEST_ALL" not in os.environ, reason="large networks: only with STVID_TEST_ALL=1")
@pytest.mark.parametrize("network", ["googlenet", "efficientnet_b0"])
def test_inflated_networks_with_many_branches(network):
    torch.manual_seed(0)
    model = I3D(num_classes=NUM_CLASSES, network=network).eval()
    clips = torch.randn(1, 3, model.start_stream(1).network.first + 2, 64, 64)
    assert_the_same_answers(ready(model, clips), num_frames=1, size=64)


@torch.no_grad()
def test_rows_of_a_batch_are_streams_of_their_own():
    """The second stream begins when the first one is at its third chunk."""
    torch.manual_seed(0)
    model = ready(CHAINS["default"]())
    chunks = ContinualChunks(model, num_frames=CLIP_FRAMES, size=(SIZE, SIZE))
    clips = torch.randn(2, 3, 7 * chunks.period, SIZE, SIZE)
    alone = [dict(answers_of_chunks(chunks, model, clips[[row]])) for row in range(2)]
    states = {name: torch.zeros(2, *shape) for name, shape in chunks.states.items()}
    seen = [[], []]
    for number in range(9):
        counts = torch.tensor([[number], [max(number - 2, 0)]])
        rows = [clips[row, :, (c % 7) * 8 : (c % 7 + 1) * 8] for row, c in enumerate(counts[:, 0].tolist())]
        features, valid, states = chunks(torch.stack(rows), counts, states)
        if number < 2:  # a server would not run this row at all; afterwards its stream begins with zeros
            for state in states.values():
                state[1] = 0
        for row, count in enumerate(counts[:, 0].tolist()):
            if valid[row] and number >= 2 * row and count < 7:
                seen[row].append(count)
                assert_same_logits(model.forward_head(features)[row], alone[row][count][0])
    assert seen == [list(alone[0]), list(alone[1])] == [[2, 3, 4, 5, 6]] * 2


def test_the_weights_are_those_of_the_moment_and_belong_to_the_module():
    torch.manual_seed(0)
    model = ready(CHAINS["default"]())
    chunks = ContinualChunks(model, num_frames=CLIP_FRAMES, size=(SIZE, SIZE))
    clips = torch.randn(1, 3, 48, SIZE, SIZE)
    before = answers_of_chunks(chunks, model, clips)
    with torch.no_grad():
        model.layers[0][0].weight.zero_()
    assert_same_logits(answers_of_chunks(chunks, model, clips)[-1][1], before[-1][1])
    sizes = {name: tensor.shape for name, tensor in chunks.state_dict().items() if tensor.ndim == 5}
    assert [size[0] for size in sizes.values()] == [16, 32, 64, 128]
