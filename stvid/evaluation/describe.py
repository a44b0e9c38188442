"""A result as text."""

from __future__ import annotations

from stvid.errors import listing


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
