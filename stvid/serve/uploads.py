"""Videos that clients send or name: received into a private folder with limits, and deleted whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tempfile
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO
from urllib.parse import parse_qs

from fastapi import HTTPException, Request
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartState, parse_options_header

from stvid.disks import full_disk_error
from stvid.serve.metrics import Metrics
from stvid.serve.options import MIB, ServeOptions
from stvid.serve.threads import in_thread

MAX_PARTS = 16  # of a form
MAX_FIELD = 8192  # bytes of a text field
MAX_REST = 16 * 1024  # bytes of a form beside the file
SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")


@dataclass(frozen=True)
class ReceivedVideo:
    """A video to be classified.

    Attributes:
        path: where it lies.
        name: what the client calls it; for answers only, it never becomes a path.
    """

    path: Path
    name: str


@contextlib.asynccontextmanager
async def received_video(
    request: Request,
    named: str | None,
    *,
    folder: Path,
    pool: ThreadPoolExecutor,
    options: ServeOptions,
    metrics: Metrics,
) -> AsyncIterator[ReceivedVideo]:
    """Yields the video of a request: the file in its body, or one below the root that it names.

    Args:
        request: a form with the file `file` or the text `path`.
        named: the path in the query of the request, or None.
        folder: where an uploaded file lies until the block ends.
        pool: threads that write it.
        options: the limits.
        metrics: counts uploads.

    Raises:
        HTTPException: 400 a form that cannot be read, or without video; 403, 404 see `resolve_below_root`; 408 too
            slow; 413 too large; 415 no form; 507 the disk is full.
        starlette.requests.ClientDisconnect: the client has gone.
    """
    if named is not None:
        yield ReceivedVideo(resolve_below_root(options.root, named), named)
        return
    form = Form(folder)
    try:
        with metrics.uploads.track_inprogress():
            await _receive(request, form, pool, options)
        if form.file is not None:
            metrics.uploaded.inc(form.num_bytes)
            yield ReceivedVideo(form.path, form.file_name)
        elif form.named is not None:
            yield ReceivedVideo(resolve_below_root(options.root, form.named), form.named)
        else:
            raise HTTPException(400, "send a video as the file `file` of a form, or name one with path=")
    finally:
        form.delete()


def resolve_below_root(root: Path | None, named: str) -> Path:
    """The file that a client names, relative to the root or absolute; links are followed before it is compared.

    Raises:
        HTTPException: 403 there is no root, or the file is not below it; 404 there is no such file.
    """
    if root is None:
        raise HTTPException(403, "this service reads no files of its own machine; send the video (or: --root DIR)")
    if not named or "\0" in named:
        raise HTTPException(400, "path is not a file name")
    try:
        root = root.resolve()
        path = (root / named).resolve()
        if not path.is_relative_to(root):
            raise HTTPException(403, f"{named!r} is not below the folder whose files this service reads")
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # a name that is too long, links in a circle
        raise HTTPException(404, f"there is no file {named!r}") from error
    if not is_file:
        raise HTTPException(404, f"there is no file {named!r}")
    return path


async def _receive(request: Request, form: Form, pool: ThreadPoolExecutor, options: ServeOptions) -> None:
    """Reads the body of a request into a form, piece by piece, within the limits of size and time."""
    limit = options.max_upload + MAX_REST
    stated = request.headers.get("content-length", "0")
    if stated.isdecimal() and int(stated[:20]) > limit:
        raise too_large(options)
    form.begin(request.headers.get("content-type", ""))
    loop = asyncio.get_running_loop()
    deadline = loop.time() + options.upload_seconds
    pieces = request.stream().__aiter__()
    num_bytes = 0
    try:
        while True:
            seconds = min(options.idle_seconds, deadline - loop.time())
            try:
                piece = await asyncio.wait_for(pieces.__anext__(), timeout=max(seconds, 0))
            except StopAsyncIteration:
                break
            num_bytes += len(piece)
            if num_bytes > limit:
                raise too_large(options)
            await in_thread(pool, partial(form.write, piece))
            if form.num_bytes > options.max_upload:
                raise too_large(options)
        form.finish()
    except (asyncio.TimeoutError, TimeoutError) as error:
        raise HTTPException(408, "the upload was too slow, or stood still") from error
    except FormParserError as error:
        raise HTTPException(400, f"the form cannot be read: {error}") from error
    except OSError as error:
        if full_disk_error(error) is None:
            raise
        raise HTTPException(507, "the disk of the service is full") from error


def too_large(options: ServeOptions) -> HTTPException:
    """The answer to an upload above the limit."""
    return HTTPException(413, f"the upload is larger than {options.max_upload / MIB:g} MiB, the limit of this service")


class Form:
    """A form that is read piece by piece: its file goes to the disk, of its fields only `path` is kept.

    The parser of Starlette has no limit for a file, and writes it into a folder of its own, without the suffix.

    Args:
        folder: for the file.

    Attributes:
        file: the open file; None as long as there is none.
        path: where the file lies.
        file_name: what the client calls it.
        num_bytes: of the file so far.
        named: the field `path`, or None.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.file: IO[bytes] | None = None
        self.path = folder
        self.file_name = ""
        self.num_bytes = 0
        self.named: str | None = None
        self._parser: MultipartParser | None = None  # None: a form of the type of a query
        self._text = bytearray()  # of the field that is being read
        self._field = ""  # its name; `file` for the file
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())  # name and value
        self._disposition = b""
        self._num_parts = 0

    def begin(self, content_type: str) -> None:
        """Looks at the Content-Type of the body.

        Raises:
            HTTPException: 415 no form; 400 a form without boundary.
        """
        kind, parameters = parse_options_header(content_type)
        if kind == b"application/x-www-form-urlencoded":
            return
        if kind != b"multipart/form-data":
            raise HTTPException(415, "send a form (multipart/form-data) with the video as its file `file`")
        callbacks = {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_content,
            "on_part_data": self._add_content,
            "on_part_end": self._end_part,
        }
        try:
            self._parser = MultipartParser(parameters.get(b"boundary", b""), callbacks)  # type: ignore[arg-type]
        except FormParserError as error:
            raise HTTPException(400, f"the form cannot be read: {error}") from error
        if not parameters.get(b"boundary"):
            raise HTTPException(400, "the form has no boundary")

    def write(self, piece: bytes) -> None:
        """Takes the next piece of the body; raises FormParserError if it is no form."""
        if self._parser is not None:
            self._parser.write(piece)
        else:
            self._keep_text(piece)

    def finish(self) -> None:
        """The body is complete; raises FormParserError if the form is not."""
        if self._parser is None:
            values = parse_qs(self._text.decode("utf-8", "replace"))
            self.named = values.get("path", [None])[0]
        elif self._parser.state != MultipartState.END:
            raise FormParserError("it ends too early")
        if self.file is not None:
            self.file.close()

    def delete(self) -> None:
        """Deletes the file."""
        if self.file is not None:
            self.file.close()
            with contextlib.suppress(OSError):  # on Windows, a thread may still read it; then it goes with the folder
                self.path.unlink(missing_ok=True)

    def _begin_part(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise FormParserError(f"it has more than {MAX_PARTS} parts")
        self._disposition = b""

    def _end_header(self) -> None:
        name, value = map(bytes, self._header)
        if name.lower() == b"content-disposition":
            self._disposition = value
        self._header = (bytearray(), bytearray())

    def _begin_content(self) -> None:
        _, parameters = parse_options_header(self._disposition)
        self._field = parameters.get(b"name", b"").decode("utf-8", "replace")
        self._text.clear()
        if self._field != "file":
            if b"filename" in parameters:
                raise FormParserError(f"its file has the name {self._field!r}; the video must have the name `file`")
            return
        if b"filename" not in parameters:
            raise FormParserError("`file` is a text and not a file; with curl: -F file=@VIDEO.mp4")
        if self.file is not None:
            raise FormParserError("it has more than one file")
        self.file_name = parameters.get(b"filename", b"").decode("utf-8", "replace")
        suffix = os.path.splitext(self.file_name)[1].lower()
        number, name = tempfile.mkstemp(suffix=suffix if SUFFIX.fullmatch(suffix) else "", dir=self.folder)
        self.file, self.path = os.fdopen(number, "wb"), Path(name)

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        if self._field == "file" and self.file is not None:
            self.file.write(data[start:end])
            self.num_bytes += end - start
        else:
            self._keep_text(data[start:end])

    def _keep_text(self, piece: bytes) -> None:
        if len(self._text) + len(piece) > MAX_FIELD:
            raise FormParserError(
                f"a text in it is longer than {MAX_FIELD} bytes; send the video as its file `file`, with curl: "
                "-F file=@VIDEO.mp4"
            )
        self._text += piece

    def _end_part(self) -> None:
        if self._field == "path":
            self.named = self._text.decode("utf-8", "replace")
