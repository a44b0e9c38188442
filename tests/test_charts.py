import re
import xml.etree.ElementTree as ET

import pytest

from stvid.data.playback import PLAYBACKS
from stvid.evaluation import charts

EPOCHS = [
    {
        "epoch": str(epoch),
        "lr": f"{0.01 / epoch}",
        "train_loss": f"{2 / epoch}",
        "train_clip_accuracy": f"{1 - 0.9 / epoch}",
        "val_loss": f"{2.2 / epoch}",
        "val_clip_accuracy": f"{1 - 0.95 / epoch}",
        "val_video_accuracy": f"{1 - 0.92 / epoch}",
    }
    for epoch in range(1, 5)
]
BINS = [
    {"low": 0.0, "high": 0.5, "num_videos": 0, "confidence": None, "accuracy": None},
    {"low": 0.5, "high": 1.0, "num_videos": 8, "confidence": 0.9, "accuracy": 0.75},
]
AUDITED = {
    "class_names": ["a", "b"],
    "video_accuracy": 0.9,
    "video_accuracy_ci95": [0.8, 0.95],
    "audit": {key: {"video_accuracy": 0.5, "video_accuracy_ci95": [0.4, 0.6]} for key in PLAYBACKS[1:]},
}


def all_charts():
    point = charts.Point("<run> $a_1$ & \udcff", 1e6, 0.8, (0.7, 0.9))
    return [
        *charts.learning_curves(EPOCHS, best=3),
        charts.reliability({"reliability": BINS}),
        charts.audit_bars(AUDITED),
        charts.accuracy_over_cost([point, point._replace(name="other", cost=2e8)], cost="FLOPs", identity="cost-0"),
    ]


@pytest.fixture(scope="module")
def drawn():
    return all_charts()


def test_every_chart_is_a_picture_with_a_title_and_a_description(drawn):
    for svg in drawn:
        root = ET.fromstring(svg)
        assert root.get("role") == "img"
        title, description = root.find("title"), root.find("desc")
        assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        assert re.search(r"\d", description.text)


def test_descriptions_state_the_numbers(drawn):
    loss, accuracy, _, reliability, audit, cost = (ET.fromstring(svg).find("desc").text for svg in drawn)
    assert "4 epochs" in loss
    assert "train: from 2 to 0.5, 0.6667 in epoch 3" in loss
    assert "val, videos: from 8 to 77" in accuracy
    assert "75.0\u00a0% of 8 videos right" in reliability
    assert "as they are: 90.0\u00a0% (80.0 to 95.0\u00a0%)" in audit
    for playback in ("frozen", "shuffled", "reversed", "half speed", "double speed"):
        assert f"{playback}: 50.0\u00a0%" in audit
    assert "chance: 50.0\u00a0%" in audit
    assert "at 1e+06" in cost


def test_ids_of_all_charts_are_apart_and_every_reference_is_met(drawn):
    ids = [found for svg in drawn for found in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in drawn:
        own = set(re.findall(r'\bid="([^"]+)"', svg))
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) <= own


def test_colours_and_fonts_are_the_page_s(drawn):
    for svg in drawn:
        assert not re.search(r"#[0-9a-f]{6}\b", svg), "a colour of its own"
        assert "var(--" in svg
        assert "font-family" not in svg
        assert "DejaVu" not in svg


def test_nothing_of_the_page_around_is_touched_or_asked_for(drawn):
    for svg in drawn:
        assert "<style" not in svg
        assert "<script" not in svg
        assert "http" not in svg


def test_the_same_numbers_give_the_same_chart(drawn):
    assert all_charts() == drawn


def test_names_of_runs_are_text(drawn):
    texts = [element.text for element in ET.fromstring(drawn[-1]).iter("text")]
    assert "<run> $a_1$ & \\udcff" in texts


def test_rows_of_an_interrupted_epoch_are_left_out():
    (loss, *_) = charts.learning_curves([*EPOCHS, {**EPOCHS[0], "epoch": "5", "val_loss": ""}], best=3)
    assert "5 epochs. train: from 2 to 2" in loss
    assert "val: from 2.2 to 0.55" in loss
