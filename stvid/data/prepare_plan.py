"""Which file each video of a data set becomes, and whether the folder for them may be used."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from stvid.data.manifest import Item, Manifest
from stvid.errors import InputError
from stvid.video.transcode import source_identity

_FORMAT = 1  # of the files: another number, and those made before count as others
_PARTIALS = ".*.partial"  # what `replacing` leaves when it is killed
_LONGEST_NAME = 180  # bytes; file systems take 255, and some are added

Key = tuple[str, float | None, float | None]  # path, start, end


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One file to be made, from a video or the part of one that `item` names."""

    item: Item
    target: Path
    size: int  # of the source, bytes
    comment: str  # what the finished file says of its source and settings


def key_of(item: Item) -> Key:
    return item.path, item.start, item.end


def shown(path: str) -> str:
    """A file's name as text that can be written anywhere: names are bytes, and not always UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def common_folder(manifest: Manifest) -> str:
    try:
        return os.path.commonpath([os.path.dirname(os.path.abspath(item.path)) for item in manifest.items])
    except ValueError as error:
        raise InputError(f"the videos lie on several drives, prepare those of each by themselves: {error}") from error


def check_folder(out: Path, settings: Mapping, *, common: str, sources: set[str]) -> None:
    """Raises InputError unless settings make sense and `out` is free, or was begun with the same ones."""
    for name, least, most in (("short_side", 16, 4096), ("gop", 1, 1000), ("crf", 0, 51)):
        if not least <= settings[name] <= most:
            raise InputError(f"{name} (={settings[name]}) must lie between {least} and {most}")
    real = out.resolve()
    # videos all over the disk have only its root in common, which says nothing
    folders = {common} if common != os.path.abspath(os.sep) else {os.path.dirname(path) for path in sources}
    for folder in folders:
        if real.is_relative_to(os.path.realpath(folder)):
            raise InputError(f"{out} lies in {folder}, where the videos are. Name a folder that is not among them")
    for path in sources:
        if Path(os.path.realpath(path)).is_relative_to(real):
            raise InputError(f"{out} holds a video that is to be transcoded, {path}. Name another folder")
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is a file. Name a folder")
    if (out / "prepare.json").exists():
        try:
            before = dict(json.loads((out / "prepare.json").read_bytes())["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{out}/prepare.json is damaged. Remove {out}, or name another folder") from error
        other = [name for name in settings if settings[name] != before.get(name)]
        if other:
            found = ", ".join(f"{name}={before.get(name)} (asked for: {settings[name]})" for name in other)
            raise InputError(f"{out} was prepared with {found}. Remove it, or name another folder")
    elif others := [entry.name for entry in out.iterdir() if not entry.match(_PARTIALS)]:
        raise InputError(f"{out} holds other things, such as {sorted(others)[0]}. Name a new or an empty folder")


def remove_partials(out: Path) -> None:
    """Removes what a killed process has left half-written."""
    for folder in (out, *(Path(found) for found, _, _ in os.walk(out / "videos"))):
        for path in folder.glob(_PARTIALS):
            path.unlink(missing_ok=True)


def plan_files(manifest: Manifest, folder: Path, *, common: str, how: Mapping[str, int]) -> dict[Key, Job]:
    """What is to be made: one file for each distinct (path, start, end), in the manifest's order."""
    items = {key_of(item): item for item in manifest.items}
    names = _names(list(items), common=common)
    identities = {path: source_identity(path) for path in {item.path for item in items.values()}}
    jobs = {}
    for key, item in items.items():
        source, identity = shown(os.path.relpath(item.path, common)), identities[item.path]
        about = {"prepare": _FORMAT, "source": source, "identity": identity, **how}
        comment = json.dumps({**about, "start": item.start, "end": item.end})
        jobs[key] = Job(item=item, target=folder / names[key], size=(identity or [0])[0], comment=comment)
    return jobs


def _names(keys: Sequence[Key], *, common: str) -> dict[Key, Path]:
    """A name for each output that follows its source's below `common`, and is another one's on no file system."""
    in_order = sorted(keys, key=lambda key: (key[0], key[1] or 0, key[2] or math.inf))
    wanted = {key: _name(key, common) for key in in_order}
    first_choices = {_folded(name) for name in wanted.values()}
    taken = {_folded(folder) for name in wanted.values() for folder in name.parents}
    names = {}
    for key, name in wanted.items():
        number, chosen = 1, name
        while _folded(chosen) in taken or (number > 1 and _folded(chosen) in first_choices):
            number += 1
            chosen = name.with_name(f"{name.stem}_{number}.mp4")
        names[key] = chosen
        taken.add(_folded(chosen))
    return names


def _name(key: Key, common: str) -> Path:
    path, start, end = key
    below = Path(os.path.relpath(path, common))
    stem = below.name if os.path.isdir(path) else below.stem
    if len(os.fsencode(stem)) > _LONGEST_NAME:
        stem = os.fsencode(stem)[:_LONGEST_NAME].decode(errors="ignore")
    if start is not None or end is not None:
        stem += f"_{start or 0:.10g}-{'end' if end is None else f'{end:.10g}'}"
    return below.with_name(f"{stem}.mp4")


def _folded(name: Path) -> str:
    """The same for names that some file system takes for the same."""
    return unicodedata.normalize("NFC", str(name)).casefold()
