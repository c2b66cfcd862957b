"""The live view as server-sent events: one stream for each tab."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Final, get_args

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ..protocol.limits import MAX_QUEUE
from ..protocol.validation import check_queue
from .history import SAMPLES, WHOLE, sample
from .shown import as_json, shown
from .watch import Order, View, Watch

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
                    yield f"data: {json.dumps(await self._state(view))}\n\n"
                elif not await self._watch.next(sent, ALIVE):
                    yield ":\n\n"

    async def _state(self, view: View) -> dict[str, object]:
        rows, count = await self._watch.rows(view)
        samples = SAMPLES if view.queue is not None else ROW_SAMPLES
        history = self._watch.history
        return {
            "trouble": self._watch.trouble,
            "status": shown(self._watch.status),
            "queues": [{**row, "samples": history.of(row["name"], samples)} for row in rows],
            "count": count,
            "total": sample(self._watch.sums),
            "samples": history.of(WHOLE),
        }


def read_view(request: Request) -> View:
    """Return what a request asks to look at. Raises `InvalidRequest`."""
    asked = request.query_params
    queue = asked.get("queue")
    page = asked.get("page", "0")
    number = int(page) if page.isascii() and page.isdecimal() and len(page) < len(str(MOST_PAGES)) else 0
    order: Order = next((one for one in get_args(Order) if one == asked.get("order")), "name")
    return View(None if queue is None else check_queue(queue), asked.get("text", "")[:MAX_QUEUE], order, number)
