"""Options of the service, and the port it listens on; checked before torch is imported."""

from __future__ import annotations

import argparse
import errno
import http.client
import importlib.util
import ipaddress
import os
import re
import secrets
import socket
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stvid.errors import InputError

PACKAGES = ("fastapi", "uvicorn", "websockets", "python_multipart", "prometheus_client")
TOKEN_VARIABLE = "STVID_TOKEN"
TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{8,}")  # characters of a bearer token: RFC 6750
DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d+)?")
MAX_DELAY = 1000  # milliseconds
COUNTS = ("max_upload", "max_batch", "max_queue", "max_streams", "max_frame", "num_decoders")
SECONDS = ("idle_seconds", "upload_seconds", "stop_seconds")
MIB = 2**20
PROXY_SECONDS = 10.0  # in which Ray's proxy must answer
TCP_USER_TIMEOUT_SECONDS = 60  # after which the system cuts off a client that takes nothing of what is sent to it


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How the service answers.

    Attributes:
        token: what clients must send to be answered; None: nothing, which is allowed on loopback only.
        hosts: names or addresses of this machine, beside those of loopback, that clients without a token may use.
        root: folder of the videos that clients may name with `path=`; None: none.
        max_upload: bytes of an uploaded file.
        max_delay: milliseconds that the first clip of a batch waits for others, 0 to 1000.
        max_batch: views in a forward pass; None: as in training. A request with more views is divided.
        max_queue: requests in work at a time, uploads among them; others are refused (429).
        max_streams: sockets that may send frames at a time.
        max_frame: bytes of a frame on a socket.
        idle_seconds: an upload that stands still for this time is refused (408), and a socket without frames closed.
        upload_seconds: an upload must be complete in this time.
        read_seconds: a video of `/predict` must be read in this time, and one of `/segments` probed.
        stop_seconds: running requests may finish in this time when the service stops.
        num_decoders: threads that decode; None: half of the cores, and all of them beside an accelerator.

    Raises:
        InputError: a value out of its range.
    """

    token: str | None = None
    hosts: tuple[str, ...] = ()
    root: Path | None = None
    max_upload: int = 100 * MIB
    max_delay: float = 5.0
    max_batch: int | None = None
    max_queue: int = 64
    max_streams: int = 16
    max_frame: int = 8 * MIB
    idle_seconds: float = 30.0
    upload_seconds: float = 600.0
    read_seconds: float = 120.0
    stop_seconds: float = 30.0
    num_decoders: int | None = None

    def __post_init__(self) -> None:
        if mistakes := list(_find_wrong_values(vars(self), name_of=str)):
            raise InputError("; ".join(mistakes))


def find_serve_mistakes(options: argparse.Namespace) -> Iterator[str]:
    """Yields what is wrong with the options of the command, but for the run and the port."""
    if not 0 <= options.port <= 65535:
        yield f"--port (={options.port}) must be from 0 to 65535"
    values = {**vars(options), "token": token_of(options)}
    yield from _find_wrong_values(values, name_of=lambda name: f"--{name.replace('_', '-')}")
    if options.root is not None and not Path(options.root).expanduser().is_dir():
        yield f"--root {options.root}: there is no such folder"
    if options.device is not None and not DEVICE.fullmatch(options.device):
        yield f"--device {options.device}: name cpu, cuda, cuda:1, mps or xpu"


def _find_wrong_values(values: Mapping[str, Any], *, name_of: Callable[[str], str]) -> Iterator[str]:
    for name in COUNTS:
        if (value := values.get(name)) is not None and not value >= 1:
            yield f"{name_of(name)} (={value}) must be at least 1"
    if not 0 <= values["max_delay"] <= MAX_DELAY:
        yield f"{name_of('max_delay')} (={values['max_delay']:g}) must be from 0 to {MAX_DELAY} milliseconds"
    for name in SECONDS:
        if not values.get(name, 1.0) > 0:
            yield f"{name_of(name)} (={values[name]:g}) must be above 0"
    if values["token"] is not None and not TOKEN.fullmatch(values["token"]):
        yield (
            f"{name_of('token')} (or {TOKEN_VARIABLE}) must be at least 8 letters, digits and characters of "
            "-._~+/=, since it is sent in a header"
        )


def find_ray_mistakes(options: argparse.Namespace) -> Iterator[str]:
    """Yields what is wrong with the options for Ray Serve."""
    replicas, max_replicas = options.replicas, options.max_replicas
    if not options.ray and (replicas != 1 or max_replicas is not None):
        yield "--replicas and --max-replicas are for Ray Serve; add --ray"
    if replicas < 1:
        yield f"--replicas (={replicas}) must be at least 1"
    if max_replicas is not None and max_replicas < replicas:
        yield f"--max-replicas (={max_replicas}) must be at least --replicas (={replicas})"
    if options.ray and options.port == 0:
        yield "--port 0: Ray Serve needs the number of a port"
    if options.ray and ":" in (options.device or ""):
        yield f"--device {options.device}: Ray gives each replica its own GPU; name the kind alone, such as cuda"


def token_of(options: argparse.Namespace) -> str | None:
    """The token that the user chose: the option, or the variable of the environment."""
    return os.environ.get(TOKEN_VARIABLE) or None if options.token is None else options.token


def serve_options(options: argparse.Namespace) -> ServeOptions:
    """The options of the command, checked before. On another host than loopback, a missing token is generated."""
    token = token_of(options)
    if token is None and not is_loopback(options.host):
        token = secrets.token_urlsafe(24)
    return ServeOptions(
        token=token,
        hosts=(options.host,),
        root=None if options.root is None else Path(options.root).expanduser().resolve(),
        max_upload=options.max_upload * MIB,
        max_delay=options.max_delay,
        max_batch=options.max_batch,
        max_queue=options.max_queue,
        max_streams=options.max_streams,
    )


def check_packages() -> None:
    """Raises InputError if a package of the service is missing."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise InputError(f"the service needs {', '.join(missing)}: pip install 'stvid[serve]'")


def check_ray() -> None:
    """Raises InputError if Ray Serve is not installed."""
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("ray.serve") is None:
        raise InputError("--ray needs Ray Serve: pip install 'stvid[ray]'")


def has_proxy(host: str, port: int) -> bool:
    """Whether a proxy of Ray Serve listens there."""
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/-/healthz", timeout=PROXY_SECONDS):
            return True
    except (OSError, http.client.HTTPException):
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def bind_port(host: str, port: int) -> socket.socket:
    """A TCP socket that is bound, and not listening yet: clients are refused until the model is there.

    Args:
        host: name or address of this machine.
        port: 0 to 65535; 0: a free one.

    Raises:
        InputError: the port is in use or not allowed; no such address on this machine.
    """
    place = f"--host {host} --port {port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"{place}: {host!r} is no name or address of this machine ({error})") from error
    listener = socket.socket(family, kind, protocol)
    if os.name == "posix":  # on Windows, this would share the port with another program
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * TCP_USER_TIMEOUT_SECONDS)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise InputError(f"{place}: {_bind_error_text(error, port)}") from error
    return listener


def _bind_error_text(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"the port is in use, perhaps by another stvid serve; stop that, or take another port: --port {port + 1}"
    if error.errno == errno.EACCES:
        return "this port needs the rights of an administrator; take one from 1024 on: --port 8000"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address; 127.0.0.1 is this machine alone, 0.0.0.0 all its addresses"
    return error.strerror or str(error)


def address_text(listener: socket.socket) -> str:
    """The URL of a socket, such as `http://127.0.0.1:8000`; with the machine's name if it listens on all addresses."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
