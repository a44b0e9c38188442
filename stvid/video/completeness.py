"""Finds files that end before the end that their container states: broken downloads and copies.

    cut = find_cut("clip.mp4", "mov,mp4,m4a,3gp,3g2,mj2")       # None, or what is missing, in words

Only the structure of the file is read, no packet. A check answers None unless the file contradicts itself: MPEG-TS,
MPEG-PS and raw streams state no end, and live recordings (Matroska, FLV, AVI, Ogg) often leave it out.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

from av.container import InputContainer

from stvid.video.workers import report_progress

_BOXES = {  # that stand at the top level of MP4 and QuickTime files; anything else there is junk behind the last box
    *(b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"mfra", b"sidx", b"ssix", b"emsg", b"prft", b"pdin"),
    *(b"free", b"skip", b"wide", b"uuid", b"udta", b"meta", b"pnot", b"PICT"),
}
_EBML, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
_ELEMENTS = {  # of Matroska, in a segment or a cluster
    *(_CLUSTER, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1254C367, 0x1043A770, 0x1941A469, 0xEC, 0xBF),
    *(0xE7, 0xA3, 0xA0, 0xAB, 0xA7, 0x5854),
}
_UNKNOWN = (0, 0xFFFFFFFF)  # RIFF lengths of a recording that is not finished
_FLV_TAGS = (8, 9, 18)  # sound, video, script data
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_MXF_PARTITION = bytes.fromhex("060e2b34020501010d01020101")  # and 3 more bytes: kind, status, version
_MAX_OGG_PAGE = 27 + 255 + 255 * 255


def find_cut(path: str | os.PathLike[str], format_name: str) -> str | None:
    """What a file lacks at its end, in words for a message; None if it lacks nothing, or if that cannot be known.

    Args:
        path: the file.
        format_name: FFmpeg's name of its container.

    Raises:
        OSError: the file cannot be read.
    """
    check = _CHECKS.get(format_name.split(",")[0])
    if check is None:
        return None
    with open(path, "rb") as file:
        return check(file, os.fstat(file.fileno()).st_size)


def find_missing_sample(container: InputContainer, size: int) -> str | None:
    """The first track of an MP4 or QuickTime file whose sample table points behind the end of the file, in words.

    The samples that an edit list hides do not count: FFmpeg leaves them out of the table.

    Args:
        container: a PyAV container; if it is fragmented, all packets have been read.
        size: of the file, in bytes.
    """
    for stream in container.streams:
        ends = [entry.pos + entry.size for entry in stream.index_entries]
        if num_missing := sum(end > size for end in ends):
            of_all = f"{num_missing} of {len(ends)} samples of track {stream.index} ({stream.type})"
            return f"{of_all} lie behind its end: {size} of at least {max(ends)} bytes"
    return None


def _short(size: int, end: int, what: str) -> str | None:
    return f"{size} of at least {end} bytes: it ends inside {what}" if end > size else None


def _read(file: BinaryIO, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)


def _check_mp4(file: BinaryIO, size: int) -> str | None:
    """Top-level boxes, and the index of fragments (`sidx`); ISO/IEC 14496-12.

    A media box (`mdat`) with a wrong length does no harm if the sample table is right, so it counts only in fragments.
    """
    at, fragmented = 0, False
    while len(header := _read(file, at, 16)) >= 8:
        report_progress()
        length, kind = struct.unpack(">I4s", header[:8])
        if length == 1 and len(header) == 16:
            length = struct.unpack(">Q", header[8:])[0]
        if kind not in _BOXES or length < 8:  # 0: up to the end of the file
            return None
        fragmented |= kind == b"moof"
        if (kind != b"mdat" or fragmented) and (cut := _short(size, at + length, f"box {kind.decode()!r}")):
            return cut
        if kind == b"sidx" and (cut := _short(size, _indexed_end(file, at, length), "the fragments of its index")):
            return cut
        at += length
    is_box = fragmented and header[:1] == b"\0" and any(header)
    return _short(size, at + 8, "the head of a box") if is_box else None


def _indexed_end(file: BinaryIO, at: int, length: int) -> int:
    """The end of the last fragment that a segment index (`sidx`) lists."""
    box = _read(file, at, min(length, 1 << 20))
    wide = box[8:9] != b"\0"
    fields = struct.Struct(">QQHH" if wide else ">IIHH")
    if len(box) < 20 + fields.size:
        return 0
    _, offset, _, count = fields.unpack_from(box, 20)
    references = box[20 + fields.size :][: 12 * count]
    sizes = [struct.unpack_from(">I", references, i)[0] & 0x7FFFFFFF for i in range(0, len(references) - 11, 12)]
    return at + length + offset + sum(sizes)


def _check_avi(file: BinaryIO, size: int) -> str | None:
    """RIFF chunks. A chunk length of some writers is wrong; that does no harm if the index is there."""
    at = 0
    while (header := _read(file, at, 12)).startswith(b"RIFF") and len(header) == 12:
        report_progress()
        length = struct.unpack_from("<I", header, 4)[0]
        if length in _UNKNOWN:  # a recording that nobody ended
            return _check_chunks(file, at + 12, size)
        end = at + 8 + length
        if end > size and not _has_index(file, at + 12, size):
            return _short(size, end, "its RIFF chunk")
        at = end + end % 2
    return None


def _check_chunks(file: BinaryIO, at: int, size: int) -> str | None:
    while len(header := _read(file, at, 12)) >= 8:
        report_progress()
        kind, length = struct.unpack("<4sI", header[:8])
        if kind == b"LIST" and (length in _UNKNOWN or header[8:] in (b"movi", b"rec ")):
            at += 12
        elif not (kind.isascii() and kind.decode().isprintable()):
            return None
        elif cut := _short(size, at + 8 + length, "a chunk"):
            return cut
        else:
            at += 8 + length + length % 2
    return _short(size, at + 8, "the head of a chunk") if any(header) else None


def _has_index(file: BinaryIO, at: int, size: int) -> bool:
    while len(header := _read(file, at, 8)) == 8:
        report_progress()
        kind, length = struct.unpack("<4sI", header)
        at += 8 + length + length % 2
        if kind == b"idx1":
            return at <= size
    return False


def _check_matroska(file: BinaryIO, size: int) -> str | None:
    """The length of the segment; where it is unknown (live recordings), the elements in it one by one; RFC 9559."""
    head, length, at = _element(file, 0)
    if head != _EBML or length is None:
        return None
    kind, length, at = _element(file, at + length)
    if kind != _SEGMENT:
        return None
    if length is not None:
        return _short(size, at + length, "its segment")
    while at < size:
        report_progress()
        kind, length, start = _element(file, at)
        if kind not in _ELEMENTS:
            return None
        if start > size:
            return _short(size, start, "the head of an element")
        if length is None and kind != _CLUSTER:
            return None
        at = start + (length or 0)
        if cut := _short(size, at, f"element {kind:X}"):
            return cut
    return None


def _element(file: BinaryIO, at: int) -> tuple[int, int | None, int]:
    """ID, length (None: unknown) and first byte of the content of an EBML element; RFC 8794.

    The content starts behind the end of the file where the file ends inside the ID or the length. ID 0: no element.
    """
    head = _read(file, at, 12)
    id_length = 9 - head[0].bit_length() if head and head[0] else 0
    if not 1 <= id_length <= 4:
        return 0, None, at
    if len(head) <= id_length:
        return _CLUSTER, 0, at + 12
    marker = head[id_length]
    width = 9 - marker.bit_length()
    if not marker or len(head) < id_length + width:
        return (0, None, at) if not marker else (_CLUSTER, 0, at + 12)
    value = int.from_bytes(head[id_length : id_length + width], "big") - (1 << 7 * width)
    unknown = value == (1 << 7 * width) - 1
    return int.from_bytes(head[:id_length], "big"), None if unknown else value, at + id_length + width


def _check_flv(file: BinaryIO, size: int) -> str | None:
    """Tags; at a tag's edge, the duration and file size of the script data (`onMetaData`)."""
    header = _read(file, 0, 9)
    if len(header) < 9:
        return None
    at, last = struct.unpack_from(">I", header, 5)[0] + 4, 0.0
    stated: dict[str, float] = {}
    while (tag := _read(file, at, 11)) and tag[0] in _FLV_TAGS:
        report_progress()
        if len(tag) < 11:
            return _short(size, at + 11, "the head of a tag")
        content = at + 11 + int.from_bytes(tag[1:4], "big")
        if size != content and (cut := _short(size, content + 4, "a tag")):  # some writers omit the last 4 bytes
            return cut
        if tag[0] == 18 and not stated:
            stated = _script_numbers(_read(file, at + 11, content - at - 11))
        elif tag[0] != 18:
            last = max(last, _flv_time(tag, _read(file, at + 11, 8)) / 1000)
        at = content + 4
    duration = stated.get("duration", 0.0)
    if stated.get("filesize") == size <= at:  # not only as long as it should be, but full of tags
        return None
    # stated sizes survive an edit of the file, and a last frame lasts some time: only both together are exact
    tolerance = 0.25 if stated.get("filesize", 0.0) > at else duration / 4
    return f"it ends after {last:.2f} s of {duration:.2f} s" if last + tolerance < duration else None


def _flv_time(tag: bytes, content: bytes) -> int:
    """When a tag is presented, in ms: its time stamp, and the offset that a packet of H.264 or HEVC adds to it."""
    time = int.from_bytes(tag[7:8] + tag[4:7], "big")
    has_offset = tag[0] == 9 and len(content) >= 5 and content[0] & 15 in (7, 12) and content[1] == 1
    return time + int.from_bytes(content[2:5], "big", signed=True) if has_offset else time


def _script_numbers(data: bytes) -> dict[str, float]:
    found = {}
    for name in ("duration", "filesize"):
        key = struct.pack(">H", len(name)) + name.encode() + b"\0"  # 0: the type of numbers
        place = data.find(key) + len(key)
        if key in data and place + 8 <= len(data):
            found[name] = struct.unpack_from(">d", data, place)[0]
    return found


def _check_asf(file: BinaryIO, size: int) -> str | None:
    """The file size in the header, which is valid unless the file is a broadcast (flag 1)."""
    head = _read(file, 0, 1 << 16)
    at = head.find(_ASF_PROPERTIES)
    if at < 0 or at + 92 > len(head):
        return None
    stated, flags = struct.unpack_from("<Q", head, at + 40)[0], struct.unpack_from("<I", head, at + 88)[0]
    return None if flags & 1 else _short(size, stated, "its data")


def _check_mxf(file: BinaryIO, size: int) -> str | None:
    """The place of the footer, which the first partition states once a recording has ended; SMPTE ST 377-1."""
    head = _read(file, 0, 1 << 16)
    at = head.find(_MXF_PARTITION)
    if at < 0 or len(head) < at + 64:
        return None
    fields = at + 17 + (head[at + 16] & 0x7F if head[at + 16] & 0x80 else 0)  # behind the key and the length
    start, _, footer = struct.unpack_from(">QQQ", head, fields + 8)
    return _short(size, at - start + footer + 16, "its footer") if footer else None


def _check_ogg(file: BinaryIO, size: int) -> str | None:
    """The last page, which is whole; RFC 3533. A recorded broadcast has no page that is marked as the end."""
    tail = _read(file, max(0, size - _MAX_OGG_PAGE - 27), _MAX_OGG_PAGE + 27)
    at = tail.rfind(b"OggS")
    if at < 0:
        return None
    page = tail[at:]
    lengths = page[27 : 27 + page[26]] if len(page) > 26 else b""
    if len(page) < 27 or len(lengths) < page[26] or len(page) < 27 + len(lengths) + sum(lengths):
        return f"{size} bytes: it ends inside a page"
    return None


def _check_gif(file: BinaryIO, size: int) -> str | None:
    """Blocks up to the trailer."""
    head = _read(file, 0, 13)
    if len(head) < 13:
        return None
    at = 13 + _palette(head[10])
    while kind := _read(file, at, 1):
        report_progress()
        if kind == b"\x3b":
            return None
        if kind == b"\x21":  # extension: a label, then blocks
            at += 2
        elif kind == b"\x2c":  # image: a descriptor, a palette, the code size, then blocks
            flags = _read(file, at + 9, 1)
            at += 11 + _palette(flags[0] if flags else 0)
        elif kind == b"\0" and not any(_read(file, at, 1 << 16)):
            return f"{size} bytes: only zeros from byte {at} on, its trailer is missing"  # space for a download
        else:
            return None
        while length := _read(file, at, 1):
            report_progress()
            at += 1 + length[0]
            if length == b"\0":
                break
    return f"{size} bytes: its trailer is missing"


def _palette(flags: int) -> int:
    """Bytes of the colour table that these flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


_CHECKS = {
    "mov": _check_mp4,
    "avi": _check_avi,
    "matroska": _check_matroska,
    "flv": _check_flv,
    "asf": _check_asf,
    "mxf": _check_mxf,
    "ogg": _check_ogg,
    "gif": _check_gif,
}
