"""Acks: deliveries are settled with their results, and messages leave with them, in one transaction (G4, G7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

from msgspec.structs import replace

from ....records import DeliveryLost, DeliveryRef, NewMessage, Stored
from ....store.commands import Settle
from ..database import MANY, Database
from ..tables.contents import Contents
from ..tables.groups import Groups
from ..tables.messages import at_seqs
from ..tables.puts import Puts
from ..tables.queues import Queues
from .leased import Leased
from .lives import Lives

Acked: TypeAlias = Sequence[tuple[DeliveryRef, "bytes | None"]]
"""Deliveries with their results."""

_ACK: Final = """
    update message
    set
      state = 'done', settled_at = acked.now, result = acked.result, body = null, headers = null, error = null,
      attempts = attempts + 1, deliveries = deliveries + 1, life = acked.life, delivery = acked.delivery
    from (
      select column1 as seq, column2 as delivery, column3 as result, column4 as now, column5 as life
      from (values {rows})
    ) as acked
    where message.seq = acked.seq
    """
_ACK_ONE: Final = _ACK.format(rows="(?, ?, ?, ?, ?)")
_ACK_MANY: Final = _ACK.format(rows=", ".join(["(?, ?, ?, ?, ?)"] * MANY))
_ACK_ALIKE: Final = """
    update message
    set
      state = 'done', settled_at = ?, result = ?, body = null, headers = null, error = null,
      attempts = attempts + 1, deliveries = deliveries + 1, life = ?, delivery = ?
    where {seqs}
    """


class Acks:
    """The acks of deliveries."""

    def __init__(
        self,
        database: Database,
        queues: Queues,
        groups: Groups,
        contents: Contents,
        leased: Leased,
        lives: Lives,
        puts: Puts,
    ) -> None:
        self._database = database
        self._queues = queues
        self._groups = groups
        self._contents = contents
        self._leased = leased
        self._lives = lives
        self._puts = puts

    def settle(self, command: Settle) -> Stored:
        """See `Settle`."""
        now, acks, messages = command.now, command.acks, command.messages
        live, repeated = self._sorted(acks)
        if not repeated and not messages:
            self._ack(now, live)
            return Stored([], [])
        with self._database.savepoint():
            self._ack(now, live)
            for delivery in repeated:
                require_end(self._database, self._lives, delivery, "done")
            if not messages:
                return Stored([], [])
            stored = self._puts.store(now, messages, command.settings)
            if stored.duplicates and repeated:
                duplicates = self._duplicates_at_first(acks[0][0], messages, stored.duplicates)
                stored = replace(stored, duplicates=duplicates)
            return stored

    def _sorted(self, acks: Acked) -> tuple[Acked, list[DeliveryRef]]:
        """Return the acks of leased messages, and the other deliveries: they may only repeat what they did before."""
        live: dict[int, tuple[DeliveryRef, bytes | None]] = {}
        repeated = []
        get = self._leased.get
        for ack in acks:
            delivery = ack[0]
            seq = delivery.seq
            leased = None if delivery.ended or seq in live else get(seq)
            if leased is not None and leased.number == delivery.number:
                live[seq] = ack
            else:
                repeated.append(delivery)
        return list(live.values()), repeated

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

    def _ack(self, now: float, acks: Acked) -> None:
        """Settle leased messages."""
        if not acks:
            return
        self._leased.end([delivery.seq for delivery, _ in acks])
        life = self._lives.number
        first, result = acks[0]
        if any(one.number != first.number or more != result for one, more in acks):
            rows = [(one.seq, one.number, result, now, life) for one, result in acks]
            self._database.execute_rows(_ACK_ONE, _ACK_MANY, rows)
        else:
            # Usually they were delivered together, and have no result. This statement takes two thirds of the time.
            seqs, values = at_seqs([one.seq for one, _ in acks])
            self._database.execute(_ACK_ALIKE.format(seqs=seqs), (now, result, life, first.number, *values))
        if self._contents:
            for delivery, _ in acks:
                self._contents.add(self._queues.make(delivery.queue), -1, -delivery.size)
        for delivery, _ in acks:
            if delivery.group is not None:
                self._groups.unblock(now, self._queues.make(delivery.queue), delivery.group)


def require_end(database: Database, lives: Lives, delivery: DeliveryRef, state: str) -> None:
    """Raise `DeliveryLost` unless this very delivery has brought its message to ``state``."""
    found = database.execute(
        """
        select state, life, delivery
        from message
        where seq = ?
        """,
        (delivery.seq,),
    ).fetchone()
    if found is None or found != (state, lives.find(delivery.life), delivery.number):
        raise DeliveryLost(delivery)
