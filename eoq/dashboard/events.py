"""The live view as server-sent events: one stream for each tab."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ..protocol.validation import check_queue
from .history import SAMPLES, WHOLE, total
from .shown import as_json, shown
from .watch import View, Watch

MOST: Final = 24
"""Streams at once."""
ALIVE: Final = 15.0
"""Seconds after which an empty comment is sent, so that a tab that is gone is noticed."""
ROW_SAMPLES: Final = 60
"""Samples of each queue in a list."""
MOST_PAGES: Final = 1_000_000


class Streams:
    """Answers the requests for events."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    async def events(self, request: Request) -> Response:
        """Return the stream of what the tab looks at, or an error where too many look."""
        if self._watch.views >= MOST:
            return as_json({"error": f"{MOST} tabs are open; close one of them, and reload this one"}, 503)
        return StreamingResponse(self._stream(read_view(request)), media_type="text/event-stream")

    async def _stream(self, view: View) -> AsyncIterator[str]:
        sent = 0
        with self._watch.looking(view):
            yield "retry: 1000\n\n"
            while not self._watch.ended:
                if self._watch.number and self._watch.number != sent:
                    sent = self._watch.number
                    yield f"data: {json.dumps(self._state(view))}\n\n"
                elif not await self._watch.next(sent, ALIVE):
                    yield ":\n\n"

    def _state(self, view: View) -> dict[str, object]:
        rows, count = view.select(self._watch.rows or [])
        samples = SAMPLES if view.queue is not None else ROW_SAMPLES
        history = self._watch.history
        return {
            "trouble": self._watch.trouble,
            "status": shown(self._watch.status),
            "queues": [{**row, "samples": history.of(row["name"], samples)} for row in rows],
            "count": count,
            "total": total(self._watch.rows or []),
            "samples": history.of(WHOLE),
        }


def read_view(request: Request) -> View:
    """Return what a request asks to look at. Raises `InvalidRequest`."""
    asked = request.query_params
    queue = asked.get("queue")
    page = asked.get("page", "0")
    number = int(page) if page.isascii() and page.isdecimal() and len(page) < len(str(MOST_PAGES)) else 0
    return View(
        None if queue is None else check_queue(queue), asked.get("text", "")[:128], asked.get("order", "name"), number
    )
