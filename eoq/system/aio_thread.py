"""Run blocking work of an asyncio program in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Return what ``work`` returns, from a thread. Raises what ``work`` raises.

    If this task is cancelled, the cancellation is raised only when ``work`` has ended. So the caller can then close
    what ``work`` uses.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise
