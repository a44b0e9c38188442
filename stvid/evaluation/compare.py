"""Comparison of several evaluations on their common videos: paired tests, and the videos with different outcomes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from stvid.cost.report import aligned, count_text
from stvid.errors import InputError
from stvid.evaluation import text
from stvid.evaluation.results import FRAMES_OF_WHOLE_VIDEO, Evaluation, PredictionRow
from stvid.evaluation.statistics import holm, mcnemar, paired_interval
from stvid.run.folder import RunFolder

VideoKey = tuple[tuple[str, float | None, float | None], str]  # `PredictionRow.video_key` and the label
MAX_LISTED = 10  # disagreements


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """A video that some models classify correctly and others do not.

    Attributes:
        path, start, end, label: see `PredictionRow`.
        predictions: class and probability for each run, in order; (None, None) if the video was unreadable.
    """

    path: str
    start: float | None
    end: float | None
    label: str
    predictions: tuple[tuple[str | None, float | None], ...]


def common_videos(evaluations: Sequence[Evaluation]) -> list[dict[VideoKey, PredictionRow]]:
    """For each evaluation, its predictions for the videos that all have, in the order of the first evaluation."""
    tables = [{(row.video_key, row.label): row for row in evaluation.predictions} for evaluation in evaluations]
    common = [key for key in tables[0] if all(key in table for table in tables)]
    return [{key: table[key] for key in common} for table in tables]


def find_disagreements(evaluations: Sequence[Evaluation]) -> list[Disagreement]:
    """The common videos that some models classify correctly and others do not, most confident correct ones first."""
    disagreements, tables = [], common_videos(evaluations)
    for key in tables[0]:
        rows = [table[key] for table in tables]
        if len({row.is_correct for row in rows}) == 2:
            (path, start, end), label = key
            predicted = tuple((row.predicted, max(row.probabilities, default=None)) for row in rows)
            disagreements.append(Disagreement(path=path, start=start, end=end, label=label, predictions=predicted))
    return sorted(disagreements, key=lambda video: (-_confidence(video, True), -_confidence(video, False), video.path))


def _confidence(video: Disagreement, is_correct: bool) -> float:
    """Highest probability of the correct (or of the wrong) predictions."""
    return max(p or 0.0 for name, p in video.predictions if (name == video.label) == is_correct)


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Comparison of two evaluations on their common videos.

    Attributes:
        first, second: names of the runs.
        only_first, only_second: number of videos that only this run classifies correctly.
        p: p-value of the exact McNemar test.
        p_corrected: the same, corrected for the number of pairs by Holm's method.
        difference: video accuracy of the first run minus that of the second.
        interval: 95 % score interval of the difference.
    """

    first: str
    second: str
    only_first: int
    only_second: int
    p: float
    p_corrected: float
    difference: float
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Result of `compare_runs`.

    Attributes:
        split: the split of all evaluations.
        evaluations: the evaluations; each `name` is the shortest end of the run's path that is unique.
        num_common: number of videos that all have.
        common_accuracy: name -> video accuracy on the common videos.
        left_out: name -> number of videos that are not common.
        tests: one for every pair of runs.
        differing: see `find_disagreements`.
        protocols: for each key of the protocol that differs, the value of every run.
    """

    split: str
    evaluations: tuple[Evaluation, ...]
    num_common: int
    common_accuracy: dict[str, float]
    left_out: dict[str, int]
    tests: tuple[PairedTest, ...]
    differing: list[Disagreement]
    protocols: dict[str, list]

    def to_dict(self) -> dict:
        """As plain data, for JSON; an evaluation is represented by its result, cost and training."""
        keys = ("name", "result", "cost", "training")
        return {
            "split": self.split,
            "num_common": self.num_common,
            "common_accuracy": self.common_accuracy,
            "left_out": self.left_out,
            "protocols": self.protocols,
            "runs": [
                {"folder": str(run.folder), **{key: getattr(run, key) for key in keys}} for run in self.evaluations
            ],
            "tests": [asdict(test) for test in self.tests],
            "differing": [
                {key: getattr(video, key) for key in ("path", "start", "end", "label")} | {"answers": video.predictions}
                for video in self.differing
            ],
        }


def compare_runs(evaluations: Sequence[Evaluation]) -> Comparison:
    """Pairs the videos by file, part and label, and tests every evaluation against every other.

    An unreadable video counts as wrong.

    Raises:
        InputError: fewer than two evaluations; the same one twice; different splits or classes; no common video.
    """
    _check_comparable(evaluations)
    names = _short_run_names(evaluations)
    evaluations = tuple(replace(run, name=name) for run, name in zip(evaluations, names, strict=True))
    tables = common_videos(evaluations)
    num_common = len(tables[0])
    keys = dict.fromkeys(key for run in evaluations for key in run.result["protocol"])
    protocols = {key: [run.result["protocol"].get(key) for run in evaluations] for key in keys}
    return Comparison(
        split=evaluations[0].result["split"],
        evaluations=evaluations,
        num_common=num_common,
        common_accuracy={
            run.name: sum(row.is_correct for row in table.values()) / num_common
            for run, table in zip(evaluations, tables, strict=True)
        },
        left_out={run.name: len(run.predictions) - num_common for run in evaluations},
        tests=_paired_tests(names, tables),
        differing=find_disagreements(evaluations),
        protocols={key: values for key, values in protocols.items() if any(value != values[0] for value in values)},
    )


def _paired_tests(names: Sequence[str], tables: Sequence[dict[VideoKey, PredictionRow]]) -> tuple[PairedTest, ...]:
    num_common = len(tables[0])
    pairs = list(itertools.combinations(zip(names, tables, strict=True), 2))
    counts = []
    for (_, first), (_, second) in pairs:
        correct = [(first[video].is_correct, second[video].is_correct) for video in first]
        counts.append((correct.count((True, False)), correct.count((False, True))))
    p_values = [mcnemar(b, c) for b, c in counts]
    return tuple(
        PairedTest(
            first=first,
            second=second,
            only_first=b,
            only_second=c,
            p=p,
            p_corrected=corrected,
            difference=(b - c) / num_common,
            interval=paired_interval(b, c, num_common),
        )
        for ((first, _), (second, _)), (b, c), p, corrected in zip(pairs, counts, p_values, holm(p_values), strict=True)
    )


def _check_comparable(evaluations: Sequence[Evaluation]) -> None:
    if len(evaluations) < 2:
        raise InputError("a comparison needs at least two runs")
    first = evaluations[0]
    for i, run in enumerate(evaluations):
        if any(run.folder.resolve() == other.folder.resolve() for other in evaluations[:i]):
            raise InputError(f"{run.folder} is named twice; a comparison needs different evaluations")
        if run.result["split"] != first.result["split"]:
            splits = f"{first.folder} is of {first.result['split']}, {run.folder} of {run.result['split']}"
            raise InputError(f"{splits}: only evaluations of the same split can be compared")
        classes, first_classes = set(run.result["class_names"]), set(first.result["class_names"])
        if classes != first_classes:
            only_first, only_run = (
                ", ".join(sorted(names)) or "(none)" for names in (first_classes - classes, classes - first_classes)
            )
            raise InputError(
                f"different classes: only in {first.folder}: {only_first}; only in {run.folder}: {only_run}. "
                "Only models with the same classes can be compared"
            )
    if not common_videos(evaluations)[0]:
        folders = ", ".join(str(run.folder) for run in evaluations)
        raise InputError(
            f"no video is in all of {folders} under the same label; evaluate the runs on the same data: "
            "stvid evaluate RUN --manifest FILE.csv"
        )


def _short_run_names(evaluations: Sequence[Evaluation]) -> list[str]:
    parts = []
    for run in evaluations:
        folder = run.folder.resolve()
        parts.append(RunFolder(folder).evaluated_run.path.parts)
    candidates = ([Path(*path[-n:]).as_posix() for path in parts] for n in range(1, max(map(len, parts)) + 1))
    return next(names for names in candidates if len(set(names)) == len(names))


def comparison_text(comparison: Comparison) -> str:
    """Metrics, notes, paired tests, and the videos with different outcomes, for a terminal."""
    lines = [f"{comparison.split}: {comparison.num_common} videos in common", "", _metrics_table(comparison)]
    lines += [*_notes(comparison), "", *_test_lines(comparison)]
    if comparison.differing:
        lines += ["", *_disagreement_lines(comparison)]
    return text.printable("\n".join(lines))


def _notes(comparison: Comparison) -> list[str]:
    """What the columns mean, and what limits the comparison."""
    evaluations, notes = comparison.evaluations, []
    if any(run.cost for run in evaluations):
        notes.append("GFLOPs: all views of a video; MiB: peak inference memory for one clip, in training's precision")
    if any(run.cost and run.cost["whole_video"] for run in evaluations):
        notes.append(f"the cost of models for whole videos is that of {FRAMES_OF_WHOLE_VIDEO} frames")
    devices = {run.name: run.training["device"] for run in evaluations if run.training}
    if len(set(devices.values())) > 1:
        notes.append("trained on " + ", ".join(f"{device} ({name})" for name, device in devices.items()))
    cached = [run.name for run in evaluations if run.training and run.training["stored_features"]]
    if cached:
        notes.append(f"clips/s without decoding, on cached features: {', '.join(cached)}")
    encoded = {run.name: run.training.get("encoding_seconds", 0.0) for run in evaluations if run.training}
    if any(encoded.values()):
        times = ", ".join(f"{text.duration(seconds)} ({name})" for name, seconds in encoded.items() if seconds)
        notes.append(f"training includes the time to encode the frames once: {times}")
    for name, number in comparison.left_out.items():
        if number:
            notes.append(f"{number} videos of {name} are not in all others: they count in video acc., but in no test")
    for key, values in comparison.protocols.items():
        pairs = zip(evaluations, values, strict=True)
        settings = ", ".join(f"{run.name} {text.protocol_value(key, value)}" for run, value in pairs)
        notes.append(f"different protocol, {key}: {settings}")
    return notes


def _metrics_table(comparison: Comparison) -> str:
    common = ("on common",) if any(comparison.left_out.values()) else ()
    head = (*common, "video acc.", "95 % interval", "clip acc.", "parameters", "GFLOPs", "MiB", "clips/s", "training")
    rows = [("run", *head)]
    for run in comparison.evaluations:
        result, cost, training = run.result, run.cost, run.training or {}
        low, high = result["video_accuracy_ci95"]
        accuracies = (f"{result['video_accuracy']:.3f}", f"{low:.3f} to {high:.3f}", f"{result['clip_accuracy']:.3f}")
        costs = ("-", "-", "-")
        if cost:
            gflops, mebibytes = cost["flops_video"] / 1e9, cost["answer_bytes"] / 2**20
            costs = (count_text(cost["parameters"]), _three_digits(gflops), _three_digits(mebibytes))
        speed, seconds = training.get("clips_per_second"), training.get("training_seconds")
        measured = ("-" if speed is None else _three_digits(speed), "-" if seconds is None else text.duration(seconds))
        on_common = (f"{comparison.common_accuracy[run.name]:.3f}",) if common else ()
        rows.append((run.name, *on_common, *accuracies, *costs, *measured))
    return aligned(rows, left=1)


def _three_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _test_lines(comparison: Comparison) -> list[str]:
    corrected = ["p, Holm"] if len(comparison.tests) > 1 else []
    rows = [("1st - 2nd", "difference", "95 % interval", "only 1st correct", "only 2nd correct", "p", *corrected)]
    for test in comparison.tests:
        low, high = test.interval
        difference = (f"{test.difference:+.3f}", f"{low:+.3f} to {high:+.3f}")
        p_values = [text.p_value(p) for p in ([test.p, test.p_corrected] if corrected else [test.p])]
        rows.append(
            (f"{test.first} - {test.second}", *difference, str(test.only_first), str(test.only_second), *p_values)
        )
    lines = ["paired tests: exact McNemar test, Tango's interval of the difference", aligned(rows, left=1)]
    if corrected:
        lines.append(f"p, Holm: corrected for {len(comparison.tests)} tests; use this one")
    if any(run.result["num_groups"] for run in comparison.evaluations):
        lines.append("videos of one group are similar, but the test treats them as independent: p is too small")
    return lines


def _disagreement_lines(comparison: Comparison) -> list[str]:
    rows = [("video", "truth", *(run.name for run in comparison.evaluations))]
    for video in comparison.differing[:MAX_LISTED]:
        predicted = ["(unreadable)" if name is None else f"{name} {p:.2f}" for name, p in video.predictions]
        rows.append((video.path + text.part_suffix(video.start, video.end), video.label, *predicted))
    total = len(comparison.differing)
    selected = f"; the {MAX_LISTED} most confident" if total > MAX_LISTED else ""
    title = f"{total} videos are classified correctly by some models and wrongly by others{selected}"
    return [title, aligned(rows, left=len(rows[0]))]
