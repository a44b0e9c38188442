"""What the tables of the page hold, from `result.json`: plain rows, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stvid.evaluation import notation
from stvid.evaluation.mistaken import mistaken_for
from stvid.evaluation.page import words

SHADES = (0.1, 0.25, 0.5, 0.8)  # shares of a row at which a cell's colour changes
MANY_CLASSES = 30  # above these the matrix is folded away behind the list of pairs
PAIRS, PAIRS_OF_MANY = 6, 20


def is_large(result: Mapping) -> bool:
    """Whether the confusion matrix is too large to be looked at first."""
    return len(result["class_names"]) > MANY_CLASSES


def confusion_rows(result: Mapping) -> list[dict]:
    """A row a class: `name`, `total` and `cells`; a cell is a number of videos, or `blank`, a run of empty ones.

    In a small matrix every empty cell stands for itself.
    """
    names, longest = result["class_names"], len(result["class_names"]) if is_large(result) else 1
    return [
        {"name": names[truth], "total": sum(counts), "cells": _cells(names, truth, counts, longest)}
        for truth, counts in enumerate(result["confusion"])
    ]


def _cells(names: Sequence[str], truth: int, counts: Sequence[int], longest: int) -> list[dict]:
    cells, total = [], sum(counts)
    for answer, number in enumerate(counts):
        if not number:
            if cells and 0 < cells[-1].get("blank", 0) < longest:
                cells[-1]["blank"] += 1
            else:
                cells.append({"blank": 1})
            continue
        shade = 1 + sum(number / total > bound for bound in SHADES)
        label = f"truth {names[truth]}, answered {names[answer]}: {notation.count(number, 'video')}"
        kind = "h" if truth == answer else "m"
        cells.append({"answer": answer, "count": number, "shade": f"{kind}{shade}", "label": label})
    return cells


def cell_totals(result: Mapping) -> dict[str, int]:
    """`TRUTH-ANSWER` -> number of videos, of the cells that have some."""
    return {
        f"{truth}-{answer}": number
        for truth, counts in enumerate(result["confusion"])
        for answer, number in enumerate(counts)
        if number
    }


def confused_pairs(result: Mapping) -> list[dict]:
    """The pairs with the most mistakes: `truth`, `answer` (positions), `count` and its `share` of the true class."""
    pairs = [
        {"truth": truth, "answer": answer, "count": number, "share": number / sum(counts)}
        for truth, counts in enumerate(result["confusion"])
        for answer, number in enumerate(counts)
        if number and truth != answer
    ]
    pairs.sort(key=lambda pair: (-pair["count"], -pair["share"]))
    return pairs[: PAIRS_OF_MANY if is_large(result) else PAIRS]


def class_rows(result: Mapping) -> list[dict]:
    """Recall, precision, F1 and number of videos of each class, and what it was mistaken for, most often first."""
    names = result["class_names"]
    return [
        {"name": name, **result["per_class"][name], "mistaken": mistaken_for(truth, counts, names)}
        for truth, (name, counts) in enumerate(zip(names, result["confusion"], strict=True))
    ]


def audit_rows(result: Mapping) -> list[dict]:
    """Of the videos as they are and played otherwise: `name`, `meaning`, `accuracy`, `interval`; `lost`, `gained`."""
    return [
        _audit_row("as they are", None, result),
        *(
            _audit_row(playback.replace("_", " "), meaning, result["audit"][playback])
            for playback, meaning in words.PLAYED.items()
        ),
    ]


def _audit_row(name: str, meaning: str | None, one: Mapping) -> dict:
    bounds, pairs = one["video_accuracy_ci95"], {key: one.get(key) for key in ("lost", "gained")}
    return {"name": name, "meaning": meaning, "accuracy": one["video_accuracy"], "interval": bounds, **pairs}


def audit_classes(result: Mapping) -> list[dict]:
    """Recall of each class as the videos are and `changed` in each way; `still`: a single picture tells it."""
    audit, still = result["audit"], result["still_classes"]
    return [
        {
            "name": name,
            "recall": result["per_class"][name]["recall"],
            "changed": [audit[playback]["per_class"][name] for playback in words.PLAYED],
            "still": name in still,
        }
        for name in result["class_names"]
    ]


def shade(share: float | None) -> str:
    """The colour of a cell that says how much of a class was recognised."""
    return f"h{1 + sum(share > bound for bound in SHADES)}" if share else ""


def data_rows(data: Mapping) -> tuple[list[str], list[dict]]:
    """The splits, and the number of videos of each class in each of them."""
    counts = data["num_videos"]
    splits = list(counts)
    names = list(dict.fromkeys(name for found in counts.values() for name in found))
    return splits, [{"name": name, "counts": [counts[split].get(name, 0) for split in splits]} for name in names]
