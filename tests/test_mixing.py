"""Mixup and cutmix on clips of one grey level, so that pixels show which clips were mixed."""

import numpy as np
import pytest
import torch

from stvid.errors import InputError
from stvid.training.mixing import Mixing

TARGETS = torch.eye(4)


def plain_clips(*, frames=3, height=24, width=32):
    """4 clips, each of one grey level: 0, 60, 120, 180; in the memory order of the loader, channels last."""
    levels = torch.tensor([0, 60, 120, 180], dtype=torch.uint8).view(4, 1, 1, 1, 1)
    return levels.expand(4, frames, height, width, 3).contiguous().permute(0, 1, 4, 2, 3)


def mixed(mixing, seed, inputs=None, lengths=None, targets=TARGETS):
    inputs = plain_clips() if inputs is None else inputs
    return mixing(inputs, lengths, targets, np.random.default_rng(seed))


def partner_and_share(targets_BK):
    """Partner of the first clip, and its own share."""
    others = targets_BK[0, 1:]
    return (int(others.argmax()) + 1, float(targets_BK[0, 0])) if others.any() else (None, float(targets_BK[0, 0]))


@pytest.mark.parametrize("seed", range(5))
def test_mixup_blends_every_pixel_by_the_share_of_the_label(seed):
    clips, lengths, targets = mixed(Mixing(mixup=0.8), seed)
    assert lengths is None
    assert clips.dtype == torch.uint8
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    partner, share = partner_and_share(targets)
    levels = [0, 60, 120, 180]
    for i in range(4):
        expected = share * levels[i] + (1 - share) * levels[(i + partner) % 4]
        assert (clips[i] == clips[i, 0, 0, 0, 0]).all()
        assert abs(float(clips[i, 0, 0, 0, 0]) - expected) <= 0.5 + 1e-4
        assert targets[i, i].item() == pytest.approx(share)
        assert targets[i, (i + partner) % 4].item() == pytest.approx(1 - share, abs=1e-6)


def test_mixups_shares_are_those_of_the_beta_distribution():
    shares = [partner_and_share(mixed(Mixing(mixup=0.8), seed)[2])[1] for seed in range(400)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.02)


@pytest.mark.parametrize("seed", range(10))
def test_cutmix_pastes_one_box_and_labels_by_its_area(seed):
    clips, _, targets = mixed(Mixing(cutmix=1.0), seed)
    partner, share = partner_and_share(targets)
    pasted = clips[0, 0, 0] != 0
    assert 1 - pasted.float().mean().item() == pytest.approx(share, abs=1e-6)
    if partner is None:
        return
    rows, columns = pasted.any(1).nonzero()[:, 0], pasted.any(0).nonzero()[:, 0]
    assert pasted.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1), "a box without holes"
    for i in range(4):
        custom, other = 60 * i, 60 * ((i + partner) % 4)
        assert (clips[i][..., pasted] == other).all()
        assert (clips[i][..., ~pasted] == custom).all()
        assert targets[i, i].item() == pytest.approx(share)


def test_some_boxes_are_cut_off_at_the_edge_and_labelled_by_what_is_left():
    shares = [partner_and_share(mixed(Mixing(cutmix=1.0), seed)[2])[1] for seed in range(200)]
    assert np.mean(shares) > 0.55  # of whole boxes it would be half
    assert min(shares) >= 0


@pytest.mark.parametrize("mixing", [Mixing(mixup=0.8), Mixing(cutmix=1.0)])
def test_a_longer_partner_is_shown_faster_and_lengths_and_padding_stay(mixing):
    lengths = torch.tensor([4, 8])
    clips = torch.zeros(2, 8, 3, 16, 16, dtype=torch.uint8)
    clips[0, :4] = 100
    clips[1] = 10 * torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1)
    for seed in range(20):
        out, actual, targets = mixed(mixing, seed, clips, lengths, torch.eye(2))
        share = targets[0, 0].item()
        assert actual.tolist() == [4, 8]
        assert not out[0, 4:].any()
        if mixing.mixup:
            faster = [share * 100 + (1 - share) * level for level in (10, 30, 50, 70)]
            assert out[0, :4, 0, 0, 0].tolist() == pytest.approx(faster, abs=0.501)
            slower = [share * 10 * t + (1 - share) * 100 for t in range(8)]
            assert out[1, :, 0, 0, 0].tolist() == pytest.approx(slower, abs=0.501)
        elif share < 1:
            assert [set(frame.unique().tolist()) - {100} for frame in out[0, :4]] == [{10}, {30}, {50}, {70}]
            assert all(100 in frame for frame in out[1])


def test_of_features_the_frames_are_blended_exactly():
    torch.manual_seed(0)
    features, lengths = torch.randn(4, 5, 7), torch.tensor([5, 5, 5, 5])
    out, _, targets = mixed(Mixing(mixup=0.8), 0, features, lengths)
    partner, share = partner_and_share(targets)
    torch.testing.assert_close(out, share * features + (1 - share) * features.roll(-partner, 0))


def test_cutmix_of_features_is_told_with_the_remedy():
    for mixing in (Mixing(cutmix=1.0), Mixing(mixup=0.8, cutmix=1.0)):
        for seed in range(3):
            with pytest.raises(InputError, match=r"mixing.cutmix \(=1.0\).*data.features=off"):
                mixed(mixing, seed, torch.randn(4, 5, 7))


def test_with_both_each_batch_has_one_of_them_by_a_fair_coin():
    both = Mixing(mixup=0.8, cutmix=1.0)
    cut = [len(mixed(both, seed)[0][0].unique()) == 2 for seed in range(200)]
    assert 0.35 < np.mean(cut) < 0.6  # an empty box and mixup look alike


def test_a_share_of_the_batches_is_mixed():
    half = Mixing(mixup=1.0, probability=0.5)
    whole = [torch.equal(mixed(half, seed)[2], TARGETS) for seed in range(200)]
    assert 0.4 < np.mean(whole) < 0.6
    assert all(torch.equal(mixed(Mixing(mixup=1.0, probability=0.0), seed)[2], TARGETS) for seed in range(20))


@pytest.mark.parametrize("mixing", [Mixing(), Mixing(mixup=0.8), Mixing(cutmix=1.0)])
def test_one_clip_alone_or_nothing_asked_for_changes_nothing(mixing):
    clips = plain_clips()
    clips = clips[:1] if mixing.mixup or mixing.cutmix else clips
    out, _, targets = mixed(mixing, 0, clips, None, TARGETS[: len(clips)])
    assert torch.equal(out, clips)
    assert torch.equal(targets, TARGETS[: len(clips)])


@pytest.mark.parametrize("mixing", [Mixing(mixup=0.8), Mixing(cutmix=1.0)])
def test_the_same_chance_gives_the_same_batch_in_the_same_memory_order_and_leaves_the_input_alone(mixing):
    clips, targets = plain_clips(), TARGETS.clone()
    item, again = (mixed(mixing, 3, clips, None, targets) for _ in range(2))
    assert torch.equal(item[0], again[0])
    assert torch.equal(item[2], again[2])
    assert torch.equal(clips, plain_clips())
    assert torch.equal(targets, TARGETS)
    assert item[0].stride() == clips.stride()
    assert any(not torch.equal(mixed(mixing, seed)[2], item[2]) for seed in range(5))


def test_mixed_labels_can_be_mixed_again():
    soft = torch.tensor([[0.5, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    _, _, targets = mixed(Mixing(mixup=0.8), 0, None, None, soft)
    torch.testing.assert_close(targets.sum(1), torch.ones(4))


@pytest.mark.parametrize("arguments", [{"mixup": -0.1}, {"cutmix": -1}, {"probability": 1.5}])
def test_impossible_mixings_are_told(arguments):
    ((key, value),) = arguments.items()
    with pytest.raises(InputError, match=rf"mixing.{key} \(={value}\)"):
        Mixing(**arguments)
