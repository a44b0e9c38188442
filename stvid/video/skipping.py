"""Which packets of a track need not be decoded: frames that nobody wants and no other frame refers to.

The other frames have the pixels that they have without skipping. How the frames of a packet are told:

- by its time, in H.264, MJPEG and uncompressed video with random access;
- by the types of the pictures before it, in MPEG-4 Part 2 (XVID, DivX), whose times in AVI are useless where it has
  B-frames.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator

import av
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer

from stvid.video.container import open_video
from stvid.video.decoding import demux

INTRA_ONLY = ("mjpeg", "rawvideo")  # no frame of these codecs refers to another
# ISO/IEC 14496-2, 6.2: what starts each part of a stream; a picture ("VOP"), and its type
_CODE_PREFIX, _VOP_START, _B_TYPE = b"\x00\x00\x01", b"\x00\x00\x01\xb6", 2


def demux_by_time(
    container: InputContainer,
    stream: av.VideoStream,
    *,
    number_of: Callable[[int], int],
    wanted: Collection[int],
    skipped: set[int],
) -> Iterator[av.Packet]:
    """The packets of a track with usable times; its decoder skips unwanted frames that no other refers to.

    In H.264, only packets of such frames are skipped: for others FFmpeg would not say that they are damaged. In MJPEG
    and uncompressed video no frame refers to another, and unwanted packets are left out. In other codecs nothing is
    skipped: the "non-reference" frames of a sub-layer of HEVC may be referred to by higher layers.

    Args:
        container, stream: the file, open for decoding.
        number_of: number of the frame that is shown at a time, in units of the track.
        wanted: numbers of frames.
        skipped: the numbers of skipped frames are added to it.
    """
    codec, extradata = stream.codec_context.codec.canonical_name, stream.codec_context.extradata or b""
    is_intra_only = codec in INTRA_ONLY
    # without B-frames there are rarely frames to skip, and looking for them takes time
    may_skip = codec == "h264" and stream.codec_context.has_b_frames > 0
    if not may_skip and not is_intra_only:
        yield from demux(container, stream)
        return
    prefix = 1 + (extradata[4] & 3) if len(extradata) > 4 and extradata[0] == 1 else 0  # 0: no avcC
    for packet in demux(container, stream):
        number = None if packet.pts is None else number_of(packet.pts)
        skips = number is not None and number not in wanted and (is_intra_only or _is_disposable(packet, prefix))
        if skips and number is not None:
            skipped.add(number)
        if may_skip:
            stream.codec_context.skip_frame = "NONREF" if skips else "DEFAULT"
        if may_skip or not skips:
            yield packet


def demux_in_order(
    container: InputContainer, stream: av.VideoStream, *, wanted: Collection[int], skipped: set[int], kept: set[int]
) -> Iterator[av.Packet]:
    """The packets of a track of MPEG-4 from its first one on, without those of unwanted B-frames.

    A packet with headers or user data before its B-frame is kept: they change how the decoder reads what follows.

    Args:
        container, stream: a file with `VideoInfo.b_frames_in_order`, open for decoding.
        wanted: numbers of frames.
        skipped: the numbers of the B-frames that are skipped are added to it.
        kept: the numbers of the other B-frames are added to it.
    """
    number, has_reference = 0, False  # of the next B-frame; a reference frame is shown when the next one arrives
    last = max(wanted)
    for packet in _unpack(container, stream):
        is_b = _is_b_frame(packet)
        if is_b is False and has_reference and number == last:  # the decoder shows it without the next one too
            flush = av.Packet()
            flush.stream = stream
            yield flush
            return
        skips = is_b is True and number not in wanted and memoryview(packet)[: len(_VOP_START)] == _VOP_START
        if is_b:
            (skipped if skips else kept).add(number)
        if is_b is not None:
            number += is_b or has_reference
            has_reference |= not is_b
        if not skips:
            yield packet


def find_b_frames(path: str | os.PathLike[str], *, max_pixels: int) -> list[bool]:
    """Of each frame of a file in MPEG-4, in the order in which they are shown: do the packets say that it is a B-frame?

    Raises:
        VideoError: the file cannot be read.
    """
    shown, has_reference = [], False
    with open_video(path, max_pixels=max_pixels) as (container, stream):
        for is_b in map(_is_b_frame, _unpack(container, stream)):
            if is_b is None:
                continue
            if is_b or has_reference:
                shown.append(is_b)
            has_reference |= not is_b
    return shown + [False] * has_reference


def _unpack(container: InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """The packets of a track of MPEG-4, each with one picture at most: DivX packs a B-frame behind another frame."""
    unpacking, is_packed = BitStreamFilterContext("mpeg4_unpack_bframes", stream), False
    for packet in demux(container, stream):
        content = bytes(packet)
        if not is_packed and content.startswith(_VOP_START) and content.find(_CODE_PREFIX, len(_VOP_START)) < 0:
            yield packet  # one picture and nothing else: the filter would change nothing, and takes time
            continue
        is_packed |= content.count(_VOP_START) > 1
        flushes = not packet.size and packet.dts is None
        for single in unpacking.filter(None if flushes else packet):
            single.stream = stream
            yield single
        if flushes:
            unpacking.flush()  # there may be such a packet before the end
            yield packet


def _is_b_frame(packet: av.Packet) -> bool | None:
    """Whether the picture of a packet of MPEG-4 is a B-frame; None: it has no picture."""
    content = memoryview(packet)
    place = 0 if content[: len(_VOP_START)] == _VOP_START else bytes(packet).find(_VOP_START)
    if place < 0 or place + len(_VOP_START) == len(content):
        return None
    return content[place + len(_VOP_START)] >> 6 == _B_TYPE


def _is_disposable(packet: av.Packet, prefix: int) -> bool:
    """Whether no other frame refers to that of a packet: `nal_ref_idc` of its slices is 0 (ITU-T H.264, 7.4.1).

    Args:
        packet: NAL units, each behind its length.
        prefix: bytes of a length; 0: unknown.
    """
    content, place, num_slices = memoryview(packet), 0, 0
    while prefix and place + prefix < len(content):
        header = content[place + prefix]
        place += prefix + int.from_bytes(content[place : place + prefix], "big")
        if 1 <= header & 0x1F <= 5:  # a slice
            num_slices += 1
            if header & 0x60:
                return False
    return num_slices > 0 and place == len(content)
