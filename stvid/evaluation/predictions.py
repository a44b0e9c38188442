"""What a model said of every video of a split: a table that people and programs read."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stvid.errors import InputError
from stvid.files import replacing

PREDICTIONS_NAME = "predictions.csv"
FACTS = ("path", "start", "end", "group", "label", "predicted", "views", "views_right", "failed")


@dataclass(frozen=True, kw_only=True)
class PredictionRow:
    """One video, or one part of a video.

    Attributes:
        path: of its file.
        start: seconds at which the part begins; None: the beginning.
        end: seconds at which it ends; None: the end.
        group: see `Item`; None: no group.
        label: the truth.
        predicted: the most probable class; None where the video could not be read.
        views: how many views it was judged by; 0 where it could not be read.
        views_right: how many of them were right, each for itself.
        failed: why it could not be read; empty: it was.
        probabilities: of the classes, in the order of the model's outputs, in [0, 1]; empty where it was not read.
    """

    path: str
    start: float | None = None
    end: float | None = None
    group: str | None = None
    label: str
    predicted: str | None = None
    views: int = 0
    views_right: int = 0
    failed: str = ""
    probabilities: tuple[float, ...] = ()

    @property
    def is_right(self) -> bool:
        return self.predicted == self.label

    @property
    def video(self) -> tuple[str, float | None, float | None]:
        """What tells it from any other video or part."""
        return self.path, self.start, self.end


def write_predictions(path: str | Path, predictions: Sequence[PredictionRow], class_names: Sequence[str]) -> None:
    """Writes `predictions.csv`: FACTS and `p_CLASS...`, a row a video; an empty cell is a None.

    Probabilities have the nine digits that tell every float32 from the next.
    """
    columns = [*FACTS, *(f"p_{name}" for name in class_names)]
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for one in predictions:
            facts = [getattr(one, name) for name in FACTS]
            cells = [f"{p:.9g}" for p in one.probabilities] or [""] * len(class_names)
            writer.writerow([*("" if fact is None else fact for fact in facts), *cells])


def read_predictions(path: str | Path, class_names: Sequence[str]) -> list[PredictionRow]:
    """The table as it was written.

    Raises:
        InputError: no such file, or one that another version of stvid wrote, or for other classes.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; stvid evaluate RUN writes it")
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        missing = [name for name in (*FACTS, *(f"p_{name}" for name in class_names)) if name not in columns]
        if missing:
            raise InputError(f"{path} has no column {missing[0]}: write it anew with stvid evaluate RUN")
        return [_prediction(row, class_names) for row in reader]


def _prediction(row: dict[str, str], class_names: Sequence[str]) -> PredictionRow:
    failed = bool(row["failed"])
    return PredictionRow(
        path=row["path"],
        start=float(row["start"]) if row["start"] else None,
        end=float(row["end"]) if row["end"] else None,
        group=row["group"] or None,
        label=row["label"],
        predicted=row["predicted"] or None,
        views=int(row["views"]),
        views_right=int(row["views_right"]),
        failed=row["failed"],
        probabilities=() if failed else tuple(float(row[f"p_{name}"]) for name in class_names),
    )
