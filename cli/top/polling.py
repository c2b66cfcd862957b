"""Asking the daemon again and again, with pauses that grow with the time that an answer takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from eoq.errors import EoqError

SHORTEST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
TIMES_THE_ANSWER: Final = 10
"""A pause is so many times as long as the answer took. So the daemon spends at most a tenth of its time on it."""
PATIENCE: Final = 2.0
"""Seconds without an answer until the view says so."""


def pause_after(answer_seconds: float) -> float:
    """Return how long to wait before the next question, in seconds."""
    return min(max(SHORTEST_PAUSE, TIMES_THE_ANSWER * answer_seconds), LONGEST_PAUSE)


class Poller:
    """Calls ``read`` for ever, and tells ``said`` what is wrong, or None after an answer.

    ``read`` returns how long the daemon took for the answer, in seconds, without the time until it was back.
    The client behind ``read`` connects again by itself when the daemon is back.
    """

    def __init__(self, read: Callable[[], Awaitable[float]], said: Callable[[str | None], None]) -> None:
        self._read = read
        self._said = said
        self._wanted = asyncio.Event()

    def soon(self) -> None:
        """Let the next question follow at once."""
        self._wanted.set()

    async def run(self) -> None:
        """Ask until this task is cancelled."""
        while True:
            self._wanted.clear()
            answer_seconds, trouble = await self._ask()
            self._said(trouble)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_after(answer_seconds)):
                    await self._wanted.wait()

    async def _ask(self) -> tuple[float, str | None]:
        """Ask once. Return how long the answer took, and what went wrong. Say meanwhile that none comes."""
        asking = asyncio.ensure_future(self._read())
        try:
            done, _ = await asyncio.wait({asking}, timeout=PATIENCE)
            if not done:
                self._said(f"the daemon has not answered for {PATIENCE:g} s; trying again")
            return await asking, None
        except EoqError as error:
            return 0.0, f"{error} (trying again)"
        finally:
            asking.cancel()
