"""What `result.json` holds: every value is checked when the file is read back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stvid.checks import (
    Check,
    anything,
    dict_of,
    fields,
    flag,
    list_of,
    maybe,
    number,
    read_json,
    text,
)
from stvid.data.sampling import PLAYBACKS
from stvid.errors import InputError
from stvid.run.folder import RunFolder

MAX_CLIPS = 10_000  # per video
REMEDY = "Write it again with stvid evaluate RUN, or train again"

COUNT = number(0, whole=True)
SHARE = number(0, 1)
INTERVAL = list_of(SHARE, length=2)
PROTOCOL = fields(
    {"num_clips": number(1, MAX_CLIPS, whole=True), "num_crops": number(1, 5, whole=True)},
    optional={
        "num_frames": maybe(number(1, whole=True)),
        "fps": number(0),
        "frame_stride": number(1, whole=True),
        "size": list_of(number(1, whole=True), length=2),
        "temperature": maybe(number(0)),
    },
)
CLASS = fields({"precision": maybe(SHARE), "recall": maybe(SHARE), "f1": maybe(SHARE), "num_videos": COUNT})
# of every evaluation; comparisons need no more
EVALUATION = {
    "split": text("train", "val", "test"),
    "class_names": list_of(text(), unique=True),
    "protocol": PROTOCOL,
    "num_videos": number(1, whole=True),
    "num_groups": maybe(COUNT),
    "num_seen": COUNT,
    "video_accuracy": SHARE,
    "video_accuracy_ci95": INTERVAL,
    "clip_accuracy": SHARE,
    "per_class": dict_of(CLASS),
}
BIN = fields(
    {"low": SHARE, "high": SHARE, "num_videos": COUNT, "confidence": maybe(number(0, 1.001)), "accuracy": maybe(SHARE)}
)
# for a page
DETAILS = {
    "num_failed": COUNT,
    "clip_accuracy_ci95": INTERVAL,
    "mean_class_accuracy": SHARE,
    "mean_class_accuracy_ci95": INTERVAL,
    "interval": fields({"over": text("groups", "videos"), "num": COUNT}),
    "top5_accuracy": SHARE,
    "top_k_accuracy": dict_of(SHARE),
    "macro_f1": SHARE,
    "loss": number(-0.001),  # float32 rounds probabilities to a little above 1
    "ece": SHARE,
    "reliability": list_of(BIN),
    "manifest": maybe(text()),
}
CHECKPOINT = {"checkpoint": text(), "epoch": COUNT, "step": COUNT}
FOLDS = {
    "folds": list_of(fields({"name": text(), "run": text(), "num_videos": COUNT, "video_accuracy": SHARE})),
    "spread": fields({"mean": SHARE, "std": maybe(number(0))}),
}
PLAYBACK = fields(
    {
        "video_accuracy": SHARE,
        "video_accuracy_ci95": INTERVAL,
        "per_class": dict_of(maybe(SHARE)),
        "lost": COUNT,
        "gained": COUNT,
    }
)
AUDIT = {
    "audit": fields(dict.fromkeys(PLAYBACKS[1:], PLAYBACK)),
    "still_classes": list_of(text()),
    "audit_note": text(),
}
HISTOGRAM = list_of(COUNT)
UNKNOWN = {
    "unknown": fields(
        {
            "folder": text(),
            **dict.fromkeys(("num_videos", "num_failed", "num_known", "num_val"), COUNT),
            "background": list_of(text()),
            **dict.fromkeys(("recall", "auroc", "false_acceptance"), SHARE),
            **dict.fromkeys(("auroc_ci95", "false_acceptance_ci95"), INTERVAL),
            "threshold": maybe(SHARE),
            **dict.fromkeys(("val_at_threshold", "known_at_threshold", "unknown_at_threshold"), SHARE),
            "histogram": fields({"known": HISTOGRAM, "unknown": HISTOGRAM}),
        }
    )
}
HARDWARE = fields(
    {
        "cpu": maybe(text()),
        "cores": number(1, whole=True),
        "gpus": list_of(fields({"name": text(), "memory_gib": number(0)})),
    },
    optional={"machine": text(), "memory_gib": maybe(number(0))},
)
# of a training
TRAINING = {
    "training_seconds": number(0),
    "clips_per_second": maybe(number(0)),
    "waiting": maybe(SHARE),
    "peak_memory_gib": dict_of(maybe(number(0))),
    "hardware": HARDWARE,
}
HEADSPACE = {"free_clips_per_second": maybe(number(0)), "headspace": maybe(number(0))}
# what a page names of a run's config
SECTION = maybe(dict_of(anything))
CONFIG = fields(
    {"model": dict_of(anything), "data": fields({}, dict.fromkeys(("root", "path"), maybe(text())))},
    {
        "augment": fields({}, {"scale": list_of(number(0), length=2)}),
        **dict.fromkeys(("clip", "loss", "mixing"), SECTION),
    },
)
PROVENANCE = {
    "seed": number(0, whole=True),
    "git": maybe(fields({"commit": text(), "dirty": flag})),
    "versions": dict_of(text()),
    "data": fields(
        {"manifest_sha256": text(), "num_videos": dict_of(dict_of(COUNT)), "num_bad": COUNT},
    ),
    "device": text("cpu", "cuda", "mps"),
    "precision": text(),
    "config": CONFIG,
}


def _check_result(details: bool) -> Check:
    needed = {**EVALUATION, **(DETAILS if details else {})}
    own = fields(needed, optional={**DETAILS, **CHECKPOINT, **FOLDS, **AUDIT, **UNKNOWN})

    def check(value: Any, place: str) -> None:
        own(value, place)
        if details:
            fields(dict.fromkeys(("num_frames", "size", "temperature"), anything))(
                value["protocol"], f"{place}.protocol"
            )
        for one, group in (("folds", FOLDS), ("audit", AUDIT)):
            fields(group if one in value else {})(value, place)
        fields({} if "folds" in value or not details else CHECKPOINT)(value, place)
        _check_shapes(value, place)

    return check


def _check_shapes(result: dict, place: str) -> None:
    """The classes of all parts are those of `class_names`."""
    names = result["class_names"]
    if not names:
        raise InputError(f"{place}.class_names is empty")
    if result["num_videos"] < result.get("num_failed", 0):
        raise InputError(f"{place}.num_failed is larger than num_videos")
    if "checkpoint" in result and not Path(result["checkpoint"]).name:
        raise InputError(f"{place}.checkpoint is no name of a file")
    if not {"fps", "frame_stride"} & set(result["protocol"]) and "num_frames" in result["protocol"]:
        raise InputError(f"{place}.protocol has neither fps nor frame_stride")
    if "reliability" in result and not any(part["num_videos"] for part in result["reliability"]):
        raise InputError(f"{place}.reliability has no videos")
    for i, part in enumerate(result.get("reliability", [])):
        if (part["num_videos"] > 0) != (None not in (part["confidence"], part["accuracy"])):
            raise InputError(
                f"{place}.reliability[{i}] has videos without their accuracy, or an accuracy without videos"
            )
    parts = [(place, result), *((f"{place}.audit.{name}", part) for name, part in result.get("audit", {}).items())]
    for where, part in parts:
        if "per_class" in part and list(part["per_class"]) != names:
            raise InputError(f"{where}.per_class has other classes than class_names")
        if "confusion" in part:
            _check_confusion(part["confusion"], len(names), f"{where}.confusion")
        elif "confusion_counts" in part:
            _check_confusion_counts(part["confusion_counts"], len(names), f"{where}.confusion_counts")


def _check_confusion(rows: Any, num_classes: int, place: str) -> None:
    """Counts, one row for each true class; with thousands of classes there are millions of them."""
    is_table = isinstance(rows, list) and len(rows) == num_classes
    for row in rows if is_table else [None]:
        if not (isinstance(row, list) and len(row) == num_classes and set(map(type, row)) == {int} and min(row) >= 0):
            raise InputError(f"{place} must be a table of {num_classes} x {num_classes} counts")


def _check_confusion_counts(rows: object, num_classes: int, place: str) -> None:
    """The same without zeros: true class -> predicted class -> count; the classes are indices as text."""
    dict_of(dict_of(number(1, whole=True)))(rows, place)
    assert isinstance(rows, dict)
    indices = set(map(str, range(num_classes)))
    if not indices.issuperset(rows) or not all(indices.issuperset(row) for row in rows.values()):
        raise InputError(f"{place} must have the indices of {num_classes} classes as keys")


def _check_run(value: Any, place: str) -> None:
    later = {"encoding_seconds": number(0), **HEADSPACE}  # older versions wrote none
    fields({}, optional={**EVALUATION, **TRAINING, **PROVENANCE, **later})(value, place)
    if "training_seconds" in value:
        fields(TRAINING)(value, place)


def _check_run_details(value: Any, place: str) -> None:
    """All that a page shows of a training."""
    _check_run(value, place)
    if value:
        machine = {"hardware": fields(dict.fromkeys(("machine", "memory_gib"), anything))}
        evaluation = (*EVALUATION, "config") if "per_class" in value else ()
        provenance = PROVENANCE.keys() - {"device", "precision", "config"}  # missing in results of older versions
        fields(dict.fromkeys((*TRAINING, *sorted(provenance), *evaluation), anything))(value, place)
        fields(machine)(value, place)


def read_result(folder: Path, *, details: bool = True) -> dict:
    """Reads `result.json` of an evaluation.

    Args:
        folder: the evaluation's folder.
        details: whether everything that a page shows must be there.

    Raises:
        InputError: the file is missing, damaged or of an older version.
    """
    file = RunFolder(folder).result_json
    if not file.exists():
        raise InputError(f"{folder} has no {file.name}, so there is nothing to report: stvid evaluate RUN writes one")
    result = read_json(file, dict_of(anything), remedy=REMEDY)
    assert isinstance(result, dict)
    if result and "num_seen" not in result:
        raise InputError(f"{file} is of an older version of stvid; stvid evaluate RUN writes a new one")
    _refuse_with_name(_check_result(details), result, file)
    if details and not {"confusion", "confusion_counts"} & set(result):
        raise InputError(f"{file} is damaged or was changed: it has no confusion. {REMEDY}")
    return result


def read_run_result(folder: Path, *, needed: Sequence[str] = (), details: bool = False) -> dict:
    """Reads the `result.json` that training wrote; empty if the run is not finished.

    Args:
        folder: the run's folder.
        needed: keys that must be there.
        details: whether everything that a page shows must be there.

    Raises:
        InputError: the file is damaged, or of an older version.
    """
    file = RunFolder(folder).result_json
    if not file.exists():
        return {}
    result = read_json(file, _check_run_details if details else _check_run, remedy=REMEDY)
    assert isinstance(result, dict)
    _refuse_with_name(fields(dict.fromkeys(needed, anything)), result, file)
    return result


def _refuse_with_name(check: Check, value: object, file: Path) -> None:
    try:
        check(value, file.name)
    except InputError as error:
        raise InputError(f"{file} is damaged or was changed: {error}. {REMEDY}") from error
