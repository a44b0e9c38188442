"""The results of `stvid predict` as tables: CSV with a row for each segment, Parquet with a row for each video."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from stvid.data.tables import UTF8, csv_line
from stvid.files import replacing


def write_csv(file: str | os.PathLike, entries: Sequence[Mapping]) -> None:
    """Writes the segments of all entries: path, start and end in seconds, class, probability."""
    with replacing(file) as partial, partial.open("w", newline="", **UTF8) as table:
        table.write(csv_line(["path", "start", "end", "class", "probability"]))
        for entry in entries:
            for segment in entry.get("segments", []):
                times = [f"{segment['start']:.3f}", f"{segment['end']:.3f}"]
                table.write(csv_line([entry["path"], *times, segment["class"], f"{segment['probability']:.6f}"]))


def write_parquet(file: str | os.PathLike, entries: Sequence[Mapping]) -> None:
    """Writes the entries; the columns are the keys of `predictions.ENTRIES`, null where an entry has none."""
    import pyarrow
    from pyarrow import parquet

    result = [("class", pyarrow.string()), ("probability", pyarrow.float64())]
    segment = [("start", pyarrow.float64()), ("end", pyarrow.float64()), *result]
    schema = pyarrow.schema(
        [
            ("path", pyarrow.string()),
            ("duration", pyarrow.float64()),
            ("fps", pyarrow.float64()),
            ("top", pyarrow.list_(pyarrow.struct(result))),
            ("segments", pyarrow.list_(pyarrow.struct(segment))),
            ("unknown", pyarrow.bool_()),
            ("error", pyarrow.string()),
            ("fingerprint", pyarrow.string()),
        ]
    )
    names = [{**entry, "path": os.fsencode(entry["path"]).decode("utf-8", "backslashreplace")} for entry in entries]
    with replacing(file) as partial:
        parquet.write_table(pyarrow.Table.from_pylist(names, schema=schema), partial)
