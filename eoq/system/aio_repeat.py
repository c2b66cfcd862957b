"""Call a coroutine function again and again, in a task, while a block runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager


@asynccontextmanager
async def repeating(seconds: float, function: Callable[[], Awaitable[None]], name: str) -> AsyncIterator[None]:
    """Call ``function`` every ``seconds`` seconds until the block ends. ``name`` is the name of the task.

    A call that is under way at the end of the block is cancelled.
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
