"""Tables of a page: headline numbers, classes, confusion, cost, data, and what a result came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stvid.cost.report import CostReport, bytes_text, count_text
from stvid.evaluation import text as notation
from stvid.evaluation import text as words
from stvid.evaluation.results import on_gpu
from stvid.evaluation.text import mistaken_for

TOPS = ("2", "3", "5")
MANY = 20  # classes, above which top 5 says more than top 2
Facts = list[tuple[str, str] | tuple[str, str, str | None]]  # name, value, and perhaps a note
SHADES = (0.1, 0.25, 0.5, 0.8)  # shares of a row at which a cell's colour changes
MANY_CLASSES = 30  # above these the matrix is folded away behind the list of pairs
PAIRS, PAIRS_OF_MANY = 6, 20


def headline_numbers(result: Mapping) -> Facts:
    """All numbers of a result but the video accuracy."""

    def noted(name: str, note: str) -> tuple[str, str, str]:
        bounds = notation.interval(result[f"{name}_ci95"])
        return name.replace("_", " "), notation.percent(result[name]), f"{note}, {bounds}"

    numbers: Facts = [
        noted("clip_accuracy", "every view for itself"),
        noted("mean_class_accuracy", "every class counts alike"),
    ]
    tops = {k: notation.percent(share) for k, share in result["top_k_accuracy"].items() if k in TOPS}
    if tops:
        shown = "5" if "5" in tops and len(result["class_names"]) > MANY else "2"
        others = ", ".join(f"top {k}: {share}" for k, share in tops.items() if k != shown)
        numbers.append((f"top {shown}", tops[shown], others or "truth among the 2 most probable answers"))
    numbers.append(("macro F1", notation.decimal(result["macro_f1"]), "mean over the classes"))
    chance = notation.decimal(words.chance_loss(result))
    numbers.append(("log loss", notation.decimal(result["loss"]), f"{chance} for equal probabilities"))
    numbers.append(("calibration error", notation.percent(result["ece"]), "how far its probabilities are off"))
    return numbers


def cost_groups(cost: CostReport | None, result: Mapping, run: Mapping) -> list[tuple[str, str, Facts]]:
    """Title, what it is about, and facts: what the model needs by count, and what the training was seen to need."""
    groups = []
    if cost is not None:
        groups.append(("The model", _input_text(cost), _counted(cost, result["protocol"])))
    if run:
        groups.append(("Its training", f"As measured, on {_device(run)}.", _measured(run)))
    return groups


def _input_text(cost: CostReport) -> str:
    shape = " × ".join(map(str, cost.input_shape))
    device = {"cpu": "a CPU", "cuda": "a CUDA device"}[cost.device]
    return f"Counted, for clips of {shape} (channels × frames × height × width) in {cost.precision} on {device}."


def _counted(cost: CostReport, protocol: Mapping) -> Facts:
    views = protocol["num_clips"] * protocol["num_crops"]
    trained = cost.trainable_parameters
    share = None if trained == cost.parameters else f"{count_text(trained)} of them trained"
    step = f"on {notation.count(cost.batch_size, 'clip')}, with AdamW"
    return [
        ("parameters", count_text(cost.parameters), share),
        ("model", bytes_text(cost.model_bytes), "parameters and buffers"),
        ("compute of a clip", f"{count_text(cost.flops_forward)}FLOPs", "twice the multiply-adds"),
        ("compute of a video", f"{count_text(cost.flops_forward * views)}FLOPs", notation.count(views, "view")),
        ("memory of a training step", bytes_text(cost.peak_train_bytes), step),
        ("memory of an answer", bytes_text(cost.peak_inference_bytes), "to one clip"),
    ]


def _measured(run: Mapping) -> Facts:
    facts: Facts = [("training time", notation.duration(run["training_seconds"]), "all epochs, validation included")]
    if run["clips_per_second"] is not None:
        facts.append(("speed", f"{run['clips_per_second']:.1f} clips/s", "in training"))
    if run["waiting"] is not None:
        facts.append(("waiting for data", notation.percent(run["waiting"]), "of the training part"))
    for place, gib in run["peak_memory_gib"].items():
        if gib is not None:
            facts.append((f"memory, {place}", f"{gib:.2f} GiB", "at most"))
    return facts


def _device(run: Mapping) -> str:
    hardware = run["hardware"]
    if on_gpu(run) and hardware["gpus"]:
        return hardware["gpus"][0]["name"]
    return f"{hardware['cpu'] or 'a CPU'}, {notation.count(hardware['cores'], 'core')}"


def record_facts(result: Mapping, run: Mapping) -> Facts:
    """Checkpoint, seed, code, versions and machine."""
    facts: Facts = []
    if "folds" in result:
        facts.append(("runs", ", ".join(fold["run"] for fold in result["folds"])))
    else:
        facts.append(("checkpoint", f"{result['checkpoint']} (epoch {result['epoch']})"))
    if result["manifest"]:
        facts.append(("manifest", result["manifest"]))
    if not run:
        return facts
    facts.append(("seed", str(run["seed"])))
    if run["git"]:
        changed = ", with changes that are not committed" if run["git"]["dirty"] else ""
        facts.append(("git commit", f"{run['git']['commit']}{changed}"))
    facts.append(("versions", ", ".join(f"{name} {version}" for name, version in run["versions"].items())))
    hardware = run["hardware"]
    cores, memory = notation.count(hardware["cores"], "core"), hardware["memory_gib"]
    parts = [hardware["machine"], hardware["cpu"], cores, f"{memory} GiB of memory" if memory else None]
    parts += [f"{gpu['name']} ({gpu['memory_gib']} GiB)" for gpu in hardware["gpus"]]
    facts.append(("machine", ", ".join(part for part in parts if part)))
    return facts


def data_facts(result: Mapping, run: Mapping, root: str | None) -> Facts:
    """Where the judged videos lie, in how many groups, and the fingerprint of the run's data set."""
    facts: Facts = [] if root is None else [("folder", root)]
    if result["num_groups"]:
        facts.append((f"groups in {result['split']}", f"{result['num_groups']:,}"))
    if run:
        facts.append(("fingerprint (SHA-256)", run["data"]["manifest_sha256"]))
    return facts


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
