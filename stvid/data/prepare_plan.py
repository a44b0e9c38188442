"""Plans `prepare`: the output file of each video, and checks of the output folder."""

from __future__ import annotations

import dataclasses
import glob
import json
import math
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from stvid.data.manifest import Item, Manifest
from stvid.errors import InputError
from stvid.files import file_in_the_way, write_json, writer_is_dead
from stvid.video.types import source_identity

_FORMAT = 1  # of the files; files with another number are made again
_PARTIAL_FILES = ".*.partial"  # left over by `replacing` in killed processes
_MAX_NAME_BYTES = 180  # file systems allow 255; suffixes are added
_MIN_TAR_BYTES = 1000
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}

Key = tuple[str, float | None, float | None]  # path, start, end


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One file to make from a video or a part of it."""

    item: Item
    target: Path
    source_size: int  # bytes
    comment: str  # metadata of the finished file: its source and settings


def encoding_settings(*, short_side: int, gop: int, crf: int, uncompressed: bool) -> dict[str, int]:
    """The settings that determine the files, see `prepare`; `uncompressed` only where it is set."""
    return {"short_side": short_side, "gop": gop, "crf": crf} | ({"uncompressed": True} if uncompressed else {})


def item_key(item: Item) -> Key:
    return item.path, item.start, item.end


def to_text(path: str) -> str:
    """A path as valid Unicode: bytes that are not UTF-8 become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def common_folder(manifest: Manifest) -> str:
    """The common folder of all videos. Raises InputError if they are on several drives."""
    try:
        return os.path.commonpath([os.path.dirname(os.path.abspath(item.path)) for item in manifest.items])
    except ValueError as error:
        raise InputError(
            f"the videos are on several drives; prepare those of each drive separately: {error}"
        ) from error


def check_output(manifest: Manifest, out: Path, encoding: Mapping[str, int]) -> dict:
    """The settings of a copy of a data set: those of its encoding, and the folder of the videos.

    Raises:
        InputError: see `check_folder`.
    """
    common = common_folder(manifest)
    settings = {**encoding, "sources": to_text(common)}
    check_folder(out.absolute(), settings, common=common, sources={item.path for item in manifest.items})
    return settings


def plan_output(manifest: Manifest, out: Path, encoding: Mapping[str, int]) -> tuple[dict, dict[Key, Job]]:
    """The settings and the files to make; marks the folder as an output of `prepare`."""
    settings = check_output(manifest, out, encoding)
    if not (out / "prepare.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "prepare.json", {"settings": settings})
    return settings, plan_files(manifest, out / "videos", common=common_folder(manifest), settings=encoding)


def check_folder(out: Path, settings: Mapping, *, common: str, sources: set[str]) -> None:
    """Raises InputError unless the settings are valid, and `out` is new, empty, or has the same settings."""
    for name, minimum, maximum in (("short_side", 16, 4096), ("gop", 1, 1000), ("crf", 0, 51)):
        if not minimum <= settings[name] <= maximum:
            raise InputError(f"{name} (={settings[name]}) must be between {minimum} and {maximum}")
    _check_outside_of_sources(out, common=common, sources=sources)
    if file := file_in_the_way(out):
        raise InputError(f"{file} is a file. Name a folder" + ("" if file == out else " above the new one"))
    if not out.exists():
        return
    # in this order: another part may start now, and it writes prepare.json before any other file
    others = [entry.name for entry in out.iterdir() if not entry.match(_PARTIAL_FILES)]
    if (out / "prepare.json").exists():
        _check_same_settings(out, settings)
    elif others:
        raise InputError(f"{out} contains other files, such as {sorted(others)[0]}. Name a new or an empty folder")


def _check_outside_of_sources(out: Path, *, common: str, sources: set[str]) -> None:
    real = out.resolve()
    # if the common folder is the root of the disk, check the folder of each video
    folders = {common} if common != os.path.abspath(os.sep) else {os.path.dirname(path) for path in sources}
    for folder in folders:
        if real.is_relative_to(os.path.realpath(folder)):
            raise InputError(f"{out} is in {folder}, the folder of the videos. Name a folder outside of it")
    for path in sources:
        if Path(os.path.realpath(path)).is_relative_to(real):
            raise InputError(f"{out} contains a video to transcode, {path}. Name another folder")


def _check_same_settings(out: Path, settings: Mapping) -> None:
    try:
        before = dict(json.loads((out / "prepare.json").read_bytes())["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{out}/prepare.json is damaged. Remove {out}, or name another folder") from error
    changed = [name for name in {**settings, **before} if settings.get(name) != before.get(name)]
    if changed:
        differences = ", ".join(
            f"{name}={_shown(before.get(name))} (requested: {_shown(settings.get(name))})" for name in changed
        )
        raise InputError(
            f"{out} was prepared with {differences}. Give the settings that it has, as all parts of a command must, or "
            "name another folder"
        )


def _shown(value: object) -> str:
    return "no" if value is None else "yes" if value is True else str(value)


def remove_partials(out: Path) -> None:
    """Removes the partial files of killed processes."""
    for folder in (out, *(Path(parent) for parent, _, _ in os.walk(out / "videos"))):
        for path in folder.glob(_PARTIAL_FILES):
            path.unlink(missing_ok=True)


def remove_dead_partials(target: Path) -> None:
    """Removes the partial files of one output whose processes are known to have ended: others may make other files."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        if writer_is_dead(path):
            path.unlink(missing_ok=True)


def plan_files(manifest: Manifest, folder: Path, *, common: str, settings: Mapping[str, int]) -> dict[Key, Job]:
    """One job for each distinct (path, start, end), in the manifest's order."""
    items = {item_key(item): item for item in manifest.items}
    names = _output_names(list(items), common=common, suffix=".mkv" if settings.get("uncompressed") else ".mp4")
    identities = {path: source_identity(path) for path in {item.path for item in items.values()}}
    jobs = {}
    for key, item in items.items():
        source, identity = to_text(os.path.relpath(item.path, common)), identities[item.path]
        origin = {"prepare": _FORMAT, "source": source, "identity": identity, **settings}
        comment = json.dumps({**origin, "start": item.start, "end": item.end})
        source_size = (identity or [0])[0]
        jobs[key] = Job(item=item, target=folder / names[key], source_size=source_size, comment=comment)
    return jobs


def _output_names(keys: Sequence[Key], *, common: str, suffix: str) -> dict[Key, Path]:
    """A name for each output, like its source's below `common`, and unique on every file system."""
    in_order = sorted(keys, key=lambda key: (key[0], key[1] or 0, key[2] or math.inf))
    wanted = {key: _output_name(key, common, suffix) for key in in_order}
    first_choices = {_normalize_case(name) for name in wanted.values()}
    taken = {_normalize_case(folder) for name in wanted.values() for folder in name.parents}
    names = {}
    for key, name in wanted.items():
        number, chosen = 1, name
        while _normalize_case(chosen) in taken or (number > 1 and _normalize_case(chosen) in first_choices):
            number += 1
            chosen = name.with_name(f"{name.stem}_{number}{suffix}")
        names[key] = chosen
        taken.add(_normalize_case(chosen))
    return names


def _output_name(key: Key, common: str, suffix: str) -> Path:
    path, start, end = key
    below = Path(os.path.relpath(path, common))
    stem = below.name if os.path.isdir(path) else below.stem
    if len(os.fsencode(stem)) > _MAX_NAME_BYTES:
        stem = os.fsencode(stem)[:_MAX_NAME_BYTES].decode(errors="ignore")
    if start is not None or end is not None:
        stem += f"_{start or 0:.10g}-{'end' if end is None else f'{end:.10g}'}"
    return below.with_name(f"{stem}{suffix}")


def _normalize_case(name: Path) -> str:
    """Equal for names that are equal on some file systems: ignores case and Unicode normal form."""
    return unicodedata.normalize("NFC", str(name)).casefold()


def parse_size(text: str) -> int:
    """Bytes of `500MB`, `1.5 GB`, `1000000`; decimal units.

    Raises:
        ValueError: no size, or less than 1 kB.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([kKmMgGtT]?)[bB]?", text.strip())
    num_bytes = round(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if not _MIN_TAR_BYTES <= num_bytes <= 2**53:
        raise ValueError(f"(={text}) must be a size of at least 1kB, such as 500MB or 1GB")
    return num_bytes
