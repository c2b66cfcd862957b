"""Forward a queue: lease its messages, publish them in the engine, and settle them as forwarded.

A forwarder that is killed after the publishing and before the settling publishes them again: the engine finds them by
their ids. Its deliveries never count as attempts (``handles`` 0).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final

from ..backoff import pauses
from ..client.aio import AsyncClient
from ..errors import EoqError, InvalidRequest, LeaseLost, Unavailable
from ..message import AsyncMessage
from ..protocol import calls
from ..protocol.features import FORWARDED
from ..protocol.forwarding import forwarded
from .engine import ForwardEnd

log = logging.getLogger("eoq.bridge")

BATCH: Final = 250
"""Messages in one transaction."""
LEASE_SECONDS: Final = 60.0
WAIT_SECONDS: Final = 30.0
"""How long one request waits for messages."""
LOG_SECONDS: Final = 60.0
"""How often at most an outage is logged."""


class Forwarder:
    """It moves the messages of one queue to an engine."""

    def __init__(self, client: AsyncClient, queue: str, end: ForwardEnd) -> None:
        self.moved = 0
        """How many messages were forwarded."""
        self.refused = 0
        """How many became dead letters: their id is there with other content, or the engine refuses them."""
        self.owner = None
        """It claims nothing, so it needs no name."""
        self.error: str | None = None
        """Why it waits now, or None."""
        self._client = client
        self._queue = queue
        self._end = end
        self._logged_at = -LOG_SECONDS

    async def check(self) -> None:
        """Raise `Unavailable` without a daemon, and `InvalidRequest` if it cannot settle messages as forwarded."""
        await self._client.ask("status")
        if not await self._client.channel.knows(FORWARDED):
            raise InvalidRequest("the daemon is of an earlier version, which cannot forward; update it")

    async def run(self) -> None:
        """Forward until this task is cancelled. Errors of the engine or of the daemon are logged, and tried again."""
        waits = pauses()
        try:
            while True:
                try:
                    await self._forward(await self._receive(WAIT_SECONDS))
                    waits, self.error = pauses(), None
                except (OSError, EoqError) as error:
                    self._log(error)
                    await asyncio.sleep(next(waits))  # the engine or the daemon is away
        finally:
            await self._end.close()

    async def flush(self) -> int:
        """Forward what is ready now. Return how many became dead letters. Raises what keeps it from going on."""
        try:
            while messages := await self._receive(0.0):
                await self._forward(messages)
        finally:
            await self._end.close()
        return self.refused

    def _log(self, error: Exception) -> None:
        self.error = " ".join(str(error).split())  # it may have several lines
        if time.monotonic() >= self._logged_at + LOG_SECONDS:
            self._logged_at = time.monotonic()
            log.warning("%s to %s: %s; waiting", self._queue, self._end.name, self.error)

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
            refused = await self._end.publish(self._queue, messages)
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
            self.refused += 1
        except LeaseLost:
            log.info("%s: the lease of %s has ended; it is refused again", self._queue, message.id)

    async def _settle(self, messages: Sequence[AsyncMessage]) -> None:
        if not messages:
            return
        try:
            await self._client.channel.run(forwarded(messages, self._end.name))
            self.moved += len(messages)
        except LeaseLost:
            # Those whose lease has ended are delivered again, and their rows are found.
            for message in messages:
                try:
                    await self._client.channel.run(forwarded([message], self._end.name))
                    self.moved += 1
                except LeaseLost:
                    log.info("%s: the lease of %s has ended; it is forwarded again", self._queue, message.id)

    async def _release(self, messages: Sequence[AsyncMessage]) -> None:
        try:
            await self._client.channel.run(calls.release([message.receipt for message in messages]))
        except (Unavailable, LeaseLost):
            log.debug("%s: the messages come back when their leases end", self._queue)
