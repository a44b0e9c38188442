"""What the tables of the page hold, from `result.json`: plain rows, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stvid.evaluation.page import words

SHADES = (0.1, 0.25, 0.5, 0.8)  # shares of a row at which a cell's colour changes
MANY_CLASSES = 30  # above these the matrix is folded away behind the list of pairs
PAIRS, PAIRS_OF_MANY = 6, 20
MISTAKEN = 3  # classes that a class was mistaken for


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
        label = f"truth {names[truth]}, answered {names[answer]}: {words.count(number, 'video')}"
        kind = "h" if truth == answer else "m"
        cells.append({"answer": answer, "count": number, "shade": f"{kind}{shade}", "label": label})
    return cells


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
    rows = []
    for truth, (name, counts) in enumerate(zip(result["class_names"], result["confusion"], strict=True)):
        wrong = sorted(((-n, j) for j, n in enumerate(counts) if n and j != truth))
        mistaken = [f"{result['class_names'][j]} ({-n})" for n, j in wrong[:MISTAKEN]]
        more = len(wrong) - MISTAKEN
        rows.append(
            {"name": name, **result["per_class"][name], "mistaken": mistaken + ([f"{more} more"] if more > 0 else [])}
        )
    return rows


def audit_rows(result: Mapping) -> list[dict]:
    """The true accuracy and those of the changed videos: `name`, `accuracy`, `interval`, `change`."""
    true = result["video_accuracy"]
    rows = [{"name": "as they are", "accuracy": true, "interval": result["video_accuracy_ci95"], "change": None}]
    for key, name in words.ORDERS.items():
        if key in result["audit"]:
            found = result["audit"][key]["video_accuracy"]
            bounds = result["audit"][key]["video_accuracy_ci95"]
            rows.append({"name": name, "accuracy": found, "interval": bounds, "change": found - true})
    return rows


def audit_classes(result: Mapping) -> list[dict]:
    """Recall of each class as the videos are and `changed` in each way; `still`: a single picture tells it."""
    audit, still = result["audit"], result["still_classes"]
    return [
        {
            "name": name,
            "recall": result["per_class"][name]["recall"],
            "changed": [audit[key]["per_class"][name] for key in words.ORDERS if key in audit],
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
