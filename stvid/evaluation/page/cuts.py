"""What is left out of a page that would be too large, and how the page says so.

Each cut takes the content of a report's page and returns the parts that take the place of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

MOST_VIDEOS = 400  # that can be looked up, as many as there may be clips
MOST_ROWS = 200  # of a table of classes


def without_matrix(content: Mapping) -> dict:
    """The pairs that are most often confused stay; a cell of no pair can no longer be opened."""
    open_cells = [f"{pair['truth']}-{pair['answer']}" for pair in content["pairs"]]
    totals = {cell: content["totals"][cell] for cell in open_cells}
    said = f"{len(content['totals']):,} of its cells have videos"
    return {"rows": [], "totals": totals, "left_out": {**content["left_out"], "matrix": said}}


def fewer_videos(content: Mapping) -> dict:
    """Those that are worth a clip stay; for the others, what a cell opens names `predictions.csv`."""
    return {"cards": dict(islice(content["cards"].items(), MOST_VIDEOS))}


def fewer_classes(content: Mapping) -> dict:
    """In every table, the classes that are recognised least."""
    if content["num_classes"] <= MOST_ROWS:
        return {}
    rows = sorted(content["class_rows"], key=lambda row: 2.0 if row["recall"] is None else row["recall"])[:MOST_ROWS]
    kept = {row["name"] for row in rows}
    others = ("audit_classes", "data_rows")
    cut = {key: [row for row in content[key] if row["name"] in kept] for key in others if key in content}
    return {**cut, "class_rows": rows, "left_out": {**content["left_out"], "classes": len(kept)}}


CUTS = (without_matrix, fewer_videos, fewer_classes)
