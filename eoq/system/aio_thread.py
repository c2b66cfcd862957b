"""Work of an asyncio program that a thread does: run it, and wait for its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
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


async def complete(work: Awaitable[T]) -> T:
    """Wait for the end of ``work``, even if this task is cancelled meanwhile. Then raise the cancellation."""
    future = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return future.result()
