"""What a sweep has found: a table on the screen and in summary.csv, and the command that retrains the best."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from stvid.errors import train_command
from stvid.files import replacing
from stvid.run import display_path
from stvid.search.trials import RESULT_KEYS, Trial, ranked

SUMMARY_NAME = "summary.csv"
LONGEST = 60  # characters of a cell on the screen


def columns_and_rows(trials: Sequence[Trial]) -> tuple[list[str], list[dict]]:
    """A row for each trial, the best first, failed ones last."""
    varied = list(dict.fromkeys(key for trial in trials for key in trial.values))
    rows = [{"run": t.number, **t.values, **t.metrics, "status": t.status} for t in ranked(trials)]
    return ["run", *varied, *RESULT_KEYS, "status"], rows


def write_summary(folder: Path, trials: Sequence[Trial]) -> None:
    columns, rows = columns_and_rows(trials)
    with replacing(folder / SUMMARY_NAME) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def table(trials: Sequence[Trial]) -> str:
    """The same as aligned text, without columns that no trial fills."""
    columns, rows = columns_and_rows(trials)
    columns = [name for name in columns if any(name in row for row in rows)]
    lines = [columns, *[[_shown(row.get(name, "")) for name in columns] for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def retrain_command(fixed: Sequence[str], trial: Trial) -> str:
    """What to type, in a shell, to train with a trial's overrides once more."""
    return train_command(*fixed, *trial.overrides)


def closing_words(folder: Path, fixed: Sequence[str], trials: Sequence[Trial], *, with_best: bool) -> str:
    """The table, where it is kept, and what to do with the best (not of folds, among which nobody chooses)."""
    words = f"\n{table(trials)}\n\nwritten to    {display_path(folder / SUMMARY_NAME)}"
    best = ranked(trials)[0]
    if not best.metrics or not with_best:
        return words
    return f"{words}\nthe best      {display_path(folder / str(best.number))}\nretrain it    {retrain_command(fixed, best)}"


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    text = str(value).partition("\n")[0]
    if re.fullmatch(r"-?\d+\.\d{6,}(e-\d+)?", text):
        return f"{float(text):.4g}"  # drawn from an interval; the file and the command have all digits
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
