"""The videos that several evaluations have in common, and those of them on which they differ."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from stvid.cost.report import aligned, count_text
from stvid.errors import InputError
from stvid.evaluation import text as notation
from stvid.evaluation.results import WHOLE_VIDEO, Evaluation, PredictionRow
from stvid.evaluation.statistics import holm, mcnemar, paired_interval
from stvid.run.folder import RunFolder

Video = tuple[tuple[str, float | None, float | None], str]  # `Prediction.video`, and its label
MOST_DIFFERING = 10  # lines


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A video that some have right and others wrong; the answers (class, probability) stand in the order of the runs.

    An answer of (None, None): the video could not be read.
    """

    path: str
    start: float | None
    end: float | None
    label: str
    answers: tuple[tuple[str | None, float | None], ...]


def common_videos(evaluations: Sequence[Evaluation]) -> list[dict[Video, PredictionRow]]:
    """Of each evaluation, the videos that all have, in the order of the first."""
    own = [{(one.video, one.label): one for one in each.predictions} for each in evaluations]
    shared = [video for video in own[0] if all(video in other for other in own)]
    return [{video: each[video] for video in shared} for each in own]


def differences(evaluations: Sequence[Evaluation]) -> list[Difference]:
    """The common videos that some have right and others wrong; first where one is right and surest of it."""
    found, common = [], common_videos(evaluations)
    for video in common[0]:
        each = [own[video] for own in common]
        if len({one.is_right for one in each}) == 2:
            (path, start, end), label = video
            answers = tuple((one.predicted, max(one.probabilities, default=None)) for one in each)
            found.append(Difference(path=path, start=start, end=end, label=label, answers=answers))
    return sorted(found, key=lambda one: (-_surest(one, right=True), -_surest(one, right=False), one.path))


def _surest(one: Difference, *, right: bool) -> float:
    return max(p or 0.0 for name, p in one.answers if (name == one.label) == right)


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """The first of two evaluations against the second, on the same videos.

    Attributes:
        first, second: names.
        only_first, only_second: videos that only one of them has right.
        p: of the exact McNemar test.
        p_corrected: for the number of pairs, by Holm's method.
        difference: video accuracy of the first less that of the second, both on the common videos.
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
    """What `compare_runs` finds.

    Attributes:
        split: that all were judged on.
        evaluations: by other names, see `compare_runs`.
        num_common: videos that all have.
        common_accuracy: by name, the video accuracy on those.
        left_out: by name, how many videos the others do not have.
        tests: of every pair.
        differing: see `differences`.
        protocols: what was judged differently: for each key of the protocol, a value a run.
    """

    split: str
    evaluations: tuple[Evaluation, ...]
    num_common: int
    common_accuracy: dict[str, float]
    left_out: dict[str, int]
    tests: tuple[PairedTest, ...]
    differing: list[Difference]
    protocols: dict[str, list]

    def to_dict(self) -> dict:
        """As plain data, for JSON; of each evaluation its result, cost and training."""
        runs = [
            {
                "name": one.name,
                "folder": str(one.folder),
                "result": one.result,
                "cost": one.cost,
                "training": one.training,
            }
            for one in self.evaluations
        ]
        return {
            "split": self.split,
            "num_common": self.num_common,
            "common_accuracy": self.common_accuracy,
            "left_out": self.left_out,
            "protocols": self.protocols,
            "runs": runs,
            "tests": [asdict(one) for one in self.tests],
            "differing": [asdict(one) for one in self.differing],
        }


def compare_runs(evaluations: Sequence[Evaluation]) -> Comparison:
    """Pairs the videos, by file, part and label, and tests every evaluation against every other.

    A video that could not be read counts as wrong. Names become the shortest ends of the runs' paths that differ.

    Raises:
        InputError: fewer than two; the same one twice; other splits or classes; no video in common.
    """
    _check(evaluations)
    evaluations = tuple(replace(one, name=name) for one, name in zip(evaluations, _names(evaluations), strict=True))
    common = common_videos(evaluations)
    pairs = list(itertools.combinations(zip(evaluations, common, strict=True), 2))
    counts = []
    for (_, first), (_, second) in pairs:
        right = [(first[video].is_right, second[video].is_right) for video in first]
        counts.append((right.count((True, False)), right.count((False, True))))
    p_values, num_common = [mcnemar(b, c) for b, c in counts], len(common[0])
    tests = tuple(
        PairedTest(
            first=first.name,
            second=second.name,
            only_first=b,
            only_second=c,
            p=p,
            p_corrected=corrected,
            difference=(b - c) / num_common,
            interval=paired_interval(b, c, num_common),
        )
        for ((first, _), (second, _)), (b, c), p, corrected in zip(pairs, counts, p_values, holm(p_values), strict=True)
    )
    protocols = {key: [one.result["protocol"].get(key) for one in evaluations] for key in _protocol_keys(evaluations)}
    return Comparison(
        split=evaluations[0].result["split"],
        evaluations=evaluations,
        num_common=num_common,
        common_accuracy={
            one.name: sum(video.is_right for video in own.values()) / num_common
            for one, own in zip(evaluations, common, strict=True)
        },
        left_out={one.name: len(one.predictions) - num_common for one in evaluations},
        tests=tests,
        differing=differences(evaluations),
        protocols={key: values for key, values in protocols.items() if any(value != values[0] for value in values)},
    )


def _check(evaluations: Sequence[Evaluation]) -> None:
    if len(evaluations) < 2:
        raise InputError("a comparison needs at least two runs")
    first = evaluations[0]
    for i, one in enumerate(evaluations):
        if any(one.folder.resolve() == other.folder.resolve() for other in evaluations[:i]):
            raise InputError(f"{one.folder} is named twice; a comparison needs different evaluations")
        if one.result["split"] != first.result["split"]:
            splits = f"{first.folder} is of {first.result['split']}, {one.folder} of {one.result['split']}"
            raise InputError(f"{splits}: only evaluations of the same split can be compared")
        mine, others = set(one.result["class_names"]), set(first.result["class_names"])
        if mine != others:
            only_first, only_one = (", ".join(sorted(x)) or "(none)" for x in (others - mine, mine - others))
            raise InputError(
                f"other classes: only in {first.folder}: {only_first}; only in {one.folder}: {only_one}. Models are "
                "compared on the same classes"
            )
    if not common_videos(evaluations)[0]:
        folders = ", ".join(str(one.folder) for one in evaluations)
        raise InputError(
            f"no video is in all of {folders} under the same label; evaluate the runs on the same data: "
            "stvid evaluate RUN --manifest FILE.csv"
        )


def _names(evaluations: Sequence[Evaluation]) -> list[str]:
    parts = []
    for one in evaluations:
        folder = one.folder.resolve()
        parts.append(RunFolder(folder).evaluated_run.path.parts)
    tails = ([Path(*each[-n:]).as_posix() for each in parts] for n in range(1, max(map(len, parts)) + 1))
    return next(names for names in tails if len(set(names)) == len(names))


def _protocol_keys(evaluations: Sequence[Evaluation]) -> list[str]:
    return list(dict.fromkeys(key for one in evaluations for key in one.result["protocol"]))


def comparison_text(comparison: Comparison) -> str:
    """Table, tests, and the videos on which the models differ, as text for a terminal."""
    evaluations = comparison.evaluations
    lines = [f"{comparison.split}: {comparison.num_common} videos in common", "", _table(comparison)]
    if any(one.cost for one in evaluations):
        lines.append("GFLOPs of all views of a video; MiB that an answer to one clip takes, as trained")
    if any(one.cost and one.cost["whole_video"] for one in evaluations):
        lines.append(f"whole videos are priced as if they had {WHOLE_VIDEO} frames")
    devices = {one.name: one.training["device"] for one in evaluations if one.training}
    if len(set(devices.values())) > 1:
        lines.append("trained on " + ", ".join(f"{device} ({name})" for name, device in devices.items()))
    stored = [one.name for one in evaluations if one.training and one.training["stored_features"]]
    if stored:
        lines.append(f"clips/s without decoding, on stored features: {', '.join(stored)}")
    for name, number in comparison.left_out.items():
        if number:
            lines.append(f"{number} videos of {name} are not in all others: they count in video acc., but in no test")
    for key, values in comparison.protocols.items():
        shown = (notation.protocol_value(key, value) for value in values)
        told = ", ".join(f"{one.name} {value}" for one, value in zip(evaluations, shown, strict=True))
        lines.append(f"judged differently, {key}: {told}")
    lines += ["", *_tests(comparison)]
    if comparison.differing:
        lines += ["", *_differing(comparison)]
    return notation.printable("\n".join(lines))


def _table(comparison: Comparison) -> str:
    common = ("on common",) if any(comparison.left_out.values()) else ()
    head = (*common, "video acc.", "95 % interval", "clip acc.", "parameters", "GFLOPs", "MiB", "clips/s", "training")
    rows = [("run", *head)]
    for one in comparison.evaluations:
        result, cost, training = one.result, one.cost, one.training or {}
        low, high = result["video_accuracy_ci95"]
        accuracies = (f"{result['video_accuracy']:.3f}", f"{low:.3f} to {high:.3f}", f"{result['clip_accuracy']:.3f}")
        priced = ("-", "-", "-")
        if cost:
            giga, mebi = cost["flops_video"] / 1e9, cost["answer_bytes"] / 2**20
            priced = (count_text(cost["parameters"]), _three_digits(giga), _three_digits(mebi))
        speed, seconds = training.get("clips_per_second"), training.get("training_seconds")
        trained = (
            "-" if speed is None else _three_digits(speed),
            "-" if seconds is None else notation.duration(seconds),
        )
        shared = (f"{comparison.common_accuracy[one.name]:.3f}",) if common else ()
        rows.append((one.name, *shared, *accuracies, *priced, *trained))
    return aligned(rows, left=1)


def _three_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _tests(comparison: Comparison) -> list[str]:
    several = len(comparison.tests) > 1
    rows = [("difference", "95 % interval", "only 1st right", "only 2nd right", "p", *(["p, Holm"] if several else []))]
    rows[0] = ("1st - 2nd", *rows[0])
    for one in comparison.tests:
        low, high = one.interval
        shares = (f"{one.difference:+.3f}", f"{low:+.3f} to {high:+.3f}")
        p_values = [notation.p_value(one.p), *([notation.p_value(one.p_corrected)] if several else [])]
        rows.append((f"{one.first} - {one.second}", *shares, str(one.only_first), str(one.only_second), *p_values))
    lines = ["on the same videos: exact McNemar test, Tango's interval of the difference", aligned(rows, left=1)]
    if several:
        lines.append(f"p, Holm: corrected for {len(comparison.tests)} tests; it is the one to go by")
    if any(one.result["num_groups"] for one in comparison.evaluations):
        lines.append("videos of one group are alike, and the test takes each for itself: p is rather too small")
    return lines


def _differing(comparison: Comparison) -> list[str]:
    names = [one.name for one in comparison.evaluations]
    rows = [("video", "truth", *names)]
    for one in comparison.differing[:MOST_DIFFERING]:
        said = ["(unreadable)" if name is None else f"{name} {p:.2f}" for name, p in one.answers]
        rows.append((one.path + notation.part(one.start, one.end), one.label, *said))
    total = len(comparison.differing)
    shown = f"; the {MOST_DIFFERING} most telling" if total > MOST_DIFFERING else ""
    return [f"{total} videos are right for some and wrong for others{shown}", aligned(rows, left=len(rows[0]))]
