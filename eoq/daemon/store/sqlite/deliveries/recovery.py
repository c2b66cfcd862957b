"""Recovery: when a daemon starts, the deliveries of the last one end."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ....config.settings import SettingsOf
from ..database import Database
from ..tables.contents import Contents
from ..tables.groups import Groups
from ..tables.messages import CANCELLED, ENDING_COLUMNS, Ending, Messages
from ..tables.queues import Queues
from ..totals import Totals
from .lives import Lives


class Recovery:
    """The end of what another daemon had delivered."""

    def __init__(
        self,
        database: Database,
        queues: Queues,
        messages: Messages,
        groups: Groups,
        contents: Contents,
        lives: Lives,
        totals: Totals,
    ) -> None:
        self._database = database
        self._queues = queues
        self._messages = messages
        self._groups = groups
        self._contents = contents
        self._lives = lives
        self._totals = totals

    def recover(self, now: float, settings: SettingsOf, clean: bool) -> None:
        """End the leases of the last daemon: their messages are delivered again (G3), or dead.

        Leases do not outlive their daemon. Where it did not stop in a ``clean`` way, the deliveries count that were
        being handled, and a message that has no attempt left is dead.
        """
        self._end_deliveries(now, settings, clean)
        rows = self._database.execute(
            f"select {ENDING_COLUMNS} from message where cancelled_at > 0"  # noqa: S608 # a constant
        ).fetchall()
        for row in rows:  # they were leased
            self._messages.discard(now, Ending._make(row), "cancelled", CANCELLED)

    def _end_deliveries(self, now: float, settings: SettingsOf, clean: bool) -> None:
        # This write fails now if the file cannot be written, even if there is nothing to end.
        self._database.execute("update queue set paused = paused where false")
        if self._database.execute("select 1 from delivery limit 1").fetchone() is None:
            return
        rows = self._database.execute(
            """
            select delivery.number, delivery.handles, message.queue, message.seq
            from delivery
            cross join json_each(delivery.seqs) as delivered
            cross join message on message.seq = delivered.value
            where message.state = 'ready'
            order by delivery.number, delivered.key
            """
        ).fetchall()
        self._database.execute(
            """
            update message
            set
              deliveries = deliveries + 1, delivered_at = ended.delivered_at, consumer = ended.consumer,
              life = ?, delivery = ended.number
            from (
              select delivered.value as seq, delivery.number, delivery.delivered_at, delivery.consumer
              from delivery, json_each(delivery.seqs) as delivered
            ) as ended
            where message.seq = ended.seq and +message.state = 'ready'
            """,
            (self._lives.before,),
        )
        self._database.execute("delete from delivery")
        if not clean:
            for queue_id, seqs in _handled(rows).items():
                max_attempts = settings(self._queues.name(queue_id)).max_attempts
                self._count_attempts(now, queue_id, seqs, max_attempts)
        groups = self._database.execute(
            """
            select queue, "group"
            from message
            where seq in (select value from json_each(?)) and "group" is not null
            """,
            (str([seq for *_, seq in rows]),),
        ).fetchall()
        for queue_id, group in sorted(set(groups)):
            self._groups.line_up(now, queue_id, group)

    def _count_attempts(self, now: float, queue_id: int, seqs: list[int], max_attempts: int) -> None:
        error = "the daemon ended before the message was settled"
        among = json.dumps(seqs)
        dead = self._database.execute(
            """
            update message
            set
              state = iif(attempts + 1 >= ?, 'dead', state),
              attempts = attempts + 1,
              failed_at = ?,
              error = ?
            where seq in (select value from json_each(?))
            returning iif(state = 'dead', length(body), null)
            """,
            (max_attempts, now, error, among),
        ).fetchall()
        self._database.execute(
            """
            insert or replace into failure (seq, delivery, delivered_at, consumer, failed_at, error)
            select seq, deliveries, delivered_at, consumer, ?, ?
            from message
            where seq in (select value from json_each(?))
            """,
            (now, error, among),
        )
        sizes = [size for (size,) in dead if size is not None]
        self._contents.add(queue_id, -len(sizes), -sum(sizes))
        self._totals.add(queue_id, "dead", len(sizes))
        self._totals.add(queue_id, "retried", len(dead) - len(sizes))


def _handled(rows: Sequence[tuple[int, int | None, int, int]]) -> dict[int, list[int]]:
    """Return by queue the messages that were being handled: the first of each delivery, as many as it handles at once.

    Each row is a message that was delivered and not settled: the delivery's number and ``handles``, queue and seq.
    """
    handled: dict[int, list[int]] = {}
    counts: dict[int, int] = {}
    for number, handles, queue_id, seq in rows:
        counts[number] = counts.get(number, 0) + 1
        if handles is None or counts[number] <= handles:
            handled.setdefault(queue_id, []).append(seq)
    return handled
