"""The table ``message``: what several parts need of it.

These are the failed deliveries, and the end of a message that no consumer has settled.

A body of any size stands in the row of its message. A table of their own for bodies makes a put of less than 10 kB up
to a half slower, and claim and ack of larger ones between a tenth quicker and a tenth slower (``python -m
tests.bench.apart``). Claim and ack are a sixth of what a client and the daemon need to receive and ack 100 kB
(``python -m tests.bench.bodies``), so it would save 2 % at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

from ....config.settings import SettingsOf
from ....records import End
from ..database import Database
from ..deliveries.settled import Settled
from ..totals import Totals
from .contents import Contents
from .groups import Groups
from .queues import Queues

GivenUp: TypeAlias = Literal["expired", "dropped", "cancelled"]
"""The outcomes of messages that no consumer has settled."""
CANCELLED: Final = "it was cancelled"
"""The reason that is kept with a cancelled message."""
KEPT_FAILURES: Final = 100
"""How many failed deliveries of one message are kept, the newest."""


class Ending(NamedTuple):
    """A message that is about to end, with what its end needs."""

    seq: int
    queue_id: int
    id: str
    group: str | None
    size: int
    state: str


ENDING_COLUMNS: Final = 'seq, queue, id, "group", length(body), state'


class Messages:
    """All messages."""

    def __init__(
        self,
        database: Database,
        queues: Queues,
        groups: Groups,
        contents: Contents,
        settled: Settled,
        totals: Totals,
    ) -> None:
        self._database = database
        self._queues = queues
        self._groups = groups
        self._contents = contents
        self._settled = settled
        self._totals = totals

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

    def discard(self, now: float, message: Ending, outcome: GivenUp, error: str) -> End:
        """Settle a message that is not leased and that no consumer has settled."""
        reason = self._settled.give_up(now, message.seq, outcome, error)
        return self.ended(now, message, outcome, reason)

    def ended(self, now: float, message: Ending, outcome: GivenUp | Literal["dead"], error: str | None) -> End:
        """Count the end of a message, take it out of the contents, unblock its group, and return its `End`."""
        self._totals.add(message.queue_id, outcome, 1)
        if message.state != "dead":
            self._contents.add(message.queue_id, -1, -message.size)
            if message.group is not None:
                self._groups.unblock(now, message.queue_id, message.group)
        return End(self._queues.name(message.queue_id), message.id, outcome, error)
