"""What a tab changes: queues and schedules are paused and resumed, schedules run, dead letters redriven and dropped.

Each is an action of the public client, and may be repeated: a browser repeats a request whose answer it has lost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..client.aio import AsyncClient
from ..errors import InvalidRequest
from .shown import as_json

LONGEST: Final = 65_536
"""Bytes of a request."""


class Action(msgspec.Struct, forbid_unknown_fields=True):
    """A request to change something. ``name`` is that of a queue or of a schedule."""

    do: str
    name: str
    ids: list[str] | None = None
    """Which dead letters."""
    seen_at: float | None = None
    """Instead of ids: all dead letters that had failed when the list was read, in seconds since the epoch."""
    id: str | None = None
    """The id of the message that a schedule sends now."""
    confirmed: bool = False
    """Whether the user was asked."""


class Actions:
    """Carries out what tabs ask."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._known: dict[str, Callable[[Action], Awaitable[str]]] = {
            "pause": self._pause,
            "resume": self._resume,
            "redrive": self._redrive,
            "drop": self._drop,
            "schedule-pause": self._pause_schedule,
            "schedule-resume": self._resume_schedule,
            "schedule-run": self._run_schedule,
        }

    async def act(self, request: Request) -> Response:
        """Do what the request says, and answer with a sentence."""
        action = await _read(request)
        known = self._known.get(action.do)
        if known is None:
            raise InvalidRequest(f"there is no action {action.do!r}; reload the page")
        return as_json({"done": await known(action)})

    async def _pause(self, action: Action) -> str:
        changed = await self._client.pause(action.name)
        return f"The queue {action.name} {'is' if changed else 'was already'} paused."

    async def _resume(self, action: Action) -> str:
        changed = await self._client.resume(action.name)
        return f"The queue {action.name} {'delivers again' if changed else 'was not paused'}."

    async def _redrive(self, action: Action) -> str:
        _check_selection(action)
        changed = await self._client.redrive(action.name, action.ids, failed_before=action.seen_at)
        return f"Redriven: {len(changed.ids):,}.{_not_there(changed.missing)}"

    async def _drop(self, action: Action) -> str:
        _check_selection(action)
        if not action.confirmed:
            raise InvalidRequest("dropping cannot be undone, so it must be confirmed")
        changed = await self._client.drop(action.name, action.ids, failed_before=action.seen_at)
        return f"Dropped: {len(changed.ids):,}.{_not_there(changed.missing)}"

    async def _pause_schedule(self, action: Action) -> str:
        changed = await self._client.pause_schedule(action.name)
        return f"The schedule {action.name} {'is' if changed else 'was already'} paused."

    async def _resume_schedule(self, action: Action) -> str:
        changed = await self._client.resume_schedule(action.name)
        return f"The schedule {action.name} {'goes on' if changed else 'was not paused'}."

    async def _run_schedule(self, action: Action) -> str:
        sent = await self._client.run_schedule(action.name, id=action.id)
        return f"The schedule {action.name} has sent {sent.id}."


async def _read(request: Request) -> Action:
    """Return the action of a request, which is bounded JSON. Another site cannot send this type without being asked."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise InvalidRequest("an action is sent as application/json")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LONGEST:
            raise InvalidRequest(f"an action has at most {LONGEST:,} bytes")
    try:
        return msgspec.json.decode(body, type=Action)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the action cannot be read: {error}") from None


def _check_selection(action: Action) -> None:
    if (action.seen_at is None) == (not action.ids):
        raise InvalidRequest("say which dead letters: their ids, or when the list was read")


def _not_there(missing: list[str]) -> str:
    return f" No dead letters any more: {len(missing):,}." if missing else ""
