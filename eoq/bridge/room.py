"""How many more messages an ingest may take now: its limit, without what is unsettled in the daemon."""

from __future__ import annotations

from typing import Final

from ..client.aio import AsyncClient

ROOM_SECONDS: Final = 0.5
"""How often at most the daemon is asked how many messages it has."""


async def free_room(client: AsyncClient, queue: str, limit: int) -> int:
    """Return how many more messages may be taken, so that ``limit`` are unsettled here. It may be negative."""
    # The queue itself is the first one that begins with its name.
    queues = [row for row in await client.queues(prefix=queue, limit=1) if row["name"] == queue]
    return limit - sum(int(row[state]) for row in queues for state in ("ready", "leased", "delayed", "blocked"))
