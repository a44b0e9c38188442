import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional import classification as tm

from stvid.metrics import average_views, video_metrics
from stvid.training.task import ViewMetric


def some_predictions(videos=60, classes=6, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(classes) * 0.5, size=videos)
    return torch.tensor(probabilities, dtype=torch.float32), torch.tensor(rng.integers(0, classes, videos))


def test_probabilities_are_averaged_over_the_views_of_a_video():
    logits = torch.tensor([[4.0, 0.0], [0.0, 1.0], [0.0, 9.0], [0.0, 1.0]])
    probabilities, videos = average_views(logits, torch.tensor([7, 7, 3, 7]))
    assert videos.tolist() == [3, 7]
    softmax = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities[1], softmax[[0, 1, 3]].mean(0), rtol=1e-6)


def test_metrics_equal_those_of_scikit_learn():
    p, y = some_predictions()
    metrics = video_metrics(p, y, torch.empty(0, dtype=torch.int64))
    predicted = p.argmax(1)
    precision, recall, f1, support = sk.precision_recall_fscore_support(y, predicted, zero_division=0)
    np.testing.assert_allclose([v or 0 for v in metrics["precision"]], precision, rtol=1e-6)
    np.testing.assert_allclose(metrics["recall"], recall, rtol=1e-6)
    np.testing.assert_allclose(metrics["f1"], f1, rtol=1e-6)
    assert metrics["num_videos"] == support.tolist()
    assert metrics["confusion"] == sk.confusion_matrix(y, predicted).tolist()
    assert metrics["mean_class_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, predicted))
    assert metrics["top5_accuracy"] == pytest.approx(sk.top_k_accuracy_score(y, p.numpy(), k=5))
    assert metrics["loss"] == pytest.approx(sk.log_loss(y, p.numpy()), rel=1e-4)
    assert metrics["macro_f1"] == pytest.approx(f1.mean())
    top = {k: sk.top_k_accuracy_score(y, p.numpy(), k=int(k)) for k in ("1", "2", "3", "4", "5")}
    assert metrics["top_k_accuracy"] == pytest.approx(top)


def test_calibration_error_is_the_mean_gap_over_fifteen_bins():
    p, y = some_predictions(videos=500)
    confidence, right = p.max(1).values.numpy(), (p.argmax(1) == y).numpy()
    bins = np.ceil(confidence * 15).astype(int)
    gaps = [
        (bins == b).mean() * abs(right[bins == b].mean() - confidence[bins == b].mean()) for b in set(bins.tolist())
    ]
    metrics = video_metrics(p, y, torch.empty(0, dtype=torch.int64))
    assert metrics["ece"] == pytest.approx(sum(gaps), abs=1e-5)
    actual = {i + 1: item for i, item in enumerate(metrics["reliability"]) if item["num_videos"]}
    assert {b: item["num_videos"] for b, item in actual.items()} == dict(
        zip(*np.unique(bins, return_counts=True), strict=True)
    )
    for b, item in actual.items():
        assert item["accuracy"] == pytest.approx(right[bins == b].mean())
        assert item["confidence"] == pytest.approx(confidence[bins == b].mean())


def test_failed_videos_count_as_wrong():
    p, y = torch.eye(2)[[0, 1]], torch.tensor([0, 1])
    metrics = video_metrics(p, y, torch.tensor([0]))
    assert metrics["recall"] == [0.5, 1.0]
    assert metrics["mean_class_accuracy"] == 0.75
    assert metrics["top5_accuracy"] == pytest.approx(2 / 3)
    assert metrics["num_videos"] == [2, 1]


@pytest.mark.parametrize("num_failed", [0, 25])
def test_metrics_equal_those_of_torchmetrics(num_failed):
    """An unreadable video is predicted as a seventh class; torchmetrics computes in float32."""
    p, y = some_predictions(videos=300)
    failed = y[:num_failed].flip(0)
    metrics = video_metrics(p, y, failed)
    predicted, truth = torch.cat([p.argmax(1), torch.full((num_failed,), 6)]), torch.cat([y, failed])
    for name, function in {"precision": tm.multiclass_precision, "recall": tm.multiclass_recall}.items():
        assert metrics[name] == pytest.approx(function(predicted, truth, num_classes=7, average=None)[:6].tolist())
    f1 = tm.multiclass_f1_score(predicted, truth, num_classes=7, average=None)[:6]
    assert metrics["f1"] == pytest.approx(f1.tolist())
    assert metrics["macro_f1"] == pytest.approx(f1.mean().item())
    assert metrics["ece"] == pytest.approx(tm.multiclass_calibration_error(p, y, num_classes=6, n_bins=15).item())
    for k, share in metrics["top_k_accuracy"].items():
        hits = 300 * tm.multiclass_accuracy(p, y, num_classes=6, average="micro", top_k=int(k)).item()
        assert share == pytest.approx(hits / (300 + num_failed))


def test_a_class_without_videos_is_left_out_of_the_mean():
    metrics = video_metrics(torch.eye(3)[[0, 1]], torch.tensor([0, 1]), torch.empty(0, dtype=torch.int64))
    assert metrics["recall"] == [1.0, 1.0, None]
    assert metrics["mean_class_accuracy"] == 1.0


def test_clip_and_video_accuracy_differ_and_count_failures():
    metric = ViewMetric()
    metric.update(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]), torch.tensor([0, 0]), 0)
    metric.update(torch.tensor([[3.0, 0.0], [3.0, 0.0]]), torch.tensor([1, 1]), torch.tensor([2, 2]), 1)
    metrics = metric.compute()
    assert metrics.clip_accuracy == pytest.approx(1 / 6)
    assert metrics.video_accuracy == pytest.approx(1 / 3)


def test_the_accuracy_is_zero_if_all_videos_failed():
    metric = ViewMetric()
    metric.update(torch.empty(0, 2), torch.empty(0, dtype=int), torch.empty(0, dtype=int), 3)
    assert metric.compute().video_accuracy == 0.0
