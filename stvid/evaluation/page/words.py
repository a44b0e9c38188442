"""Numbers and facts of a result as a person says them."""

from __future__ import annotations

import math
from collections.abc import Mapping

NBSP = "\u00a0"  # between a number and its unit, where no line may break
NOTHING = "–"
UNBALANCED = 1.5  # times what chance gets right: from here on the most common class is worth naming
CLEAR = 0.02  # confidence minus accuracy, above which it is called too much
ORDERS = {
    "frozen": "one frame, repeated",
    "shuffled": "frames in random order",
    "reversed": "frames backwards",
    "half_speed": "at half speed",
    "double_speed": "at double speed",
}


def percent(share: float | None) -> str:
    """`86.5 %` of a fraction."""
    return NOTHING if share is None else f"{100 * share:.1f}{NBSP}%"


def interval(bounds: tuple[float, float] | list[float]) -> str:
    """`81.1 to 90.5 %`."""
    low, high = bounds
    return f"{100 * low:.1f} to {100 * high:.1f}{NBSP}%"


def decimal(number: float | None) -> str:
    """Three decimals."""
    return NOTHING if number is None else f"{number:.3f}"


def count(number: int, what: str) -> str:
    """`1 video`, `1,200 videos`."""
    plural = what if number == 1 else f"{what}{'es' if what.endswith('s') else 's'}"
    return f"{number:,} {plural}"


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    seconds = round(seconds) if seconds >= 10 else round(seconds, 1)
    if seconds < 60:
        return f"{seconds:g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def number_right(result: Mapping) -> int:
    """Videos judged right."""
    return round(result["video_accuracy"] * result["num_videos"])


def first_sentence(result: Mapping) -> str:
    """How often it was right, on what, and how often a guess would be: what a reader wants to know first."""
    total, sizes = result["num_videos"], {name: one["num_videos"] for name, one in result["per_class"].items()}
    whose = {
        "test": "it had never seen",
        "val": "it was not trained on",
        "train": "it was trained on",
    }[result["split"]]
    if result.get("folds"):
        whose = f"in {len(result['folds'])} folds, each judged by a model that was not trained on it"
    chance = total / len(result["class_names"])
    sentence = f"Right on {number_right(result):,} of {count(total, 'video')} {whose}; chance would be {_rough(chance)}"
    common = max(sizes, key=sizes.get)
    if sizes[common] > UNBALANCED * chance:
        sentence += f", and always answering {common} {sizes[common]:,}"
    return f"{sentence}."


def _rough(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 or number == int(number) else f"{number:.1f}"


def protocol(result: Mapping) -> str:
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
    """What the 95 % intervals were drawn over."""
    basis = result.get("interval")
    if basis is None:
        return f"95{NBSP}% interval"
    if basis["over"] == "groups":
        return f"95{NBSP}% interval, bootstrapped over {count(basis['num'], 'group')}"
    return f"95{NBSP}% interval over {count(basis['num'], 'video')}"


def change(difference: float) -> str:
    """Percentage points with their sign."""
    points = f"{abs(100 * difference):.1f}"
    return f"{'±' if points == '0.0' else '+' if difference > 0 else '−'}{points}"


def calibration(result: Mapping) -> str | None:
    """Whether it is as often right as it says, in a sentence; None without a reliability table."""
    bins = [one for one in result.get("reliability", ()) if one["num_videos"]]
    total = sum(one["num_videos"] for one in bins)
    if not total:
        return None
    sure, right = (sum(one[key] * one["num_videos"] for one in bins) / total for key in ("confidence", "accuracy"))
    gap = 100 * abs(sure - right)
    if abs(sure - right) <= CLEAR:
        verdict = "on the whole as sure as it should be"
    else:
        verdict = f"too {'sure' if sure > right else 'cautious'} by {gap:.1f} points"
    return f"It gives its answers a mean probability of {percent(sure)} and is right on {percent(right)}: {verdict}."


def temperature(result: Mapping) -> str:
    """What was done to the probabilities."""
    found = result["protocol"].get("temperature", 1.0)
    if found is None:
        return "Each fold's probabilities are calibrated by a temperature of its own, fitted on its val."
    if found == 1.0:
        return "Probabilities are the model's own, not calibrated."
    return f"Calibrated: logits are divided by a temperature of {found:.3g}, which was fitted on val."


def time_verdict(result: Mapping) -> list[str]:
    """What the audit says of order and motion, carefully: an interval decides what counts as a loss."""
    sentences = []
    texts = {
        "shuffled": ("its frames in random order", "it uses their order", "the order of frames hardly matters to it"),
        "frozen": ("one frame standing still", "it needs motion", "a still picture is as good to it as the video"),
    }
    for key, (shown, used, unused) in texts.items():
        if key in result["audit"]:
            other = result["audit"][key]
            lost = other["video_accuracy_ci95"][1] < result["video_accuracy_ci95"][0]
            sentences.append(
                f"With {shown} it is right on {percent(other['video_accuracy'])} instead of "
                f"{percent(result['video_accuracy'])}: {used if lost else unused}."
            )
    return sentences


def chance_loss(result: Mapping) -> float:
    """The log loss of who gives every class the same probability: `log K`."""
    return math.log(len(result["class_names"]))


def p_value(value: float) -> str:
    """Of a test, as `= 0.0123` or `< 0.0001`."""
    return "< 0.0001" if value < 1e-4 else f"= {value:.4f}" if value < 0.1 else f"= {value:.2f}"


def part(start: float | None, end: float | None) -> str:
    """Which part of a file a video is, to stand behind its name; nothing for a whole one."""
    if start is None and end is None:
        return ""
    return f", {start or 0:g} s to {'the end' if end is None else f'{end:g} s'}"


def printable(text: str) -> str:
    """Text that can be written as UTF-8: bytes of a file name that are none stay to be seen, as `\\udc..`."""
    return text.encode("utf-8", "backslashreplace").decode()
