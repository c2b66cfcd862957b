"""The queues in the daemon's file: their names, whether they are paused, and what is in those that have a limit."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final, NamedTuple

from .....errors import NotFound, QueueFull
from ....config.settings import SettingsOf, defaults
from ..database import DatabaseConnection, File

MAX_QUEUES: Final = 100_000

_CONTENT: Final = """
    select count(*), coalesce(sum(length(body)), 0)
    from message
    where seq in (
      select seq from message where queue = ?1 and state = 'ready'
      union all
      select seq from message where queue = ?1 and state in ('delayed', 'blocked')
      union all
      select seq from message where queue = ?1 and state = 'leased'
    )
    """


class Tally(NamedTuple):
    """Messages, and the bytes of their bodies."""

    messages: int
    size: int


class QueueTable(File):
    """The verbs of the table ``queue``, and what the others need of it; see ``file.py`` for what a verb is."""

    def __init__(
        self, connection: DatabaseConnection, database: sqlite3.Connection, path: Path, quick_commit: float
    ) -> None:
        super().__init__(connection, database, path, quick_commit)
        self._settings: SettingsOf = defaults
        self._queues: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._paused: set[int] | None = None
        self._contents: dict[int, Tally] = {}
        """What is in the queues that have a limit, by their numbers."""
        self._contents_before: list[tuple[int, Tally | None]] = []
        """What was in them, as they changed in this transaction."""

    def _mark(self) -> int:
        return len(self._contents_before)

    def _undone(self, mark: int) -> None:
        self._queues.clear()
        self._names.clear()
        self._paused = None
        while len(self._contents_before) > mark:
            number, content = self._contents_before.pop()
            if content is None:
                del self._contents[number]
            else:
                self._contents[number] = content

    def _kept(self) -> None:
        self._contents_before.clear()

    # ── names ───────────────────────────────────────────────────────────────────────────────────────────

    def _queue_number(self, name: str) -> int:
        number = self._queues.get(name) or self._find_queue(name)
        if number is not None:
            return number
        (count,) = self._database.execute("select count(*) from queue").fetchone()
        if count >= MAX_QUEUES:
            raise QueueFull(f"there are {MAX_QUEUES:,} queues, and no more can be made; use fewer, with groups")
        (number,) = self._database.execute("insert into queue (name) values (?) returning number", (name,)).fetchone()
        return self._remember(name, number)

    def _find_queue(self, name: str) -> int | None:
        row = self._database.execute("select number from queue where name = ?", (name,)).fetchone()
        return None if row is None else self._remember(name, row[0])

    def _known_queue(self, name: str) -> int:
        number = self._queues.get(name) or self._find_queue(name)
        if number is None:
            raise NotFound(f"there is no queue {name!r}; `eoq queues` lists them")
        return number

    def _queue_name(self, number: int) -> str:
        name = self._names.get(number)
        if name is None:
            (name,) = self._database.execute("select name from queue where number = ?", (number,)).fetchone()
            self._remember(name, number)
        return name

    def _remember(self, name: str, number: int) -> int:
        self._queues[name] = number
        self._names[number] = name
        return number

    # ── pausing ─────────────────────────────────────────────────────────────────────────────────────────

    def pause(self, queue: str, paused: bool) -> bool:
        """Backoff back all deliveries of a queue, or no longer; also after a restart. Returns whether this is new.

        A queue that is not there yet is made when it is paused; `NotFound` where it was to be resumed.
        """
        number = self._queue_number(queue) if paused else self._known_queue(queue)
        changed = self._database.execute(
            """
            update queue
            set paused = ?
            where number = ? and paused <> ?
            """,
            (paused, number, paused),
        ).rowcount
        self._paused = None
        return changed > 0

    def _is_paused(self, number: int) -> bool:
        if self._paused is None:
            self._paused = {number for (number,) in self._database.execute("select number from queue where paused")}
        return number in self._paused

    # ── what is in them ─────────────────────────────────────────────────────────────────────────────────

    def _count(self, number: int, messages: int, size: int) -> None:
        """So many more messages wait or are leased in a queue, or fewer, with so many bytes."""
        content = self._contents.get(number)
        if content is not None:
            self._contents_before.append((number, content))
            self._contents[number] = Tally(content.messages + messages, content.size + size)

    def _content(self, number: int) -> Tally:
        """What waits or is leased in a queue. From its first call on, every change is counted."""
        content = self._contents.get(number)
        if content is None:
            row = self._database.execute(_CONTENT, (number,)).fetchone()
            self._contents_before.append((number, None))
            content = self._contents[number] = Tally(*row)
        return content
