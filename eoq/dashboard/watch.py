"""The live view: one task asks the daemon for its queues, for everybody who looks, and only while somebody does.

Its pauses grow with the time an answer takes, so that the daemon spends a small part of its time on the dashboard,
however many queues it has. A daemon that goes away is reported, and asked again until it is back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from ..client.aio import AsyncClient
from ..errors import EoqError
from ..protocol.codec import Fields
from .history import History

PAUSE: Final = 2.0
"""Seconds between two questions, at least."""
SHARE: Final = 25.0
"""A pause is at least so many times as long as the answer before it took."""
AGAIN: Final = 1.0
"""Seconds until a daemon that did not answer is asked again."""
ROWS: Final = 25
"""Queues on one page."""
_STATUS: Final = ("version", "pid", "now", "started_at", "database", "connections", "storage_errors", "config_error")
_ORDERS: Final = {
    "ready": lambda row: -row["ready"],
    "dead": lambda row: -row["dead"],
    "sent": lambda row: -row["sent_rate"],
    "done": lambda row: -row["done_rate"],
    "age": lambda row: row["oldest_ready"] or float("inf"),
}


@dataclass(frozen=True, slots=True)
class View:
    """What one browser looks at: a page of the queues whose names have a text, or one queue."""

    queue: str | None = None
    text: str = ""
    order: str = "name"
    page: int = 0

    def select(self, rows: list[Fields]) -> tuple[list[Fields], int]:
        """Return the queues of this view, and how many there are on all of its pages."""
        if self.queue is not None:
            found = [row for row in rows if row["name"] == self.queue]
            return found, len(found)
        found = [row for row in rows if self.text in row["name"]] if self.text else rows
        if self.order in _ORDERS:
            found = sorted(found, key=_ORDERS[self.order])
        return found[self.page * ROWS :][:ROWS], len(found)


class Watch:
    """The newest answer of the daemon, its history, and those who wait for the next."""

    def __init__(self, client: AsyncClient) -> None:
        self.history = History()
        self.rows: list[Fields] | None = None
        """The queues in the newest answer; None before the first."""
        self.status: Fields = {}
        self.trouble: str | None = None
        """Why the daemon does not answer, or None while it does."""
        self.number = 0
        """Counts the answers."""
        self.ended = False
        """Whether nobody may wait any longer."""
        self._client = client
        self._views: list[View] = []
        self._wanted = asyncio.Event()
        self._changed = asyncio.Event()

    @property
    def views(self) -> int:
        """How many look."""
        return len(self._views)

    @contextmanager
    def looking(self, view: View) -> Iterator[None]:
        """Ask the daemon while somebody looks."""
        self._views.append(view)
        self._wanted.set()
        try:
            yield
        finally:
            self._views.remove(view)
            if not self._views:
                self._wanted.clear()

    async def next(self, after: int, seconds: float) -> bool:
        """Wait for an answer behind the number ``after``. Return False if there was none within ``seconds``."""
        if self.number == after:
            try:
                async with asyncio.timeout(seconds):
                    await self._changed.wait()
            except TimeoutError:
                return False
        return True

    async def run(self) -> None:
        """Ask without end."""
        while True:
            await self._wanted.wait()
            began = time.monotonic()
            answered = await self._ask()
            took = time.monotonic() - began
            await asyncio.sleep(max(PAUSE, SHARE * took) if answered else AGAIN)

    async def queues(self) -> list[Fields]:
        """Return the queues of the newest answer, or ask for one. Raises what the daemon answers."""
        return await self._client.queues() if self.rows is None else self.rows

    def end(self) -> None:
        """Let all who wait end."""
        self.ended = True
        self._tell()

    def _tell(self) -> None:
        self.number += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def _ask(self) -> bool:
        try:
            status = await self._client.status()
            rows = await self._client.queues()
        except EoqError as error:
            self.trouble = str(error)
        else:
            self.trouble = None
            self.status = {name: status.get(name) for name in _STATUS}
            self.rows = rows
            looked_at = {row["name"] for view in self._views for row in view.select(rows)[0]}
            self.history.add(rows, looked_at)
        self._tell()
        return self.trouble is None
