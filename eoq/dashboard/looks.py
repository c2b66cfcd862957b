"""What a tab asks once: the messages of a queue, the life of one, a search by id, the schedules."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from ..client.aio import AsyncClient
from ..errors import InvalidRequest
from .shown import PREVIEW, as_json, shown

MESSAGES: Final = 50
"""Messages of one list."""
SCHEDULES: Final = 50
"""Schedules of one list."""


class Looks:
    """Answers questions about messages and schedules."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def messages(self, request: Request) -> Response:
        """Answer with the first messages of one state of a queue, and the daemon's time before it read them."""
        asked = request.query_params
        queue, state = _given(request, "queue"), asked.get("state", "ready")
        now = (await self._client.status())["now"] if state == "dead" else None
        found = await self._client.peek(queue, state, limit=MESSAGES, contains=asked.get("contains") or None)
        rows = [shown(one, longest=PREVIEW) for one in found]
        return as_json({"messages": rows, "most": MESSAGES, "seen_at": now})

    async def message(self, request: Request) -> Response:
        """Answer with all that is known of a message, and why it is not delivered now."""
        queue, id = _given(request, "queue"), _given(request, "id")
        found = await self._client.show(queue, id)
        reasons = (await self._client.why(queue, id))["reasons"]
        return as_json({"message": shown(found), "why": [shown(reason) for reason in reasons]})

    async def search(self, request: Request) -> Response:
        """Answer with the queues that know an id: the given queue, or all."""
        id, queue = _given(request, "id"), request.query_params.get("queue")
        found = await self._client.find(id, queue or None)
        return as_json({"found": [{"queue": one.queue, "id": one.id, "state": one.state} for one in found]})

    async def schedules(self, request: Request) -> Response:
        """Answer with the first schedules whose names have a text."""
        text = request.query_params.get("text", "")
        found = [one for one in await self._client.schedules() if text in one["name"]]
        return as_json({"schedules": [shown(one) for one in found[:SCHEDULES]], "count": len(found), "most": SCHEDULES})


def _given(request: Request, name: str) -> str:
    value = request.query_params.get(name)
    if not value:
        raise InvalidRequest(f"the request has no {name!r}")
    return value
