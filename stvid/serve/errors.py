"""How errors are answered: JSON with one message."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from stvid.errors import InputError
from stvid.serve.batching import BatchFailed, ServiceStopping
from stvid.serve.service import QueueFull

RETRY_AFTER = 1  # seconds
CLIENT_CLOSED_REQUEST = 499  # status in the metrics of a request whose client has gone; nobody receives it


class AsciiJSON(JSONResponse):
    """JSON in ASCII: names may hold bytes that are not UTF-8, which JSON can escape."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def _error(request: Request, status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    headers = dict(headers or {})
    if request.method == "POST":
        headers["Connection"] = "close"  # the rest of the body is not read
    return AsciiJSON({"detail": detail}, status_code=status, headers=headers)


async def _on_http_error(request: Request, error: Any) -> Response:
    detail = str(error.detail)
    if error.status_code == 404 and detail == "Not Found":
        detail = f"there is no {request.url.path}; /docs lists all addresses"
    return _error(request, error.status_code, detail, error.headers)


async def _on_wrong_values(request: Request, error: Any) -> Response:
    mistakes = [f"{detail['loc'][-1]} (={detail['input']}): {detail['msg']}" for detail in error.errors()]
    return _error(request, 422, "; ".join(mistakes))


async def _on_input_error(request: Request, error: Exception) -> Response:
    return _error(request, 422, str(error))


async def _on_queue_full(request: Request, error: Exception) -> Response:
    return _error(request, 429, f"too much to do: {error}; try again", {"Retry-After": str(RETRY_AFTER)})


async def _on_stopping(request: Request, error: Exception) -> Response:
    return _error(request, 503, "the service is stopping")


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _on_failed_batch(request: Request, error: Exception) -> Response:
    return _error(request, 500, str(error))


async def _on_bug(request: Request, error: Exception) -> Response:
    return _error(request, 500, "an error of the service; its log has the traceback")


HANDLERS: dict = {
    HTTPException: _on_http_error,
    RequestValidationError: _on_wrong_values,
    InputError: _on_input_error,
    QueueFull: _on_queue_full,
    ServiceStopping: _on_stopping,
    ClientDisconnect: _on_disconnect,
    BatchFailed: _on_failed_batch,
    Exception: _on_bug,
}
