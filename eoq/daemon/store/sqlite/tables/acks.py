"""Acks: deliveries are settled with their results, and messages leave with them, in one transaction (G4, G7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

from msgspec.structs import replace

from ....records import DeliveryLost, DeliveryRef, NewMessage, Stored
from ....store.commands import Settle
from ..database import MANY, Database
from .contents import Contents
from .groups import Groups
from .messages import at_seqs
from .puts import Puts
from .queues import Queues

Acked: TypeAlias = Sequence[tuple[DeliveryRef, "bytes | None"]]
"""Deliveries with their results."""

_ACK: Final = """
    update message
    set state = 'done', settled_at = acked.now, result = acked.result, body = null, headers = null, error = null
    from (
      select column1 as seq, column2 as fence, column3 as result, column4 as now
      from (values {rows})
    ) as acked
    where message.seq = acked.seq and message.fence = acked.fence and message.state = 'leased'
    """
_ACK_ONE: Final = """
    update message
    set state = 'done', settled_at = ?4, result = ?3, body = null, headers = null, error = null
    where seq = ?1 and fence = ?2 and state = 'leased'
    """
_ACK_ALIKE: Final = """
    update message
    set state = 'done', settled_at = ?, result = ?, body = null, headers = null, error = null
    where {seqs} and fence = ? and state = 'leased'
    """
_ACK_MANY: Final = _ACK.format(rows=", ".join(["(?, ?, ?, ?)"] * MANY))


class Acks:
    """The acks of deliveries."""

    def __init__(self, database: Database, queues: Queues, groups: Groups, contents: Contents, puts: Puts) -> None:
        self._database = database
        self._queues = queues
        self._groups = groups
        self._contents = contents
        self._puts = puts

    def settle(self, command: Settle) -> Stored:
        """See `Settle`."""
        now, acks, messages = command.now, command.acks, command.messages
        if not messages:
            if len(acks) == 1:
                self._ack_each(now, acks)
            elif not self._ack_together(now, acks):
                with self._database.savepoint():
                    self._ack_each(now, acks)
            return Stored([], [])
        with self._database.savepoint():
            repeated = not self._ack_together(now, acks) and self._ack_each(now, acks)
            stored = self._puts.store(now, messages, command.settings)
            if stored.duplicates and repeated:
                duplicates = self._duplicates_at_first(acks[0][0], messages, stored.duplicates)
                stored = replace(stored, duplicates=duplicates)
            return stored

    def _duplicates_at_first(
        self, delivery: DeliveryRef, messages: Sequence[NewMessage], duplicates: Sequence[int]
    ) -> list[int]:
        """Return the duplicates that the first try of a repeated settle reported.

        A message that was stored at the moment of the acks is no duplicate: the first try stored it. If an id occurs
        twice in ``messages``, the second one was a duplicate at the first try, too.
        """
        firsts: dict[tuple[str, str], int] = {}
        for index, message in enumerate(messages):
            firsts.setdefault((message.queue, message.id), index)
        (settled_at,) = self._database.execute(
            "select settled_at from message where seq = ?", (delivery.seq,)
        ).fetchone()
        return [
            index
            for index in duplicates
            if firsts[messages[index].queue, messages[index].id] != index
            or self._database.execute(
                """
                select 1
                from message
                where queue = ? and id = ? and enqueued_at <> ?
                """,
                (self._queues.make(messages[index].queue), messages[index].id, settled_at),
            ).fetchone()
        ]

    def _ack_each(self, now: float, acks: Acked) -> bool:
        """Settle one delivery after the other; return whether some were settled before, by the same delivery.

        If it raises `LeaseLost`, others may be settled already. A caller with several acks has to undo that.
        """
        changed = [
            delivery
            for delivery, result in acks
            if not delivery.ended
            and self._database.execute(_ACK_ONE, (delivery.seq, delivery.number, result, now)).rowcount
        ]
        repeated = len(changed) < len(acks)
        if repeated:
            for delivery, _ in acks:
                require_state(self._database, delivery, "done")
        self._after(now, acks, changed)
        return repeated

    def _ack_together(self, now: float, acks: Acked) -> bool:
        """Settle several leased deliveries with one statement. Where not all are leased, change nothing; return False.

        The savepoint is written out: an exception for a case that is no error would cost more than the acks.
        """
        if len(acks) < 2 or any(delivery.ended for delivery, _ in acks):
            return False
        self._database.execute("savepoint acks")
        if self._update([(delivery.seq, delivery.number, result, now) for delivery, result in acks]) < len(acks):
            self._database.execute("rollback to acks")
            self._database.execute("release acks")
            return False
        self._database.execute("release acks")
        self._after(now, acks, [delivery for delivery, _ in acks])
        return True

    def _update(self, rows: Sequence[tuple[int, int, bytes | None, float]]) -> int:
        """Settle the rows (seq, delivery number, result, now) that are leased; return how many were."""
        _, number, result, now = rows[0]
        if any(row[1] != number or row[2] != result for row in rows):
            return self._database.execute_rows(_ACK_ONE, _ACK_MANY, rows)
        # Usually it is the first delivery of each message, without a result. This statement takes two thirds of the
        # time.
        seqs, values = at_seqs([row[0] for row in rows])
        return self._database.execute(_ACK_ALIKE.format(seqs=seqs), (now, result, *values, number)).rowcount

    def _after(self, now: float, acks: Acked, changed: Sequence[DeliveryRef]) -> None:
        """Take the ``changed`` messages out of the counts, and unblock the groups of all."""
        if self._contents:
            for delivery in changed:
                self._contents.add(self._queues.make(delivery.queue), -1, -delivery.size)
        for delivery, _ in acks:
            if delivery.group is not None:
                self._groups.unblock(now, self._queues.make(delivery.queue), delivery.group)


def require_state(database: Database, delivery: DeliveryRef, state: str) -> None:
    """Raise `LeaseLost` unless the message is in ``state`` because of this very delivery."""
    found = database.execute(
        """
        select state, fence
        from message
        where seq = ?
        """,
        (delivery.seq,),
    ).fetchone()
    if found != (state, delivery.number):
        raise DeliveryLost(delivery)
