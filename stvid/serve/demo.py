"""The page to try a model: the service, one static page, and copies of videos that every browser can play.

app = create_demo(stvid.load("RUN"), ServeOptions())
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from stvid.recognizer import Recognizer
from stvid.serve.app import FORM, admitted_video, cancel_on_disconnect, create_app
from stvid.serve.options import ServeOptions
from stvid.serve.service import Service
from stvid.serve.threads import in_thread
from stvid.video.probe import probe
from stvid.video.redraw import redraw

PAGE = Path(__file__).parent / "page"
# the system's table of media types can be wrong, and then browsers run no script
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'self'; media-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
OFFSET_HEADER = "Stvid-Offset"


def create_demo(recognizer: Recognizer, options: ServeOptions) -> FastAPI:
    """The application of `create_app` with the page at `/` and `POST /playable`.

    The page itself needs no token: it holds no secrets. Its requests do.

    Args:
        recognizer: the model.
        options: who is answered, and the limits.
    """
    files = {f"/{path.name}": path for path in PAGE.iterdir() if path.suffix in MEDIA_TYPES}
    files["/"] = files.pop("/index.html")
    app = create_app(recognizer, options, open_paths=files)
    for address, path in files.items():
        _add_file(app, address, path)
    _add_playable(app)
    return app


def _add_file(app: FastAPI, address: str, path: Path) -> None:
    content, media_type = path.read_bytes(), MEDIA_TYPES[path.suffix]

    @app.get(address, include_in_schema=False)
    async def send_file() -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)


def _add_playable(app: FastAPI) -> None:
    service: Service = app.state.service

    @app.post(
        "/playable", summary="The same video as H.264 in an mp4 file", response_class=Response, openapi_extra=FORM
    )
    async def playable(request: Request) -> Response:
        async with admitted_video(request, None, service) as video:
            return await cancel_on_disconnect(request, _playable_copy(service, video.path))


async def _playable_copy(service: Service, source: Path) -> Response:
    """A response with the copy of a video; the copy is deleted when it was sent, or is not needed any more."""
    is_cancelled = threading.Event()
    folder = tempfile.TemporaryDirectory(dir=service.folder, ignore_cleanup_errors=True)
    copy, max_pixels = Path(folder.name) / "copy.mp4", service.recognizer.trained.max_pixels

    def check_cancelled() -> None:
        if is_cancelled.is_set():
            raise _Cancelled

    def work() -> float:
        info = probe(source, decode_all=False, max_pixels=max_pixels)
        redraw(source, copy, lambda frame_HWC, _: frame_HWC, info=info, max_pixels=max_pixels, advance=check_cancelled)
        return info.start - probe(copy, decode_all=False).start

    with contextlib.ExitStack() as stack:
        stack.callback(folder.cleanup)
        offset = await in_thread(service.pools.copies, work, on_cancel=is_cancelled.set)
        stack.pop_all()  # from here on the response deletes it
    return _TemporaryFile(copy, folder, headers={OFFSET_HEADER: f"{offset:.6f}"})


class _Cancelled(Exception):
    """Nobody waits for the copy any more."""


class _TemporaryFile(FileResponse):
    """A file that is deleted after it was sent, also if the client goes away meanwhile."""

    def __init__(self, path: Path, folder: tempfile.TemporaryDirectory[str], *, headers: dict[str, str]):
        super().__init__(path, media_type="video/mp4", headers=headers)
        self.folder = folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.folder.cleanup()
