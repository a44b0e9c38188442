"""Reads the bytes of videos in tar files, see `shard_index`."""

from __future__ import annotations

import errno
import io
import os
import tarfile
import threading
import zlib
from collections import OrderedDict
from typing import IO, Any

from stvid.errors import CHANGED, MISSING, TRUNCATED, UNREADABLE, InputError, VideoError
from stvid.video.shard_cache import fetch_shard, has_source, mark_used
from stvid.video.shard_index import Member, Shard, find_member
from stvid.video.types import VideoInfo

MAX_IN_MEMORY = 2**24  # bytes of a video that is read at once, and compared with its checksum
MAX_OPEN = 4  # tars of a thread
_CHUNK = 2**20


def open_member(path: str | os.PathLike[str], member: Member) -> IO[bytes]:
    """The bytes of a video as a file. Up to 16 MiB are read at once and compared with the checksum.

    The tar stays open for the next video: reading the videos of a tar in their order is one sequential read.

    Raises:
        VideoError: it was not readable when the tars were made; the tar is missing, has another size than its index
            says, or is damaged.
        InputError: the tar must be fetched, and cannot be.
    """
    if not isinstance(member.info, VideoInfo):
        raise VideoError(path, *member.info)
    if member.num_bytes > MAX_IN_MEMORY:
        return _Part(path, member)  # type: ignore[return-value] # a raw file is one
    content = _read(path, member, offset=0, num_bytes=member.num_bytes)
    if zlib.crc32(content) != member.crc32:
        raise VideoError(path, UNREADABLE, f"{member.shard.name} is damaged: another checksum than in its index")
    return io.BytesIO(content)


def find_damage(path: str | os.PathLike[str]) -> VideoError | None:
    """Reads all bytes of a video of a tar and compares its checksum; None if it is intact, and for other paths."""
    member, crc32 = find_member(path), 0
    if member is None or not isinstance(member.info, VideoInfo):
        return None
    try:
        for offset in range(0, member.num_bytes, _CHUNK):
            part = _read(path, member, offset=offset, num_bytes=min(_CHUNK, member.num_bytes - offset))
            crc32 = zlib.crc32(part, crc32)
    except VideoError as error:
        return error
    detail = f"{member.shard.name} is damaged: another checksum than in its index"
    return None if crc32 == member.crc32 else VideoError(path, UNREADABLE, detail)


class _Part(io.RawIOBase):
    """A video that is too large for the memory, as a file; only the needed parts are read."""

    def __init__(self, path: str | os.PathLike[str], member: Member) -> None:
        self._path, self._member, self._place = path, member, 0
        header = _read(path, member, offset=-tarfile.BLOCKSIZE, num_bytes=tarfile.BLOCKSIZE)
        try:
            size = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size
        except tarfile.HeaderError as error:
            raise VideoError(path, UNREADABLE, f"{member.shard.name} is damaged: {error}") from error
        if size != member.num_bytes:
            raise VideoError(path, CHANGED, f"{member.shard.name} has another video there than its index says")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._member.num_bytes}[whence]
        self._place = max(base + offset, 0)
        return self._place

    def readinto(self, buffer: Any) -> int:
        wanted = max(min(len(buffer), self._member.num_bytes - self._place), 0)
        content = _read(self._path, self._member, offset=self._place, num_bytes=wanted)
        buffer[:wanted] = content
        self._place += wanted
        return wanted


class _OpenTars(threading.local):
    """The tars that this thread of this process has open; of several threads or processes, none moves another's."""

    def __init__(self) -> None:
        self.process, self.files = os.getpid(), OrderedDict[Shard, IO[bytes]]()

    def get(self, shard: Shard) -> IO[bytes]:
        if self.process != os.getpid():
            self.process, self.files = os.getpid(), OrderedDict()
        if shard not in self.files:
            self._close_removed()
            while len(self.files) >= MAX_OPEN:
                self.files.popitem(last=False)[1].close()
            self.files[shard] = open_tar(shard)
        self.files.move_to_end(shard)
        return self.files[shard]

    def read(self, shard: Shard, *, start: int, num_bytes: int) -> bytes:
        file, parts = self.get(shard), []
        file.seek(start)
        while num_bytes and (part := file.read(num_bytes)):
            parts.append(part)
            num_bytes -= len(part)
        return b"".join(parts)

    def close(self, shard: Shard) -> None:
        if shard in self.files:
            self.files.pop(shard).close()

    def _close_removed(self) -> None:
        """A tar that `_make_room` has removed needs its room on the disk as long as a process has it open.

        A network file system may keep such a file under another name, so that it has a link: its name is looked at.
        """
        removed = [shard for shard, file in self.files.items() if not _is_named(shard, file)]
        for shard in removed:
            self.close(shard)


def _is_named(shard: Shard, file: IO[bytes]) -> bool:
    """Whether the path of a tar still stands for the open file."""
    try:
        return os.path.samestat(os.stat(shard.path), os.fstat(file.fileno()))
    except OSError:
        return False


_open_tars = _OpenTars()


def open_tar(shard: Shard) -> IO[bytes]:
    """Opens a tar; one of a folder with a source is fetched if it is missing, or not the one of the index.

    Raises:
        OSError: it is missing.
        ValueError: it has another size than the index says.
        InputError: it cannot be fetched.
    """
    if has_source(shard.folder):
        file = fetch_shard(shard.folder, shard.name, num_bytes=shard.num_bytes)
        mark_used(shard.path)
        return file
    file = open(shard.path, "rb", buffering=0)  # noqa: SIM115 # it stays open, see `_OpenTars`
    size = os.fstat(file.fileno()).st_size
    if size != shard.num_bytes:
        file.close()
        raise ValueError(f"{shard.name} has {size:,} bytes, its index says {shard.num_bytes:,}")
    return file


def _read(path: str | os.PathLike[str], member: Member, *, offset: int, num_bytes: int) -> bytes:
    """Exactly so many bytes, from an offset in the video."""
    try:
        content = _read_tar(member.shard, start=member.offset + offset, num_bytes=num_bytes)
    except FileNotFoundError as error:
        raise VideoError(path, MISSING, f"{member.shard.path} does not exist") from error
    except InputError:
        raise
    except ValueError as error:
        raise VideoError(path, CHANGED, str(error)) from error
    except OSError as error:
        raise VideoError(path, UNREADABLE, f"{member.shard.name}: {error.strerror or error}") from error
    if len(content) < num_bytes:
        raise VideoError(path, TRUNCATED, f"{member.shard.name} ends inside the video")
    return content


def _read_tar(shard: Shard, *, start: int, num_bytes: int) -> bytes:
    """Bytes of a tar, fewer at its end. A file that another machine has removed from a network disk is opened anew."""
    try:
        return _open_tars.read(shard, start=start, num_bytes=num_bytes)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
    _open_tars.close(shard)
    return _open_tars.read(shard, start=start, num_bytes=num_bytes)
