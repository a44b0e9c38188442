"""Tables of a report: metrics, confusion matrix, classes, audit, cost, data and provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stvid.cost.report import CostReport, bytes_text, count_text
from stvid.evaluation import text
from stvid.evaluation.results import was_trained_on_gpu

TOP_K = ("2", "3", "5")
NUM_CLASSES_FOR_TOP5 = 20  # with more classes, top-5 accuracy is more informative than top-2 accuracy
Entries = list[tuple[str, str] | tuple[str, str, str | None]]  # name, value, and optionally a note
SHADE_BOUNDS = (0.1, 0.25, 0.5, 0.8)  # fractions of a row at which the colour of a cell changes
LARGE_MATRIX = 30  # classes; a larger matrix is folded, below the list of confused pairs
NUM_PAIRS, NUM_PAIRS_LARGE = 6, 20


def metric_entries(result: Mapping) -> Entries:
    """All metrics of a result except the video accuracy."""

    def accuracy(name: str, note: str) -> tuple[str, str, str]:
        bounds = text.interval(result[f"{name}_ci95"])
        return name.replace("_", " "), text.percent(result[name]), f"{note}, {bounds}"

    entries: Entries = [
        accuracy("clip_accuracy", "each view on its own"),
        accuracy("mean_class_accuracy", "all classes weighted equally"),
    ]
    top = {k: text.percent(share) for k, share in result["top_k_accuracy"].items() if k in TOP_K}
    if top:
        main = "5" if "5" in top and len(result["class_names"]) > NUM_CLASSES_FOR_TOP5 else "2"
        others = ", ".join(f"top {k}: {share}" for k, share in top.items() if k != main)
        entries.append((f"top {main}", top[main], others or "true class among the 2 most probable"))
    entries.append(("macro F1", text.decimal(result["macro_f1"]), "mean over the classes"))
    chance = text.decimal(text.chance_loss(result))
    entries.append(("log loss", text.decimal(result["loss"]), f"{chance} for equal probabilities"))
    entries.append(("calibration error", text.percent(result["ece"]), "expected calibration error"))
    return entries


def cost_tables(cost: CostReport | None, result: Mapping, run: Mapping) -> list[tuple[str, str, Entries]]:
    """Title, explanation and entries: the estimated cost of the model, and the measured cost of its training."""
    groups = []
    if cost is not None:
        groups.append(("Model", _input_description(cost), _estimated_entries(cost, result["protocol"])))
    if run:
        groups.append(("Training", f"Measured on {_device_name(run)}.", _measured_entries(run)))
    return groups


def _input_description(cost: CostReport) -> str:
    shape = " × ".join(map(str, cost.input_shape))
    device = {"cpu": "a CPU", "cuda": "a CUDA device"}[cost.device]
    return f"Estimated for clips of {shape} (channels × frames × height × width) in {cost.precision} on {device}."


def _estimated_entries(cost: CostReport, protocol: Mapping) -> Entries:
    views = protocol["num_clips"] * protocol["num_crops"]
    trainable = cost.trainable_parameters
    note = None if trainable == cost.parameters else f"{count_text(trainable)} of them trainable"
    batch = f"batch of {text.count(cost.batch_size, 'clip')}, AdamW"
    return [
        ("parameters", count_text(cost.parameters), note),
        ("model size", bytes_text(cost.model_bytes), "parameters and buffers"),
        ("compute per clip", f"{count_text(cost.flops_forward)}FLOPs", "twice the multiply-adds"),
        ("compute per video", f"{count_text(cost.flops_forward * views)}FLOPs", text.count(views, "view")),
        ("peak training memory", bytes_text(cost.peak_train_bytes), batch),
        ("peak inference memory", bytes_text(cost.peak_inference_bytes), "one clip"),
    ]


def _measured_entries(run: Mapping) -> Entries:
    note = "all epochs, including validation"
    if encoding := run.get("encoding_seconds"):
        note += f"; {text.duration(encoding)} of it to encode the frames once"
    entries: Entries = [("training time", text.duration(run["training_seconds"]), note)]
    if run["clips_per_second"] is not None:
        entries.append(("speed", f"{run['clips_per_second']:.1f} clips/s", "in training"))
    if run["waiting"] is not None:
        entries.append(("waiting for data", text.percent(run["waiting"]), "of the training time without validation"))
    headspace, free = run.get("headspace"), run.get("free_clips_per_second")  # older versions wrote neither
    if headspace is not None and free is not None:
        entries.append(("headspace", f"{headspace:.1f}x", f"{free:.1f} clips/s if data were free"))
    for device, gib in run["peak_memory_gib"].items():
        if gib is not None:
            entries.append((f"peak memory, {device}", f"{gib:.2f} GiB", None))
    return entries


def _device_name(run: Mapping) -> str:
    hardware = run["hardware"]
    if was_trained_on_gpu(run) and hardware["gpus"]:
        return hardware["gpus"][0]["name"]
    return f"{hardware['cpu'] or 'a CPU'}, {text.count(hardware['cores'], 'core')}"


def provenance_entries(result: Mapping, run: Mapping) -> Entries:
    """Checkpoint, seed, code, versions and machine."""
    entries: Entries = []
    if "folds" in result:
        entries.append(("runs", ", ".join(fold["run"] for fold in result["folds"])))
    else:
        entries.append(("checkpoint", f"{result['checkpoint']} (epoch {result['epoch']})"))
    if result["manifest"]:
        entries.append(("manifest", result["manifest"]))
    if not run:
        return entries
    entries.append(("seed", str(run["seed"])))
    if run["git"]:
        changed = ", with uncommitted changes" if run["git"]["dirty"] else ""
        entries.append(("git commit", f"{run['git']['commit']}{changed}"))
    entries.append(("versions", ", ".join(f"{name} {version}" for name, version in run["versions"].items())))
    hardware = run["hardware"]
    cores, memory = text.count(hardware["cores"], "core"), hardware["memory_gib"]
    parts = [hardware["machine"], hardware["cpu"], cores, f"{memory} GiB of memory" if memory else None]
    parts += [f"{gpu['name']} ({gpu['memory_gib']} GiB)" for gpu in hardware["gpus"]]
    entries.append(("machine", ", ".join(part for part in parts if part)))
    return entries


def data_entries(result: Mapping, run: Mapping, root: str | None) -> Entries:
    """Folder of the evaluated videos, number of groups, and checksum of the run's manifest."""
    entries: Entries = [] if root is None else [("folder", root)]
    if result["num_groups"]:
        entries.append((f"groups in {result['split']}", f"{result['num_groups']:,}"))
    if run:
        entries.append(("manifest (SHA-256)", run["data"]["manifest_sha256"]))
    return entries


def is_large(result: Mapping) -> bool:
    """Whether the confusion matrix is folded."""
    return len(result["class_names"]) > LARGE_MATRIX


def confusion_rows(result: Mapping) -> list[dict]:
    """One row per class: `name`, `total` and `cells`; a cell has a number of videos, or is `blank`.

    In a large matrix, `blank` is the number of consecutive empty cells; in a small one it is always 1.
    """
    names, max_blank = result["class_names"], len(result["class_names"]) if is_large(result) else 1
    return [
        {"name": names[truth], "total": sum(counts.values()), "cells": _cells(names, truth, counts, max_blank)}
        for truth, counts in enumerate(text.confusion_rows(result))
    ]


def _cells(names: Sequence[str], truth: int, counts: Mapping[int, int], max_blank: int) -> list[dict]:
    cells, total, column = [], sum(counts.values()), 0
    for predicted, number in counts.items():
        cells += _blanks(predicted - column, max_blank)
        column = predicted + 1
        level = 1 + sum(number / total > bound for bound in SHADE_BOUNDS)
        label = f"truth {names[truth]}, predicted {names[predicted]}: {text.count(number, 'video')}"
        kind = "h" if truth == predicted else "m"
        cells.append({"predicted": predicted, "count": number, "shade": f"{kind}{level}", "label": label})
    return cells + _blanks(len(names) - column, max_blank)


def _blanks(number: int, max_blank: int) -> list[dict]:
    whole, rest = divmod(number, max_blank)
    return [{"blank": max_blank}] * whole + [{"blank": rest}] * bool(rest)


def cell_totals(result: Mapping) -> dict[str, int]:
    """`TRUTH-PREDICTED` -> number of videos, for the cells that are not empty."""
    return {
        f"{truth}-{predicted}": number
        for truth, counts in enumerate(text.confusion_rows(result))
        for predicted, number in counts.items()
    }


def confused_pairs(result: Mapping) -> list[dict]:
    """Pairs with the most mistakes: `truth`, `predicted` (class indices), `count`, `share` of the true class."""
    pairs = [
        {"truth": truth, "predicted": predicted, "count": number, "share": number / sum(counts.values())}
        for truth, counts in enumerate(text.confusion_rows(result))
        for predicted, number in counts.items()
        if truth != predicted
    ]
    pairs.sort(key=lambda pair: (-pair["count"], -pair["share"]))
    return pairs[: NUM_PAIRS_LARGE if is_large(result) else NUM_PAIRS]


def class_rows(result: Mapping) -> list[dict]:
    """Recall, precision, F1, number of videos and most frequent confusions of each class."""
    names = result["class_names"]
    return [
        {"name": name, **result["per_class"][name], "confused_with": text.confused_with(truth, counts, names)}
        for truth, (name, counts) in enumerate(zip(names, text.confusion_rows(result), strict=True))
    ]


def audit_rows(result: Mapping) -> list[dict]:
    """One row per playback, unchanged first: `name`, `description`, `accuracy`, `interval`, `lost`, `gained`."""
    rows = [_audit_row("unchanged", None, result)]
    for playback, description in text.PLAYBACK_DESCRIPTIONS.items():
        rows.append(_audit_row(playback.replace("_", " "), description, result["audit"][playback]))
    return rows


def _audit_row(name: str, description: str | None, metrics: Mapping) -> dict:
    return {
        "name": name,
        "description": description,
        "accuracy": metrics["video_accuracy"],
        "interval": metrics["video_accuracy_ci95"],
        "lost": metrics.get("lost"),
        "gained": metrics.get("gained"),
    }


def audit_classes(result: Mapping) -> list[dict]:
    """Recall of each class, unchanged and in each playback (`changed`); `still`: recognised from a still image."""
    audit, still = result["audit"], result["still_classes"]
    return [
        {
            "name": name,
            "recall": result["per_class"][name]["recall"],
            "changed": [audit[playback]["per_class"][name] for playback in text.PLAYBACK_DESCRIPTIONS],
            "still": name in still,
        }
        for name in result["class_names"]
    ]


def shade(share: float | None) -> str:
    """CSS class of a cell that shows a recall."""
    return f"h{1 + sum(share > bound for bound in SHADE_BOUNDS)}" if share else ""


def data_rows(data: Mapping) -> tuple[list[str], list[dict]]:
    """The splits, and the number of videos of each class in each split."""
    num_videos = data["num_videos"]
    splits = list(num_videos)
    names = list(dict.fromkeys(name for counts in num_videos.values() for name in counts))
    return splits, [{"name": name, "counts": [num_videos[split].get(name, 0) for split in splits]} for name in names]
