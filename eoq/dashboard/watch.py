"""The live view: one task asks the daemon for its queues, for everybody who looks, and only while somebody does.

It asks for the sums of all queues and for the rows that somebody looks at; where there are few queues, for all of them.
Its pauses grow with the time an answer takes, so that the daemon spends a small part of its time on the dashboard,
however many queues it has. A daemon that goes away is reported, and asked again until it is back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

from ..client.aio import AsyncClient
from ..errors import EoqError
from ..protocol.codec import Fields
from .history import History

Order: TypeAlias = Literal["name", "ready", "dead", "sent", "done", "age"]

PAUSE: Final = 2.0
"""Seconds between two questions, at least."""
SHARE: Final = 10.0
"""A pause is at least so many times as long as the answer before it took."""
AGAIN: Final = 1.0
"""Seconds until a daemon that did not answer is asked again."""
ALL_UP_TO: Final = 500
"""Up to so many queues, all have samples. Of more, only those that somebody looks at."""
ROWS: Final = 25
"""Queues on one page."""
_STATUS: Final = ("version", "pid", "now", "started_at", "database", "connections", "storage_errors", "config_error")


@dataclass(frozen=True, slots=True)
class View:
    """What one browser looks at: a page of the queues whose names have a text, or one queue."""

    queue: str | None = None
    text: str = ""
    order: Order = "name"
    page: int = 0


class Rows(NamedTuple):
    """The answer to a view: its queues, and how many there are on all of its pages."""

    queues: list[Fields]
    matching: int


class Watch:
    """The newest answer of the daemon, its history, and those who wait for the next."""

    def __init__(self, client: AsyncClient) -> None:
        self.history = History()
        self.sums: Fields = {}
        """The sums of all queues."""
        self.status: Fields = {}
        self.trouble: str | None = None
        """Why the daemon does not answer, or None while it does."""
        self.number = 0
        """Counts the answers."""
        self.ended = False
        """Whether nobody may wait any longer."""
        self._client = client
        self._rows: dict[View, Rows] = {}
        self._few = True
        """Whether there are so few queues that each has a history, also if nobody looks at it."""
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

    async def rows(self, view: View) -> Rows:
        """Return what the newest answer has for a view, or ask for it where the view is new."""
        if view not in self._rows:
            if self.trouble is not None:
                return Rows([], 0)
            try:
                self._rows[view] = await self._ask_for(view)
            except EoqError:
                return Rows([], 0)  # the next answer says why
        return self._rows[view]

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
            rows = {view: await self._ask_for(view) for view in set(self._views)}
            some = await self._client.overview("name", limit=ALL_UP_TO if self._few else 1)
        except EoqError as error:
            self.trouble = str(error)
        else:
            self.trouble = None
            self.status = {name: status.get(name) for name in _STATUS}
            self.sums, self._rows, self._few = some["sums"], rows, some["count"] <= ALL_UP_TO
            looked_at = [row for found in rows.values() for row in found.queues]
            self.history.add([*some["queues"], *looked_at] if self._few else looked_at, self.sums)
        self._tell()
        return self.trouble is None

    async def _ask_for(self, view: View) -> Rows:
        if view.queue is not None:
            found = await self._client.queues(prefix=view.queue, limit=1)
            rows = [row for row in found if row["name"] == view.queue]
            return Rows(rows, len(rows))
        answer = await self._client.overview(view.order, contains=view.text, skip=view.page * ROWS, limit=ROWS)
        return Rows(answer["queues"], answer["matching"])
