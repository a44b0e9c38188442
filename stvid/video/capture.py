"""Frames of network streams and cameras (FFmpeg). Their times are those of arrival."""

from __future__ import annotations

import errno
import glob
import math
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import av
import torch
from av.container import InputContainer
from torch import Tensor

from stvid.errors import InputError
from stvid.video.container import FORMATS, error_text
from stvid.video.orientation import orientation_of, turn_upright
from stvid.video.sources import without_password
from stvid.video.types import MAX_PIXELS

_T = TypeVar("_T")
TIMEOUT = 10.0  # seconds without data after which a connection or a camera counts as dead
MAX_PAUSE = 60.0  # seconds between two frames; more is a jump of the clock, as in a playlist of a restarted encoder
DEFAULT_FPS = 25.0  # of a source that states no rate
MAX_RATE = 240.0  # frames per second; headers of streams state rates such as 90,000, which are none
# Not `file`, `data` or `concat`: a playlist from the network must not lead to files of this machine.
_PROTOCOLS = "http,https,httpproxy,tls,tcp,udp,rtp,srtp,rtmp,rtmps,rtmpt,rtmpts,crypto"
_NETWORK_FORMATS = (*FORMATS, "hls", "rtsp", "rtp", "mpjpeg")
_CAMERA_FORMATS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}


class NetworkStream:
    """An RTSP, HTTP(S), RTMP or UDP stream. Times are those of arrival.

    What has an end (a file on a web server) or comes in pieces (HLS) arrives faster than it plays; its frames are held
    back until their time. A live stream's frames are passed on as they arrive.
    """

    waits = False

    def __init__(self, url: str, *, fps: float | None = None, max_pixels: int = MAX_PIXELS, timeout: float = TIMEOUT):
        self.url, self.name = url, without_password(url)
        self.fps, self.max_pixels, self.timeout = fps, max_pixels, timeout
        self.reconnects = True
        self.has_frames = False  # since it was opened
        self.started: float | None = None
        self.closed = threading.Event()

    def frames(self) -> Iterator[tuple[float, Tensor]]:
        options = {
            "protocol_whitelist": _PROTOCOLS,
            "format_whitelist": ",".join(_NETWORK_FORMATS),
            "rtsp_flags": "prefer_tcp",  # over UDP, lost packets damage the picture
            "max_pixels": str(self.max_pixels),
        }
        self.has_frames = False
        try:
            with av.open(self.url, options=options, timeout=(self.timeout, self.timeout)) as container:
                self.fps = self.fps or _rate(container)
                is_hls = container.format.name == "hls"
                has_end = container.size > 0 or bool(container.duration) or is_hls
                self.reconnects = is_hls or not has_end
                if self.started is None:
                    self.started = time.monotonic()
                frames = _decode(container, self.name, fps=self.fps, max_pixels=self.max_pixels, timeout=self.timeout)
                if has_end:
                    frames = held_back(frames, self.closed, longest=MAX_PAUSE)
                for _, frame in frames:
                    self.has_frames = True
                    yield time.monotonic() - self.started, _upright(frame)
        except av.FFmpegError as error:
            raise InputError(self._problem(error)) from error
        if not has_end:
            raise InputError(f"{self.name}: the connection was closed")

    def close(self) -> None:
        self.closed.set()

    def _problem(self, error: av.FFmpegError) -> str:
        name = self.name
        if isinstance(error, av.ExitError | av.TimeoutError):
            return f"{name}: no data for {self.timeout:g} s"
        if isinstance(error, av.ConnectionRefusedError):
            return f"{name}: connection refused; no server listens there"
        if isinstance(error, av.HTTPUnauthorizedError | av.HTTPForbiddenError):
            access = "a name and a password go before the host: //NAME:PASSWORD@HOST"
            return f"{name}: the server refuses access ({error_text(error)}); {access}"
        if error.errno == errno.EIO and self.has_frames:
            return f"{name}: the connection was lost"
        if error.errno == errno.EIO:
            return (
                f"{name}: no connection, or what came was no video; are the host and the address right? An MP4 file "
                "with its index at the end needs a server that can send parts of a file"
            )
        if isinstance(error, av.InvalidDataError | av.ArgumentError):
            return f"{name} answers, but not with a video of a format that stvid reads; is it a web page?"
        return f"{name}: {error_text(error)}"


class Camera:
    """A camera of this machine, by number. Times are those of arrival."""

    waits, reconnects = False, False

    def __init__(
        self,
        number: int,
        *,
        size: tuple[int, int] | None = None,
        fps: float | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        self.number, self.name = number, f"camera {number}"
        self.size, self.fps, self.max_pixels = size, fps, max_pixels

    def frames(self) -> Iterator[tuple[float, Tensor]]:
        driver = _CAMERA_FORMATS.get(sys.platform, "v4l2")
        options = {} if self.size is None else {"video_size": f"{self.size[1]}x{self.size[0]}"}
        if self.fps is not None or driver == "avfoundation":  # whose default, 29.97, many cameras refuse
            options["framerate"] = f"{self.fps or 30:g}"
        device = self._device(driver)
        try:
            with av.open(device, format=driver, options=options, timeout=(TIMEOUT, TIMEOUT)) as container:
                self.fps = self.fps or _rate(container)
                started = time.monotonic()
                frames = _decode(container, self.name, fps=self.fps, max_pixels=self.max_pixels, timeout=TIMEOUT)
                for _, frame in frames:
                    yield time.monotonic() - started, _upright(frame)
        except av.FFmpegError as error:
            raise InputError(self._problem(device, error)) from error
        raise InputError(f"{self.name} stopped; was it unplugged?")

    def close(self) -> None:
        pass

    def _device(self, driver: str) -> str:
        if driver == "v4l2":
            return f"/dev/video{self.number}"
        if driver == "avfoundation":
            return f"{self.number}:none"  # no microphone
        names = [device.name for device in av.enumerate_input_devices(driver) if "video" in device.media_types]
        if self.number >= len(names):
            raise InputError(f"there is no {self.name}; {_cameras(names)}")
        return f"video={names[self.number]}"

    def _problem(self, device: str, error: av.FFmpegError) -> str:
        if isinstance(error, av.FileNotFoundError):
            found = sorted(Path(path).name.removeprefix("video") for path in glob.glob("/dev/video*"))
            return f"there is no {self.name} ({device}); {_cameras(found)}"
        if isinstance(error, av.PermissionError):
            return f"{self.name} ({device}): no permission; your user must be in the group that owns it, often `video`"
        if error.errno == errno.EBUSY:
            return f"{self.name} ({device}) is busy: another program uses it"
        if isinstance(error, av.ExitError):
            return f"{self.name} ({device}): no picture for {TIMEOUT:g} s"
        if error.errno in (errno.ENOTTY, errno.ENODEV):
            return f"{self.name} ({device}) delivers no pictures; try another number"
        return f"{self.name} ({device}): {error_text(error)}"


def _cameras(names: list[str]) -> str:
    return f"cameras of this machine: {', '.join(names)}" if names else "this machine has no camera"


def _rate(container: InputContainer) -> float | None:
    stream = container.streams.best("video")
    rate = None if stream is None else stream.average_rate or stream.guessed_rate
    return float(rate) if rate and rate <= MAX_RATE else None


def _decode(
    container: InputContainer, name: str, *, fps: float | None, max_pixels: int, timeout: float
) -> Iterator[tuple[float, av.VideoFrame]]:
    """The times of frames, in seconds from the first, and the frames. What the network damaged is left out.

    A frame without a time comes `1 / fps` after the one before; `fps` None: `DEFAULT_FPS`.

    Raises:
        InputError: no pictures in it, for `timeout` seconds no picture that can be decoded, too large a picture.
        av.FFmpegError: from reading.
    """
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
        raise InputError(f"{name} has no pictures, or in a codec that stvid does not know")
    stream.codec_context.options = {"max_pixels": str(max_pixels)}
    stream.codec_context.thread_type = "SLICE"  # threads over frames would delay each by some frames
    start: float | None = None  # on the stream's own clock, where the first frame is
    next_seconds = 0.0  # of the next frame, if it has no time
    latest = time.monotonic()
    for packet in container.demux(stream):
        try:
            decoded = packet.decode()
        except av.InvalidDataError:
            decoded = []
        for frame in decoded:
            if frame.height * frame.width > max_pixels:
                raise InputError(f"{name}: frames of {frame.width} x {frame.height} pixels, more than {max_pixels}")
            latest = time.monotonic()
            seconds = next_seconds
            if frame.time is not None:
                start = frame.time - seconds if start is None else start
                seconds = frame.time - start
            next_seconds = seconds + 1 / (fps or DEFAULT_FPS)
            yield seconds, frame
            latest = time.monotonic()  # it may have been held back for long
        if time.monotonic() - latest > timeout:
            raise InputError(f"{name}: no picture for {timeout:g} s, though data come")


def held_back(
    frames: Iterator[tuple[float, _T]], closed: threading.Event, *, longest: float = math.inf
) -> Iterator[tuple[float, _T]]:
    """Waits before each frame until its time has come, since the first. After a delay, it does not hurry.

    A wait of more than `longest` seconds is left out.
    """
    started: float | None = None
    for seconds, frame in frames:
        now = time.monotonic()
        if started is None or not 0 <= started + seconds - now <= longest:
            started = now - seconds
        elif closed.wait(started + seconds - now):
            return
        yield seconds, frame


def _upright(frame: av.VideoFrame) -> Tensor:
    """uint8 `3 x H x W`, RGB, as it is displayed."""
    pixels_1HWC = torch.from_numpy(frame.to_ndarray(format="rgb24"))[None]
    return turn_upright(pixels_1HWC, *orientation_of(frame))[0].permute(2, 0, 1)
