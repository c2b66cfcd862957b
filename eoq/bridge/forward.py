"""Forward queues: lease their messages, publish them in the engine, and settle them as forwarded.

A forwarder that is killed after the publishing and before the settling publishes them again: the engine finds them by
their ids. Its deliveries never count as attempts (``handles`` 0).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from ..backoff import pauses
from ..client.aio import AsyncClient
from ..errors import EoqError, InvalidRequest, LeaseLost, Unavailable
from ..message import AsyncMessage
from ..protocol import calls
from ..protocol.features import FORWARDED
from ..protocol.forwarding import forwarded
from .engine import Engine, ForwardEnd
from .patterns import is_pattern, literal_prefix, matches
from .results import ResultTaker, check_results
from .tasks import run_all

log = logging.getLogger("eoq.bridge")

BATCH: Final = 250
"""Messages in one transaction."""
LEASE_SECONDS: Final = 60.0
WAIT_SECONDS: Final = 30.0
"""How long one request waits for messages. One of many queues that has none for so long is no longer asked."""
LOOK_SECONDS: Final = 1.0
"""How often the daemon is asked which queues it has, for a pattern."""
LOOK_SHARE: Final = 20
"""The pause between two such questions is so many times as long as the answer took, at least."""
MOST_QUEUES: Final = 100
"""Queues of a pattern that are forwarded at once. The others wait their turn."""
LOG_SECONDS: Final = 60.0
"""How often at most an outage is logged."""


class Tally:
    """What the queues of a forwarder share: what was done, why it waits, and whose turn it is to publish."""

    def __init__(self, name: str) -> None:
        self.moved = 0
        self.refused = 0
        self.error: str | None = None
        self.publishing = asyncio.Lock()
        self._name = name
        self._logged_at = -LOG_SECONDS

    def failed(self, queue: str, error: Exception) -> None:
        """Note that the engine or the daemon is away, and log it once a minute."""
        self.error = " ".join(str(error).split())  # it may have several lines
        if time.monotonic() >= self._logged_at + LOG_SECONDS:
            self._logged_at = time.monotonic()
            log.warning("%s to %s: %s; waiting", queue, self._name, self.error)


class QueueForwarder:
    """It moves the messages of one queue to an engine. ``origin`` asks for their results."""

    def __init__(self, client: AsyncClient, queue: str, end: ForwardEnd, tally: Tally, origin: str | None) -> None:
        self._client = client
        self._queue = queue
        self._end = end
        self._tally = tally
        self._origin = origin

    async def run(self, idle: float = math.inf) -> None:
        """Forward until this task is cancelled, or until there was no message for ``idle`` seconds.

        Errors of the engine or of the daemon are logged, and tried again.
        """
        waits = pauses()
        wait = min(WAIT_SECONDS, idle)
        # The next messages are received while these are published. Those of one group come only when these are settled.
        coming = asyncio.create_task(self._receive(wait))
        try:
            while True:
                try:
                    messages = await coming
                    if not messages and idle <= WAIT_SECONDS:
                        return
                    coming = asyncio.create_task(self._receive(wait))
                    await self._forward(messages)
                    waits, self._tally.error = pauses(), None
                except (OSError, EoqError) as error:
                    self._tally.failed(self._queue, error)
                    await self._give_back(coming)
                    await asyncio.sleep(next(waits))  # the engine or the daemon is away
                    coming = asyncio.create_task(self._receive(wait))
        finally:
            await self._give_back(coming)

    async def _give_back(self, coming: asyncio.Task[list[AsyncMessage]]) -> None:
        coming.cancel()
        (messages,) = await asyncio.gather(coming, return_exceptions=True)
        if isinstance(messages, list) and messages:
            await asyncio.shield(self._release(messages))

    async def flush(self) -> None:
        """Forward what is ready now. Raises what keeps it from going on."""
        while messages := await self._receive(0.0):
            await self._forward(messages)

    async def _receive(self, wait: float) -> list[AsyncMessage]:
        call = calls.receive(
            self._queue,
            AsyncMessage,
            self._client,
            limit=BATCH,
            wait=wait,
            lease=LEASE_SECONDS,
            bound=True,
            handles=0,
        )
        return await self._client.channel.run(call)

    async def _forward(self, messages: Sequence[AsyncMessage]) -> None:
        if not messages:
            return
        try:
            async with self._tally.publishing:
                refused = await self._end.publish(self._queue, messages, origin=self._origin)
        except BaseException:
            await asyncio.shield(self._release(messages))
            raise
        await self._settle([message for message in messages if message.id not in refused])
        for message in messages:
            if message.id in refused:
                await self._reject(message, refused[message.id])

    async def _reject(self, message: AsyncMessage, reason: str) -> None:
        try:
            await message.reject(reason)
            self._tally.refused += 1
        except LeaseLost:
            log.info("%s: the lease of %s has ended; it is refused again", self._queue, message.id)

    async def _settle(self, messages: Sequence[AsyncMessage]) -> None:
        if not messages:
            return
        try:
            await self._settle_together(messages)
        except LeaseLost:
            # Those whose lease has ended are delivered again, and are found in the engine.
            for message in messages:
                try:
                    await self._settle_together([message])
                except LeaseLost:
                    log.info("%s: the lease of %s has ended; it is forwarded again", self._queue, message.id)

    async def _settle_together(self, messages: Sequence[AsyncMessage]) -> None:
        await self._client.channel.run(forwarded(messages, self._end.name, awaits=self._origin is not None))
        self._tally.moved += len(messages)

    async def _release(self, messages: Sequence[AsyncMessage]) -> None:
        try:
            await self._client.channel.run(calls.release([message.receipt for message in messages]))
        except (Unavailable, LeaseLost):
            log.debug("%s: the messages come back when their leases end", self._queue)


class Forwarder:
    """It moves the messages of one queue, or of all that match a pattern, to an engine. See `Mover`.

    ``results``: how they ended there comes back.
    """

    def __init__(self, client: AsyncClient, pattern: str, engine: Engine, *, results: bool = False) -> None:
        self.owner = None
        """It claims nothing, so it needs no name."""
        self._client = client
        self._pattern = pattern
        self._engine = engine
        self._end = engine.forward_end()
        self._tally = Tally(engine.name)
        self._results = results
        self._queues: Collection[str] = [] if is_pattern(pattern) else [pattern]
        self._serving: dict[str, asyncio.Task[None]] = {}
        self._changes = True
        """Whether a queue may have messages to be forwarded before the next one is sent."""

    @property
    def moved(self) -> int:
        """How many messages were forwarded."""
        return self._tally.moved

    @property
    def refused(self) -> int:
        """How many became dead letters: their id is there with other content, or the engine refuses them."""
        return self._tally.refused

    @property
    def error(self) -> str | None:
        """Why it waits now, or None."""
        return self._tally.error

    async def check(self) -> None:
        """Raise `Unavailable` without a daemon, and `InvalidRequest` if it cannot settle messages as forwarded."""
        await self._client.ask("status")
        if not await self._client.channel.knows(FORWARDED):
            raise InvalidRequest("the daemon is of an earlier version, which cannot forward; update it")
        if self._results:
            await check_results(self._client)

    async def run(self) -> None:
        """Forward until this task is cancelled. Errors of the engine or of the daemon are logged, and tried again."""
        origin = await self._origin()
        taker = None if origin is None else self._taker(origin)  # first of all, as it may be refused
        works = [self._run_pattern(origin) if is_pattern(self._pattern) else self._run_one(origin)]
        if taker is not None:
            works.append(taker.run())
        try:
            await run_all(works)
        finally:
            await self._end.close()

    async def flush(self) -> int:
        """Forward what is ready now. Return how many became dead letters. Raises what keeps it from going on."""
        origin = await self._origin()
        taker = None if origin is None else self._taker(origin)
        try:
            if is_pattern(self._pattern):
                await self._look()
            for queue in self._queues:
                await self._forwarder(queue, origin).flush()
            if taker is not None:
                await taker.flush()
        finally:
            await self._end.close()
        return self._tally.refused

    async def _origin(self) -> str | None:
        """Return the identity of the daemon's file, where results come back."""
        return str((await self._client.ask("status"))["identity"]) if self._results else None

    def _taker(self, origin: str) -> ResultTaker:
        return ResultTaker(self._client, self._engine.awaited(origin), lambda: self._queues)

    def _forwarder(self, queue: str, origin: str | None) -> QueueForwarder:
        return QueueForwarder(self._client, queue, self._end, self._tally, origin)

    async def _run_one(self, origin: str | None) -> None:
        await self._forwarder(self._pattern, origin).run()

    # ── a pattern ───────────────────────────────────────────────────────────────────────────────────────

    async def _run_pattern(self, origin: str | None) -> None:
        """Forward each queue that matches and has messages, in a task of its own."""
        counted: object = None
        looked_at = -WAIT_SECONDS
        try:
            while True:
                began = time.monotonic()
                with suppress(EoqError):  # the daemon is away: those that forward say so
                    now = (await self._client.ask("status"))["totals"]
                    if self._changes or now != counted or began >= looked_at + WAIT_SECONDS:
                        counted, looked_at, self._changes = now, began, False
                        for queue in await self._look():
                            self._serve(queue, origin)
                await asyncio.sleep(max(LOOK_SECONDS, LOOK_SHARE * (time.monotonic() - began)))
        finally:
            for task in list(self._serving.values()):
                task.cancel()
            await asyncio.gather(*self._serving.values(), return_exceptions=True)

    async def _look(self) -> list[str]:
        """Return the queues that match and have messages to be forwarded, the oldest messages first."""
        queues = await self._client.queues(prefix=literal_prefix(self._pattern))
        rows = [row for row in queues if matches(row["name"], self._pattern)]
        self._queues = [row["name"] for row in rows]
        self._changes = any(row["delayed"] or row["leased"] for row in rows if row["name"] not in self._serving)
        ready = [row for row in rows if row["ready"]]
        return [row["name"] for row in sorted(ready, key=lambda row: row["oldest"] or 0.0)]

    def _serve(self, queue: str, origin: str | None) -> None:
        if queue in self._serving:
            return
        if len(self._serving) >= MOST_QUEUES:
            self._changes = True
            return
        task = asyncio.create_task(self._forwarder(queue, origin).run(WAIT_SECONDS))
        self._serving[queue] = task
        task.add_done_callback(partial(self._served, queue))

    def _served(self, queue: str, task: asyncio.Task[None]) -> None:
        del self._serving[queue]
        self._changes = True  # a message may have come just now
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: a fault in eoq; its messages wait for the next try", queue, exc_info=error)
