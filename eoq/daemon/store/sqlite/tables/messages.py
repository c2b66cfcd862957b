"""What all verbs about messages share: their places, their groups (G8), and how one ends that nobody settles."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ....records import End
from ..database import DatabaseConnection
from .queues import QueueTable

KEPT_FAILURES: Final = 100
"""Failed deliveries of one message that are remembered, the newest."""

_END: Final = """
    select max(
      (select coalesce(max(seq), 0) + 1 from message),
      (select coalesce(max(value), 1) from counter where name = 'next_seq')
    )
    """


class Ending(NamedTuple):
    """A message that is about to end: its place, its queue's number, and what else has to be known of it."""

    seq: int
    queue: int
    id: str
    group: str | None
    size: int
    state: str


ENDING_COLUMNS: Final = 'seq, queue, id, "group", length(body), state'


def at_places(seqs: list[int]) -> tuple[str, tuple[object, ...]]:
    """A condition that holds for the messages at ``seqs`` and no others, and the values it binds.

    Mostly they follow one another. SQLite changes the rows of a range in one pass; those of a list it looks up first.
    """
    if seqs and seqs == list(range(seqs[0], seqs[0] + len(seqs))):
        return "seq between ? and ?", (seqs[0], seqs[-1])
    return "seq in (select value from json_each(?))", (json.dumps(seqs),)


class MessageTable(QueueTable):
    """The base of the verbs about messages."""

    def __init__(
        self, connection: DatabaseConnection, database: sqlite3.Connection, path: Path, quick_commit: float
    ) -> None:
        super().__init__(connection, database, path, quick_commit)
        self._next_seq = 1

    def _end(self) -> int:
        """A place that every message yet to come lies at or above, also one that is stored after a restart.

        Not the next seq: some of those are given to duplicates, and used again after a restart.
        """
        (end,) = self._database.execute(_END).fetchone()
        return int(end)

    # ── groups ──────────────────────────────────────────────────────────────────────────────────────────

    def _block_behind_their_group(self, first: int) -> None:
        """Of each group only the first message that is not settled may be delivered (G8)."""
        self._database.execute(
            """
            update message
            set state = 'blocked'
            where seq >= ?
              and "group" is not null
              and exists (
                select 1
                from message as earlier
                where earlier.queue = message.queue
                  and earlier."group" = message."group"
                  and earlier.state in ('ready', 'leased', 'delayed', 'blocked')
                  and earlier.seq < message.seq
              )
            """,
            (first,),
        )

    def _unblock(self, now: float, number: int, group: str) -> None:
        """The first of a group may be delivered, unless another of it can be or is."""
        self._database.execute(
            """
            update message
            set
              state = iif(due_at > :now, 'delayed', 'ready'),
              due_at = iif(due_at > :now, due_at, null)
            where seq = (
              select seq
              from message
              where queue = :queue and "group" = :group and state = 'blocked'
              order by seq
              limit 1
            )
            and not exists (
              select 1
              from message as ahead
              where ahead.queue = :queue and ahead."group" = :group
                and ahead.state in ('ready', 'leased', 'delayed')
            )
            """,
            {"now": now, "queue": number, "group": group},
        )

    def _line_up(self, now: float, number: int, group: str) -> None:
        """One of a group has come back, perhaps before others: the first in the order of storing is next."""
        self._database.execute(
            """
            update message
            set state = 'blocked'
            where queue = ? and "group" = ? and state in ('ready', 'delayed')
            """,
            (number, group),
        )
        self._unblock(now, number, group)

    # ── failures ────────────────────────────────────────────────────────────────────────────────────────

    def _note_failure(self, now: float, seq: int, fence: int, error: str | None) -> None:
        """Remembers a delivery that failed, for people."""
        self._database.execute(
            """
            insert or replace into failure (seq, fence, delivered_at, consumer, failed_at, error)
            select seq, fence, delivered_at, consumer, ?, ?
            from message
            where seq = ?
            """,
            (now, error, seq),
        )
        if fence > KEPT_FAILURES:
            self._database.execute("delete from failure where seq = ? and fence <= ?", (seq, fence - KEPT_FAILURES))

    # ── ends ────────────────────────────────────────────────────────────────────────────────────────────

    def _expire(self, now: float, messages: Sequence[Ending]) -> list[End]:
        """The time of these is over: each is settled, or dead where its queue's settings say so."""
        ended = []
        for message in messages:
            queue = self._queue_name(message.queue)
            if self._settings(queue).on_expiry == "dead":
                ended.append(self._bury(now, message, "its time to live was over before it was settled"))
            else:
                ended.append(self._discard(now, message, "expired", "its time to live was over"))
        return ended

    def _bury(self, now: float, message: Ending, error: str) -> End:
        """Makes a message that is not leased a dead letter."""
        self._database.execute(
            """
            update message
            set state = 'dead', failed_at = ?, error = ?
            where seq = ?
            """,
            (now, error, message.seq),
        )
        return self._left(now, message, "dead", error)

    def _discard(self, now: float, message: Ending, outcome: str, error: str | None) -> End:
        """Settles a message that is not leased, without anybody having processed it."""
        self._database.execute(
            """
            update message
            set state = ?, settled_at = ?, error = ?, body = null, headers = null
            where seq = ?
            """,
            (outcome, now, error, message.seq),
        )
        return self._left(now, message, outcome, error)

    def _left(self, now: float, message: Ending, outcome: str, error: str | None) -> End:
        if message.state != "dead":
            self._count(message.queue, -1, -message.size)
            if message.group is not None:
                self._unblock(now, message.queue, message.group)
        return End(self._queue_name(message.queue), message.id, outcome, error)
