"""What a sweep leaves beside its runs: one table of what was varied and what came of it."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from stvid.files import replacing

log = logging.getLogger(__name__)

RESULT_KEYS = ("video_accuracy", "clip_accuracy", "mean_class_accuracy", "loss")


class SweepSummary(Callback):
    """Hydra callback: writes `summary.csv` into the sweep's folder after every run and prints it at the end."""

    def __init__(self) -> None:
        self.rows: list[dict] = []
        self.folder: Path | None = None

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs) -> None:
        hydra = job_return.hydra_cfg.hydra
        if hydra.mode is None or hydra.mode.name != "MULTIRUN":
            return
        self.folder = Path(hydra.runtime.output_dir).parent  # hydra.sweep.dir would be resolved anew, with another time
        self.rows.append(_row(Path(hydra.runtime.output_dir), job_return))
        self._write()
        if job_return.status != JobStatus.COMPLETED:  # Hydra raises once all are done; the table is in the file
            log.error("run %s %s\nsee %s", self.rows[-1]["run"], self.rows[-1]["status"], self.folder / "summary.csv")

    def on_multirun_end(self, config: DictConfig, **kwargs) -> None:
        if self.folder is None:
            return
        columns, rows = self._table()
        table = [columns, *[[_shown(row.get(name, "")) for name in columns] for row in rows]]
        widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
        for line in table:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        print(f"\nwritten to {self.folder / 'summary.csv'}")

    def _table(self) -> tuple[list[str], list[Mapping]]:
        """Columns and rows, best video accuracy first, failed runs last."""
        varied = list(dict.fromkeys(name for row in self.rows for name in row["overrides"]))
        rows = [{**row, **row["overrides"]} for row in self.rows]
        rows.sort(key=lambda row: -row.get("video_accuracy", -1.0))
        return ["run", *varied, *RESULT_KEYS, "status"], rows

    def _write(self) -> None:
        columns, rows = self._table()
        with replacing(self.folder / "summary.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


def _row(run: Path, job_return: JobReturn) -> dict:
    row = {"run": run.name, "overrides": dict(text.partition("=")[::2] for text in job_return.overrides)}
    if job_return.status == JobStatus.COMPLETED:
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        return row | {name: result[name] for name in RESULT_KEYS} | {"status": "done"}
    return row | {"status": f"failed: {job_return._return_value}"}


def _shown(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
