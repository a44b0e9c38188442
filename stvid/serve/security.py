"""Who is answered: checks of the Host and Origin headers and of the token, before anything else is read."""

from __future__ import annotations

import hmac
from collections.abc import Collection
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))
OPEN_PATHS = frozenset(("/health",))  # for load balancers, which have no token; it says nothing of the model


class Guard:
    """ASGI middleware that refuses requests and sockets which the service must not answer.

    - Host: without a token, it must name this machine. A page of another site that lets its own name point to
      127.0.0.1 (DNS rebinding) still sends its own name. With a token, any name is accepted: such a page has no token.
    - Origin: browsers say which site a page is from. One of another site may neither post nor open a socket. Programs
      send no Origin.
    - Token: `Authorization: Bearer TOKEN`; also `?token=TOKEN` where a browser cannot send headers: pages and sockets.

    Args:
        app: the application.
        token: None: none is needed.
        hosts: other names of this machine that clients may use, without a port.
        open_paths: paths that need no token.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        hosts: Collection[str] = (),
        open_paths: Collection[str] = OPEN_PATHS,
    ):
        self.app, self.token, self.open_paths = app, token, open_paths
        self.hosts = LOCAL_NAMES | {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self.app(scope, receive, send)
            return
        status, detail = refusal
        headers = {"Connection": "close"}  # the body is not read
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        await JSONResponse({"detail": detail}, status_code=status, headers=headers)(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and message for a request that is not answered; None for one that is."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.token is None and _name_of(host) not in self.hosts:
            return 403, f"the Host header names {host[:100]!r}, which is not this service; use 127.0.0.1 or localhost"
        is_passive = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        origin = headers.get("origin")
        if origin is not None and not is_passive and not _is_same_origin(origin, host):
            return 403, f"a page of {origin[:100]!r} must not use this service"
        if self.token is None or route_path(scope) in self.open_paths:
            return None
        given = headers.get("authorization", "")
        token = given[7:].strip() if given[:7].lower() == "bearer " else None
        if token is None and (is_passive or scope["type"] == "websocket"):
            query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
            token = query.get("token", [None])[0]
        if token is None:
            return 401, "this service needs a token: send the header Authorization: Bearer TOKEN"
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self.token.encode()):
            return 401, "the token is wrong"
        return None


def route_path(scope: Scope) -> str:
    """The path of a request without that below which a parent application mounts this one."""
    return scope["path"].removeprefix(scope.get("root_path", ""))


def _name_of(host: str) -> str:
    """The host name or address in a Host header, lower case and without port; empty if there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_same_origin(origin: str, host: str) -> bool:
    """Whether a page's origin, such as `http://localhost:8000`, is the host to which it sends its request."""
    try:
        page, service = urlsplit(origin), urlsplit(f"//{host}")
        if page.scheme not in ("http", "https") or not page.hostname:
            return False
        default = 443 if page.scheme == "https" else 80
        return (page.hostname, page.port or default) == (service.hostname, service.port or default)
    except ValueError:
        return False
