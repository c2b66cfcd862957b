"""Consuming: messages are fetched ahead, and their leases extended while they wait."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import suppress

from ..errors import EoqError
from ..message import AsyncMessage, AsyncSettler
from ..protocol import calls
from ..protocol.calls import Call
from ..protocol.features import HANDLES
from ..protocol.limits import POLL_SECONDS
from ..transport.aio_channel import AsyncChannel, AsyncStarted
from ..transport.aio_leases import extend_all, release_all
from .prefetch import Prefetched


async def consume(
    channel: AsyncChannel,
    settler: AsyncSettler,
    queue: str,
    prefetch: int,
    lease: float | None,
    idle: float | None,
) -> AsyncIterator[AsyncMessage]:
    """Yield messages under bound leases. `AsyncClient.consume` says what it promises."""
    fetched: Prefetched[AsyncMessage] = Prefetched(lease, prefetch)
    ahead: AsyncStarted[list[AsyncMessage]] | None = None
    asked_at, asked_generation = 0.0, 0

    async def receive(limit: int, wait: float) -> Call[list[AsyncMessage]]:
        handles = 1 if await channel.knows(HANDLES) else None
        return calls.receive(
            queue, AsyncMessage, settler, limit=limit, wait=wait, lease=lease, bound=True, handles=handles
        )

    try:
        idle_since = time.monotonic()
        while True:
            if ahead is not None and asked_generation != channel.generation:
                # The connection was replaced meanwhile. Messages that came over the old one lost their leases with it.
                ahead.forget()
                ahead = None
            if ahead is not None and (not fetched or fetched.is_old(asked_at, time.monotonic())):
                started, ahead = ahead, None
                messages = await channel.finish(started)
                fetched.fill(messages, asked_at, channel.generation)
            if receipts := fetched.to_extend(time.monotonic(), channel.generation):
                fetched.extended(time.monotonic(), await extend_all(channel, receipts, fetched.lease))
            if ahead is None and fetched and (room := fetched.room()):
                # Sent before the consumer handles the next message, and waited for only when it is needed.
                asked_at = time.monotonic()
                ahead = await channel.start(await receive(room, 0.0))
                asked_generation = channel.generation
                continue  # the connection may be a new one
            if (message := fetched.next()) is not None:
                yield message
                idle_since = time.monotonic()
                continue
            if ahead is not None:
                continue
            wait = POLL_SECONDS
            if idle is not None:
                wait = min(wait, max(idle_since + idle - time.monotonic(), 0.0))
            messages = await channel.run(await receive(prefetch, wait))
            fetched.fill(messages, time.monotonic(), channel.generation)
            if not messages and idle is not None and time.monotonic() >= idle_since + idle:
                return
    finally:
        left = fetched.drain(channel.generation)
        if ahead is not None and not channel.closed and asked_generation == channel.generation:
            with suppress(EoqError):
                left.extend(message.receipt for message in await channel.finish(ahead))
        await release_all(channel, left)
