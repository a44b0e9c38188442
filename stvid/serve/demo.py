"""The page to try a model: the service, one static page, and copies of videos that every browser can play.

app = create_demo(stvid.load("RUN"), ServeOptions())
"""

from __future__ import annotations

import contextlib
import mimetypes
import tempfile
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from stvid.errors import InputError
from stvid.recognizer import Recognizer
from stvid.serve.app import FORM, admitted_video, cancel_on_disconnect, create_app, token_dependencies
from stvid.serve.options import ServeOptions
from stvid.serve.service import Service
from stvid.serve.threads import in_thread
from stvid.video.probe import probe
from stvid.video.redraw import redraw

PAGE = Path(__file__).parent / "page"
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
MAX_COPY_PIXELS = 1 << 36  # of all frames of a video: 22 minutes of 1920 x 1080 at 25 frames/s, 2.5 hours of 640 x 480


def create_demo(recognizer: Recognizer, options: ServeOptions) -> FastAPI:
    """The application of `create_app` with the page at `/`, its files below `/page/`, and `POST /playable`.

    The page itself needs no token: it holds no secrets. Its requests do.

    Args:
        recognizer: the model.
        options: who is answered, and the limits.
    """
    app = create_app(recognizer, options, open_paths={"/", *(f"/page/{path.name}" for path in PAGE.iterdir())})
    _add_page(app)
    _add_playable(app)
    return app


def _add_page(app: FastAPI) -> None:
    mimetypes.add_type("text/javascript", ".js")  # the system's table can be wrong, and then browsers run no script
    mimetypes.add_type("text/css", ".css")
    files = StaticFiles(directory=PAGE)

    @app.get("/", include_in_schema=False)
    @app.get("/page/{name}", include_in_schema=False)
    async def send_file(request: Request) -> Response:
        response = await files.get_response(request.path_params.get("name", "index.html"), request.scope)
        response.headers.update(HEADERS)
        return response


def _add_playable(app: FastAPI) -> None:
    service: Service = app.state.service

    @app.post(
        "/playable",
        summary="The same video as H.264 in an mp4 file",
        response_class=Response,
        openapi_extra=FORM,
        dependencies=token_dependencies(service),
    )
    async def playable(request: Request) -> Response:
        async with contextlib.AsyncExitStack() as stack:
            video = await stack.enter_async_context(admitted_video(request, None, service))
            folder = tempfile.TemporaryDirectory(dir=service.folder, ignore_cleanup_errors=True)
            copy = Path(stack.enter_context(folder)) / "copy.mp4"
            offset = await cancel_on_disconnect(request, _write_copy(service, video.path, copy))
            return _CopyResponse(copy, stack.pop_all(), headers={OFFSET_HEADER: f"{offset:.6f}"})


async def _write_copy(service: Service, source: Path, copy: Path) -> float:
    """Writes a video as H.264; returns the seconds that must be added to the copy's times to get the source's.

    Raises:
        VideoError: the source cannot be read.
        InputError: it has more pixels than `MAX_COPY_PIXELS`.
    """
    max_pixels = service.recognizer.trained.max_pixels

    def work() -> float:
        info = probe(source, decode_all=False, max_pixels=max_pixels)
        if info.num_frames * info.height * info.width > MAX_COPY_PIXELS:
            size = f"{info.num_frames:,} frames of {info.width} x {info.height} pixels"
            raise InputError(f"the video is too long for a copy: {size}, and the limit is {MAX_COPY_PIXELS:,} pixels")
        redraw(source, copy, lambda frame_HWC, _: frame_HWC, info=info, max_pixels=max_pixels)
        return info.start - probe(copy, decode_all=False).start

    return await in_thread(service.pools.copies, work)


class _CopyResponse(FileResponse):
    """A file; what it needs is released after it was sent, also if the client goes away meanwhile."""

    def __init__(self, path: Path, resources: contextlib.AsyncExitStack, *, headers: dict[str, str]):
        super().__init__(path, media_type="video/mp4", headers=headers)
        self.resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.resources:
            await super().__call__(scope, receive, send)
