"""A command in N parts on several machines: which files a part takes, and what it leaves for the merge.

    part = parse_part("3/7")                                         # the third of seven parts
    mine = part.of(paths)                                            # every seventh of the sorted distinct paths
    parts = Parts("report.json", command="check", settings=settings) # the folder report.json.parts
    parts.claim(part)                                                # in each of the parts, at its start
    parts.write(part, result)                                        # and at its end
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
from typing import Any, NamedTuple

from stvid.checks import anything, dict_of, fields, flag, list_of, number, read_json, text
from stvid.errors import InputError
from stvid.files import file_in_the_way, file_lock, write_json
from stvid.video.types import source_identity

COMMANDS = ("check", "prepare", "predict", "encode")  # that can be done in parts
MAX_PARTS = 100_000
MAX_NAMED = 10  # missing parts in a message
_SETTINGS = dict_of(list_of(text(), length=2))
_PART = fields(
    {
        "part": number(1, MAX_PARTS, whole=True),
        "num_parts": number(1, MAX_PARTS, whole=True),
        "settings": _SETTINGS,
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
        raise InputError(f"{value}: must be I/N, such as 3/7 for the third of seven parts")
    part = Part(int(match[1]), int(match[2]))
    if not 1 <= part.count <= MAX_PARTS:
        raise InputError(f"{value}: the number of parts (={part.count}) must be from 1 to {MAX_PARTS}")
    if not 1 <= part.number <= part.count:
        raise InputError(f"{value}: the part (={part.number}) must be from 1 to {part.count}")
    return part


class Setting(NamedTuple):
    """One thing that determines the result of a command.

    Attributes:
        text: as messages show it.
        digest: of its content; empty if the text says all.
    """

    text: str
    digest: str = ""


def digest_files(paths: Iterable[str]) -> str:
    """Hash of files with their sizes and times: equal for the same files in the same state."""
    return digest_rows((path, source_identity(path)) for path in sorted(set(paths)))


def digest_rows(rows: Iterable) -> str:
    """Hash of rows of plain data, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, default=str).encode() + b"\n")
    return digest.hexdigest()[:16]


def differences(there: Mapping[str, Sequence[str]], here: Mapping[str, Sequence[str]]) -> str:
    """The settings (text, digest) that differ: `clip.num_frames is 4 there and 5 here`; empty if none does."""
    missing = Setting("not given")
    found = []
    for name in (*here, *(name for name in there if name not in here)):
        old, new = Setting(*there.get(name, missing)), Setting(*here.get(name, missing))
        if (old.digest or old.text) != (new.digest or new.text):
            same_text = old.text == new.text
            shown = [f"{text} ({digest})" if same_text else text for text, digest in (old, new)]
            found.append(f"{name} is {shown[0]} there and {shown[1]} here")
    return "; ".join(found)


class Parts:
    """The folder with the parts of one command, beside its output: `OUTPUT.parts`.

    Args:
        output: the file or folder that the command writes.
        command: one of `COMMANDS`.
        settings: what determines the result, by name; the same in all parts.
        check: of a part's result, for the merge; see `stvid.checks`.
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        *,
        command: str,
        settings: Mapping[str, Setting],
        check: Callable[[Any, str], None] = anything,
    ):
        output = Path(output).absolute()
        self.folder = output.with_name(f"{output.name}.parts")
        self.command, self.settings, self.check = command, {"command": Setting(command), **settings}, check

    def file(self, part: Part, ending: str = ".json") -> Path:
        """A file of one part."""
        return self.folder / f"{part.number}-of-{part.count}{ending}"

    def claim(self, part: Part) -> None:
        """Makes the folder, at the start of a part; from the first part on it belongs to these settings.

        Raises:
            InputError: it belongs to other settings or another number of parts, or a file has its name.
        """
        if (file := file_in_the_way(self.folder)) is not None:
            raise InputError(f"{file} is a file, and the parts need a folder there: move it, or name another output")
        self.folder.mkdir(parents=True, exist_ok=True)
        owner, mine = self.folder / "settings.json", {**self.settings, "number of parts": Setting(str(part.count))}
        with file_lock(owner):
            if not owner.exists():
                write_json(owner, mine)
            there = read_json(owner, _SETTINGS, remedy=f"Remove {self.folder}, and run all parts again")
        if different := differences(there, mine):
            raise InputError(
                f"{self.folder} belongs to parts with other settings: {different}. Give all parts of a command the "
                "same settings, and each command an output of its own. If those parts are not needed any more, remove "
                "the folder"
            )

    def write(self, part: Part, result: object, *, done: bool = True) -> None:
        """Writes what a part leaves for the merge, atomically; with `done=False`, what it knows when it starts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        place = {"part": part.number, "num_parts": part.count}
        write_json(self.file(part), {**place, "settings": self.settings, "done": done, "result": result})

    def earlier(self, part: Part) -> Any:
        """What an earlier attempt at a part has written; None: there was none, or it had other settings."""
        if not self.file(part).is_file():
            return None
        try:
            content = self._read(self.file(part))
        except InputError:
            return None
        is_same = (content["part"], content["num_parts"]) == (part.number, part.count)
        return content["result"] if is_same and not differences(content["settings"], self.settings) else None

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
            self._refuse(missing, counts[0])
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
            if not differences(value["settings"], self.settings):  # else it may be of another command
                self.check(value["result"], f"{place}, result")

        return read_json(path, check, remedy="Run this part again")

    def _check_same(self, parts: Mapping[int, Mapping], count: int) -> None:
        """Raises InputError for a part of another command, or with other settings."""
        for n, part in sorted(parts.items()):
            if different := differences(part["settings"], self.settings):
                raise InputError(
                    f"stvid merge {self.command}: part {n}/{count} in {self.folder} has other settings than this "
                    f"merge: {different}. Repeat the merge with the words of the parts; or remove the folder, and run "
                    "all parts with the words of this merge"
                )

    def _refuse(self, numbers: Sequence[int], count: int) -> None:
        named = ", ".join(f"{n}/{count}" for n in numbers[:MAX_NAMED])
        more = f" and {len(numbers) - MAX_NAMED} more" if len(numbers) > MAX_NAMED else ""
        kind = "part" if len(numbers) == 1 else "parts"
        raise InputError(
            f"stvid merge {self.command}: of the {count} parts in {self.folder}, {kind} {named}{more} "
            f"{'is' if len(numbers) == 1 else 'are'} missing or not finished. Run, with the words of this merge: "
            f"stvid {self.command} ... --shard {numbers[0]}/{count}"
        )
