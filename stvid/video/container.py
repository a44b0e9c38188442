"""Opens video files, and only files: chooses the container format, and the track that players show."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any

import av
from av.container import InputContainer
from av.stream import Disposition

from stvid.errors import EMPTY, MISSING, NO_VIDEO_STREAM, UNREADABLE, VideoError
from stvid.video.shard_index import find_member
from stvid.video.shard_reader import open_member
from stvid.video.types import MAX_PIXELS, check_pixels

# Metadata that is not UTF-8 must not make a file unreadable. PyAV 19 ensures that itself.
_TOLERANT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
# Containers that hold everything in one file. Other demuxers open the files that a text names (concat, hls, dash, sdp),
# that have similar names (image2, mlv), or read any text (tty). Sound alone is opened to say that it has no pictures.
FORMATS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "live_flv", "asf", "ogg", "gif", "apng", "mxf"),
    *("nut", "ivf", "obu", "av1", "vvc", "hevc", "h264", "h263", "h261", "m4v", "vc1", "dv", "rm", "wtv", "nsv"),
    *("mjpeg", "mjpeg_2000", "yuv4mpegpipe", "dirac", "dnxhd", "swf", "wav", "w64", "mp3", "aac", "flac", "ac3"),
)
_COVER = Disposition.attached_pic | Disposition.timed_thumbnails
_IMAGE_CODECS = frozenset(("mjpeg", "png", "apng", "gif", "bmp", "webp", "tiff", "jpegls", "jpeg2000", "jpegxl"))


@contextmanager
def open_video(
    path: str | os.PathLike[str], *, num_threads: int = 1, max_pixels: int = MAX_PIXELS, is_known: bool = False
) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """Opens a file for decoding; yields `(container, stream)` and closes the container at the end.

    Args:
        path: the file; that of a video in a tar see `shards`.
        num_threads: of the decoder.
        max_pixels: of a frame; larger ones are refused before memory is allocated for them.
        is_known: the caller has the result of `probe`, and compares the time of every frame with it. Then FFmpeg does
            not decode the beginning of an MP4 or MOV file only to describe it, which may take as long as reading a
            clip. The delay of its B-frames is in the sample tables; where it is not, as in some fragmented files,
            frames may come in another order.

    Raises:
        VideoError: missing, empty, unreadable, no video stream; also for FFmpeg's errors inside the `with` block.
    """
    # A relative path could be read as a protocol ("12:30.avi"); a file must not lead to another one or to the network.
    file = os.path.abspath(path)
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(FORMATS)}
    limit = {"max_pixels": str(max_pixels)}
    no_decoder = {"codec_whitelist": "none", "fpsprobesize": "0"}  # for the description; the decoder below is another
    try:
        member = find_member(file)
        if member is None:
            _check_regular(path, file)
        with ExitStack() as files:
            content: IO[bytes]
            if member is None:
                content = files.enter_context(open(file, "rb"))
            else:
                content = files.enter_context(open_member(path, member))
            container_format = _format_of(file, content)
            if is_known and container_format == "mov":
                options |= no_decoder
            # FFmpeg takes a name with "%" for those of many images, so it does not get to know it
            source: Any = file if member is None and "%" not in file else content
            try:
                container = files.enter_context(
                    av.open(source, format=container_format, options=options | limit, **_TOLERANT)
                )
            except av.ArgumentError as error:
                raise VideoError(path, UNREADABLE, "not a video file of a format that stvid reads") from error
            stream = _choose_stream(container.streams.video)
            if stream is None:
                raise VideoError(path, NO_VIDEO_STREAM)
            if stream.codec_context is None:
                raise VideoError(path, UNREADABLE, "no decoder for its codec")
            check_pixels(path, stream.codec_context.height, stream.codec_context.width, max_pixels=max_pixels)
            stream.codec_context.options = limit  # frames may grow on the way
            # FFmpeg's default is one thread per core, in every worker of a loader.
            stream.codec_context.thread_count = num_threads
            stream.codec_context.thread_type = "NONE" if num_threads == 1 else "AUTO"
            yield container, stream
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VideoError(path, MISSING) from error
    except (av.FFmpegError, OSError, MemoryError) as error:
        raise VideoError(path, UNREADABLE, error_text(error)) from error


def _check_regular(path: str | os.PathLike[str], file: str) -> None:
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(path, UNREADABLE, "not a regular file")
    if status.st_size == 0:
        raise VideoError(path, EMPTY, "zero bytes")


def _format_of(file: str, content: IO[bytes]) -> str | None:
    """The format of a file by its first bytes, where FFmpeg would take it for a single image, or would come to the same
    after having asked all its formats, which takes longer than opening a small file. None: FFmpeg finds it out."""
    start = content.read(2048)  # FFmpeg looks at as many
    content.seek(0)
    if os.path.splitext(file)[1].lower() in (".mjpeg", ".mjpg"):
        return "mjpeg" if start.startswith(b"\xff\xd8\xff") else None
    if start.startswith(b"RIFF") and start[8:12] == b"AVI ":
        return "avi"
    # not JPEG 2000 and JPEG XL, nor an MPEG stream in QuickTime
    if start[4:8] == b"ftyp" and start[8:11] not in (b"jp2", b"jpx", b"jxl") and b"mhlrMPEG" not in start:
        return "mov"
    is_ebml = start.startswith(b"\x1a\x45\xdf\xa3")
    return "matroska" if is_ebml and (b"matroska" in start[:64] or b"webm" in start[:64]) else None


def _choose_stream(streams: Sequence[av.VideoStream]) -> av.VideoStream | None:
    """The track that players show: the first that is marked as default, else the first; never a cover.

    Not every cover is marked as one. In a file with several tracks, it is a track of one frame, or one in a codec for
    images that is not said to be at least half as long as the longest track.
    """
    seconds = {stream.index: stated_seconds(stream) or 0.0 for stream in streams}

    def rank(stream: av.VideoStream) -> tuple:
        context = stream.codec_context
        is_image = context is not None and context.codec.canonical_name in _IMAGE_CODECS
        is_short = seconds[stream.index] < max(max(seconds.values()) / 2, 1e-9)
        is_cover = stream.disposition & _COVER or stream.frames == 1 or (is_image and is_short)
        return context is not None, not is_cover, bool(stream.disposition & Disposition.default)

    # of equals, max() returns the first
    return max((s for s in streams if not s.disposition & Disposition.attached_pic), key=rank, default=None)


def stated_seconds(stream: av.VideoStream) -> float | None:
    """The length of a track in its header; of Matroska, in the tags that writers add. None if it is not stated."""
    if not stream.container.format.name.startswith("matroska"):  # there, FFmpeg invents it from that of the file
        if stream.duration is None or stream.time_base is None:
            return None
        return float(stream.duration * stream.time_base)
    for key, value in stream.metadata.items():
        if key.split("-")[0] == "DURATION" and (parts := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d*)?)", value)):
            return int(parts[1]) * 3600 + int(parts[2]) * 60 + float(parts[3])
    return None


def error_text(error: Exception) -> str:
    """The text of an error without its number and the path, which a VideoError already has."""
    return getattr(error, "strerror", None) or str(error)
