import base64
import dataclasses
import html.parser
import io
import itertools
import json
import re

import numpy as np
import pytest
from PIL import Image

from stvid.clip import ClipSpec
from stvid.errors import InputError
from stvid.evaluation.compare import compare_runs
from stvid.evaluation.cross_validation import pool_folds
from stvid.evaluation.evaluate import compute_metrics
from stvid.evaluation.evaluation_run import Fold
from stvid.evaluation.results import Evaluation, PredictionRow, write_result
from stvid.evaluation.text import interval_basis, protocol_sentence, result_text, summary_sentence, temporal_verdicts
from stvid.files import write_json
from stvid.models.conv3d import Conv3D
from stvid.report.clips import previews_within_budget, select_clips
from stvid.report.content import Report
from stvid.report.previews import Preview
from stvid.report.report import MAX_BYTES, report_of_run, write_comparison, write_report
from stvid.run.checkpoint import TrainedModel

NASTY = ("<img src=x onerror=alert(1)>", "sit \"down\" & 'up'", "zählen\udcff")
VOID = {"meta", "link", "br", "img", "wbr", "hr", "input"}
PROTOCOL = {"num_clips": 2, "num_crops": 1, "num_frames": 4, "frame_stride": 2, "size": [32, 32], "temperature": 1.0}
NUM_FRAMES = 4
CLIP = ClipSpec(num_frames=4, frame_stride=2, size=32)


def sprite(seed, *, width=16, height=12, num_frames=NUM_FRAMES, lossless=False):
    """A WebP in which each frame has its own colour."""
    colours = np.random.default_rng(seed).integers(0, 255, (num_frames, 3), dtype=np.uint8)
    row = np.repeat(np.repeat(colours[None], width, axis=1), height, axis=0)
    if lossless:
        row = np.random.default_rng(seed).integers(0, 255, row.shape, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(row).save(file, "WEBP", lossless=lossless)
    return file.getvalue()


def preview(seed, *, explained=False, **size):
    return Preview(
        sprite=sprite(seed, **size),
        heat_sprite=sprite(seed + 10_000, **size) if explained else None,
        num_frames=NUM_FRAMES,
        width=16,
        height=12,
        seconds=0.4,
        evidence=[0.5, -0.25, 1.0, 0.0] if explained else None,
    )


def make_predictions(class_names, per_class=8, seed=0):
    """About a quarter of each class is wrong; the last video is unreadable."""
    rng = np.random.default_rng(seed)
    predictions = []
    for truth, name in enumerate(class_names):
        for number in range(per_class):
            predicted = truth if number % 4 else (truth + 1) % len(class_names)
            logits = rng.normal(0, 1, len(class_names))
            logits[predicted] = logits.max() + rng.uniform(0.2, 4)
            p = np.exp(logits) / np.exp(logits).sum()
            row = PredictionRow(
                path=f"/data/{name.replace('/', '')}/{number}.mp4",
                label=name,
                predicted=class_names[predicted],
                views=2,
                views_right=2 * (predicted == truth),
                probabilities=tuple(p.tolist()),
            )
            predictions.append(row)
    unread = {"predicted": None, "failed": "cut off", "views": 0, "views_right": 0, "probabilities": ()}
    failed = dataclasses.replace(predictions[-1], **unread)
    return [*predictions[:-1], failed]


def make_result(predictions, class_names, **more):
    recall = dict.fromkeys(class_names, 0.25)
    changed = {
        "video_accuracy": 0.25,
        "video_accuracy_ci95": [0.1, 0.4],
        "per_class": recall,
        "confusion": [[1] * len(class_names)] * len(class_names),
        "lost": 9,
        "gained": 0,
    }
    return {
        "split": "test",
        "class_names": list(class_names),
        "protocol": PROTOCOL,
        **compute_metrics(predictions, class_names),
        "checkpoint": "/runs/one/checkpoints/best.ckpt",
        "epoch": 2,
        "step": 20,
        "num_seen": 0,
        "manifest": None,
        "audit": dict.fromkeys(("frozen", "shuffled", "reversed", "half_speed", "double_speed"), changed),
        "still_classes": [class_names[1]],
        "audit_note": "Half as long at double speed.",
        **more,
    }


def make_report(class_names=NASTY, *, per_class=8, clips=True, **more):
    predictions = make_predictions(class_names, per_class)
    selection = select_clips(predictions)
    epochs = [
        {"epoch": str(e), "lr": "0.1", "train_loss": f"{1 / e}", "val_loss": f"{2 / e}", "val_video_accuracy": "0.5"}
        for e in (1, 2, 3)
    ]
    run = {
        "seed": 7,
        "training_seconds": 200.0,
        "clips_per_second": 12.5,
        "waiting": 0.25,
        "free_clips_per_second": 50.0,
        "headspace": 4.0,
        "peak_memory_gib": {"host": 1.5, "gpu": None},
        "data": {"manifest_sha256": "ab" * 32, "num_videos": {"train": dict.fromkeys(class_names, 20)}, "num_bad": 1},
        "versions": {"python": "3.11.7", "stvid": "0.1.0"},
        "git": {"commit": "cd" * 20, "dirty": True},
        "hardware": {"machine": "Linux x86_64", "cpu": "A CPU", "cores": 2, "memory_gib": 8.0, "gpus": []},
    }
    given = {
        "name": "first</title>",
        "model": "Conv3D",
        "result": make_result(predictions, class_names),
        "predictions": predictions,
        "run": run,
        "epochs": epochs,
        "bad_videos": {"/data/<b>.avi": "no video in it"},
        "config": "seed: 7\nname: </pre><script>alert(2)</script>\n",
        "previews": {v: preview(v, explained=v in selection.explained) for v in selection.order * clips},
    }
    return Report(**{**given, **more})


class Page(html.parser.HTMLParser):
    """A page's elements; fails where tags are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag, **wanted):
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in wanted.items()}
        return [a for found, a in self.elements if found == tag and wanted.items() <= a.items()]

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.texts).replace("\u00a0", " "))

    @property
    def data(self):
        return json.loads(next(text for text in self.texts if text.startswith('{"')))


def written(report, folder):
    write_report(report, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def report():
    return make_report()


@pytest.fixture(scope="module")
def text(report, tmp_path_factory):
    return written(report, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_the_page_has_the_numbers_of_the_result(report, page):
    result = report.result
    right = round(result["video_accuracy"] * 24)
    assert f"{right} of 24 unseen videos are classified correctly (chance: 8)." in page.text
    low, high = result["video_accuracy_ci95"]
    shown = [f"{100 * result[key]:.1f} %" for key in ("video_accuracy", "clip_accuracy", "mean_class_accuracy", "ece")]
    shown += [f"{100 * low:.1f} to {100 * high:.1f} %", f"{result['loss']:.3f}", f"{result['macro_f1']:.3f}"]
    shown += [
        "95 % interval (Wilson) over 24 videos",
        "2 clips × 1 crop of 4 frames (frame stride 2), 32 × 32 pixels",
    ]
    shown += ["1 video could not be read and counts as wrong", "3 min 20 s", "12.5 clips/s", "ab" * 32, "cd" * 20]
    shown += ["4.0x", "50.0 clips/s if data were free"]
    shown += ["epoch 2 of 3", "cut off", "no video in it", "Half as long at double speed."]
    for text in shown:
        assert text in page.text, text
    for metrics in result["per_class"].values():
        assert f"{100 * metrics['recall']:.1f} %" in page.text


def test_every_cell_with_videos_is_a_labelled_button(report, page):
    names, confusion = report.result["class_names"], report.result["confusion"]
    labels = [button["aria-label"] for button in page.all("button") if "data-cell" in button and "aria-label" in button]
    counts = {(i, j): n for i, row in enumerate(confusion) for j, n in enumerate(row) if n}
    assert len(labels) == len(counts)
    printed = [name.encode("utf-8", "backslashreplace").decode() for name in names]
    for (i, j), n in counts.items():
        assert f"truth {printed[i]}, predicted {printed[j]}: {n} video{'s' * (n > 1)}" in labels
        assert len(page.data["cells"][f"{i}-{j}"]) == page.data["totals"][f"{i}-{j}"] == n


def test_names_are_escaped(page, text):
    assert not page.all("img")
    assert NASTY[0] in page.text
    assert "zählen\\udcff" in page.text
    assert "first</title>" in page.text
    assert page.data["classes"] == [*NASTY[:2], "zählen\\udcff"]
    assert len(page.all("script")) == 2
    assert text.count("<script") == text.count("</script>") == 2


def test_the_page_loads_nothing(page):
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "poster", "data"):
            assert re.match(r"#|data:", attributes.get(name, "#")), attributes
        assert "http" not in attributes.get("style", "")
    (style,) = (text for text in page.texts if text.lstrip().startswith(":root"))
    assert "url(" not in style
    assert "@import" not in style
    policy = page.all("meta", http_equiv="Content-Security-Policy")[0]["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "script-src 'sha256-" in policy


def test_ids_are_unique_and_references_exist(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        named = (attributes.get("aria-labelledby") or "").split()
        linked = [attributes["href"][1:]] if attributes.get("href", "").startswith("#") else []
        assert {*named, *linked} <= set(ids)


def test_charts_have_text_alternatives_and_headings_are_nested(page):
    charts = page.all("svg")
    assert len(charts) == 5
    for chart in charts:
        assert chart["role"] == "img"
        assert len(chart["aria-labelledby"].split()) == 2
    for _, attributes in page.elements:
        if attributes.get("role") == "img" and attributes["class"] != "evidence":  # the script says that one's
            assert attributes.get("aria-label") or attributes.get("aria-labelledby")
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert page.all("html")[0]["lang"] == "en"
    assert page.all("main")
    assert page.all("a", class_="skip")[0]["href"] == "#main"


def test_every_clip_is_in_the_file_once(report, text, page):
    for video, preview in report.previews.items():
        assert text.count(base64.b64encode(preview.sprite).decode()) == 1
        assert page.data["clips"][str(video)]["frames"] == NUM_FRAMES
    mistakes = [int(figure["data-video"]) for figure in page.all("figure") if "data-video" in figure]
    assert mistakes == select_clips(report.predictions).explained


def test_mistakes_are_most_confident_first_and_correct_predictions_least(report):
    selection = select_clips(report.predictions)
    wrong = [max(report.predictions[video].probabilities) for video in selection.mistakes]
    right = [max(report.predictions[video].probabilities) for video in selection.correct]
    assert wrong == sorted(wrong, reverse=True)
    assert right == sorted(right)
    assert len(selection.order) == len(set(selection.order)) == 23


def test_after_the_explained_videos_the_cells_take_turns():
    names = ("a", "b", "c")
    predictions = make_predictions(names, per_class=80)
    selection = select_clips(predictions)
    turn = [video for video in selection.order if video not in selection.explained][:3]
    assert {predictions[video].label for video in turn} == set(names)
    assert not any(predictions[video].is_correct for video in turn)


def test_clips_beyond_the_budget_are_left_out(tmp_path):
    names = tuple(f"class {i}" for i in range(8))
    report = make_report(names, per_class=25, clips=False)
    heavy = preview(0, lossless=True, width=120, height=50)
    assert len(heavy.sprite) > 50_000
    report = dataclasses.replace(report, previews=dict.fromkeys(select_clips(report.predictions).order, heavy))
    page = Page(written(report, tmp_path))
    assert (tmp_path / "report.html").stat().st_size < MAX_BYTES
    assert 50 < len(page.data["clips"]) < 199
    assert len(page.data["videos"]) == 199


def test_previews_end_at_the_first_that_exceeds_the_budget():
    small = preview(0)
    assert list(
        previews_within_budget([2, 0, 1], {0: small, 1: small, 2: small}, 2 * (4 * len(small.sprite) // 3 + 300))
    ) == [2, 0]
    assert previews_within_budget([0], {0: small}, -5) == {}


def test_four_hundred_classes_fit_and_begin_with_the_most_confused_pairs(tmp_path):
    report = make_report(tuple(f"class {i}" for i in range(400)), per_class=5, clips=False, epochs=())
    text = written(report, tmp_path)
    page = Page(text)
    assert len(text) < 3_000_000
    assert text.index('class="pairs"') < text.index("<details") < text.index('class="matrix large"')
    pairs = [button for button in page.all("button") if "data-cell" in button and "aria-label" not in button]
    assert len(pairs) == 20
    spans = [int(cell.get("colspan", 1)) for cell in page.all("td") if cell.get("class") in (None, "")]
    assert max(spans) > 300


def test_a_page_that_would_be_too_large_is_truncated_and_says_so(tmp_path):
    """600 classes, and nearly every mistake in its own cell: cells that cannot be opened are not in the data either."""
    names = tuple(f"class {i}" for i in range(600))
    answers = np.random.default_rng(0).integers(600, size=(600, 40)).tolist()
    sure = [tuple(row) for row in np.eye(600).tolist()]
    predictions = [
        PredictionRow(
            path=f"/data/{truth}/{number}.mp4",
            label=names[truth],
            predicted=names[predicted],
            views=1,
            views_right=int(truth == predicted),
            probabilities=sure[predicted],
        )
        for truth in range(600)
        for number, predicted in enumerate(answers[truth])
    ]
    report = make_report(
        names, per_class=1, clips=False, predictions=predictions, result=make_result(predictions, names)
    )
    text = written(report, tmp_path)
    assert (tmp_path / "report.html").stat().st_size < MAX_BYTES
    page = Page(text)
    assert "matrix is too large for this page" in page.text
    assert "matrix large" not in text
    assert page.data["cells"].keys() <= page.data["totals"].keys()
    assert {button["data-cell"] for button in page.all("button") if "data-cell" in button} == set(page.data["totals"])
    assert all(figure["data-video"] in page.data["videos"] for figure in page.all("figure") if "data-video" in figure)


def test_tables_of_very_many_classes_have_those_with_the_lowest_recall(tmp_path):
    names = tuple(f"{'x' * 800} {i}" for i in range(500))
    report = make_report(names, per_class=2, clips=False)
    page = Page(written(report, tmp_path))
    assert (tmp_path / "report.html").stat().st_size < MAX_BYTES
    assert "These are the 200 of 500 classes with the lowest recall" in page.text
    assert len([head for head in page.all("th", scope="row") if "data-value" in head]) == 200


def test_sections_without_their_input_are_left_out(tmp_path):
    report = make_report(run={}, epochs=(), bad_videos={}, config="", clips=False)
    bare = {key: value for key, value in report.result.items() if key != "audit"}
    command = "stvid evaluate '/runs/my run' --split test --audit"
    page = Page(written(dataclasses.replace(report, result=bare, audit_command=command), tmp_path))
    linked = [link["href"] for link in page.all("a") if "class" not in link]
    assert linked == ["#result", "#confusion", "#mistakes", "#classes", "#calibration", "#time", "#data", "#record"]
    assert command in page.text
    assert not page.all("button", id="pause-all")
    assert page.text.count("no preview") == len(select_clips(report.predictions).explained)


def test_folds_have_a_table_with_mean_and_spread(tmp_path):
    folds = []
    for number in (0, 1):
        predictions = [dataclasses.replace(p, path=f"{number}{p.path}") for p in make_predictions(NASTY, seed=number)]
        folds.append(
            Fold(f"fold {number}", tmp_path / f"{number}", make_result(predictions, NASTY), predictions, {}, CLIP)
        )
    result, predictions = pool_folds(folds)
    page = Page(written(make_report(result=result, predictions=predictions, clips=False, epochs=(), run={}), tmp_path))
    assert "34 of 48 unseen videos in 2 folds are classified correctly (chance: 16)." in page.text
    assert "mean over the folds" in page.text
    assert f"± {100 * result['spread']['std']:.1f} % standard deviation" in page.text


def test_summary_names_a_most_common_class():
    sizes = {"walk": {"num_videos": 80}, "run": {"num_videos": 20}}
    result = {"num_videos": 100, "video_accuracy": 0.9, "per_class": sizes, "class_names": list(sizes)}
    result |= {"split": "test", "num_seen": 0, "manifest": None}
    assert summary_sentence(result) == (
        "90 of 100 unseen videos are classified correctly (chance: 50; always predicting walk: 80)."
    )


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ({"split": "test", "num_seen": 12}, "9 of 20 videos, 12 of them seen in training or model selection, are"),
        ({"split": "val", "num_seen": 20}, "9 of 20 validation videos are"),
        ({"split": "val", "num_seen": 0, "manifest": "other.csv"}, "9 of 20 unseen videos are"),
        ({"split": "train", "num_seen": 20}, "9 of 20 training videos are"),
        (
            {"split": "test", "num_seen": 20, "manifest": "other.csv"},
            "9 of 20 videos, 20 of them seen in training or model selection, are",
        ),
        (
            {"split": "test", "num_seen": 3, "folds": [{}, {}]},
            "9 of 20 videos in 2 folds, 3 of them seen in training or model selection, are",
        ),
    ],
)
def test_summary_says_which_videos_the_model_has_seen(details, expected):
    sizes = {"walk": {"num_videos": 10}, "run": {"num_videos": 10}}
    result = {
        "num_videos": 20,
        "video_accuracy": 0.45,
        "per_class": sizes,
        "class_names": list(sizes),
        "manifest": None,
    }
    assert expected in summary_sentence(result | details)


def audited(*, right, low, lost, gained, num_videos=120):
    changed = {"video_accuracy": right - (lost - gained) / num_videos, "lost": lost, "gained": gained}
    return {
        "num_videos": num_videos,
        "class_names": ["a", "b", "c", "d"],
        "video_accuracy": right,
        "video_accuracy_ci95": [low, 0.95],
        "audit": {"shuffled": changed, "frozen": changed},
    }


@pytest.mark.parametrize(
    ("lost", "gained", "num_videos", "order", "motion"),
    [
        (15, 0, 120, "the model uses the order of frames", "the model uses motion"),
        (3, 2, 120, "too few videos to decide", "too few videos to decide"),
        (0, 15, 120, "the accuracy is even higher", "the accuracy is even higher"),
        (10, 9, 2000, "the order of frames hardly matters to the model", "a still image is as good as the video"),
        (0, 0, 20, "too few videos to decide", "too few videos to decide"),
    ],
)
def test_temporal_verdicts_follow_the_paired_test(lost, gained, num_videos, order, motion):
    shuffled, frozen = temporal_verdicts(audited(right=0.85, low=0.78, lost=lost, gained=gained, num_videos=num_videos))
    assert f"{lost} lost and {gained} gained, p\u00a0" in shuffled
    assert shuffled.endswith(f": {order}.")
    assert frozen.endswith(f": {motion}.")


def test_the_audit_of_a_model_at_chance_has_no_verdict():
    (sentence,) = temporal_verdicts(audited(right=0.3, low=0.22, lost=15, gained=0))
    assert "not clearly above chance (25.0" in sentence
    assert "cannot show whether the model uses time" in sentence


def test_classes_without_videos_are_named_and_have_no_metrics(tmp_path):
    """Two of five classes have no videos, and one of them is predicted; for a run and a cross-validation."""
    names = ("a", "b", "c", "d", "e")
    some = [row for row in make_predictions(names) if row.label in ("a", "b", "c")]
    others = [row for row in make_predictions(names, seed=1) if row.label == "c"]
    audit = {"per_class": dict.fromkeys("abc", 0.25) | dict.fromkeys("de"), "lost": 9, "gained": 0}
    audit |= {"video_accuracy": 0.25, "video_accuracy_ci95": [0.1, 0.4], "confusion": [[0] * 5] * 5}
    played = dict.fromkeys(("frozen", "shuffled", "reversed", "half_speed", "double_speed"), audit)
    result = make_result(some, names, audit=played)
    folds = [
        Fold(name, tmp_path / name, make_result(rows, names), rows, {}, CLIP)
        for name, rows in (("fold 1", some), ("fold 2", [dataclasses.replace(o, path=f"/o{o.path}") for o in others]))
    ]
    pool, predictions = pool_folds(folds)
    for outcome, rows in ((result, some), (pool, predictions)):
        assert np.shape(outcome["confusion"]) == (5, 5)
        assert outcome["per_class"]["e"] == {"precision": None, "recall": None, "f1": None, "num_videos": 0}
        assert outcome["per_class"]["d"]["precision"] == 0
        json.dumps(outcome, allow_nan=False)
        assert "no videos of: d, e" in result_text(outcome)
        report = make_report(names, result=outcome, predictions=rows, clips=False, run={}, epochs=(), config="")
        page = Page(written(report, tmp_path))
        assert "No videos of: d, e." in page.text
        assert not re.search(r"\b(nan|inf|None)\b", page.text)


def test_intervals_say_how_they_were_computed():
    for over, expected in (("groups", "bootstrap over 7 groups"), ("videos", "(Wilson) over 7 videos")):
        assert expected in interval_basis({"interval": {"over": over, "num": 7}})


def test_protocol_sentence_for_one_view_of_whole_videos():
    rule = {"num_clips": 1, "num_crops": 1, "num_frames": None, "fps": 8.0, "size": [64, 48]}
    assert protocol_sentence({"protocol": rule}).replace("\u00a0", " ") == (
        "Each video is evaluated on 1 clip × 1 crop of all its frames (8 frames per second), 64 × 48 pixels."
    )


@pytest.fixture
def untrained(tmp_path):
    """A model in a run folder."""
    return TrainedModel(
        path=tmp_path / "run" / "checkpoints" / "best.ckpt",
        folder=tmp_path / "run",
        model=Conv3D(num_classes=2, widths=(4, 8), strides=((1, 2, 2), (2, 2, 2))).eval(),
        clip=CLIP,
        class_names=("to_left", "to_right"),
        protocol={"num_clips": 1, "num_crops": 1},
        config={"data": {"datamodule": {"batch_size": 4}}, "trainer": {"precision": "32-true"}, "ema": None},
        epoch=2,
        step=20,
    )


def test_a_report_collects_the_files_of_a_run_and_its_evaluation_and_makes_clips(untrained, video_folder, tmp_path):
    names = untrained.class_names
    predictions = predictions_for_files(names, video_folder)
    gone = dataclasses.replace(predictions[0], path=str(tmp_path / "gone.mp4"))
    predictions[0] = gone
    evaluation = untrained.folder / "evaluate" / "test"
    write_result(evaluation, make_result(predictions, names), predictions)
    write_json(untrained.folder / "result.json", make_report().run)
    (untrained.folder / "metrics.csv").write_text("epoch,lr,train_loss\n1,0.1,2.0\n2,0.05,1.5\n")
    (untrained.folder / "bad_videos.csv").write_text("path,reason\n/data/bad.avi,cut off\n")
    (untrained.folder / "config.yaml").write_text("seed: 7\n")
    report = report_of_run(untrained, evaluation)
    selection = select_clips(predictions)
    assert report.model == "Conv3D"
    assert list(report.previews) == [video for video in selection.order if video != 0]
    assert {v for v, preview in report.previews.items() if preview.heat_sprite} == set(selection.explained) - {0}
    assert [row["train_loss"] for row in report.epochs] == ["2.0", "1.5"]
    assert report.bad_videos == {"/data/bad.avi": "cut off"}
    assert report.cost.parameters == sum(p.numel() for p in untrained.model.parameters())
    page = Page(written(report, tmp_path))
    assert report.other_checkpoint is None
    assert "was made with" not in page.text
    assert len(page.data["clips"]) == len(predictions) - 2
    assert page.text.count("no preview") == ("0" in {str(video) for video in selection.explained})
    assert "train: from 2 to 1.5" in page.text


def predictions_for_files(names, video_folder):
    """Predictions for files that exist."""
    return [
        dataclasses.replace(row, path=str(video_folder / row.label / f"0{place % 8}.mp4"))
        for place, row in enumerate(make_predictions(names))
    ]


def test_the_report_of_a_cross_validation_has_no_heat_maps_and_no_single_training(untrained, video_folder, tmp_path):
    names = untrained.class_names
    predictions = predictions_for_files(names, video_folder)
    fold = Fold("fold 0", untrained.folder, make_result(predictions, names), predictions, {}, untrained.clip)
    pool, predictions = pool_folds([fold])
    write_result(tmp_path / "evaluate", pool, predictions)
    untrained.folder.mkdir()
    write_json(untrained.folder / "result.json", make_report().run)
    (untrained.folder / "metrics.csv").write_text("epoch,lr,train_loss\n1,0.1,2.0\n")
    (untrained.folder / "bad_videos.csv").write_text("path,reason\n/data/bad.avi,cut off\n")
    (untrained.folder / "config.yaml").write_text("seed: 7\n")
    report = report_of_run(untrained, tmp_path / "evaluate")
    assert len(report.previews) == 15
    assert not any(preview.heat_sprite for preview in report.previews.values())
    assert (report.epochs, report.run, report.bad_videos, report.config) == ((), {}, {}, "")
    page = Page(written(report, tmp_path))
    assert "mean over the folds" in page.text
    for fact in ("3 min 20 s", "1.50 GiB", "ab" * 32, "cd" * 20, "seed", "bad.avi", "Measured on"):
        assert fact not in page.text, fact
    assert "compute per clip" in page.text


def test_a_report_made_with_another_checkpoint_has_no_heat_maps(untrained, video_folder, tmp_path):
    names = untrained.class_names
    predictions = predictions_for_files(names, video_folder)
    evaluation = untrained.folder / "evaluate" / "test"
    result = make_result(predictions, names)
    del result["audit"]
    for other in ({"checkpoint": "/runs/one/checkpoints/last.ckpt"}, {"epoch": 3}, {"step": 30}):
        write_result(evaluation, result | other, predictions)
        report = report_of_run(untrained, evaluation)
        assert len(report.previews) == 15
        assert not any(preview.heat_sprite for preview in report.previews.values())
    text = Page(written(report, tmp_path)).text
    assert "best.ckpt (epoch 2, step 30), but this page was made with best.ckpt (epoch 2, step 20), so" in text
    assert f"stvid evaluate {untrained.folder} --split test --clips 2 --audit" in text
    write_result(evaluation, result | {"checkpoint": "last.ckpt", "manifest": "/a b.csv", "num_seen": 3}, predictions)
    command = report_of_run(untrained, evaluation).audit_command
    last = untrained.path.with_name("last.ckpt")
    assert command == f"stvid evaluate {last} --split test --manifest '/a b.csv' --allow-leaks --clips 2 --audit"


def test_a_folder_without_a_result_is_an_error(untrained, tmp_path):
    with pytest.raises(InputError, match="has no result.json, so there is nothing to report"):
        report_of_run(untrained, tmp_path)


def test_a_missing_output_folder_is_an_error(report, tmp_path):
    with pytest.raises(InputError, match=r"the folder .*nowhere does not exist"):
        write_report(report, tmp_path / "nowhere" / "report.html")


def make_evaluation(name, seed):
    predictions = make_predictions(NASTY, seed=seed)
    if seed:
        predictions = [dataclasses.replace(p, predicted=None if p.failed else NASTY[0]) for p in predictions]
    cost = {
        "parameters": 10_000 * (seed + 1),
        "flops_clip": 1e6,
        "flops_video": 2e6 * (seed + 1),
        "answer_bytes": 2**20,
        "training_bytes": 2**22,
        "batch_size": 4,
        "num_frames": 4,
        "whole_video": False,
    }
    training = {
        "training_seconds": 60.0 * (seed + 1),
        "clips_per_second": 10.0,
        "peak_memory_gib": {"host": 1.0, "gpu": None},
        "device": "A CPU",
        "stored_features": seed == 1,
    }
    result = make_result(predictions, NASTY)
    return lambda folder: Evaluation(
        name=name, folder=folder / name, result=result, predictions=predictions, cost=cost, training=training
    )


def test_a_comparison_page_has_tests_notes_and_charts(tmp_path):
    comparison = compare_runs([make_evaluation("<b>one", 0)(tmp_path), make_evaluation("two$x", 1)(tmp_path)])
    write_comparison(comparison, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    (test,) = comparison.tests
    assert "2 runs on test" in page.text
    assert "Clips per second of two$x: on cached features" in page.text
    assert "<b>one" in page.text
    assert not page.all("b", onerror="alert(1)")
    assert f"{100 * test.difference:.1f}" in page.text
    assert f"{len(comparison.differing)} videos are classified correctly by some runs" in page.text
    assert len(page.all("svg")) == 3
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_summary_of_a_comparison_is_about_the_common_videos(tmp_path):
    """Y is the best of three on its own videos, Z on the common videos."""

    def run(name, rights):
        predictions = [
            PredictionRow(
                path=path,
                label="a",
                predicted="a" if right else "b",
                views=1,
                views_right=int(right),
                probabilities=(0.9, 0.1) if right else (0.1, 0.9),
            )
            for path, right in rights.items()
        ]
        result = make_result(predictions, ("a", "b"))
        return Evaluation(
            name=name, folder=tmp_path / name, result=result, predictions=predictions, cost=None, training=None
        )

    shared, own = [f"{i}.mp4" for i in range(20)], {f"own {i}.mp4": True for i in range(80)}
    runs = [
        run("X", {path: i < 11 for i, path in enumerate(shared)} | own),
        run("Y", {path: i < 10 for i, path in enumerate(shared)} | own),
        run("Z", {path: i < 15 for i, path in enumerate(shared)}),
    ]
    comparison = compare_runs(runs)
    assert comparison.common_accuracy == {"X": 0.55, "Y": 0.5, "Z": 0.75}
    write_comparison(comparison, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Z is ahead of X by 20.0 points on the same videos; the difference is not significant" in page.text
    assert "on common videos" in page.text
