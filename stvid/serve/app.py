"""The application: what each address answers.

app = create_app(stvid.load("RUN"), ServeOptions())
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Coroutine
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.security import HTTPBearer
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from stvid import __version__
from stvid.deploy.predictions import make_entry
from stvid.deploy.segmentation import SegmentOptions, check_classes, resolve_threshold
from stvid.deploy.subtitles import subtitles
from stvid.errors import InputError, VideoError, nearest
from stvid.recognizer import Recognizer
from stvid.run.checkpoint import checkpoint_sha256
from stvid.serve.answers import ErrorAnswer, ModelAnswer, PredictAnswer, SegmentsAnswer
from stvid.serve.api_page import POLICY, api_page
from stvid.serve.clips import MAX_WINDOWS
from stvid.serve.errors import HANDLERS, AsciiJSON
from stvid.serve.metrics import CONTENT_TYPE, CountRequests
from stvid.serve.options import ServeOptions
from stvid.serve.security import OPEN_PATHS, Guard
from stvid.serve.service import SegmentedVideo, Service
from stvid.serve.streams import add_streams
from stvid.serve.threads import in_thread
from stvid.serve.uploads import ReceivedVideo, received_video

T = TypeVar("T")
MAX_VALUES = 4 * 10**6  # probabilities in an answer with windows: 80 MB of JSON
SUBTITLES = {"srt": "application/x-subrip", "vtt": "text/vtt"}


def create_app(recognizer: Recognizer, options: ServeOptions, *, open_paths: Collection[str] = ()) -> FastAPI:
    """An application that answers requests with a model.

    A parent application that mounts it must also start and end it, in its own lifespan:

        async with app.router.lifespan_context(app):
            yield

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
            await asyncio.to_thread(service.close)

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


def token_dependencies(service: Service) -> list[Any]:
    """Tells the OpenAPI description that an address needs the token; `Guard` checks it."""
    return [] if service.options.token is None else [Depends(HTTPBearer(auto_error=False))]


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
        if service.problem is not None:
            raise HTTPException(503, service.problem)
        return {"status": "ok"}

    protected = token_dependencies(service)

    @app.get("/model", summary="The model and the limits", response_model=ModelAnswer, dependencies=protected)
    async def describe_model() -> Response:
        return AsciiJSON(model)

    @app.get("/metrics", summary="Counters for Prometheus", response_class=PlainTextResponse, dependencies=protected)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/docs", include_in_schema=False)
    async def docs(token: str | None = None) -> Response:
        return HTMLResponse(api_page(app.openapi(), token=token), headers={"Content-Security-Policy": POLICY})


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


def refuse_unknown_values(request: Request) -> None:
    """Answers 422 to a value in the query that the address does not know."""
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            raise InputError(f"{request.url.path} does not know {name}{nearest(name, known)}")


PathQuery = Annotated[str | None, Query(description="instead of a file: a video below --root")]
TopQuery = Annotated[int, Query(ge=1, description="how many classes to name")]
Seconds = Annotated[float | None, Query(gt=0, allow_inf_nan=False)]


def _add_recognition(app: FastAPI, service: Service) -> None:
    @app.post(
        "/predict",
        summary="The most probable classes of a video",
        response_model=PredictAnswer,
        openapi_extra=FORM,
        dependencies=[*token_dependencies(service), Depends(refuse_unknown_values)],
    )
    async def predict(
        request: Request,
        path: PathQuery = None,
        top: TopQuery = 5,
        clips: Annotated[int | None, Query(ge=1, description="clips spread over the video")] = None,
        crops: Annotated[int | None, Query(ge=1, description="crops of each clip: 1, 3 or 5")] = None,
    ) -> Response:
        async with admitted_video(request, path, service) as video:
            work = service.predict(video.path, num_clips=clips, num_crops=crops)
            info, probabilities_K = await cancel_on_disconnect(request, work)
        names = service.recognizer.class_names
        entry = make_entry(Path(video.name), info, probabilities_K, names, top=top)
        probabilities = dict(zip(names, probabilities_K.tolist(), strict=True))
        return AsciiJSON({**entry, "path": video.name, "probabilities": probabilities})

    @app.post(
        "/segments",
        summary="What happens when in a video",
        response_model=SegmentsAnswer,
        responses={200: {"content": {media_type: {"schema": {"type": "string"}} for media_type in SUBTITLES.values()}}},
        openapi_extra=FORM,
        dependencies=[*token_dependencies(service), Depends(refuse_unknown_values)],
    )
    async def segments(
        request: Request,
        path: PathQuery = None,
        top: TopQuery = 5,
        threshold: Annotated[float | None, Query(gt=0, le=1, description="at which a class begins")] = None,
        window: Seconds = None,
        hop: Seconds = None,
        min_duration: Annotated[float | None, Query(ge=0, allow_inf_nan=False)] = None,
        background: Annotated[list[str], Query(description="classes without subtitles")] = [],  # noqa: B006
        windows: Annotated[bool, Query(description="also the probabilities of each window")] = False,
        format: Annotated[Literal["json", "srt", "vtt"], Query()] = "json",
    ) -> Response:
        names = service.recognizer.class_names
        check_classes(background, names, option="background")
        options = SegmentOptions(threshold=threshold, window=window, hop=hop, min_duration=min_duration)
        max_windows = min(MAX_WINDOWS, max(MAX_VALUES // len(names), 1)) if windows else MAX_WINDOWS

        def respond() -> Response:  # in a thread: it takes seconds for millions of numbers
            if format == "json":
                return AsciiJSON(_segments_answer(video, result, service, threshold, top=top, with_windows=windows))
            text = subtitles(result.video.segments, kind=format, offset=result.clock_start, background=background)
            media_type = f"{SUBTITLES[format]}; charset=utf-8"
            return Response(text.encode("utf-8", "backslashreplace"), media_type=media_type)

        async with admitted_video(request, path, service) as video:
            work = service.segments(video.path, options, max_windows=max_windows)
            result = await cancel_on_disconnect(request, work)
            if result.video.error is not None and format != "json":
                raise result.video.error
            return await in_thread(service.pools.segmenters, respond)


def _segments_answer(
    video: ReceivedVideo,
    result: SegmentedVideo,
    service: Service,
    threshold: float | None,
    *,
    top: int,
    with_windows: bool,
) -> dict:
    names, found = service.recognizer.class_names, result.video
    entry = make_entry(
        Path(video.name),
        result.info,
        found.probabilities_K,
        names,
        top=top,
        segments=found.segments,
        error=found.error,
    )
    answer = {
        **entry,
        "path": video.name,
        "class_names": list(names),
        "threshold": resolve_threshold(service.recognizer.trained, threshold)[0],
    }
    if found.probabilities_K is not None:
        answer["probabilities"] = dict(zip(names, found.probabilities_K.tolist(), strict=True))
    if with_windows:
        answer["clock_start"] = round(result.clock_start, 6)
        answer["windows"] = [
            {
                "start": round(window.start, 3),
                "end": round(window.end, 3),
                "probabilities": window.probabilities_K.tolist(),
            }
            for window in found.windows
        ]
    return answer


@contextlib.asynccontextmanager
async def admitted_video(request: Request, path: str | None, service: Service) -> AsyncIterator[ReceivedVideo]:
    """Admits a request and yields its video; errors of the video are told with the client's name for it."""
    with service.admitted():
        received = received_video(
            request,
            path,
            folder=service.folder,
            pool=service.pools.writers,
            options=service.options,
            metrics=service.metrics,
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
