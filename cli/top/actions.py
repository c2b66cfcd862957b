"""What the keys do to the daemon. Each action returns the sentence that the view then shows."""

from __future__ import annotations

from collections.abc import Sequence

from eoq.client.aio import AsyncClient
from eoq.protocol.admin_calls import Changed


async def pause_or_resume(client: AsyncClient, queue: str, paused: bool) -> str:
    """Resume a queue that is ``paused``; pause one that is not."""
    if paused:
        changed = await client.resume(queue)
        return f"{queue} is resumed" if changed else f"{queue} was resumed already"
    changed = await client.pause(queue)
    return f"{queue} is paused: nothing is delivered until it is resumed" if changed else f"{queue} was paused already"


async def redrive(client: AsyncClient, queue: str, ids: Sequence[str] | None, seen_until: float) -> str:
    """Redrive the dead letters of ``ids``; without them, all that had failed at ``seen_until``."""
    changed = await client.redrive(queue, ids, failed_before=None if ids else seen_until)
    return _told("redriven", changed, queue)


async def drop(client: AsyncClient, queue: str, ids: Sequence[str] | None, seen_until: float) -> str:
    """Drop the dead letters of ``ids``; without them, all that had failed at ``seen_until``."""
    changed = await client.drop(queue, ids, failed_before=None if ids else seen_until)
    return _told("dropped", changed, queue)


def _told(what: str, changed: Changed, queue: str) -> str:
    text = f"{len(changed.ids):,} dead {'letter' if len(changed.ids) == 1 else 'letters'} of {queue} {what}"
    return f"{text}; {len(changed.missing):,} were no dead letters any more" if changed.missing else text
