"""Videos in tar files: where each of them lies, and what is known about it.

    DIR/train-000000.tar             members NAME.mp4 and NAME.json, in the order of the file
    DIR/index.jsonl                  the tars, and a line for each video: its place, label and properties
    DIR/train-000000.tar/videos/one.mp4    the path of a video: its tar is named like a folder

`open_video`, `probe` and `probe_all` take such paths. The index says all that probing would find out; `shard_reader`
reads the bytes.
"""

from __future__ import annotations

import functools
import json
import os
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from stvid.checks import Check, anything, fields, list_of, maybe, number, open_regular, parse_json, text
from stvid.errors import REASONS, InputError, VideoError
from stvid.video.probe_cache import ERRORS, to_info
from stvid.video.shard_cache import SHARD_NAME, has_source
from stvid.video.types import VideoInfo, file_size

INDEX = "index.jsonl"
FORMAT = 1  # of the index
_BETWEEN = re.compile(r"[/\\](?=[^/\\]+\.tar[/\\])")
_SIZE = number(0, 2**53, whole=True)


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar file; `version` tells apart those of an index that was written anew."""

    folder: str
    name: str
    num_bytes: int
    version: tuple[int, int]

    @property
    def path(self) -> str:
        return os.path.join(self.folder, self.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One video of a tar.

    Attributes:
        shard: its tar.
        offset: of its first byte in the tar.
        num_bytes: its size.
        crc32: checksum of its bytes.
        info: its properties, or the reason and detail of why it was not readable when the tars were made.
    """

    shard: Shard
    offset: int
    num_bytes: int
    crc32: int
    info: VideoInfo | tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The content of `index.jsonl`.

    Attributes:
        class_names: in the order of the model's outputs.
        shards: the tars.
        members: `TAR/NAME` -> the video.
        rows: `TAR/NAME`, label, split and group of each item of the data set, in its order.
    """

    class_names: tuple[str, ...]
    shards: tuple[Shard, ...]
    members: dict[str, Member]
    rows: list[tuple[str, str, str, str | None]]


def find_member(path: str | os.PathLike[str]) -> Member | None:
    """The video of a tar that a path names; None if it names something else.

    Raises:
        InputError: the index of the tar is damaged.
    """
    name = os.fspath(path)
    if ".tar" not in name:
        return None
    name = os.path.abspath(name)
    for match in _BETWEEN.finditer(name):
        index = _find_index(name[: match.start()] or os.sep)
        if index is not None:
            return index.members.get(name[match.end() :].replace(os.sep, "/"))
    return None


def video_exists(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a file, a folder, or a video of a tar that exists or can be fetched."""
    if os.path.exists(path):
        return True
    member = find_member(path)
    if member is None:
        return False
    return (
        not isinstance(member.info, VideoInfo) or os.path.exists(member.shard.path) or has_source(member.shard.folder)
    )


def video_size(path: str | os.PathLike[str]) -> int:
    """Bytes of a video of a tar, or see `file_size`."""
    member = find_member(path)
    return file_size(path) if member is None else member.num_bytes


def member_identity(path: str | os.PathLike[str]) -> list | None:
    """[size in bytes, checksum] of a video of a tar, from the index; None if it was not readable, and for other paths.

    The same in every copy of the tar; another one if the tar was remade with another content.
    """
    member = find_member(path)
    return [member.num_bytes, member.crc32] if member is not None and isinstance(member.info, VideoInfo) else None


def known_info(path: str | os.PathLike[str]) -> VideoInfo | VideoError | None:
    """What the index says about a video of a tar; None for other paths."""
    member = find_member(path)
    if member is None:
        return None
    return member.info if isinstance(member.info, VideoInfo) else VideoError(path, *member.info)


def _find_index(folder: str) -> ShardIndex | None:
    try:
        status = os.stat(os.path.join(folder, INDEX))
    except OSError:
        return None
    return _read_index(folder, (status.st_mtime_ns, status.st_size))


def read_index(folder: str | os.PathLike[str]) -> ShardIndex:
    """The index of a folder of shards.

    Raises:
        InputError: there is none, or it is damaged.
    """
    index = _find_index(os.path.abspath(folder))
    if index is None:
        raise InputError(
            f"{folder} has no {INDEX}, which lists the videos of tar files. Make both with stvid prepare ... --out OUT "
            "--tar-size 1GB; then name OUT/shards. An interrupted call goes on if it is repeated"
        )
    return index


def _is_name(value: Any, place: str) -> None:
    text()(value, place)
    parts = PurePosixPath(value).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise InputError(f"{place} is {value!r}, must be a path below the tar")


def _is_shard_name(value: Any, place: str) -> None:
    text()(value, place)
    if not SHARD_NAME.fullmatch(value):
        raise InputError(f"{place} is {value!r}, must be a name like train-000000.tar")


_HEAD = fields(
    {
        "stvid_shards": number(FORMAT, FORMAT, whole=True),
        "num_items": _SIZE,
        "class_names": list_of(text(), unique=True),
        "shards": list_of(fields({"name": _is_shard_name, "bytes": _SIZE, "videos": _SIZE})),
    }
)
_PLACE: dict[str, Check] = {"path": _is_name, "shard": _is_shard_name}
_ITEM: dict[str, Check] = {"label": text(), "split": text("train", "val", "test"), "group": maybe(text())}
_GOOD = fields(
    {**_PLACE, **_ITEM, "offset": _SIZE, "bytes": _SIZE, "crc32": _SIZE, "info": anything}  # `to_info` checks it
)
_BAD = fields({**_PLACE, **_ITEM, "error": fields({"reason": text(*REASONS), "detail": text()})})


@functools.lru_cache(maxsize=8)
def _read_index(folder: str, version: tuple[int, int]) -> ShardIndex:
    path, line_number = os.path.join(folder, INDEX), 1
    try:
        with open_regular(path) as file:
            lines = iter(file)
            head = parse_json(next(lines, b""))
            _HEAD(head, "line 1")
            shards = {shard["name"]: Shard(folder, shard["name"], shard["bytes"], version) for shard in head["shards"]}
            members: dict[str, Member] = {}
            rows, class_names = [], frozenset(head["class_names"])
            for line in lines:
                line_number += 1
                key, member, row = _parse_line(line, shards, folder, version)
                if row[0] not in class_names:
                    raise ValueError(f"the label {row[0]!r} is not in class_names of line 1")
                members.setdefault(key, member)
                rows.append((key, *row))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except ERRORS as error:
        raise InputError(
            f"{path} is damaged in line {line_number}: {error}. Copy it again, or make it anew with stvid prepare"
        ) from error
    if len(rows) != head["num_items"]:
        raise InputError(
            f"{path} is damaged: it lists {len(rows)} videos and should list {head['num_items']}. Copy it again, or "
            "make it anew with stvid prepare"
        )
    return ShardIndex(class_names=tuple(head["class_names"]), shards=tuple(shards.values()), members=members, rows=rows)


def _parse_line(
    line: bytes, shards: dict[str, Shard], folder: str, version: tuple[int, int]
) -> tuple[str, Member, tuple[str, str, str | None]]:
    values = json.loads(line)
    is_bad = isinstance(values, dict) and "error" in values
    (_BAD if is_bad else _GOOD)(values, "the video")
    name = values["shard"]
    if is_bad:
        shard = shards.get(name) or Shard(folder, name, 0, version)
        info: VideoInfo | tuple[str, str] = (values["error"]["reason"], values["error"]["detail"])
        member = Member(shard=shard, offset=0, num_bytes=0, crc32=0, info=info)
    else:
        shard, offset, size, crc32 = shards[name], values["offset"], values["bytes"], values["crc32"]
        if offset + size > shard.num_bytes:
            raise ValueError(f"the video ends at byte {offset + size:,} of {name}, which has {shard.num_bytes:,}")
        info = to_info({**values["info"], "identity": f"{size} {crc32:08x}"})
        member = Member(shard=shard, offset=offset, num_bytes=size, crc32=crc32, info=info)
    return f"{name}/{values['path']}", member, (values["label"], values["split"], values["group"])
