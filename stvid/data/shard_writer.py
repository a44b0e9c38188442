"""Packs prepared videos into tar files of bounded size, in the style of WebDataset, with an index.

    write_shards(entries, Path("small/shards"), class_names=("a", "b"), max_bytes=10**9, num_workers=4)

A tar holds `NAME.mp4` and `NAME.json` of each video: label, split, group, path, properties and checksum. Readers of
WebDataset take a name up to its first dot as the key, so other dots are written as %2E. The same videos give the same
bytes. Tars appear when they are complete; the next call keeps those whose videos are still the same.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from stvid.data.manifest import SPLITS, Item
from stvid.errors import VideoError
from stvid.files import replacing
from stvid.progress import Bar
from stvid.video.probe import probe_all
from stvid.video.probe_cache import to_values
from stvid.video.shard_cache import SHARD_NAME
from stvid.video.shard_index import FORMAT, INDEX

_BLOCK = 2**22  # bytes read at once
_IDENTITY_KEY = "source"  # of the JSON of a video: what it was made from, with which settings


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One item of the prepared data set.

    Attributes:
        item: its label, split and group.
        name: of its file below the output folder, such as `videos/a/one.mp4`.
        file: the prepared file.
        comment: the comment in the file: JSON that tells what it was made from.
        error: why there is no such file.
    """

    item: Item
    name: str
    file: Path
    comment: str
    error: VideoError | None = None


def write_shards(
    entries: Sequence[Entry],
    folder: Path,
    *,
    class_names: Sequence[str],
    max_bytes: int,
    num_workers: int,
    timeout: float = 600.0,
    progress: bool = True,
) -> dict:
    """Writes the tars and the index of a prepared data set.

    Training videos are packed in an order that depends only on their names, and mixes the classes; others in the order
    of the data set.

    Args:
        entries: all items, in the order of the data set.
        folder: for the tars; other tars in it are removed.
        class_names: in the order of the model's outputs.
        max_bytes: limit for the videos of a tar; a larger video has a tar of its own. Names and properties of a video
            need about 2 kB more.
        num_workers: processes that probe the prepared files.
        timeout: seconds without a new frame after which a prepared file is given up.
        progress: show a progress bar.

    Returns:
        num_tars, num_kept, bytes.

    Raises:
        VideoError: a prepared file cannot be read.
        OSError: a tar cannot be written.
    """
    folder.mkdir(exist_ok=True)
    for partial in folder.glob(".*.partial"):
        partial.unlink(missing_ok=True)
    plan, index = plan_shards(entries, max_bytes=max_bytes), folder / INDEX
    places: dict[tuple[str, str], dict] = {}  # split and name of a video -> what the index says about it
    num_kept = 0
    with Bar("packing videos", total=sum(map(len, plan.values())), unit="videos", shown=progress) as bar:
        for tar, members in plan.items():
            found = _read_tar(folder / tar)
            if found is not None and list(map(_origin, found)) == list(map(_expected, members)):
                num_kept += 1
            else:
                index.unlink(missing_ok=True)  # it is not valid until all tars are written
                found = _write_tar(folder / tar, members, num_workers=num_workers, timeout=timeout)
            assert found is not None
            for member, place in zip(members, found, strict=True):
                places[member.item.split, member.name] = {"shard": tar, **place}
                bar.advance()
    for other in folder.glob("*.tar"):
        if SHARD_NAME.fullmatch(other.name) and other.name not in plan:
            index.unlink(missing_ok=True)
            other.unlink()
    sizes = {tar: (folder / tar).stat().st_size for tar in plan}
    _write_index(index, entries, places, class_names=class_names, plan=plan, sizes=sizes)
    return {"num_tars": len(plan), "num_kept": num_kept, "bytes": sum(sizes.values())}


def plan_shards(entries: Sequence[Entry], *, max_bytes: int) -> dict[str, list[Entry]]:
    """Name of each tar -> its videos. A video that several items of a split share is there once."""
    plan: dict[str, list[Entry]] = {}
    for split in SPLITS:
        of_split = {entry.name: entry for entry in reversed(entries) if entry.item.split == split and not entry.error}
        members = list(reversed(of_split.values()))
        if split == "train":
            members.sort(key=lambda entry: hashlib.sha256(os.fsencode(entry.name)).digest())
        groups: list[list[Entry]] = []
        total = 0
        for member in members:
            size = member.file.stat().st_size
            if not groups or total + size > max_bytes:
                groups.append([])
                total = 0
            groups[-1].append(member)
            total += size
        plan |= {f"{split}-{number:06d}.tar": group for number, group in enumerate(groups)}
    return plan


def _expected(entry: Entry) -> dict[str, Any]:
    """What the JSON of a video says if it need not be packed again."""
    item = entry.item
    return {
        "path": entry.name,
        "label": item.label,
        "split": item.split,
        "group": item.group,
        "bytes": entry.file.stat().st_size,
        _IDENTITY_KEY: json.loads(entry.comment),
    }


def _origin(place: Mapping[str, Any]) -> dict[str, Any]:
    return {key: place.get(key) for key in ("path", "label", "split", "group", "bytes", _IDENTITY_KEY)}


def _read_tar(path: Path) -> list[dict] | None:
    """The JSON of each video of a tar, with the offset of the video; None if it cannot be used."""
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as tar:
            members = tar.getmembers()
            found = []
            for video, properties in zip(members[::2], members[1::2], strict=True):
                file = tar.extractfile(properties)
                assert file is not None
                place = json.loads(file.read())
                if (video.name, video.size) != (_member_name(place["path"], ".mp4"), place["bytes"]):
                    return None
                if _checksum(tar, video) != place["crc32"]:
                    return None
                found.append({**place, "offset": video.offset_data})
            return found
    except (OSError, tarfile.TarError, ValueError, LookupError, TypeError, AttributeError, AssertionError):
        return None


def _checksum(tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    file = tar.extractfile(member)
    assert file is not None
    content = _Checksummed(file)
    while content.read(_BLOCK):
        pass
    return content.crc32


def _write_tar(path: Path, members: Sequence[Entry], *, num_workers: int, timeout: float) -> list[dict]:
    files = [str(member.file) for member in members]
    infos = probe_all(files, num_workers=num_workers, timeout=timeout, progress=False)
    found = []
    with replacing(path) as partial, partial.open("wb") as file:
        with tarfile.open(
            fileobj=file, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape"
        ) as tar:
            for member, info in zip(members, infos, strict=True):
                if isinstance(info, VideoError):
                    raise info
                with member.file.open("rb") as video:
                    content = _Checksummed(video)
                    expected = _expected(member)
                    _add(tar, _member_name(member.name, ".mp4"), content, size=expected["bytes"])
                offset = tar.offset - -(-expected["bytes"] // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                values = {key: value for key, value in to_values(info).items() if key != "identity"}
                place = {**expected, "crc32": content.crc32, "info": values}
                text = json.dumps(place).encode()
                _add(tar, _member_name(member.name, ".json"), io.BytesIO(text), size=len(text))
                found.append({**json.loads(text), "offset": offset})
        file.flush()
        os.fsync(file.fileno())
    return found


class _Checksummed:
    """A file that is read once, and the checksum of what was read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.crc32 = file, 0

    def read(self, size: int) -> bytes:
        content = self.file.read(size)
        self.crc32 = zlib.crc32(content, self.crc32)
        return content


def _add(tar: tarfile.TarFile, name: str, file: Any, *, size: int) -> None:
    member = tarfile.TarInfo(name)  # its defaults: time 0, user 0, no names of user and group
    member.size, member.mode = size, 0o644
    tar.addfile(member, file)


def _member_name(name: str, suffix: str) -> str:
    folder, _, file = name.removesuffix(".mp4").rpartition("/")
    file = file.replace("%", "%25").replace(".", "%2E")
    return f"{folder}/{file}{suffix}" if folder else f"{file}{suffix}"


def _write_index(
    path: Path,
    entries: Sequence[Entry],
    places: Mapping[tuple[str, str], dict],
    *,
    class_names: Sequence[str],
    plan: Mapping[str, Sequence[Entry]],
    sizes: Mapping[str, int],
) -> None:
    head = {
        "stvid_shards": FORMAT,
        "num_items": len(entries),
        "class_names": list(class_names),
        "shards": [{"name": tar, "bytes": sizes[tar], "videos": len(members)} for tar, members in plan.items()],
    }
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(head) + "\n")
        for entry in entries:
            item = entry.item
            line: dict[str, Any] = {"path": entry.name, "label": item.label, "split": item.split, "group": item.group}
            if entry.error:
                error = {"reason": entry.error.reason, "detail": entry.error.detail}
                line |= {"shard": f"{item.split}-000000.tar", "error": error}
            else:
                place = places[item.split, entry.name]
                line |= {key: place[key] for key in ("shard", "offset", "bytes", "crc32", "info")}
            file.write(json.dumps(line) + "\n")
