import itertools
import re
import xml.etree.ElementTree as ET
from functools import partial

import pytest

from stvid.data.sampling import PLAYBACKS
from stvid.report import charts
from stvid.report.scales import text_width

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


UNKNOWN = {
    "unknown": {
        "auroc": 0.96,
        "auroc_ci95": [0.9, 0.99],
        "threshold": 0.6,
        "known_at_threshold": 0.95,
        "unknown_at_threshold": 0.1,
        "histogram": {"known": [0] * 19 + [1200], "unknown": [3] + [0] * 19},
    }
}


def all_charts():
    point = charts.Point("<run> $a_1$ & \udcff", 1e6, 0.8, (0.7, 0.9))
    return [
        *charts.learning_curves(EPOCHS, best=3),
        charts.reliability({"reliability": BINS}),
        charts.audit_bars(AUDITED),
        charts.unknown_histograms(UNKNOWN),
        charts.accuracy_over_cost([point, point._replace(name="other", cost=2e8)], cost="FLOPs", chart_id="cost-0"),
    ]


@pytest.fixture(scope="module")
def rendered():
    return all_charts()


def test_every_chart_is_an_image_with_title_and_description(rendered):
    for svg in rendered:
        root = ET.fromstring(svg)
        assert root.get("role") == "img"
        title, description = root.find("title"), root.find("desc")
        assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        assert re.search(r"\d", description.text)


def test_descriptions_state_the_numbers(rendered):
    loss, accuracy, _, reliability, audit, unknown, cost = (ET.fromstring(svg).find("desc").text for svg in rendered)
    assert "4 epochs" in loss
    assert "train: from 2 to 0.5, 0.6667 in epoch 3" in loss
    assert "val, videos: from 8 to 77" in accuracy
    assert "75.0\u00a0% of 8 videos correct" in reliability
    assert "unchanged: 90.0\u00a0% (80.0 to 95.0\u00a0%)" in audit
    for playback in ("frozen", "shuffled", "reversed", "half speed", "double speed"):
        assert f"{playback}: 50.0\u00a0%" in audit
    assert "chance: 50.0\u00a0%" in audit
    assert "AUROC 0.960 (0.900 to 0.990); 95.0\u00a0% of the known and 10.0\u00a0% of the unknown" in unknown
    assert "at 1e+06" in cost


def test_ids_are_unique_over_all_charts_and_references_exist(rendered):
    ids = [name for svg in rendered for name in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in rendered:
        own = set(re.findall(r'\bid="([^"]+)"', svg))
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) <= own


def test_colours_and_fonts_are_those_of_the_page(rendered):
    for svg in rendered:
        assert not re.search(r"#[0-9a-f]{6}\b", svg), "a colour of its own"
        assert "var(--" in svg
        assert "font-family" not in svg
        assert "DejaVu" not in svg


def test_charts_have_no_styles_scripts_or_links(rendered):
    for svg in rendered:
        assert "<style" not in svg
        assert "<script" not in svg
        assert "http" not in svg


def test_charts_are_deterministic(rendered):
    assert all_charts() == rendered


def test_names_of_runs_are_escaped(rendered):
    texts = [element.text for element in ET.fromstring(rendered[-1]).iter("text")]
    assert "<run> $a_1$ & \\udcff" in texts


def boxes(svg):
    """Left, top, right and bottom of every text, with the largest width of a letter, and the text."""
    result = []
    for element in svg.iter("text"):
        font = float(element.get("font-size", svg.get("font-size")))
        wide, middle = text_width(element.text, font), element.get("dy") is not None
        left = float(element.get("x")) - {"middle": wide / 2, "end": wide}.get(element.get("text-anchor"), 0)
        base = float(element.get("y")) + 0.35 * font * middle
        result.append((left, base - 0.7 * font, left + wide, base, element.text))
    return result


def curves_of(num_epochs, size=1.0):
    rows = [{key: f"{size * float(value)}" for key, value in EPOCHS[i % 4].items()} for i in range(num_epochs)]
    return charts.learning_curves([row | {"epoch": str(i + 1)} for i, row in enumerate(rows)], best=1)


def reliability_of(number):
    bins = [{"low": i / 15, "high": (i + 1) / 15, "num_videos": number, "accuracy": 0.9} for i in range(15)]
    return [charts.reliability({"reliability": bins})]


def audit_of(num_classes):
    return [charts.audit_bars({**AUDITED, "class_names": [str(i) for i in range(num_classes)]})]


def costs_of(*costs):
    points = [charts.Point("a run with a long name " * 5, cost, 0.8, (0.7, 0.9)) for cost in costs]
    return [charts.accuracy_over_cost(points, cost="FLOPs a video", chart_id="cost-0")]


@pytest.mark.parametrize(
    "make",
    [
        *(partial(curves_of, number) for number in (1, 2, 7, 48, 300, 1000)),
        *(partial(curves_of, 9, size) for size in (1e-7, 1e-4, 1e5)),
        *(partial(reliability_of, number) for number in (1, 2, 5, 870, 9949, 9950, 123456)),
        *(partial(audit_of, number) for number in (2, 3, 400)),
        *(partial(costs_of, *costs) for costs in ((1e6, 2e8), (3.601e9, 3.604e9), (5, 5, 5, 5, 5), (1, 1e9, 1e18))),
    ],
    ids=lambda make: f"{make.func.__name__} {make.args}",
)
def test_texts_do_not_overlap_and_stay_inside_the_chart(make):
    for chart in make():
        svg = ET.fromstring(chart)
        _, _, wide, high = (float(number) for number in svg.get("viewBox").split())
        texts = boxes(svg)
        for left, top, right, bottom, text in texts:
            assert -1 <= left < right <= wide + 1, text
            assert 0 <= top < bottom <= high, text
        for a, b in itertools.combinations(texts, 2):
            apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
            assert apart, f"{a[4]!r} and {b[4]!r}"


def test_videos_and_epochs_have_integer_ticks():
    for chart in (*reliability_of(1), *reliability_of(2), *curves_of(1), *curves_of(3)):
        texts = [
            element.text for element in ET.fromstring(chart).iter("text") if element.get("text-anchor") == "middle"
        ]
        assert all("." not in text for text in texts)
    (chart,) = reliability_of(5)
    numbers = [element.text for element in ET.fromstring(chart).iter("text") if element.get("text-anchor") == "end"]
    assert numbers[-2:] == ["0", "5"]


def test_runs_are_numbered_in_order_and_named_below():
    svg = ET.fromstring(costs_of(5, 3, 4)[0])
    dots = [float(element.get("cx")) for element in svg.iter("circle")]
    assert dots[1] < dots[2] < dots[0]
    bold = [element for element in svg.iter("text") if element.get("font-weight") == "bold"]
    assert [element.text for element in bold] == ["Video accuracy, %", "1", "2", "3", "1", "2", "3"]
    for number, dot in zip(bold[1:4], dots, strict=True):
        assert 0 < abs(float(number.get("x")) - dot) < 15
    names = [element.text for element in svg.iter("text") if "long name" in element.text]
    assert len(names) == 3
    assert all(name.startswith("…") and name.endswith("long name ") for name in names)


def test_a_curve_goes_through_its_points():
    """The tick labels give the expected positions of 2, 1, 2/3 and 1/2 in epochs 1 to 4."""
    svg = ET.fromstring(charts.learning_curves(EPOCHS, best=3)[0])

    def place_of(anchor, coordinate, number):
        (a, at_a), (b, at_b), *_ = (
            (float(element.text), float(element.get(coordinate)))
            for element in svg.iter("text")
            if element.get("text-anchor") == anchor and element.text != "epoch"
        )
        return at_a + (number - a) / (b - a) * (at_b - at_a)

    line = next(svg.iter("polyline")).get("points").split()
    for epoch, point in enumerate(line, start=1):
        expected = place_of("middle", "x", epoch), place_of("end", "y", 2 / epoch)
        assert tuple(map(float, point.split(","))) == pytest.approx(expected, abs=0.5)


def test_nan_and_infinite_values_are_left_out():
    rows = [{**row, "val_loss": "nan", "val_clip_accuracy": "inf"} for row in EPOCHS]
    loss, accuracy, _ = charts.learning_curves(rows, best=3)
    assert "val" not in ET.fromstring(loss).find("desc").text
    assert "val, clips" not in ET.fromstring(accuracy).find("desc").text
    assert "nan" not in loss + accuracy


def test_empty_cells_of_an_interrupted_epoch_are_left_out():
    (loss, *_) = charts.learning_curves([*EPOCHS, {**EPOCHS[0], "epoch": "5", "val_loss": ""}], best=3)
    assert "5 epochs. train: from 2 to 2" in loss
    assert "val: from 2.2 to 0.55" in loss
