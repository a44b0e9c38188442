"""Results in words: numbers, times and sentences for a terminal and a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from stvid.errors import listing
from stvid.evaluation.statistics import mcnemar, paired_interval

NBSP = "\u00a0"  # between a number and its unit, where no line may break
DASH = "–"
MAX_NAMED = 3  # classes
IMBALANCE = 1.5  # times what chance gets right: from here on the most common class is worth naming
CALIBRATION_TOLERANCE = 0.02  # confidence minus accuracy, above which it is called too much
SIGNIFICANCE_LEVEL = 0.05  # p, below which a difference is called unlikely to be chance
NEGLIGIBLE = 0.05  # a difference of accuracies that hardly matters
PLAYBACK_DESCRIPTIONS = {  # in the ways of `playback.PLAYBACKS`: what is shown of a video then
    "frozen": "the clip's middle frame, repeated",
    "shuffled": "the clip's frames in random order",
    "reversed": "the clip's frames backwards",
    "half_speed": "every frame of the video twice",
    "double_speed": "every other frame of the video",
}
TIME_VERDICTS = {  # of time, what a loss proves and what no loss does
    "shuffled": ("it uses the order of frames", "the order of frames hardly matters to it"),
    "frozen": ("it uses motion", "a still picture is as good to it as the video"),
}


def percent(share: float | None) -> str:
    """`86.5 %` of a fraction."""
    return DASH if share is None else f"{100 * share:.1f}{NBSP}%"


def interval(bounds: tuple[float, float] | list[float]) -> str:
    """`81.1 to 90.5 %`."""
    low, high = bounds
    return f"{100 * low:.1f} to {100 * high:.1f}{NBSP}%"


def change(difference: float) -> str:
    """Percentage points with their sign."""
    points = f"{abs(100 * difference):.1f}"
    return f"{'±' if points == '0.0' else '+' if difference > 0 else '−'}{points}"


def decimal(number: float | None) -> str:
    """Three decimals."""
    return DASH if number is None else f"{number:.3f}"


def count(number: int, what: str) -> str:
    """`1 video`, `1,200 videos`."""
    plural = what if number == 1 else f"{what}{'es' if what.endswith('s') else 's'}"
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


def p_value(value: float) -> str:
    """Of a test, for a table: `0.0123` or `< 0.0001`."""
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


def p_equals(value: float) -> str:
    """Likewise for a sentence: `p = 0.0123` or `p < 0.0001`."""
    text = p_value(value)
    return f"p {text if text.startswith('<') else f'= {text}'}".replace(" ", NBSP)


def part_suffix(start: float | None, end: float | None) -> str:
    """Which part of a file a video is, to stand behind its name; nothing for a whole one."""
    if start is None and end is None:
        return ""
    return f", {start or 0:g} s to {'the end' if end is None else f'{end:g} s'}"


def protocol_value(key: str, value: object) -> str:
    """A value of a result's `protocol_sentence`: `16`, `64 × 64`, `all` frames of a video; a dash where it has none."""
    if value is None:
        return {"num_frames": "all", "temperature": "one for each fold"}.get(key, DASH)
    if isinstance(value, list):
        return " × ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def printable(text: str) -> str:
    """Text that can be written as UTF-8: bytes of a file name that are none stay to be seen, as `\\udc..`."""
    return text.encode("utf-8", "backslashreplace").decode()


def confused_with(truth: int, counts: Sequence[int], class_names: Sequence[str]) -> list[str]:
    """The answers that its videos got instead, most frequent first: `run (4)`, and at the end `2 more`.

    Args:
        truth: the class's position.
        counts: its row of the confusion matrix.
        class_names: by position.
    """
    wrong = sorted(((-number, answer) for answer, number in enumerate(counts) if number and answer != truth))
    more = [f"{len(wrong) - MAX_NAMED} more"] if len(wrong) > MAX_NAMED else []
    return [f"{class_names[answer]} ({-number})" for number, answer in wrong[:MAX_NAMED]] + more


def headline(result: dict) -> str:
    """The video accuracy with its interval, in one line."""
    low, high = result["video_accuracy_ci95"]
    groups = f" of {result['interval']['num']} groups" if result["interval"]["over"] == "groups" else ""
    return (
        f"{result['split']} video accuracy {result['video_accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f}, "
        f"{result['num_videos']} videos{groups})"
    )


def _temperature(rule: dict) -> str:
    if rule["temperature"] is None:
        return ", each fold at its own temperature"
    return "" if rule["temperature"] == 1 else f", temperature {rule['temperature']:g}"


def result_text(result: dict) -> str:
    """The result as a page of text: headline, classes, and what was mistaken for what."""
    rule = result["protocol"]
    rate = f"stride {rate}" if (rate := rule.get("frame_stride")) else f"{rule['fps']:g} frames/s"
    over = result["interval"]
    basis = f"bootstrap over {over['num']} groups" if over["over"] == "groups" else f"over {over['num']} videos"
    width = max(len(name) for name in result["class_names"])
    absent = [name for name, one in result["per_class"].items() if not one["num_videos"]]
    lines = [
        f"{result['split']}: {result['num_videos']} videos, {result['num_failed']} unreadable (counted as wrong)",
        f"protocol: {rule['num_clips']} clips x {rule['num_crops']} crops of {rule['num_frames'] or 'all'} frames, "
        f"{rate}, {rule['size'][0]} x {rule['size'][1]} pixels" + _temperature(rule),
        f"95 % intervals: {basis}",
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
        f"{'class':<{width}}  recall  precision  videos   mistaken for",
    ]
    for i, name in enumerate(result["class_names"]):
        one = result["per_class"][name]
        shown = (f"{one[key]:.3f}" if one[key] is not None else "-" for key in ("recall", "precision"))
        wrong = sorted(((n, j) for j, n in enumerate(result["confusion"][i]) if n and j != i), reverse=True)
        mistaken = ", ".join(f"{result['class_names'][j]} {n}" for n, j in wrong[:3])
        recall, precision = shown
        lines.append(f"{name:<{width}}  {recall:>6}  {precision:>9}  {one['num_videos']:>6}   {mistaken}".rstrip())
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode()  # class names may be no text


def num_correct(result: Mapping) -> int:
    """Videos judged right."""
    return round(result["video_accuracy"] * result["num_videos"])


def summary_sentence(result: Mapping) -> str:
    """How often it was right, on what, and how often a guess would be: what a reader wants to know first."""
    total, sizes = result["num_videos"], {name: one["num_videos"] for name, one in result["per_class"].items()}
    chance = total / len(result["class_names"])
    right = f"Right on {num_correct(result):,} of {count(total, 'video')}"
    sentence = f"{right}{_exposure_phrase(result)}; chance would be {_round_count(chance)}"
    common = max(sizes, key=sizes.get)
    if sizes[common] > IMBALANCE * chance:
        sentence += f", and always answering {common} {sizes[common]:,}"
    return f"{sentence}."


def _exposure_phrase(result: Mapping) -> str:
    """Whether the model knew the videos, to stand behind their number."""
    split, seen = result["split"], result["num_seen"]
    all_of_own = seen == result["num_videos"] and result["manifest"] is None
    if "folds" in result:
        folds = f" in {len(result['folds'])} folds"
        if seen:
            return f"{folds}, {seen:,} of them judged by a model that was trained on them or chosen by them"
        return f"{folds}, each judged by a model that was not trained on it"
    if all_of_own and split in ("train", "val"):
        return {"train": " it was trained on", "val": " it was chosen by, but not trained on"}[split]
    if seen:
        return f", {seen:,} of which it was trained on or chosen by"
    return " it had never seen"


def _round_count(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 or number == int(number) else f"{number:.1f}"


def protocol_sentence(result: Mapping) -> str:
    """The views by which every video was judged, in a sentence."""
    rule = result["protocol"]
    clips, crops = rule["num_clips"], rule["num_crops"]
    height, width = rule["size"]
    if rule.get("fps") is not None:
        rate = f"{rule['fps']:g} frames taken per second of video"
    elif rule["frame_stride"] == 1:
        rate = "every frame"
    else:
        rate = f"one frame of every {rule['frame_stride']}"
    frames = "all its frames" if rule["num_frames"] is None else count(rule["num_frames"], "frame")
    views = f"{count(clips, 'clip')} × {count(crops, 'crop')}".replace(" ", NBSP)
    together = "its answer is the mean of their probabilities" if clips * crops > 1 else "it has one view"
    return f"Each video is judged by {views} of {frames} ({rate}), {height} × {width} pixels; {together}."


def interval_basis(result: Mapping) -> str:
    """How the 95 % intervals were drawn."""
    basis = result["interval"]
    if basis["over"] == "groups":
        return f"95{NBSP}% interval, bootstrap over {count(basis['num'], 'group')}"
    return f"95{NBSP}% interval (Wilson's) of {count(basis['num'], 'video')}"


def calibration_sentence(result: Mapping) -> str:
    """Whether it is as often right as it says, in a sentence."""
    bins = [one for one in result["reliability"] if one["num_videos"]]
    total = sum(one["num_videos"] for one in bins)
    sure, right = (sum(one[key] * one["num_videos"] for one in bins) / total for key in ("confidence", "accuracy"))
    gap = 100 * abs(sure - right)
    if abs(sure - right) <= CALIBRATION_TOLERANCE:
        verdict = "on the whole as sure as it should be"
    else:
        verdict = f"too {'sure' if sure > right else 'cautious'} by {gap:.1f} points"
    return f"It gives its answers a mean probability of {percent(sure)} and is right on {percent(right)}: {verdict}."


def temperature_sentence(result: Mapping) -> str:
    """What was done to the probabilities."""
    found = result["protocol"]["temperature"]
    if found is None:
        return "Each fold's probabilities are calibrated by a temperature of its own, fitted on its val."
    if found == 1.0:
        return "Probabilities are the model's own, not calibrated."
    return f"Calibrated: logits are divided by a temperature of {found:.3g}, which was fitted on val."


def temporal_verdicts(result: Mapping) -> list[str]:
    """What the audit says of order and motion: a paired test tells a loss, a narrow paired interval that there is none.

    Of a model that is not better than chance, nothing can be lost.
    """
    right, chance = result["video_accuracy"], 1 / len(result["class_names"])
    if result["video_accuracy_ci95"][0] <= chance:
        bounds = interval(result["video_accuracy_ci95"])
        whole = f"Right on {percent(right)} ({bounds}), it is not clearly above chance ({percent(chance)})"
        return [f"{whole}: whether it uses time cannot be told."]
    sentences = []
    for playback, (used, unused) in TIME_VERDICTS.items():
        one = result["audit"][playback]
        lost, gained = one["lost"], one["gained"]
        p, (low, high) = mcnemar(lost, gained), paired_interval(lost, gained, result["num_videos"])
        if p < SIGNIFICANCE_LEVEL:
            verdict = used if lost > gained else "so it is even better"
        else:
            verdict = unused if low >= -NEGLIGIBLE and high <= NEGLIGIBLE else "too few videos to tell"
        change = f"{lost:,} lost and {gained:,} gained, {p_equals(p)}"
        told = f"is right on {percent(one['video_accuracy'])} instead of {percent(right)} ({change})"
        sentences.append(f"With the videos {playback} it {told}: {verdict}.")
    return sentences


def chance_loss(result: Mapping) -> float:
    """The log loss of who gives every class the same probability: `log K`."""
    return math.log(len(result["class_names"]))
