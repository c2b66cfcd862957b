"""The table ``message``: what several parts need of it.

These are the seqs, the failed deliveries, and the end of a message that no consumer has settled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final, NamedTuple

from ....config.settings import SettingsOf
from ....records import End
from ..database import Database
from .contents import Contents
from .groups import Groups
from .queues import Queues

KEPT_FAILURES: Final = 100
"""How many failed deliveries of one message are kept, the newest."""

_NEXT_SEQ: Final = """
    select max(
      (select coalesce(max(seq), 0) + 1 from message),
      (select coalesce(max(value), 1) from counter where name = 'next_seq')
    )
    """


class Ending(NamedTuple):
    """A message that is about to end, with what its end needs."""

    seq: int
    queue_id: int
    id: str
    group: str | None
    size: int
    state: str


ENDING_COLUMNS: Final = 'seq, queue, id, "group", length(body), state'


def at_seqs(seqs: list[int]) -> tuple[str, tuple[object, ...]]:
    """Return a condition for exactly the messages with these seqs, and the values it binds.

    Usually the seqs follow one another. SQLite changes the rows of a range in one pass, but it first looks up the rows
    of a list.
    """
    if seqs and seqs == list(range(seqs[0], seqs[0] + len(seqs))):
        return "seq between ? and ?", (seqs[0], seqs[-1])
    return "seq in (select value from json_each(?))", (json.dumps(seqs),)


class Messages:
    """All messages."""

    def __init__(self, database: Database, queues: Queues, groups: Groups, contents: Contents) -> None:
        self._database = database
        self._queues = queues
        self._groups = groups
        self._contents = contents

    def next_seq(self) -> int:
        """Return a seq that is above that of every stored message, and not above that of any later message.

        This also holds after a restart. It may be lower than the seq of the next message: duplicates use up some seqs,
        which are used again after a restart.
        """
        (seq,) = self._database.execute(_NEXT_SEQ).fetchone()
        return int(seq)

    def keep_next_seq(self, seq: int) -> None:
        """Store that no later message gets a seq below ``seq``, even if the rows with the highest seqs are deleted."""
        self._database.execute(
            """
            insert into counter (name, value)
            values ('next_seq', ?)
            on conflict (name) do update set value = max(value, excluded.value)
            """,
            (seq,),
        )

    def forget_settled(self, queue_id: int, settled_before: float, limit: int) -> int:
        """Delete up to ``limit`` settled records of a queue, those settled longest ago. Return how many."""
        rows = self._database.execute(
            """
            select seq
            from message
            where queue = ? and settled_at < ?
            order by settled_at
            limit ?
            """,
            (queue_id, settled_before, limit),
        ).fetchall()
        if rows:
            self.keep_next_seq(self.next_seq())
            seqs, values = at_seqs([seq for (seq,) in rows])
            self._database.execute(f"delete from failure where {seqs}", values)  # noqa: S608 # one of two constants
            self._database.execute(f"delete from message where {seqs}", values)  # noqa: S608 # one of two constants
        return len(rows)

    # ── failures ────────────────────────────────────────────────────────────────────────────────────────

    def record_failure(self, now: float, seq: int, error: str | None) -> None:
        """Store the newest delivery of a message as failed, for `eoq show`."""
        self._database.execute(
            """
            insert or replace into failure (seq, delivery, delivered_at, consumer, failed_at, error)
            select seq, deliveries, delivered_at, consumer, ?, ?
            from message
            where seq = ?
            """,
            (now, error, seq),
        )
        self._database.execute(
            """
            delete from failure
            where seq = ?1
              and delivery <= (select deliveries from message where seq = ?1) - ?2
            """,
            (seq, KEPT_FAILURES),
        )

    # ── ends ────────────────────────────────────────────────────────────────────────────────────────────

    def expire(self, now: float, messages: Sequence[Ending], settings: SettingsOf) -> list[End]:
        """End messages whose time to live has passed: settle them, or make them dead letters, as their queue is set."""
        ended = []
        for message in messages:
            if settings(self._queues.name(message.queue_id)).on_expiry == "dead":
                ended.append(self._make_dead(now, message, "its time to live passed before it was settled"))
            else:
                ended.append(self.discard(now, message, "expired", "its time to live has passed"))
        return ended

    def _make_dead(self, now: float, message: Ending, error: str) -> End:
        """Make a message that is not leased a dead letter."""
        self._database.execute(
            """
            update message
            set state = 'dead', failed_at = ?, error = ?
            where seq = ?
            """,
            (now, error, message.seq),
        )
        return self.ended(now, message, "dead", error)

    def discard(self, now: float, message: Ending, outcome: str, error: str | None) -> End:
        """Settle a message that is not leased and that no consumer has processed."""
        self._database.execute(
            """
            update message
            set state = ?, settled_at = ?, error = ?, body = null, headers = null
            where seq = ?
            """,
            (outcome, now, error, message.seq),
        )
        return self.ended(now, message, outcome, error)

    def ended(self, now: float, message: Ending, outcome: str, error: str | None) -> End:
        """Take a message whose row says that it ended out of the counts, unblock its group, and return its `End`."""
        if message.state != "dead":
            self._contents.add(message.queue_id, -1, -message.size)
            if message.group is not None:
                self._groups.unblock(now, message.queue_id, message.group)
        return End(self._queues.name(message.queue_id), message.id, outcome, error)
