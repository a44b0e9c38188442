"""Five thousand classes: files, tables, warnings and the page stay small."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from test_report import Page, make_report, make_result, written

from stvid.data.manifest import Item, Manifest, validate
from stvid.errors import InputError, listing
from stvid.evaluation.results import PredictionRow
from stvid.evaluation.text import confusion_rows, result_text
from stvid.files import write_json
from stvid.metrics import MAX_DENSE_CLASSES, confusion
from stvid.report.report import MAX_BYTES
from stvid.run.results import read_result

NUM_CLASSES, NUM_VIDEOS = 5000, 600
NAMES = tuple(f"action_number_{i:04}" for i in range(NUM_CLASSES))


@pytest.fixture(scope="module")
def result():
    rng = np.random.default_rng(0)
    rows = []
    for video, truth in enumerate(rng.integers(0, NUM_CLASSES, NUM_VIDEOS).tolist()):
        predicted = truth if video % 3 else int(rng.integers(0, NUM_CLASSES))
        p = np.full(NUM_CLASSES, 0.3 / NUM_CLASSES)
        p[predicted] += 0.7
        row = PredictionRow(
            path=f"/d/{video}.mp4", label=NAMES[truth], predicted=NAMES[predicted], views=1, views_right=1,
            probabilities=tuple(p.tolist()),
        )  # fmt: skip
        rows.append(row)
    made = make_result(rows, NAMES)
    del made["audit"], made["still_classes"]
    return rows, made


def test_the_file_is_small_and_keeps_every_count(result, tmp_path):
    rows, made = result
    write_json(tmp_path / "result.json", made)
    assert (tmp_path / "result.json").stat().st_size < 2_000_000
    read = read_result(tmp_path)
    assert "confusion" not in read
    counts = {(i, j): n for i, row in enumerate(confusion_rows(read)) for j, n in row.items()}
    index = {name: i for i, name in enumerate(NAMES)}
    expected = {}
    for row in rows:
        cell = index[row.label], index[row.predicted]
        expected[cell] = expected.get(cell, 0) + 1
    assert counts == expected


@pytest.mark.parametrize(
    "counts", [[], {"0": [1]}, {"0": {"5000": 1}}, {"x": {"0": 1}}, {"0": {"1": 0}}, {"0": {"1": 0.5}}]
)
def test_damaged_counts_are_refused(result, counts, tmp_path):
    write_json(tmp_path / "result.json", {**result[1], "confusion_counts": counts})
    with pytest.raises(InputError, match=r"result\.json is damaged"):
        read_result(tmp_path)


@pytest.mark.parametrize("num_classes", [1, 3, MAX_DENSE_CLASSES, MAX_DENSE_CLASSES + 1])
def test_both_forms_have_the_numbers_of_scikit_learn(num_classes):
    labels, predicted = torch.randint(num_classes, (2, 300), generator=torch.Generator().manual_seed(0))
    made = confusion(labels, predicted, num_classes)
    assert ("confusion" in made) == (num_classes <= MAX_DENSE_CLASSES)
    expected = confusion_matrix(labels, predicted, labels=range(num_classes))
    rows = confusion_rows({**made, "per_class": dict.fromkeys(range(num_classes))})
    assert rows == [{j: int(n) for j, n in enumerate(row) if n} for row in expected]
    if "confusion" in made:
        assert made["confusion"] == expected.tolist()


def test_the_terminal_shows_the_worst_classes_and_a_cut_list(result):
    text = result_text(result[1])
    assert len(text) < 12_000
    assert "the 60 of 5,000 classes with the lowest recall; result.json has all" in text
    assert "more" in next(line for line in text.splitlines() if line.startswith("no videos of"))


def test_the_page_opens_within_its_limits(result, tmp_path):
    rows, made = result
    report = make_report(NAMES[:2])
    run = {**report.run, "data": {**report.run["data"], "num_videos": {"train": dict.fromkeys(NAMES, 3)}}}
    text = written(dataclasses.replace(report, result=made, predictions=rows, run=run, previews={}), tmp_path)
    assert len(text.encode()) < MAX_BYTES
    page = Page(text)
    assert "These are the 200 of 5,000 classes" in page.text
    assert len(page.all("tr")) < 1500


def test_warnings_list_thirty_names(caplog):
    assert listing(NAMES).endswith("action_number_0029 and 4970 more")
    items = tuple(Item(path=__file__, label=name, split="val") for name in NAMES)
    with pytest.raises(InputError) as error:
        validate(Manifest(items=(*items, Item(path=__file__, label=NAMES[0], split="train")), class_names=NAMES))
    assert len(str(error.value)) < 2000
