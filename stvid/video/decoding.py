"""The one way in which a video file is opened, decoded and gone through (PyAV); private to `probe` and `reader`."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import av
from av.stream import Disposition
from av.video.frame import PictureType

from stvid.errors import EMPTY, MISSING, NO_VIDEO_STREAM, TRUNCATED, UNREADABLE, VideoError

# Metadata in another encoding than UTF-8 must not make a file unreadable; PyAV 19 sees to that itself.
_TOLERANT = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
_SAMPLE = 16  # frames that are decoded to see whether they come when the packets say


@contextmanager
def open_video(path: str | os.PathLike[str], *, num_threads: int = 1):
    """Open a file for decoding; yields `(container, stream)` and closes the container at the end.

    Raises:
        VideoError: missing, empty, unreadable, no video stream; also for FFmpeg's errors inside the `with` block.
    """
    # An absolute path is never taken for a protocol ("12:30.avi"); and no file may lead to another, or to the network.
    file = os.path.abspath(path)
    try:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):
            raise VideoError(path, UNREADABLE, "not a regular file")
        if status.st_size == 0:
            raise VideoError(path, EMPTY, "zero bytes")
        with av.open(file, options={"protocol_whitelist": "file"}, **_TOLERANT) as container:
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                raise VideoError(path, NO_VIDEO_STREAM)
            stream = streams[0]
            if stream.codec_context is None:
                raise VideoError(path, UNREADABLE, "no decoder for its codec")
            # One thread is spelled out: FFmpeg's own choice is one per core, in every worker of a loader.
            stream.codec_context.thread_count = num_threads
            stream.codec_context.thread_type = "NONE" if num_threads == 1 else "AUTO"
            yield container, stream
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VideoError(path, MISSING) from error
    except (av.FFmpegError, OSError, MemoryError) as error:
        raise VideoError(path, UNREADABLE, _words(error)) from error


def _words(error: Exception) -> str:
    """What an error says, without its number and the path, which stand in a VideoError already."""
    return getattr(error, "strerror", None) or str(error)


def decode(path: str | os.PathLike[str], packets: Iterable[av.Packet]) -> Iterator[av.VideoFrame]:
    """Frames in the order in which the decoder gives them, which is the order of display.

    Sorting by time stamp is wrong where the stamps are (AVI with B-frames). Packets refused before the first frame
    are passed over: a recording may be cut in the middle of a group of pictures.

    Raises:
        VideoError: truncated where a packet is refused after the first frame, unreadable where all are.
    """
    num_frames, refusal = 0, None
    try:
        for packet in packets:
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
        raise VideoError(path, reason, f"decoding broke after {num_frames} frames: {_words(error)}") from error
    if refusal is not None and not num_frames:
        raise VideoError(path, UNREADABLE, f"no packet can be decoded: {_words(refusal)}")


@dataclass(kw_only=True)
class Scan:
    """What one pass over the packets of a file saw; `Scan.of` makes the pass."""

    codec: str
    num_video_streams: int
    tick: float  # seconds, the unit of all `pts`
    header_rate: float  # frames per second; 0 where the header has none
    reorders: bool  # the decoder gives frames in another order than that of the packets (B-frames)
    pts: list[int | None] = field(default_factory=list)  # of packets, in file order
    is_key: list[bool] = field(default_factory=list)
    frames_pts: list[int | None] = field(default_factory=list)  # of decoded frames, in the decoder's order
    is_intra: list[bool] = field(default_factory=list)  # of decoded frames: needs no other frame
    num_damaged: int = 0  # decoded frames that the decoder had to make up in part
    first: av.VideoFrame | None = None
    marked: bool = False  # a packet is flagged as damaged, or as not to be shown (edit lists)
    cut: bool = False  # the last packet is flagged as damaged: the file ends inside it
    end: float = 0.0  # seconds that the packets reach, sound included

    @classmethod
    def of(cls, path: str | os.PathLike[str], container, stream, *, decode_all: bool) -> Scan:
        """Read all packets; decode all of them, or (`decode_all=False`) only enough for a few frames.

        Raises:
            VideoError: empty, truncated, unreadable.
        """
        scan = cls(
            codec=stream.codec_context.codec.canonical_name,
            num_video_streams=len(container.streams.video),
            tick=float(stream.time_base),
            header_rate=float(stream.average_rate or 0),
            reorders=stream.codec_context.has_b_frames > 0,
        )
        packets = scan._noted(container, stream)
        for frame in decode(path, packets):
            scan.first = scan.first or frame
            scan.frames_pts.append(frame.pts)
            scan.is_intra.append(frame.pict_type == PictureType.I)
            scan.num_damaged += frame.is_corrupt
            if not decode_all and len(scan.frames_pts) == _SAMPLE:
                break
        try:
            for _ in packets:  # the rest, if decoding was not wanted
                pass
        except av.FFmpegError as error:
            raise VideoError(
                path, TRUNCATED, f"reading broke after {len(scan.pts)} packets: {_words(error)}"
            ) from error
        scan._check_end(path, container, stream)
        return scan

    def _noted(self, container, stream) -> Iterator[av.Packet]:
        """The packets of `stream`, each noted on its way."""
        for packet in container.demux([s for s in container.streams if s is stream or s.type == "audio"]):
            if packet.size and packet.pts is not None:
                self.end = max(self.end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index:
                continue
            if packet.size:  # else: the one that tells the decoder to give what it holds back
                self.pts.append(packet.pts)
                self.is_key.append(packet.is_keyframe)
                self.marked |= packet.is_corrupt or packet.is_discard
                self.cut = packet.is_corrupt
            yield packet

    def _check_end(self, path: str | os.PathLike[str], container, stream) -> None:
        if self.first is None:
            raise VideoError(path, EMPTY, "not one frame")
        if self.cut:
            raise VideoError(path, TRUNCATED, f"the file ends inside packet {len(self.pts)} of {stream.frames or '?'}")
        # A cut Matroska file shows by its stated length alone. Three quarters of it, since that is loose, too.
        if container.format.name.startswith("matroska") and container.duration:
            promised = container.duration / av.time_base
            if self.end + 1 / (self.header_rate or 1) < 0.75 * promised:
                raise VideoError(path, TRUNCATED, f"ends after {self.end:.2f} s of {promised:.2f} s")

    @property
    def packets_are_frames(self) -> bool:
        """The packets' times are those of the frames, one to one and in order: counting packets counts frames.

        Holds only for containers and codecs without packets that show nothing, and says no when in doubt: unless all
        frames were decoded, for which it is looked up.
        """
        if self.marked or None in self.pts or not self.is_key[0] or self.first.interlaced_frame:
            return False  # interlaced: fields may come in packets of their own
        stamps = sorted(self.pts)
        if self.frames_pts != stamps[: len(self.frames_pts)]:
            return False
        if self.reorders and stamps == self.pts and len(stamps) > 1:
            return False  # stamps made up by a container without them, such as AVI before it became an mp4
        gaps = sorted(b - a for a, b in pairwise(stamps))
        if not gaps or gaps[0] <= 0:
            return not gaps
        # A gap may be where a packet was lost, and the decoder may drop what depended on it.
        return len(self.frames_pts) == len(stamps) or gaps[-1] < 1.5 * gaps[len(gaps) // 2]

    @property
    def gops_are_closed(self) -> bool:
        """No frame is shown before a keyframe that it follows in the file, nor after a later one.

        Then decoding can start at any keyframe and miss nothing. Asked only where `packets_are_frames`.
        """
        keyframe = latest = self.pts[0]
        for pts, is_key in zip(self.pts, self.is_key, strict=True):
            if pts < (latest if is_key else keyframe):
                return False
            latest, keyframe = max(latest, pts), pts if is_key else keyframe
        return True

    @property
    def keyframes(self) -> tuple[int, ...]:
        """Numbers of the frames at which decoding can start. Asked only where `packets_are_frames`.

        The mark on a packet is not enough: it also stands where a picture begins to be mended (intra refresh), and
        then only the frames that follow make it whole. What a decoder makes up for damage depends on what it saw
        before, so a damaged file has none.
        """
        number_of = {pts: number for number, pts in enumerate(sorted(self.pts))}
        marked = sorted(number_of[pts] for pts, is_key in zip(self.pts, self.is_key, strict=True) if is_key)
        intra = [number for number in marked if number >= len(self.is_intra) or self.is_intra[number]]
        return tuple(intra) if intra[:1] == [0] and not self.num_damaged else ()
