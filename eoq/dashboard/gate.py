"""Who may use the dashboard: the browser that was opened with its token, and no other site, user or frame.

Every request is checked, before any other part sees it:

- Host is a name of loopback, so that no other site can point its own name here (DNS rebinding).
- Origin, if there is one, is this dashboard; a POST must have one. Sec-Fetch-Site says the same of all requests.
- The token of the URL is exchanged for a cookie and for a secret path. Cookies are shared by all ports of a host, so
  that a server of another user on another port could read one. A browser does not send it there without the path.
"""

from __future__ import annotations

import hmac
import secrets
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
"""The hosts on which the dashboard is served, and the names by which it may be called."""
_COOKIE: Final = "eoq-dashboard"
_METHODS: Final = ("GET", "HEAD", "POST")
_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Gate:
    """Checks each request, and adds the headers that keep other sites out to each answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.token: Final = secrets.token_urlsafe(32)
        """What the URL has that is printed."""
        self.path: Final = f"/{secrets.token_urlsafe(16)}"
        """The path under which everything is."""
        self._app = app
        self._secret = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on without the secret path."""
        if scope["type"] != "http":
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        answer = self._refusal(scope) or self._entrance(scope)
        if answer is not None:
            await answer(scope, receive, send_guarded)
            return
        inner = {**scope, "path": scope["path"].removeprefix(self.path)}
        await self._app(inner, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        """Return what another site, or a strange request, is answered."""
        headers = Headers(scope=scope)
        method = scope["method"]
        if method not in _METHODS:
            return _refuse(HTTPStatus.METHOD_NOT_ALLOWED, f"there is no method {method}; use GET or POST")
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _name_of(hosts[0]) not in LOOPBACK:
            return _refuse(HTTPStatus.FORBIDDEN, "this Host is not served; open the URL that `eoq dashboard` printed")
        origins = headers.getlist("origin")
        foreign = any(origin != f"http://{hosts[0]}" for origin in origins) or (method == "POST" and not origins)
        if foreign or headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return _refuse(
                HTTPStatus.FORBIDDEN,
                "the request comes from another site; paste the URL that `eoq dashboard` printed into a new tab",
            )
        return None

    def _entrance(self, scope: Scope) -> Response | None:
        """Return what a browser is answered that is not in yet, or None for one that is."""
        request = Request(scope)
        path = scope["path"]
        if path == "/" and scope["method"] == "GET" and _same(request.query_params.get("token", ""), self.token):
            answer = RedirectResponse(f"{self.path}/", HTTPStatus.SEE_OTHER)
            answer.set_cookie(_COOKIE, self._secret, path=f"{self.path}/", httponly=True, samesite="strict")
            return answer
        known = path.startswith(f"{self.path}/") and _same(request.cookies.get(_COOKIE, ""), self._secret)
        if known:
            return None
        return _refuse(
            HTTPStatus.UNAUTHORIZED, "the token is missing or wrong; open the URL that `eoq dashboard` printed"
        )


def _name_of(host: str) -> str | None:
    """Return the name in a Host header, without its port."""
    try:
        found = urlsplit(f"//{host}")
        return found.hostname if found.netloc == host and "@" not in host else None
    except ValueError:  # a port or an address that is none
        return None


def _same(given: str, secret: str) -> bool:
    """Compare in a time that does not tell how much of it is right."""
    return hmac.compare_digest(given.encode(errors="replace"), secret.encode())


def _refuse(status: HTTPStatus, text: str) -> Response:
    return PlainTextResponse(f"eoq: {text}\n", status)
