"""Results as text: numbers, durations and sentences for the terminal and the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from stvid.errors import listing
from stvid.evaluation.statistics import mcnemar, paired_interval
from stvid.terminal import aligned, visible, visible_lines

NBSP = "\u00a0"  # between a number and its unit, so that no line breaks there
DASH = "–"
MAX_NAMED = 3  # classes that a class is confused with
MAX_CLASSES = 60  # rows of the printed table
IMBALANCE = 1.5  # ratio to chance from which the most common class is mentioned
CALIBRATION_TOLERANCE = 0.02  # largest |confidence - accuracy| that counts as calibrated
SIGNIFICANCE_LEVEL = 0.05
NEGLIGIBLE = 0.05  # largest difference of two accuracies that counts as no difference
PLAYBACK_DESCRIPTIONS = {  # of the changed `sampling.PLAYBACKS`
    "frozen": "the clip's middle frame, repeated",
    "shuffled": "the clip's frames in random order",
    "reversed": "the clip's frames in reverse order",
    "half_speed": "every frame of the video twice",
    "double_speed": "every second frame of the video",
}
TIME_VERDICTS = {  # playback -> verdict if the accuracy falls, verdict if it stays the same
    "shuffled": ("the model uses the order of frames", "the order of frames hardly matters to the model"),
    "frozen": ("the model uses motion", "a still image is as good as the video"),
}


def percent(share: float | None) -> str:
    """A fraction as `86.5 %`; None as a dash."""
    return DASH if share is None else f"{100 * share:.1f}{NBSP}%"


def interval(bounds: tuple[float, float] | list[float]) -> str:
    """`81.1 to 90.5 %`."""
    low, high = bounds
    return f"{100 * low:.1f} to {100 * high:.1f}{NBSP}%"


def change(difference: float) -> str:
    """A difference of fractions in percentage points, with its sign: `+3.2`."""
    points = f"{abs(100 * difference):.1f}"
    return f"{'±' if points == '0.0' else '+' if difference > 0 else '−'}{points}"


def decimal(number: float | None) -> str:
    """A number with three decimals; None as a dash."""
    return DASH if number is None else f"{number:.3f}"


def count(number: int, noun: str) -> str:
    """`1 video`, `1,200 videos`."""
    plural = noun if number == 1 else f"{noun}{'es' if noun.endswith('s') else 's'}"
    return f"{number:,} {plural}"


def duration(seconds: float) -> str:
    """`4.5 s`, `45 s`, `3 min 20 s`, `2 h 5 min`."""
    seconds = round(seconds) if seconds >= 10 else round(seconds, 1)
    if seconds < 60:
        return f"{seconds:g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def training_time(seconds: float, encoding_seconds: float) -> str:
    """`6 min 5 s`, or `6 min 5 s (5 min 52 s encoding)`."""
    encoding = f" ({duration(encoding_seconds)} encoding)" if encoding_seconds else ""
    return f"{duration(seconds)}{encoding}"


def p_value(value: float) -> str:
    """A p-value for a table: `0.0123` or `< 0.0001`."""
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


def p_equals(value: float) -> str:
    """A p-value for a sentence: `p = 0.0123` or `p < 0.0001`."""
    text = p_value(value)
    return f"p {text if text.startswith('<') else f'= {text}'}".replace(" ", NBSP)


def part_suffix(start: float | None, end: float | None) -> str:
    """The part of a file, as a suffix to its name: `, 2 s to 4.5 s`; empty for a whole file."""
    if start is None and end is None:
        return ""
    return f", {start or 0:g} s to {'the end' if end is None else f'{end:g} s'}"


def protocol_value(key: str, value: object) -> str:
    """A value of `protocol` in a result: `16`, `64 × 64`, `all` for the frames of whole videos; None as a dash."""
    if value is None:
        return {"num_frames": "all", "temperature": "one per fold"}.get(key, DASH)
    if isinstance(value, list):
        return " × ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def confusion_rows(metrics: Mapping) -> list[dict[int, int]]:
    """For each true class: predicted class -> number of videos, ascending and without zeros.

    Args:
        metrics: a result, or the metrics of a playback: with `confusion`, or with `confusion_counts` (many classes).
    """
    if "confusion" in metrics:
        return [{predicted: n for predicted, n in enumerate(row) if n} for row in metrics["confusion"]]
    counts = metrics["confusion_counts"]
    rows = (counts.get(str(truth), {}) for truth in range(len(metrics["per_class"])))
    return [{int(predicted): n for predicted, n in row.items()} for row in rows]


def confused_with(truth: int, counts: Mapping[int, int], class_names: Sequence[str]) -> list[str]:
    """The classes predicted wrongly for videos of one class, most frequent first: `run (4)`, and finally `2 more`.

    Args:
        truth: index of the true class.
        counts: its row of `confusion_rows`.
        class_names: names by index.
    """
    wrong = sorted((-number, predicted) for predicted, number in counts.items() if predicted != truth)
    more = [f"{len(wrong) - MAX_NAMED} more"] if len(wrong) > MAX_NAMED else []
    return [f"{class_names[predicted]} ({-number})" for number, predicted in wrong[:MAX_NAMED]] + more


NO_GROUPS = "no groups are named: clips of one recording may be in train and in these videos (stvid check)"


def headline(result: Mapping) -> str:
    """The video accuracy with its interval, in one line."""
    low, high = result["video_accuracy_ci95"]
    groups = f" of {result['interval']['num']} groups" if result["interval"]["over"] == "groups" else ""
    return (
        f"{result['split']} video accuracy {result['video_accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f}, "
        f"{result['num_videos']} videos{groups})"
    )


def result_text(result: Mapping) -> str:
    """The result for a terminal: videos, protocol, metrics, and a table of the classes."""
    basis = result["interval"]
    resampled = f"bootstrap over {basis['num']} groups" if basis["over"] == "groups" else f"over {basis['num']} videos"
    absent = [name for name, metrics in result["per_class"].items() if not metrics["num_videos"]]
    lines = [
        f"{result['split']}: {result['num_videos']} videos, {result['num_failed']} unreadable (counted as wrong)",
        f"protocol: {_protocol_text(result['protocol'])}",
        f"95 % intervals: {resampled}",
        *([] if result["num_groups"] else [NO_GROUPS]),
        *([f"no videos of: {listing(absent)}"] if absent else []),
        "",
        *(
            f"{name.replace('_', ' '):<20} {result[name]:.3f}   ({low:.3f} to {high:.3f})"
            for name in ("video_accuracy", "clip_accuracy", "mean_class_accuracy")
            for low, high in [result[f"{name}_ci95"]]
        ),
        *([f"top-5 accuracy       {result['top5_accuracy']:.3f}"] if len(result["class_names"]) > 5 else []),
        f"macro F1             {result['macro_f1']:.3f}",
        f"log loss             {result['loss']:.3f}",
        f"calibration error    {result['ece']:.3f}",
        "",
        *_class_table(result),
    ]
    return visible_lines("\n".join(lines))


def unknown_text(result: Mapping) -> str:
    """How well unknown videos are separated, for a terminal."""
    unknown = result["unknown"]
    (low, high), (least, most) = unknown["auroc_ci95"], unknown["false_acceptance_ci95"]
    lines = [
        f"unknown: {count(unknown['num_videos'], 'video')} of {unknown['folder']}, {unknown['num_failed']} unreadable "
        "(left out)",
        f"AUROC                {unknown['auroc']:.3f}   ({low:.3f} to {high:.3f})",
        f"false acceptance     {unknown['false_acceptance']:.3f}   ({least:.3f} to {most:.3f})   with "
        f"{unknown['recall']:.0%} of the known videos accepted",
        unknown_sentence(result),
    ]
    return visible_lines("\n".join(lines))


def unknown_sentence(result: Mapping) -> str:
    """The threshold, and what it accepts."""
    unknown = result["unknown"]
    if unknown["threshold"] is None:
        return (
            f"No threshold was chosen: one that accepts {unknown['recall']:.0%} of the validation videos also accepts "
            f"{percent(unknown['unknown_at_threshold'])} of the unknown ones."
        )
    return (
        f"The threshold {unknown['threshold']:.6g}, chosen on {count(unknown['num_val'], 'validation video')}, accepts "
        f"{percent(unknown['known_at_threshold'])} of the known and {percent(unknown['unknown_at_threshold'])} of the "
        "unknown videos."
    )


def _protocol_text(protocol: Mapping) -> str:
    stride, temperature = protocol.get("frame_stride"), protocol["temperature"]
    rate = f"stride {stride}" if stride else f"{protocol['fps']:g} frames/s"
    if temperature is None:
        calibration = ", one temperature per fold"
    else:
        calibration = "" if temperature == 1 else f", temperature {temperature:g}"
    height, width = protocol["size"]
    views = f"{protocol['num_clips']} clips x {protocol['num_crops']} crops"
    return f"{views} of {protocol['num_frames'] or 'all'} frames, {rate}, {height} x {width} pixels{calibration}"


def _class_table(result: Mapping) -> list[str]:
    """Recall, precision, number of videos and confusions of the classes; of very many, those with the lowest recall."""
    names, rows = result["class_names"], confusion_rows(result)
    order: Sequence[int] = range(len(names))
    title = []
    if len(names) > MAX_CLASSES:
        recalls = [result["per_class"][name]["recall"] for name in names]
        known = sorted((i for i in order if recalls[i] is not None), key=lambda i: recalls[i])
        order = known[:MAX_CLASSES]
        title = [f"the {len(order)} of {len(names):,} classes with the lowest recall; result.json has all"]
    table = [("class", "recall", "precision", "videos", "confused with")]
    for i in order:
        metrics = result["per_class"][names[i]]
        shares = ("-" if metrics[key] is None else f"{metrics[key]:.3f}" for key in ("recall", "precision"))
        confused = ", ".join(confused_with(i, rows[i], names))
        table.append((names[i], *shares, str(metrics["num_videos"]), confused))
    return [*title, *aligned(table, left=1, text=True).split("\n")]


def num_correct(result: Mapping) -> int:
    """Number of videos that are classified correctly."""
    return round(result["video_accuracy"] * result["num_videos"])


def summary_sentence(result: Mapping) -> str:
    """How many videos are classified correctly, whether the model had seen them, and what chance would give."""
    total, sizes = result["num_videos"], {name: metrics["num_videos"] for name, metrics in result["per_class"].items()}
    chance = total / len(result["class_names"])
    baselines = f"chance: {_round_count(chance)}"
    common = max(sizes, key=lambda name: sizes[name])
    if sizes[common] > IMBALANCE * chance:
        baselines += f"; always predicting {visible(common)}: {sizes[common]:,}"
    verb = "is" if total == 1 else "are"
    return f"{num_correct(result):,} of {_videos_phrase(result)} {verb} classified correctly ({baselines})."


def _videos_phrase(result: Mapping) -> str:
    """The number of videos, and whether the model had seen them: `20 unseen videos`."""
    total, seen, split = result["num_videos"], result["num_seen"], result["split"]
    folds = f" in {len(result['folds'])} folds" if "folds" in result else ""
    if not seen:
        return f"{count(total, 'unseen video')}{folds}"
    if not folds and seen == total and result["manifest"] is None and split in ("train", "val"):
        return count(total, {"train": "training video", "val": "validation video"}[split])
    return f"{count(total, 'video')}{folds}, {seen:,} of them seen in training or model selection,"


def _round_count(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 or number == int(number) else f"{number:.1f}"


def protocol_sentence(result: Mapping) -> str:
    """The views of each video, in a sentence."""
    protocol = result["protocol"]
    clips, crops = protocol["num_clips"], protocol["num_crops"]
    height, width = protocol["size"]
    if protocol.get("fps") is not None:
        rate = f"{protocol['fps']:g} frames per second"
    else:
        rate = f"frame stride {protocol['frame_stride']}"
    frames = "all its frames" if protocol["num_frames"] is None else count(protocol["num_frames"], "frame")
    views = f"{count(clips, 'clip')} × {count(crops, 'crop')}".replace(" ", NBSP)
    mean = "; the probabilities are averaged over the views" if clips * crops > 1 else ""
    return f"Each video is evaluated on {views} of {frames} ({rate}), {height} × {width} pixels{mean}."


def interval_basis(result: Mapping) -> str:
    """How the 95 % intervals were computed."""
    basis = result["interval"]
    if basis["over"] == "groups":
        return f"95{NBSP}% interval, bootstrap over {count(basis['num'], 'group')}"
    return f"95{NBSP}% interval (Wilson) over {count(basis['num'], 'video')}"


def calibration_sentence(result: Mapping) -> str:
    """Mean confidence and accuracy of the readable videos, and whether they agree."""
    bins = [row for row in result["reliability"] if row["num_videos"]]
    total = sum(row["num_videos"] for row in bins)
    confidence, accuracy = (
        sum(row[key] * row["num_videos"] for row in bins) / total for key in ("confidence", "accuracy")
    )
    gap = confidence - accuracy
    if abs(gap) <= CALIBRATION_TOLERANCE:
        verdict = "well calibrated on average"
    else:
        verdict = f"{'overconfident' if gap > 0 else 'underconfident'} by {100 * abs(gap):.1f} points"
    return f"The mean confidence is {percent(confidence)}, the accuracy {percent(accuracy)}: {verdict}."


def temperature_sentence(result: Mapping) -> str:
    """Whether and how the probabilities were calibrated."""
    temperature = result["protocol"]["temperature"]
    if temperature is None:
        return "Each fold has its own temperature, fitted on its validation videos."
    if temperature == 1.0:
        return "The probabilities are not calibrated."
    return f"The logits are divided by a temperature of {temperature:.3g}, fitted on the validation videos."


def temporal_verdicts(result: Mapping) -> list[str]:
    """What the temporal audit shows about order and motion, one sentence each.

    A significant McNemar test shows a difference; a narrow interval of the paired difference shows that there is none.
    If the accuracy is not above chance, the audit cannot show anything.
    """
    accuracy, chance = result["video_accuracy"], 1 / len(result["class_names"])
    if result["video_accuracy_ci95"][0] <= chance:
        bounds = interval(result["video_accuracy_ci95"])
        return [
            f"The accuracy of {percent(accuracy)} ({bounds}) is not clearly above chance ({percent(chance)}): the "
            "audit cannot show whether the model uses time."
        ]
    sentences = []
    for playback, (time_is_used, time_is_not_used) in TIME_VERDICTS.items():
        changed = result["audit"][playback]
        lost, gained = changed["lost"], changed["gained"]
        p, (low, high) = mcnemar(lost, gained), paired_interval(lost, gained, result["num_videos"])
        if p < SIGNIFICANCE_LEVEL:
            verdict = time_is_used if lost > gained else "the accuracy is even higher"
        elif low >= -NEGLIGIBLE and high <= NEGLIGIBLE:
            verdict = time_is_not_used
        else:
            verdict = "too few videos to decide"
        test = f"{lost:,} lost and {gained:,} gained, {p_equals(p)}"
        accuracies = f"the accuracy is {percent(changed['video_accuracy'])} instead of {percent(accuracy)}"
        sentences.append(f"With {playback} frames, {accuracies} ({test}): {verdict}.")
    return sentences


def chance_loss(result: Mapping) -> float:
    """Log loss of equal probabilities for all classes: `log K`."""
    return math.log(len(result["class_names"]))
