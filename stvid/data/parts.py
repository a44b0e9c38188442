"""A command in N parts on several machines: which files a part takes, and what it leaves for the merge.

    shard = parse_shard("3/7")                                       # the third of seven parts
    mine = shard.of(paths)                                           # every seventh of the sorted distinct paths
    parts = Parts("report.json", command="check", asked=asked)       # the folder report.json.parts
    parts.write(shard, result)                                       # in each of the parts
    results = parts.read()                                           # once, when all are there: in their order

A part file is plain data: what was asked, and results that the merge looks at. It never holds a command to run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stvid.checks import anything, dict_of, fields, flag, number, read_json, text
from stvid.errors import InputError
from stvid.files import file_in_the_way, write_json
from stvid.video.types import source_identity

COMMANDS = ("check", "prepare", "predict", "encode")  # that can be done in parts
MAX_SHARDS = 100_000
MAX_NAMED = 10  # missing parts in a message
_PART = fields(
    {
        "command": text(*COMMANDS),
        "shard": number(1, MAX_SHARDS, whole=True),
        "num_shards": number(1, MAX_SHARDS, whole=True),
        "asked": dict_of(text()),
        "done": flag,
        "result": anything,
    }
)


@dataclass(frozen=True)
class Shard:
    """One part: `number` of `count`, from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, paths: Iterable[str]) -> list[str]:
        """The files of this part: every `count`-th of the sorted distinct paths. Together, the parts have all."""
        return sorted(set(paths))[self.number - 1 :: self.count]


def parse_shard(value: str) -> Shard:
    """The part that `I/N` names. Raises InputError."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", value)
    if match is None:
        raise InputError(f"--shard {value}: must be I/N, such as 3/7 for the third of seven parts")
    shard = Shard(int(match[1]), int(match[2]))
    if not 1 <= shard.count <= MAX_SHARDS:
        raise InputError(f"--shard {value}: the number of parts (={shard.count}) must be from 1 to {MAX_SHARDS}")
    if not 1 <= shard.number <= shard.count:
        raise InputError(f"--shard {value}: the part (={shard.number}) must be from 1 to {shard.count}")
    return shard


def digest_files(paths: Iterable[str]) -> str:
    """Number and hash of files with their sizes and times: equal for the same files in the same state."""
    return digest_rows((path, source_identity(path)) for path in sorted(set(paths)))


def digest_rows(rows: Iterable) -> str:
    """Number and hash of rows of plain data."""
    digest, count = hashlib.sha256(), 0
    for count, row in enumerate(rows, start=1):  # noqa: B007
        digest.update(json.dumps(row, default=str).encode() + b"\n")
    return f"{count}, {digest.hexdigest()[:16]}"


class Parts:
    """The folder with the parts of one command, beside its output: `OUTPUT.parts`.

    Args:
        output: the file or folder that the command writes.
        command: one of `COMMANDS`.
        asked: what determines the result, name -> digest; all parts must have been asked the same.
        check: of a part's result, for the merge; see `stvid.checks`.
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        *,
        command: str,
        asked: Mapping[str, str],
        check: Callable[[Any, str], None] = anything,
    ):
        output = Path(output).absolute()
        self.folder = output.with_name(f"{output.name}.parts")
        self.command, self.asked, self.check = command, dict(asked), check

    def file(self, shard: Shard, ending: str = ".json") -> Path:
        """A file of one part."""
        return self.folder / f"{shard.number}-of-{shard.count}{ending}"

    def make_folder(self) -> None:
        """Raises InputError if a file has its name."""
        if (file := file_in_the_way(self.folder)) is not None:
            raise InputError(f"{file} is a file, and the parts need a folder there: move it, or name another output")
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, shard: Shard, result: object, *, done: bool = True) -> None:
        """Writes what a part leaves for the merge, atomically; with `done=False`, what it knows when it starts."""
        self.make_folder()
        place = {"command": self.command, "shard": shard.number, "num_shards": shard.count}
        write_json(self.file(shard), {**place, "asked": self.asked, "done": done, "result": result})

    def earlier(self, shard: Shard) -> Any:
        """What an earlier attempt at a part has written; None: there was none, or it was asked another thing."""
        if not self.file(shard).is_file():
            return None
        try:
            part = self._read(self.file(shard))
        except InputError:
            return None
        is_same = (part["command"], part["shard"], part["num_shards"]) == (self.command, shard.number, shard.count)
        return part["result"] if is_same and part["asked"] == self.asked else None

    def read(self) -> list[Any]:
        """The results of all parts, in order.

        Raises:
            InputError: a part is missing, unfinished, or was asked another thing than this merge.
        """
        parts = [self._read(path) for path in sorted(self.folder.glob("*-of-*.json")) if self._is_part(path)]
        if not parts:
            raise InputError(
                f"stvid merge {self.command}: there are no parts in {self.folder}. First run all parts: "
                f"stvid {self.command} ... --shard 1/N to N/N, with the same words"
            )
        counts = sorted({part["num_shards"] for part in parts})
        if len(counts) > 1:
            raise InputError(
                f"stvid merge {self.command}: {self.folder} has parts of {' and of '.join(map(str, counts))}. Remove "
                "the files of one of the two, and run the parts of the other that are missing"
            )
        by_number = {part["shard"]: part for part in parts}
        self._check_same(by_number, counts[0])
        missing = [n for n in range(1, counts[0] + 1) if n not in by_number or not by_number[n]["done"]]
        if missing:
            self._refuse(missing, counts[0], "missing or not finished")
        return [by_number[number]["result"] for number in range(1, counts[0] + 1)]

    def remove(self) -> None:
        """Removes the parts, after the merge: first their name, so that a killed merge leaves all or none."""
        gone = self.folder.with_name(f".{self.folder.name}.{uuid.uuid4().hex[:8]}.removed")
        self.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _is_part(self, path: Path) -> bool:
        return re.fullmatch(r"\d+-of-\d+\.json", path.name) is not None

    def _read(self, path: Path) -> dict:
        def check(value: Any, place: str) -> None:
            _PART(value, place)
            self.check(value["result"], f"{place}, result")

        return read_json(path, check, remedy="Run this part again")

    def _check_same(self, parts: Mapping[int, Mapping], count: int) -> None:
        """Raises InputError for parts of another command, or that were asked another thing."""
        for name in ("command", *self.asked):
            wanted = self.command if name == "command" else self.asked[name]
            other = [
                n for n, p in parts.items() if (p["command"] if name == "command" else p["asked"].get(name)) != wanted
            ]
            if other:
                self._refuse(sorted(other), count, f"made with another {name} than this merge")

    def _refuse(self, numbers: Sequence[int], count: int, why: str) -> None:
        named = ", ".join(f"{n}/{count}" for n in numbers[:MAX_NAMED])
        more = f" and {len(numbers) - MAX_NAMED} more" if len(numbers) > MAX_NAMED else ""
        kind = "part" if len(numbers) == 1 else "parts"
        raise InputError(
            f"stvid merge {self.command}: of the {count} parts in {self.folder}, {kind} {named}{more} "
            f"{'is' if len(numbers) == 1 else 'are'} {why}. Run, with the words of this merge: "
            f"stvid {self.command} ... --shard {numbers[0]}/{count}"
        )
