"""The application: what each address answers.

app = create_app(stvid.load("RUN"), ServeOptions())
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Coroutine
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, HTTPException, Query, Request
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from stvid import __version__
from stvid.deploy.predictions import make_entry
from stvid.deploy.segmentation import SegmentOptions, check_classes, resolve_threshold
from stvid.deploy.subtitles import subtitles
from stvid.errors import InputError, VideoError
from stvid.recognizer import Recognizer
from stvid.run.checkpoint import checkpoint_sha256
from stvid.serve.answers import ErrorAnswer, ModelAnswer, PredictAnswer, SegmentsAnswer
from stvid.serve.api_page import POLICY, api_page
from stvid.serve.errors import HANDLERS, AsciiJSON
from stvid.serve.metrics import CONTENT_TYPE, CountRequests
from stvid.serve.options import ServeOptions
from stvid.serve.security import OPEN_PATHS, Guard
from stvid.serve.service import SegmentedVideo, Service
from stvid.serve.streams import add_streams
from stvid.serve.uploads import ReceivedVideo, received_video

T = TypeVar("T")


def create_app(recognizer: Recognizer, options: ServeOptions, *, open_paths: Collection[str] = ()) -> FastAPI:
    """An application that answers requests with a model.

    Args:
        recognizer: the model.
        options: who is answered, and the limits.
        open_paths: paths beside /health that need no token.

    Returns:
        The application; `app.state.service` is its `Service`, which starts and ends with it.
    """
    service = Service(recognizer, options)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            service.close()

    app = FastAPI(
        title="stvid",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        exception_handlers=HANDLERS,
        responses={"4XX": {"model": ErrorAnswer, "description": "the request is wrong, or comes at the wrong time"}},
    )
    app.state.service = service
    _add_information(app, service)
    _add_recognition(app, service)
    add_streams(app, service)
    app.add_middleware(Guard, token=options.token, hosts=options.hosts, open_paths=OPEN_PATHS.union(open_paths))
    app.add_middleware(
        CountRequests, metrics=service.metrics, endpoints=lambda: {getattr(route, "path", "") for route in app.routes}
    )
    return app


def _add_information(app: FastAPI, service: Service) -> None:
    trained = service.recognizer.trained
    model: ModelAnswer = {
        "name": trained.folder.name,
        "model": type(trained.model).__name__,
        "class_names": list(trained.class_names),
        "clip": trained.clip.to_dict(),
        "threshold": resolve_threshold(trained, None)[0],
        "fingerprint": checkpoint_sha256(trained.path),
        "version": __version__,
        "limits": {"max_upload_bytes": service.options.max_upload, "stream_mode": stream_mode(service.recognizer)},
    }

    @app.get("/health", summary="Whether the service takes work")
    async def health() -> dict[str, str]:
        if service.is_stopping:
            raise HTTPException(503, "the service is stopping")
        return {"status": "ok"}

    @app.get("/model", summary="The model and the limits", response_model=ModelAnswer)
    async def describe_model() -> Response:
        return AsciiJSON(model)

    @app.get("/metrics", summary="Counters for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(api_page(app.openapi()), headers={"Content-Security-Policy": POLICY})


def stream_mode(recognizer: Recognizer) -> str | None:
    """How the model reads a stream, see `Stream.mode`; None if it cannot."""
    try:
        return recognizer.stream(25).mode
    except InputError:
        return None


FORM = {
    "requestBody": {
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "string", "format": "binary"}, "path": {"type": "string"}},
                }
            }
        }
    }
}
PathQuery = Annotated[str | None, Query(description="instead of a file: a video below --root")]
Seconds = Annotated[float | None, Query(gt=0, allow_inf_nan=False)]


def _add_recognition(app: FastAPI, service: Service) -> None:
    @app.post(
        "/predict", summary="The most probable classes of a video", response_model=PredictAnswer, openapi_extra=FORM
    )
    async def predict(
        request: Request,
        path: PathQuery = None,
        top: Annotated[int, Query(ge=1, description="how many classes to name")] = 5,
        clips: Annotated[int | None, Query(ge=1, description="clips spread over the video")] = None,
        crops: Annotated[int | None, Query(ge=1, description="crops of each clip: 1, 3 or 5")] = None,
    ) -> Response:
        async with admitted_video(request, path, service) as video:
            work = service.predict(video.path, num_clips=clips, num_crops=crops)
            info, probabilities_K = await cancel_on_disconnect(request, work)
        names = service.recognizer.class_names
        entry = make_entry(Path(video.name), info, probabilities_K, names, top=top)
        probabilities = dict(zip(names, map(float, probabilities_K), strict=True))
        return AsciiJSON({**entry, "path": video.name, "probabilities": probabilities})

    @app.post("/segments", summary="What happens when in a video", response_model=SegmentsAnswer, openapi_extra=FORM)
    async def segments(
        request: Request,
        path: PathQuery = None,
        threshold: Annotated[float | None, Query(gt=0, le=1, description="at which a class begins")] = None,
        window: Seconds = None,
        hop: Seconds = None,
        min_duration: Annotated[float | None, Query(ge=0, allow_inf_nan=False)] = None,
        background: Annotated[list[str], Query(description="classes without subtitles")] = [],  # noqa: B006
        windows: Annotated[bool, Query(description="also the probabilities of each window")] = False,
        format: Annotated[Literal["json", "srt", "vtt"], Query()] = "json",
    ) -> Response:
        check_classes(background, service.recognizer.class_names, option="background")
        options = SegmentOptions(threshold=threshold, window=window, hop=hop, min_duration=min_duration)
        async with admitted_video(request, path, service) as video:
            result = await cancel_on_disconnect(request, service.segments(video.path, options))
        if format == "json":
            return AsciiJSON(_segments_answer(video, result, service, threshold, with_windows=windows))
        if result.video.error is not None:
            raise HTTPException(415, f"{video.name} could not be read to its end: {result.video.error.reason}")
        text = subtitles(result.video.segments, kind=format, offset=result.clock_start, background=background)
        kind = "text/vtt" if format == "vtt" else "application/x-subrip"
        return Response(text.encode("utf-8", "backslashreplace"), media_type=f"{kind}; charset=utf-8")


def _segments_answer(
    video: ReceivedVideo, result: SegmentedVideo, service: Service, threshold: float | None, *, with_windows: bool
) -> dict:
    names = service.recognizer.class_names
    segments, error = result.video.segments, result.video.error
    entry = make_entry(Path(video.name), result.info, None, names, top=0, segments=segments, error=error)
    del entry["top"]
    answer = {
        **entry,
        "path": video.name,
        "class_names": list(names),
        "threshold": resolve_threshold(service.recognizer.trained, threshold)[0],
    }
    if with_windows:
        answer["clock_start"] = round(result.clock_start, 6)
        answer["windows"] = [
            {
                "start": round(window.start, 3),
                "end": round(window.end, 3),
                "probabilities": window.probabilities_K.tolist(),
            }
            for window in result.video.windows
        ]
    return answer


@contextlib.asynccontextmanager
async def admitted_video(request: Request, path: str | None, service: Service) -> AsyncIterator[ReceivedVideo]:
    """Admits a request and yields its video; errors of the video are told with the client's name for it."""
    with service.admitted():
        received = received_video(
            request, path, folder=service.folder, options=service.options, metrics=service.metrics
        )
        async with received as video:
            try:
                yield video
            except VideoError as error:
                detail = f" ({error.detail})" if error.detail else ""
                raise HTTPException(415, _named(video, f"{video.name}: {error.reason}{detail}")) from error
            except InputError as error:
                raise HTTPException(422, _named(video, str(error))) from error


def _named(video: ReceivedVideo, message: str) -> str:
    """A message without paths of this machine."""
    return message.replace(str(video.path), video.name)


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work; cancels it and raises ClientDisconnect if the client goes away. The body was read."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
