"""The dashboard as an application: its paths, its files, and what errors look like."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..client.aio import AsyncClient
from ..errors import EoqError, InvalidRequest
from .actions import Actions
from .events import Streams
from .looks import Looks
from .shown import as_json, visible
from .watch import Watch

_FILES: Final = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_STATUSES: Final = {"invalid_request": 400, "forbidden": 403, "not_found": 404, "unavailable": 503, "overloaded": 503}
_OTHERWISE: Final = 409
"""The status of an error that has none of its own."""

Answer = Callable[[Request], Awaitable[Response]]


def make_site(client: AsyncClient, watch: Watch) -> Starlette:
    """Return the application."""
    looks, streams, actions = Looks(client), Streams(watch), Actions(client)
    questions: dict[str, Answer] = {
        "/events": streams.events,
        "/messages": looks.messages,
        "/message": looks.message,
        "/search": looks.search,
        "/schedules": looks.schedules,
    }
    return Starlette(
        routes=[
            *(Route(path, _file(*file), methods=["GET"]) for path, file in _FILES.items()),
            *(Route(path, _answered(answer), methods=["GET"]) for path, answer in questions.items()),
            Route("/act", _answered(actions.act), methods=["POST"]),
        ]
    )


def _file(name: str, kind: str) -> Answer:
    content = resources.files(__package__).joinpath("static", name).read_bytes()

    async def answer(_request: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


def _answered(answer: Answer) -> Answer:
    """Return ``answer`` with the errors of eoq as JSON."""

    async def run(request: Request) -> Response:
        try:
            return await answer(request)
        except EoqError as error:
            return as_json({"error": visible(str(error)), "code": error.code}, _STATUSES.get(error.code, _OTHERWISE))
        except UnicodeEncodeError:
            refused = InvalidRequest("a text of the request is not valid Unicode")
            return as_json({"error": str(refused), "code": refused.code}, _STATUSES[refused.code])

    return run
