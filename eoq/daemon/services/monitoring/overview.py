"""The queues as operators see them: what the file says of each, and what only the running daemon knows.

With thousands of queues this is long work. It is done in pages, and at a pace, so that sends come between.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple

import msgspec

from ... import requests as ask
from ...broker.receivers import Receivers
from ...broker.throughput import Throughput
from ...measures import Counts
from ...session import Fields
from ...store.sqlite.overview import QueueState
from ...store.sqlite.reader import Reader
from ...store.sqlite.totals import Totals
from .pace import Pace

PAGE: Final = 100
"""Queues that are read at once, where all are."""
STEP: Final = 10
"""Queues between two looks at the clock."""


class QueueSample(NamedTuple):
    """A queue at one moment, as the metrics have it."""

    state: QueueState
    totals: Counts
    consumers: int
    waiting: int


class QueueOverview:
    """Answers which queues there are, and what is in them."""

    def __init__(self, reader: Reader, throughput: Throughput, receivers: Receivers, totals: Totals) -> None:
        self._reader = reader
        self._throughput = throughput
        self._receivers = receivers
        self._totals = totals

    async def queues(self, request: ask.Queues) -> Fields:
        """Return the reply to ``queues``. Without a limit, it has all."""
        if request.limit is not None:
            found = await self._reader.queues(request.after, request.prefix, request.limit + 1)
            more = len(found) > request.limit
            return {"queues": await self._encoded(found[: request.limit], Pace()), "more": more}
        encoded: list[msgspec.Raw] = []
        pace = Pace()
        async for page in self.pages(pace, request.after, request.prefix):
            encoded += await self._encoded(page, pace)
        return {"queues": encoded}

    async def overview(self, request: ask.Overview) -> Fields:
        """Return the reply to ``overview``."""
        pace = Pace()
        rates = {}
        for number, name in enumerate(self._throughput.active()):
            if number % STEP == 0:
                await pace.rest()
            rates[name] = self._throughput.rate(name)
        given = msgspec.json.encode(rates)
        pace.end()
        found = await self._reader.ranking(request.order, request.contains, request.skip, request.limit, given)
        pace.begin()
        return {
            "count": found.queues,
            "matching": found.matching,
            "sums": found.sums,
            "queues": await self._encoded(found.first, pace),
        }

    async def pages(self, pace: Pace, after: str = "", prefix: str = "") -> AsyncIterator[list[QueueState]]:
        """Yield what the file says of all queues by name, a page at a time."""
        while True:
            pace.end()
            page = await self._reader.queues(after, prefix, PAGE)
            pace.begin()
            if page:
                yield page
            if len(page) < PAGE:
                return
            after = page[-1].name

    async def _encoded(self, found: list[QueueState], pace: Pace) -> list[msgspec.Raw]:
        encoded = []
        for number, queue in enumerate(found):
            if number % STEP == 0:
                await pace.rest()
            encoded.append(msgspec.Raw(msgspec.json.encode(self._fields(queue))))
        return encoded

    def _fields(self, queue: QueueState) -> dict[str, Any]:
        name = queue.name
        rate = self._throughput.rate(name)
        since_start = self._totals.of_queue_since_start(queue.queue_id)
        return {
            **queue.fields(),
            "sent_rate": rate.sent,
            "done_rate": rate.done,
            "consumers": self._receivers.consumers.of(name),
            "waiting": self._receivers.waiting_for(name),
            "totals": self.totals(queue, since_start),
            "since_start": since_start,
        }

    def sampled(self, queue: QueueState) -> QueueSample:
        """Return what the metrics have of a queue."""
        name = queue.name
        totals = self.totals(queue, self._totals.of_queue_since_start(queue.queue_id))
        return QueueSample(queue, totals, self._receivers.consumers.of(name), self._receivers.waiting_for(name))

    def totals(self, queue: QueueState, since_start: Counts) -> Counts:
        """Return the totals of a queue. Where nothing was written since the start, the file has those before it."""
        return self._totals.of_queue(queue.queue_id) or queue.totals(since_start)
