"""Call a coroutine function again and again, in a task, while a block runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager


@asynccontextmanager
async def repeating(seconds: float, function: Callable[[], Awaitable[None]], name: str) -> AsyncIterator[None]:
    """Call ``function`` every so many ``seconds`` until the block ends. ``name`` is the name of the task.

    At the end of the block a call that is under way is cancelled.
    """

    async def run() -> None:
        while True:
            await asyncio.sleep(seconds)
            await function()

    task = asyncio.create_task(run(), name=name)
    try:
        yield
    finally:
        task.cancel()
