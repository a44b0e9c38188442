"""A command in N parts on several machines: which files a part takes, and what it leaves for the merge.

    part = parse_part("3/7")                                         # the third of seven parts
    mine = part.of(paths)                                            # every seventh of the sorted distinct paths
    parts = Parts("report.json", command="check", settings=settings) # the folder report.json.parts
    parts.write(part, result)                                        # in each of the parts
    results = parts.read()                                           # once, when all are there: in their order

A part file is plain data: settings, and results that the merge looks at. It never holds a command to run.
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
MAX_PARTS = 100_000
MAX_NAMED = 10  # missing parts in a message
_PART = fields(
    {
        "command": text(*COMMANDS),
        "part": number(1, MAX_PARTS, whole=True),
        "num_parts": number(1, MAX_PARTS, whole=True),
        "settings": dict_of(text()),
        "done": flag,
        "result": anything,
    }
)


@dataclass(frozen=True)
class Part:
    """One part: `number` of `count`, from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, paths: Iterable[str]) -> list[str]:
        """The files of this part: every `count`-th of the sorted distinct paths. Together, the parts have all."""
        return sorted(set(paths))[self.number - 1 :: self.count]


def parse_part(value: str) -> Part:
    """The part that `I/N` names. Raises InputError."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", value)
    if match is None:
        raise InputError(f"--shard {value}: must be I/N, such as 3/7 for the third of seven parts")
    part = Part(int(match[1]), int(match[2]))
    if not 1 <= part.count <= MAX_PARTS:
        raise InputError(f"--shard {value}: the number of parts (={part.count}) must be from 1 to {MAX_PARTS}")
    if not 1 <= part.number <= part.count:
        raise InputError(f"--shard {value}: the part (={part.number}) must be from 1 to {part.count}")
    return part


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
        settings: what determines the result, name -> digest; the same in all parts.
        check: of a part's result, for the merge; see `stvid.checks`.
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        *,
        command: str,
        settings: Mapping[str, str],
        check: Callable[[Any, str], None] = anything,
    ):
        output = Path(output).absolute()
        self.folder = output.with_name(f"{output.name}.parts")
        self.command, self.settings, self.check = command, dict(settings), check

    def file(self, part: Part, ending: str = ".json") -> Path:
        """A file of one part."""
        return self.folder / f"{part.number}-of-{part.count}{ending}"

    def make_folder(self) -> None:
        """Raises InputError if a file has its name."""
        if (file := file_in_the_way(self.folder)) is not None:
            raise InputError(f"{file} is a file, and the parts need a folder there: move it, or name another output")
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, part: Part, result: object, *, done: bool = True) -> None:
        """Writes what a part leaves for the merge, atomically; with `done=False`, what it knows when it starts."""
        self.make_folder()
        place = {"command": self.command, "part": part.number, "num_parts": part.count}
        write_json(self.file(part), {**place, "settings": self.settings, "done": done, "result": result})

    def earlier(self, part: Part) -> Any:
        """What an earlier attempt at a part has written; None: there was none, or it had other settings."""
        if not self.file(part).is_file():
            return None
        try:
            content = self._read(self.file(part))
        except InputError:
            return None
        is_same = (content["command"], content["part"], content["num_parts"]) == (self.command, part.number, part.count)
        return content["result"] if is_same and content["settings"] == self.settings else None

    def read(self) -> list[Any]:
        """The results of all parts, in order.

        Raises:
            InputError: a part is missing, unfinished, or has other settings than this merge.
        """
        parts = [self._read(path) for path in sorted(self.folder.glob("*-of-*.json")) if self._is_part(path)]
        if not parts:
            raise InputError(
                f"stvid merge {self.command}: there are no parts in {self.folder}. First run all parts: "
                f"stvid {self.command} ... --shard 1/N to N/N, with the same words"
            )
        counts = sorted({part["num_parts"] for part in parts})
        if len(counts) > 1:
            raise InputError(
                f"stvid merge {self.command}: {self.folder} has parts of {' and of '.join(map(str, counts))}. Remove "
                "the files of one of the two, and run the parts of the other that are missing"
            )
        by_number = {part["part"]: part for part in parts}
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
        """Raises InputError for parts of another command, or with other settings."""
        for name in ("command", *self.settings):
            wanted = self.command if name == "command" else self.settings[name]
            other = [
                n
                for n, p in parts.items()
                if (p["command"] if name == "command" else p["settings"].get(name)) != wanted
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
