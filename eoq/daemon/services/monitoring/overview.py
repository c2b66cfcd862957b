"""The overview of all queues: what the file says of each, and what only the running daemon knows.

With thousands of queues this is long work. It is done in slices, and other requests come between them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from ...broker.receivers import Receivers
from ...broker.throughput import Throughput
from ...measures import all_counters
from ...session import Fields
from ...store.sqlite.reader import Reader
from ...store.sqlite.totals import Totals

SLICE: Final = 100
"""Queues in one slice: about a millisecond."""


class QueueOverview:
    """The queues as operators see them."""

    def __init__(self, reader: Reader, throughput: Throughput, receivers: Receivers, totals: Totals) -> None:
        self._reader = reader
        self._throughput = throughput
        self._receivers = receivers
        self._totals = totals

    async def reply(self) -> Fields:
        """Return the reply to ``queues``. Each queue is encoded here, in its slice."""
        encoded = [msgspec.Raw(msgspec.json.encode(queue)) async for queue in self.queues()]
        return {"queues": encoded}

    async def queues(self) -> AsyncIterator[dict[str, Any]]:
        """Yield all queues by name, with a turn of the event loop after each slice."""
        found = await self._reader.queues()
        for index in range(len(found.rows)):
            if index % SLICE == 0:
                await asyncio.sleep(0)  # lets other requests come between
            queue = found.queue(index)
            name, queue_id = queue["name"], queue.pop("queue_id")
            rate = self._throughput.rate(name)
            queue["paused"] = bool(queue["paused"])
            queue["sent_rate"], queue["done_rate"] = rate.sent, rate.done
            queue["consumers"] = self._receivers.consumers.of(name)
            queue["waiting"] = self._receivers.waiting_for(name)
            since_start = all_counters(self._totals.of_queue_since_start(queue_id))
            # Where nothing was written since the start, the file has what was counted before.
            queue["totals"] = self._totals.of_queue(queue_id) or found.totals_of(queue_id, since_start)
            queue["since_start"] = since_start
            yield queue
