"""The sequence side of cnn_lstm: no padding is read, whatever the reader and the pooling; a stream says the same."""

import pytest
import torch
import torchvision
from test_models import NUM_CLASSES, assert_padding_is_not_read, padded_batch
from torch import nn

from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.recurrent import Pooling
from stvid.training.losses import CrossEntropy, by_branch, loss_of_branches

READERS = [
    {"recurrent": recurrent, "pooling": pooling}
    for recurrent in ("lstm", "gru", "none")
    for pooling in ("last", "mean", "max", "attention")
]
BOTH_WAYS = [
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "pooling": "mean"},
    {"recurrent": "gru", "num_layers": 2, "bidirectional": True},
]
BEFORE_READERS = [
    {"feature_norm": "batch", "projection": 8},
    {"feature_norm": "batch", "recurrent": "none", "pooling": "max"},
    {"projection": 8, "pooling": "mean"},
    {"branches": 2, "feature_norm": "batch", "projection": 8},
    {"branches": 3, "recurrent": "gru", "pooling": "max"},
    {"encoder": "resnet18", "grid": (2, 1), "feature_norm": "batch", "projection": 8, "branches": 2},
]


def shown(options):
    return "-".join(map(str, options.values()))


@pytest.mark.parametrize("options", READERS + BOTH_WAYS + BEFORE_READERS, ids=shown)
def test_no_reader_reads_padding(options):
    torch.manual_seed(0)
    assert_padding_is_not_read(CNNLSTM(num_classes=NUM_CLASSES, **options))


@pytest.mark.parametrize("chunk", [1, 5, 7])
def test_chunks_change_no_logit_either(chunk):
    torch.manual_seed(0)
    assert_padding_is_not_read(CNNLSTM(num_classes=NUM_CLASSES, encoder_chunk=chunk))


def test_batches_of_any_lengths_in_any_order_say_the_same_of_each_clip():
    """A property, over batches drawn at random."""
    torch.manual_seed(0)
    model = CNNLSTM(num_classes=NUM_CLASSES, num_layers=2, pooling="attention", encoder_chunk=6).eval()
    clips = torch.randn(6, 3, 12, 32, 32)
    with torch.no_grad():
        for _ in range(20):
            lengths = torch.randint(1, 13, (6,))
            chosen = torch.randperm(6)[: torch.randint(1, 7, ()).item()]
            together = model(clips[chosen, :, : lengths[chosen].max()], lengths[chosen])
            for i, row in zip(chosen.tolist(), together, strict=True):
                torch.testing.assert_close(model(clips[[i], :, : lengths[i]])[0], row, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [*READERS, *BEFORE_READERS, {"num_layers": 2, "pooling": "mean"}], ids=shown)
def test_a_stream_frame_by_frame_says_what_the_whole_sequence_says(options):
    torch.manual_seed(0)
    model = CNNLSTM(num_classes=NUM_CLASSES, **options).eval()
    clips, state = torch.randn(2, 3, 9, 32, 32), None
    sizes = set()
    with torch.no_grad():
        for t in range(9):
            logits, state = model.stream_step(clips[:, :, t], state)
            torch.testing.assert_close(logits, model(clips[:, :, : t + 1]), atol=1e-5, rtol=1e-5)
            sizes.add(sum(tensor.numel() for tensor in flat(state)))
    assert len(sizes) == 1


def flat(state):
    if isinstance(state, torch.Tensor):
        return [state]
    return [tensor for part in state or () if part is not None for tensor in flat(part)]


def test_a_bidirectional_model_has_no_stream():
    with pytest.raises(ValueError, match="cannot read a stream"):
        CNNLSTM(num_classes=2, bidirectional=True).stream_step(torch.zeros(1, 3, 32, 32))


def test_padding_stays_out_of_the_encoders_batch_norm_in_training_too():
    torch.manual_seed(0)
    model = CNNLSTM(num_classes=NUM_CLASSES, dropout=0.0).train()
    clips, lengths = padded_batch()
    other = clips.clone()
    other[1, :, 5:] = 100.0
    torch.testing.assert_close(model(clips, lengths), model(other, lengths))


def test_padding_stays_out_of_the_batch_norm_of_features():
    """Against the statistics of the valid frames alone, as torch's batch norm keeps them (momentum 0.1)."""
    torch.manual_seed(0)
    model = CNNLSTM(num_classes=NUM_CLASSES, feature_norm="batch").train()
    features, lengths = torch.randn(3, 8, 96) * 5 + 2, torch.tensor([8, 5, 2])
    model.aggregate(features, lengths)
    valid = torch.cat([row[:length] for row, length in zip(features, lengths, strict=True)])
    norm = model.frame_features.layers[0]
    torch.testing.assert_close(norm.running_mean, 0.1 * valid.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * valid.var(0))


def test_the_projection_stands_between_encoder_and_lstm():
    torch.manual_seed(0)
    model = CNNLSTM(num_classes=NUM_CLASSES, projection=7, hidden_size=5, pooling="last").eval()
    linear = model.frame_features.layers[0]
    assert (linear.in_features, linear.out_features, model.recurrent.layers.input_size) == (96, 7, 7)
    features = torch.randn(2, 4, 96)
    states, _ = model.recurrent.layers((features @ linear.weight.T + linear.bias).clamp_min(0))
    torch.testing.assert_close(model.aggregate(features), states[:, -1])
    assert not any("frame_features" in name for name in CNNLSTM(num_classes=2).state_dict()), "older runs still load"


def test_with_a_grid_each_place_of_the_map_passes_the_layers_before_the_mean():
    """Against resnet18's own last map, pooled and normalised by hand."""
    torch.manual_seed(0)
    options = {"encoder": "resnet18", "grid": (2, 3), "feature_norm": "batch", "projection": 7}
    model = CNNLSTM(num_classes=NUM_CLASSES, recurrent="none", pooling="mean", **options).eval()
    first, linear, second, _ = model.frame_features.layers
    for norm in (first, second):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    network = torchvision.models.resnet18().eval()
    network.load_state_dict(model.encoder.network.state_dict(), strict=False)
    maps = []
    network.layer4.register_forward_hook(lambda module, inputs, output: maps.append(output))
    clips_BCTHW = torch.randn(1, 3, 4, 64, 96)
    with torch.no_grad():
        network(clips_BCTHW[0].transpose(0, 1))
        grids_TCGG = nn.functional.adaptive_avg_pool2d(maps[0], (2, 3))
        normed = (grids_TCGG.movedim(1, -1) - first.running_mean) / (first.running_var + 1e-5).sqrt()
        outputs = (normed @ linear.weight.T - second.running_mean) / (second.running_var + 1e-5).sqrt()
        torch.testing.assert_close(
            model.forward_features(clips_BCTHW)[0], outputs.clamp_min(0).mean(dim=(0, 1, 2)), atol=1e-5, rtol=1e-5
        )


def test_the_lstm_reads_features_in_order_of_time():
    """Against torch's LSTM fed by hand, frame by frame."""
    torch.manual_seed(0)
    model = CNNLSTM(num_classes=NUM_CLASSES).eval()
    clips = torch.randn(1, 3, 6, 64, 64)
    state = None
    with torch.no_grad():
        for t in range(6):
            out, state = model.recurrent.layers(model.encoder(clips[:, :, t])[:, None], state)
        torch.testing.assert_close(model.forward_features(clips), out[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [*READERS, *BOTH_WAYS, *BEFORE_READERS], ids=shown)
def test_every_parameter_of_every_reader_learns(options):
    torch.manual_seed(0)
    model = CNNLSTM(num_classes=3, recurrent_dropout=0.3, **options).train()
    clips, lengths = padded_batch()
    model(clips, lengths).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_pooling_is_what_it_says():
    states, lengths = torch.randn(2, 4, 3), torch.tensor([4, 2])
    short = states[1, :2]
    torch.testing.assert_close(Pooling("mean", num_features=3)(states, lengths)[1], short.mean(0))
    torch.testing.assert_close(Pooling("max", num_features=3)(states, lengths)[1], short.amax(0))
    torch.testing.assert_close(Pooling("last", num_features=3)(states, lengths)[1], short[1])
    attention = Pooling("attention", num_features=3)
    weights = (short @ attention.score.weight[0]).softmax(0)
    torch.testing.assert_close(attention(states, lengths)[1], weights @ short)


def test_without_anything_recurrent_order_has_no_influence():
    torch.manual_seed(0)
    model = CNNLSTM(num_classes=2, recurrent="none", pooling="mean").eval()
    clips = torch.randn(1, 3, 6, 32, 32)
    torch.testing.assert_close(model(clips), model(clips[:, :, torch.randperm(6)]))
    assert model.num_features == model.encoder.num_features


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_recurrent_dropout_leaves_out_weights_from_step_to_step_in_training_only(kind):
    torch.manual_seed(0)
    model = CNNLSTM(num_classes=2, recurrent=kind, dropout=0.0, recurrent_dropout=0.5)
    model.encoder.eval()
    model.recurrent.train()
    item, many = torch.randn(1, 1, 96), torch.randn(1, 5, 96)
    with torch.no_grad():
        # the first step comes from no other, so nothing is left out of it
        torch.testing.assert_close(model.aggregate(item), model.aggregate(item))
        assert not torch.equal(model.aggregate(many), model.aggregate(many))
        model.eval()
        torch.testing.assert_close(model.aggregate(many), model.recurrent.layers(many)[0][:, -1])
    weights = dict(model.recurrent.layers.named_parameters())
    model.recurrent.train()
    model.recurrent.recurrent_dropout = 1e-12  # the other path, nothing left out
    packed = model.recurrent(many.expand(2, -1, -1), torch.tensor([5, 3]))
    whole = model.recurrent.layers(many)[0]
    torch.testing.assert_close(packed[0], whole[0])
    torch.testing.assert_close(packed[1, :3], whole[0, :3])
    assert all(isinstance(weight, nn.Parameter) for weight in weights.values())


def test_forget_gates_start_open():
    lstm = CNNLSTM(num_classes=2, hidden_size=8, num_layers=2, bidirectional=True).recurrent.layers
    biases = [p for name, p in lstm.named_parameters() if name.startswith("bias_ih")]
    assert len(biases) == 4
    assert all((bias[8:16] == 1).all() and not (bias[:8] == 1).any() for bias in biases)
    weight = lstm.weight_hh_l0[:8]
    torch.testing.assert_close(weight @ weight.T, torch.eye(8), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pooling": "first"}, "model.pooling .=first. must be one of last, mean, max, attention"),
        ({"recurrent": "rnn"}, "model.recurrent .=rnn. must be one of lstm, gru, none"),
        ({"recurrent": "none", "bidirectional": True}, "needs a recurrent layer"),
        ({"encoder_chunk": 0}, "model.encoder_chunk .=0. must be at least 1"),
        ({"recurrent_dropout": 1.0}, "must lie in"),
        ({"num_layers": 0}, "must be at least 1"),
        ({"feature_norm": "layer"}, "model.feature_norm .=layer. must be one of none, batch"),
        ({"projection": 0}, "model.projection .=0. must be at least 1, or null"),
        ({"encoder": "resnet18", "grid": (2, 2)}, "model.grid needs a layer for each place.*model.projection"),
        ({"encoder": "resnet18", "grid": (0, 2), "projection": 8}, r"model.grid .=.0, 2.. must be .height, width"),
        ({"grid": (2, 2), "projection": 8}, "model.encoder .=small. has no feature maps"),
    ],
)
def test_mistakes_are_input_errors(options, text):
    with pytest.raises(ValueError, match=text):
        CNNLSTM(num_classes=2, **options)


def test_each_branch_learns_by_its_own_loss_and_their_logits_are_averaged():
    torch.manual_seed(0)
    model = CNNLSTM(num_classes=NUM_CLASSES, branches=2, projection=8, hidden_size=6, dropout=0.0)
    features_BTF = torch.randn(4, 5, 96)
    clips_BD = model.aggregate(features_BTF)
    assert clips_BD.shape == (4, 6 + 8)
    logits_BRK = model.forward_head(clips_BD)
    assert logits_BRK.shape == (4, 2, NUM_CLASSES)
    torch.testing.assert_close(model.eval().forward_head(clips_BD), logits_BRK.mean(1))
    model.train()
    # of each branch, as if the other did not exist
    for branch, columns in enumerate((slice(0, 6), slice(6, 14))):
        expected = clips_BD[:, columns] @ model.head.weight[:, columns].T + model.head.bias
        torch.testing.assert_close(logits_BRK[:, branch], expected)
    targets_BK = nn.functional.one_hot(torch.tensor([0, 1, 2, 0]), NUM_CLASSES).float()
    loss_B, weight_B = loss_of_branches(CrossEntropy(), by_branch(logits_BRK), targets_BK)
    by_hand = sum(nn.functional.cross_entropy(logits_BRK[:, r], targets_BK) for r in range(2)) / 2
    torch.testing.assert_close(loss_B.sum() / weight_B.sum(), by_hand)
    by_hand.backward(retain_graph=True)
    of_lstm = model.recurrent.layers.weight_hh_l0.grad.clone()
    model.zero_grad()
    (nn.functional.cross_entropy(logits_BRK[:, 0], targets_BK) / 2).backward()
    torch.testing.assert_close(model.recurrent.layers.weight_hh_l0.grad, of_lstm)
    assert model.more_branches[0].frame_features.layers[0].weight.grad.abs().max() == 0
