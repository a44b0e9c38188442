"""Decodes video files (PyAV). Used by `probe`, `reader` and `transcode`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise

import av
from av.container import InputContainer
from av.video.frame import PictureType

from stvid.errors import EMPTY, TRUNCATED, UNREADABLE, VideoError
from stvid.video.completeness import find_cut, find_missing_sample
from stvid.video.container import error_text, stated_seconds
from stvid.video.workers import report_progress

_SAMPLE = 16  # frames to decode when only the packets are counted: do the frames have the packets' times?


def demux(container: InputContainer, *streams: av.VideoStream | av.AudioStream) -> Iterator[av.Packet]:
    """The packets of these tracks, or of all; the last one of each is empty and flushes its decoder.

    PyAV raises IndexError behind these if another track appeared on the way, as in MPEG-TS, MPEG-PS and FLV files.
    """
    with suppress(IndexError):
        yield from container.demux(*streams)


def decode(path: str | os.PathLike[str], packets: Iterable[av.Packet]) -> Iterator[av.VideoFrame]:
    """Decodes packets; yields frames in the decoder's order, which is the display order.

    Sorting by time stamp would be wrong where the stamps are wrong (AVI with B-frames). Packets that the decoder
    refuses before the first frame are skipped: a recording may start in the middle of a group of pictures.

    Raises:
        VideoError: truncated if a packet is refused after the first frame, unreadable if all are refused.
    """
    num_frames, refusal = 0, None
    try:
        for packet in packets:
            report_progress()
            if not packet.size and packet.dts is not None:  # repeats a frame; FFmpeg takes it for an error or the end
                continue
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                if num_frames:
                    raise
                refusal, frames = error, []
            for frame in frames:
                num_frames += 1
                yield frame
    except av.FFmpegError as error:
        reason = TRUNCATED if num_frames else UNREADABLE
        raise VideoError(path, reason, f"decoding broke after {num_frames} frames: {error_text(error)}") from error
    if refusal is not None and not num_frames:
        raise VideoError(path, UNREADABLE, f"no packet can be decoded: {error_text(refusal)}")


@dataclass(kw_only=True)
class Scan:
    """The result of one pass over the packets of a file; `Scan.run` makes the pass."""

    codec: str
    num_video_streams: int
    tick: float  # seconds, the unit of all `pts`
    header_rate: float  # frames per second; 0 where the header has none
    reorders: bool  # the frames come in another order than the packets (B-frames)
    pts: list[int | None] = field(default_factory=list)  # of packets, in file order
    is_key: list[bool] = field(default_factory=list)
    frames_pts: list[int | None] = field(default_factory=list)  # of decoded frames, in the decoder's order
    is_intra: list[bool] = field(default_factory=list)  # of decoded frames: decodable without other frames
    is_b: list[bool] = field(default_factory=list)  # of decoded frames: a B-frame
    interlaced: bool = False  # one of the decoded frames is
    num_damaged: int = 0  # decoded frames in which the decoder concealed damage
    first: av.VideoFrame | None = None
    tables: set[tuple[bool, ...]] = field(default_factory=set)  # of MJPEG: which tables the packets have
    new_sets: bool = False  # H.264, HEVC: a packet has other parameter sets than the header
    lacks_sets: bool = False  # a keyframe behind such a packet has none, so that decoding cannot start there
    marked: bool = False  # a packet is flagged as damaged, or as hidden (edit lists)
    cut: bool = False  # the last packet of a track is flagged as damaged: the file ends inside it
    end: float = 0.0  # end time of the last packet of this track in seconds
    end_of_all: float = 0.0  # the same for all tracks

    @classmethod
    def run(
        cls, path: str | os.PathLike[str], container: InputContainer, stream: av.VideoStream, *, decode_all: bool
    ) -> Scan:
        """Reads all packets; decodes all of them, or (`decode_all=False`) only enough for a few frames.

        Raises:
            VideoError: empty, truncated, unreadable.
        """
        scan = cls(
            codec=stream.codec_context.codec.canonical_name,
            num_video_streams=len(container.streams.video),
            tick=float(stream.time_base or 1),
            header_rate=float(stream.average_rate or 0),
            reorders=stream.codec_context.has_b_frames > 0,
        )
        packets = scan._record_packets(container, stream)
        for frame in decode(path, packets):
            scan.first = scan.first or frame
            scan.frames_pts.append(frame.pts)
            scan.is_intra.append(frame.pict_type == PictureType.I)
            scan.is_b.append(frame.pict_type == PictureType.B)
            scan.interlaced |= frame.interlaced_frame
            scan.num_damaged += frame.is_corrupt
            if not decode_all and len(scan.frames_pts) == _SAMPLE:
                break
        try:
            for _ in packets:  # record the remaining packets without decoding them
                report_progress()
        except av.FFmpegError as error:
            detail = f"reading broke after {len(scan.pts)} packets: {error_text(error)}"
            raise VideoError(path, TRUNCATED, detail) from error
        scan._check_end(path, container, stream)
        return scan

    def _record_packets(self, container: InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
        """Yields the packets of `stream` and records each of them."""
        is_cut, extradata = {}, stream.codec_context.extradata or b""
        # All tracks, not just this one: the file may end inside a packet of another. The packet that flushes a decoder
        # is empty and has no valid index, but it has its stream.
        for packet in demux(container):
            if packet.size and packet.pts is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                self.end_of_all = max(self.end_of_all, end)
                if packet.stream is stream:
                    self.end = max(self.end, end)
            if packet.size and packet.stream.type in ("video", "audio"):
                is_cut[packet.stream.index] = packet.is_corrupt
            if packet.stream is not stream:
                continue
            if packet.size:
                self.pts.append(packet.pts)
                self.is_key.append(packet.is_keyframe)
                self.marked |= packet.is_corrupt or packet.is_discard
                if self.codec == "mjpeg":
                    self.tables.add(_tables(packet))
                sets = parameter_sets(packet, self.codec, extradata)
                self.new_sets |= any(content not in extradata for content in sets)
                self.lacks_sets |= self.new_sets and packet.is_keyframe and not sets
            yield packet
        self.cut = any(is_cut.values())

    def _check_end(self, path: str | os.PathLike[str], container: InputContainer, stream: av.VideoStream) -> None:
        if self.first is None:
            raise VideoError(path, EMPTY, "not one frame")
        cut = find_cut(path, container.format.name)
        if cut is None and container.format.name.startswith("mov"):
            cut = find_missing_sample(container, os.path.getsize(path))
        if cut is None and self.cut:
            cut = f"the file ends inside packet {len(self.pts)} of {stream.frames or '?'}"
        if cut is None and container.format.name.startswith("matroska"):
            # A live recording may state its duration. It is inexact: allow a quarter. That of the file is the longest
            # track's: what counts is that of this track.
            promised = stated_seconds(stream)
            end, promised = (
                (self.end_of_all, (container.duration or 0) / av.time_base)
                if promised is None
                else (self.end, promised)
            )
            if end + 1 / (self.header_rate or 1) < 0.75 * promised:
                cut = f"it ends after {end:.2f} s of {promised:.2f} s"
        if cut is not None:
            raise VideoError(path, TRUNCATED, cut)

    @property
    def known_pts(self) -> list[int]:
        """`pts` without the missing ones."""
        return [pts for pts in self.pts if pts is not None]

    @property
    def packets_are_frames(self) -> bool:
        """Whether packets and frames have the same times, one to one: then counting packets counts frames.

        Valid only for containers and codecs without hidden packets. False when in doubt, unless all frames were
        decoded: then the frames themselves tell.
        """
        if self.marked or None in self.pts or not self.is_key[0]:
            return False
        if self.first is None or self.first.interlaced_frame:  # each field may have its own packet
            return False
        stamps = sorted(self.known_pts)
        if self.frames_pts != stamps[: len(self.frames_pts)]:
            return False
        if self.reorders and stamps == self.pts and len(stamps) > 1:
            return False  # stamps invented for a container without them, such as an AVI remuxed to mp4
        gaps = sorted(b - a for a, b in pairwise(stamps))
        if not gaps or gaps[0] <= 0:
            return not gaps
        # In a gap a packet may be lost, and the decoder may drop the frames that depend on it.
        return len(self.frames_pts) == len(stamps) or gaps[-1] < 1.5 * gaps[len(gaps) // 2]

    @property
    def gops_are_closed(self) -> bool:
        """Whether decoding can start at any keyframe without missing a frame. Requires `packets_are_frames`.

        No frame is shown before a keyframe that it follows in the file, and none after a later keyframe.
        """
        keyframe = latest = self.known_pts[0]
        for pts, is_key in zip(self.known_pts, self.is_key, strict=True):
            if pts < (latest if is_key else keyframe):
                return False
            latest, keyframe = max(latest, pts), pts if is_key else keyframe
        return True

    @property
    def keyframes(self) -> tuple[int, ...]:
        """Numbers of the frames at which decoding can start. Requires `packets_are_frames`.

        The flag of a packet is not sufficient: with intra refresh it marks a frame that only later frames complete.
        A damaged file has no keyframes: the concealed pixels depend on the frames decoded before.
        """
        number_of = {pts: number for number, pts in enumerate(sorted(self.known_pts))}
        flagged = sorted(number_of[pts] for pts, is_key in zip(self.known_pts, self.is_key, strict=True) if is_key)
        intra = [number for number in flagged if number >= len(self.is_intra) or self.is_intra[number]]
        is_whole = self._have_same_tables and not self.lacks_sets and not self.num_damaged
        return tuple(intra) if intra[:1] == [0] and is_whole else ()

    @property
    def _have_same_tables(self) -> bool:
        """Whether the frames of MJPEG decode alike in any order: a decoder keeps the tables of earlier packets."""
        return len(self.tables) <= 1 and all(quantises for quantises, *_ in self.tables)


def parameter_sets(packet: av.Packet, codec: str, extradata: bytes) -> list[bytes]:
    """The parameter sets in a packet of H.264 or HEVC, whose NAL units stand each behind its length (ISO/IEC 14496-15).

    Args:
        packet: any packet; of other codecs, and without lengths, it has none.
        codec: FFmpeg's name.
        extradata: of the track: avcC or hvcC.
    """
    place_of_size, shift, kinds = {"h264": (4, 0, (7, 8)), "hevc": (21, 1, (32, 33, 34))}.get(codec, (0, 0, ()))
    if not kinds or len(extradata) <= place_of_size or extradata[0] != 1:
        return []
    prefix, content, place, sets = 1 + (extradata[place_of_size] & 3), memoryview(packet), 0, []
    while place + prefix < len(content):
        start = place + prefix
        place = start + int.from_bytes(content[place:start], "big")
        if (content[start] >> shift) & (0x3F if shift else 0x1F) in kinds:
            sets.append(bytes(content[start:place]))
    return sets


def _tables(packet: av.Packet) -> tuple[bool, ...]:
    """Whether a packet of MJPEG has quantisation tables, Huffman tables, and a restart interval (ITU-T T.81, B.2.4)."""
    content = bytes(packet)
    header = content[: content.find(b"\xff\xda")]  # up to the first scan
    return tuple(marker in header for marker in (b"\xff\xdb", b"\xff\xc4", b"\xff\xdd"))
