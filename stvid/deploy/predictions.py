"""The results of `stvid predict`, written while it works, so that a long batch can be resumed."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stvid.checks import fields, flag, list_of, number, read_json, text
from stvid.deploy.prediction_tables import write_csv, write_parquet
from stvid.deploy.segments import Segment
from stvid.errors import VideoError
from stvid.files import write_json
from stvid.run.checkpoint import TrainedModel
from stvid.video.types import VideoInfo, source_identity

FileName = str | os.PathLike[str] | None
WRITE_EVERY = 5.0  # seconds; a killed batch loses the results of this time
PROBABILITY = number(0, 1 + 1e-6)
ENTRIES = list_of(
    fields(
        {"path": text(), "top": list_of(fields({"class": text(), "probability": PROBABILITY}))},
        optional={
            "segments": list_of(
                fields({"start": number(), "end": number(), "class": text(), "probability": PROBABILITY})
            ),
            "fingerprint": text(),
            "unknown": flag,
            "error": text(),
        },
    )
)


def make_entry(
    path: Path,
    info: VideoInfo,
    probabilities_K: np.ndarray | None,
    class_names: Sequence[str],
    *,
    top: int,
    segments: Sequence[Segment] | None = None,
    threshold: float | None = None,
    error: VideoError | None = None,
) -> dict:
    """The JSON of one video; times in seconds of its own clock.

    Args:
        path: the video, as the user named it.
        info: the result of `probe`.
        probabilities_K: of the whole video; None: unknown.
        class_names: names of the K classes.
        top: number of classes to name; all if there are fewer.
        segments: None: the video was not divided.
        threshold: probability from which a class is taken for present; None: the entry has no `unknown`, which tells
            whether no class reaches it.
        error: why it could not be read to its end.
    """
    entry: dict = {"path": str(path), "duration": round(info.end - info.start, 3), "fps": round(info.fps, 6), "top": []}
    if probabilities_K is not None:
        best = np.argsort(-probabilities_K, kind="stable")[:top]
        entry["top"] = [{"class": class_names[i], "probability": float(probabilities_K[i])} for i in best]
        if threshold is not None:
            entry["unknown"] = bool(probabilities_K.max() < threshold)
    if segments is not None:
        entry["segments"] = [
            {
                "start": round(segment.start, 3),
                "end": round(segment.end, 3),
                "class": segment.label,
                "probability": round(segment.probability, 6),
            }
            for segment in segments
        ]
    if error is not None:
        entry["error"] = error.reason
    return entry


def fingerprint_of(path: Path, trained: TrainedModel, settings: Sequence) -> str:
    """A hash of file and checkpoint (size and time of change) and the settings: equal ones have equal results.

    Empty for a file that cannot be accessed.
    """
    identity = source_identity(path)
    if identity is None:
        return ""
    checkpoint = os.path.realpath(trained.path)
    model = [checkpoint, source_identity(checkpoint), trained.epoch, trained.step, trained.temperature]
    return hashlib.sha256(repr([identity, model, list(settings)]).encode("utf-8", "surrogateescape")).hexdigest()[:16]


class PredictionFiles:
    """Keeps the entries of all videos, and writes them: every few seconds, and when it is told to.

    Args:
        paths: of all videos; the order of the entries.
        json: file for all entries, or None.
        csv: table with a row for each segment (`path,start,end,class,probability`), or None.
        parquet: the entries as a table of Parquet, a row for each video, or None.
        resume: keep the entries that `json` has.

    Raises:
        InputError: `json` exists and is no file of `stvid predict`, with `resume`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        json: str | os.PathLike | None,
        csv: str | os.PathLike | None,
        parquet: str | os.PathLike | None = None,
        resume: bool = False,
    ):
        self.json, self.csv, self.parquet = json, csv, parquet
        remedy = "Leave --resume out to start anew, or name another file"
        previous = read_json(Path(json), ENTRIES, remedy=remedy) if resume and json and os.path.exists(json) else []
        self.previous = {os.path.abspath(entry["path"]): entry for entry in previous}
        mine = {os.path.abspath(path) for path in paths}
        self.entries = {entry["path"]: entry for path, entry in self.previous.items() if path not in mine}
        self.paths = [*self.entries, *map(str, paths)]
        self.written = time.monotonic()

    def is_finished(self, path: Path, fingerprint: str) -> bool:
        """Whether an earlier call has finished a video, with the same fingerprint; then its entry is kept."""
        entry = self.previous.get(os.path.abspath(path))
        if entry is None or "error" in entry or not fingerprint or entry.get("fingerprint") != fingerprint:
            return False
        self.entries[str(path)] = {**entry, "path": str(path)}
        return True

    def add(self, entry: dict) -> None:
        """Adds the entry of a video."""
        self.entries[entry["path"]] = entry
        if time.monotonic() - self.written > WRITE_EVERY:
            self.write()

    def write(self) -> None:
        """Writes the files, atomically; before the first entry there is nothing to write."""
        if not self.entries:
            return
        entries = [self.entries[path] for path in self.paths if path in self.entries]
        if self.json is not None:
            write_json(self.json, entries)
        if self.csv is not None:
            write_csv(self.csv, entries)
        if self.parquet is not None:
            write_parquet(self.parquet, entries)
        self.written = time.monotonic()
