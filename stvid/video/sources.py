"""What a SOURCE of `stvid stream` stands for: a camera, a URL, a file, or raw frames on stdin. No torch, no FFmpeg."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from stvid.errors import InputError, nearest

KINDS = ("camera", "url", "file", "stdin")
SCHEMES = ("http", "https", "rtsp", "rtsps", "rtmp", "rtmps", "udp")


def kind_of(source: str) -> str:
    """One of `KINDS`: `0` is a camera, `rtsp://host/path` a URL, `-` stdin, all others are files (`./0` too).

    Raises:
        InputError: a URL of another scheme than `SCHEMES`, or without a host.
    """
    if source == "-":
        return "stdin"
    if source.isascii() and source.isdigit():
        return "camera"
    scheme = re.match(r"([a-z][a-z0-9+.-]+)://", source, flags=re.IGNORECASE)
    if scheme is None:
        return "file"
    if scheme[1].lower() not in SCHEMES:
        raise InputError(f"{without_password(source)}: {scheme[1]} is no stream{nearest(scheme[1].lower(), SCHEMES)}")
    if scheme[1].lower() != "udp" and not _host(source):  # udp://:1234 receives on every address
        raise InputError(f"{without_password(source)} names no host, such as {scheme[1]}://192.168.0.10/stream")
    return "url"


def without_password(source: str) -> str:
    """The source for messages and logs: the password of a URL becomes `***`."""
    return re.sub(r"(?<=://)([^/?#@:]*):[^/?#]*@", r"\1:***@", source)


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:  # such as an IPv6 address without its bracket
        return None


def size_of(text: str) -> tuple[int, int]:
    """Height and width of a `--size`, which is written `WIDTHxHEIGHT`, such as `640x480`.

    Raises:
        InputError: another form, or a side outside of 1 to 16384.
    """
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text, flags=re.ASCII)
    width, height = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (1 <= width <= 16384 and 1 <= height <= 16384):
        raise InputError(f"--size {text}: must be WIDTHxHEIGHT in pixels, such as 640x480")
    return height, width


def check_source(source: str, *, size: str | None, fps: float | None, realtime: bool) -> list[str]:
    """The mistakes in a source and the options that go with it, one message each; the file is not opened."""
    try:
        kind = kind_of(source)
    except InputError as error:
        return [str(error)]
    mistakes = []
    if kind == "file" and not os.path.exists(source):
        mistakes.append(f"{source} does not exist; give a file, a camera's number, a URL, or - for frames on stdin")
    if kind == "stdin" and (size is None or fps is None):
        missing = " ".join(name for name, value in (("--size WxH", size), ("--fps F", fps)) if value is None)
        mistakes.append(f"-: raw frames have no header; add {missing}")
    if kind in ("url", "file") and size is not None:
        mistakes.append(f"--size {size}: this source states its size; leave it out")
    if kind == "file" and fps is not None:
        mistakes.append(f"--fps {fps:g}: the file states its rate; leave it out")
    if kind in ("camera", "url") and realtime:
        mistakes.append("--realtime: a camera and a URL always have their own pace; leave it out")
    if fps is not None and not 0 < fps <= 1000:
        mistakes.append(f"--fps (={fps:g}) must be above 0 and at most 1000")
    if size is not None:
        try:
            size_of(size)
        except InputError as error:
            mistakes.append(str(error))
    return mistakes
